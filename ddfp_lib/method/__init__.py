"""The paper: a density of features, and steps down that density."""
