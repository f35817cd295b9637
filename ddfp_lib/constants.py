"""The two label values that are not classes."""

IGNORE_INDEX = 255
"""Mask value of a pixel that counts nowhere: not in a loss, not in a score."""

UNLABELED = -1
"""Density label of a feature whose class is unknown: its likelihood is the marginal one."""
