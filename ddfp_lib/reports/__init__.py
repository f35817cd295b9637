"""The pages that are generated from kept results."""
