"""The format of a run folder: everything that training writes and others read."""
