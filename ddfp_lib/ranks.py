"""What the processes of one training run exchange: sums, gradients and errors.

Every rank holds the whole network and takes its share of each batch. Losses are sums over the
rank's pixels divided by counts over all ranks, so that gradients *summed* over ranks are those of
one process with the whole batch. Outside of a process group one process is a group of its own: the
functions here return what they are given. :mod:`ddfp_lib.training.distributed` starts processes.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddfp_lib.errors import UserError


def rank() -> int:
    """Return the number of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def ranks_here() -> int:
    """Return how many of these processes run on this machine and share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


@contextmanager
def _connection() -> Iterator[None]:
    """Turn the loss of another rank, a plain RuntimeError of gloo, into a ConnectionError."""
    try:
        yield
    except RuntimeError as error:
        # these two have other causes
        if isinstance(error, torch.OutOfMemoryError) or "DataLoader worker" in str(error):
            raise
        raise ConnectionError(
            f"rank {os.environ.get('RANK')} lost another process of its group ("
            f"{str(error).splitlines()[0]}); start the same command again to continue from the "
            "last checkpoint"
        ) from error


def total(value: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Return the sum of a tensor over all ranks, without a graph; the same bits on each.

    Args:
        value: any shape and dtype, equal on every rank.
        op: another reduction, such as ``MAX``.
    """
    if world_size() == 1:
        return value
    value = value.detach().clone()
    with _connection():
        dist.all_reduce(value, op)
    return value


class _Total(torch.autograd.Function):
    """:func:`total` with a graph: the gradient of each rank's use of the sum reaches every rank."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return total(grad_output)


def differentiable_total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, differentiable on each rank."""
    return _Total.apply(value)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their sums over all ranks, in one message.

    Args:
        parameters: those without a gradient are skipped; they are the same on every rank, since
            the stage of training depends on the step alone.
    """
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    summed = total(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(
        gradients, summed.split([gradient.numel() for gradient in gradients]), strict=True
    ):
        gradient.copy_(part.view_as(gradient))


def first_of_next(batch: Tensor) -> Tensor:
    """Return the first item of the next rank's batch; the last rank gets the first rank's.

    Every rank must call it.

    Args:
        batch: (B, ...), B >= 1, of any dtype; the same shape and dtype on every rank.

    Returns:
        (1, ...), of the same dtype. With one process, its own first item.

    Raises:
        ConnectionError: another rank was lost.
    """
    first = batch[:1].contiguous()
    if world_size() == 1:
        return first
    firsts = [torch.empty_like(first) for _ in range(world_size())]
    with _connection():
        dist.all_gather(firsts, first)
    return firsts[(rank() + 1) % world_size()]


class SharedError(UserError):
    """Bad input that one rank found, raised on all ranks so that none waits for another."""


@contextmanager
def together() -> Iterator[None]:
    """Stop all ranks where one raises a UserError, with its message.

    Every rank enters the block, and ranks do not communicate within it.

    Raises:
        SharedError: a rank raised a UserError; the message is that of the first such rank.
    """
    found: UserError | None = None
    try:
        yield
    except UserError as error:
        found = error
    if world_size() == 1:
        if found:
            raise found
        return
    messages: list[str | None] = [None] * world_size()
    with _connection():
        dist.all_gather_object(messages, None if found is None else str(found))
    message = next((text for text in messages if text is not None), None)
    if message is not None:
        raise SharedError(message) from found
