"""GPU and memory of a run; :mod:`ddfp_lib.runs.commit` finds its commit."""

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
