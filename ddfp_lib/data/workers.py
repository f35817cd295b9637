"""The processes that make batches: their number, and the error message if one is lost."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from ddfp_lib.errors import UserError
from ddfp_lib.machine import usable_cores

Item = TypeVar("Item")

SIGNAL_WAIT = 1.0
"""Seconds in which the signal of a worker's end arrives after its connection broke."""


def default_workers(device: torch.device, world: int = 1) -> int:
    """Return how many workers keep one process fed.

    Beside a GPU, its share of this machine's cores, but at most 8. A CPU is busy training.

    Args:
        device: device of the training.
        world: training processes on this machine.
    """
    if device.type == "cpu":
        return 0
    return max(1, min(8, usable_cores() // world - 1))


class LostWorkerError(UserError):
    """A process that makes batches was killed; the same command may go on."""


def _lost_worker(reason: str) -> LostWorkerError:
    """Return the error of a lost worker, with the way out."""
    return LostWorkerError(
        f"data.workers: {reason} Too little memory, or too little space in /dev/shm? Start again "
        "to continue, with fewer: --set data.workers=2"
    )


@contextmanager
def lost_worker_named() -> Iterator[None]:
    """Report in one line that a worker was killed; for all the time that batches are made.

    PyTorch finds it out by a signal, so its error comes at any line of the training.

    Raises:
        LostWorkerError: a worker was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise _lost_worker(str(error).splitlines()[0].strip()) from error


def checked_batches(batches: Iterable[Item | UserError]) -> Iterator[Item]:
    """Raise what a worker could only hand over.

    A worker that is killed while it hands a batch over breaks the connection before PyTorch's
    signal arrives. The signal is awaited: later it would fall into the report of this error.

    Args:
        batches: batches, or the error that one of them met.

    Raises:
        UserError: the error of a batch: an image or mask cannot be read.
        LostWorkerError: the connection to a worker broke, and no signal told why.
    """
    remaining = iter(batches)
    while True:
        try:
            batch = next(remaining)
        except StopIteration:
            return
        except (ConnectionError, EOFError) as error:
            time.sleep(SIGNAL_WAIT)  # PyTorch's error is raised in here, with the reason
            raise _lost_worker(f"the connection to a worker broke ({error!r}).") from error
        if isinstance(batch, UserError):
            raise batch
        yield batch
