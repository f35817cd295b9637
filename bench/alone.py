"""One measurement, one fresh process: what came before cannot disturb its memory or its time."""

import multiprocessing
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def alone(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function of a module in a process of its own, on one thread; return its answer."""
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.apply(function, arguments)
