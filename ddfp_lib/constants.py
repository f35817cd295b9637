"""Values that modules share: two labels that are not classes, and options of Jupyter kernels."""

IGNORE_INDEX = 255
"""Mask value of a pixel that enters no loss and no score."""

UNLABELED = -1
"""Density label of a feature whose class is unknown: its likelihood is the marginal one."""

QUIET_KERNEL = ["--log-level=CRITICAL"]
"""Arguments of a notebook kernel; without them it warns that its connection is not encrypted."""
