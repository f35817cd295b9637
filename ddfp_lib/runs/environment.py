"""Commit, GPU and memory of a run."""

import subprocess
from pathlib import Path

import torch
from torch.distributed import ReduceOp

from ddfp_lib.machine import peak_resident
from ddfp_lib.ranks import total


def gpu_name(device: torch.device) -> str | None:
    """Return the name of the GPU, ``None`` on a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def peak_memory(device: torch.device) -> float:
    """Return the largest peak memory of the processes since their start, in GiB.

    On a GPU the memory that PyTorch allocated; on a CPU all resident memory, Python included.
    """
    on_gpu = device.type == "cuda"
    held = torch.cuda.max_memory_allocated(device) if on_gpu else peak_resident()
    return round(float(total(torch.tensor(held / 2**30), ReduceOp.MAX)), 2)


def commit() -> str:
    """Return the short hash of the checkout's commit, with ``+`` if files differ from it.

    ``unknown`` if the package is not in a git checkout.
    """

    def git(*words: str) -> str:
        call = ["git", "-C", str(Path(__file__).parents[1]), *words]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=8", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
