"""What modules agree on: two label values that are no classes, and how notebook kernels start."""

IGNORE_INDEX = 255
"""Mask value of a pixel that counts nowhere: not in a loss, not in a score."""

UNLABELED = -1
"""Density label of a feature whose class is unknown: its likelihood is the marginal one."""

QUIET_KERNEL = ["--log-level=CRITICAL"]
"""A kernel's arguments: else it warns that it talks to this machine without encryption."""
