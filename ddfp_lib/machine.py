"""What this machine has, asked so that Linux and macOS both answer."""

import os
import resource
import sys


def usable_cores() -> int:
    """Return how many cores this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS, which ties no process to cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_resident() -> int:
    """Return the most memory that this process has had at a time, in bytes."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held  # Linux counts KiB
