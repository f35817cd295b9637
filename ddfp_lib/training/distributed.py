"""Several processes that train as one: what ranks tell each other, and how they are started.

Every rank holds the whole network and takes its share of each batch. Losses are sums over the
rank's pixels divided by counts over all ranks, so that gradients *summed* over ranks are those of
one process with the whole batch. Outside of a group, one process is a group of its own: the
functions here give back what they are given.
"""

import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddfp_lib.errors import UserError
from ddfp_lib.machine import usable_cores

Result = TypeVar("Result")

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it takes them for lost."""

RESTARTS = 3
"""How often the launcher starts the ranks anew after one was lost."""

GRACE = 5.0
"""Seconds that a rank which lost another leaves it to tell the launcher what it died of."""


def rank() -> int:
    """Return this process's number, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that train together, 1 where this one is alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def ranks_here() -> int:
    """Return how many of these processes share this machine and its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


@contextmanager
def process_group(device: torch.device, timeout: timedelta = TIMEOUT) -> Iterator[torch.device]:
    """Join the group that torchrun's environment describes, and leave it at the end.

    gloo on CPUs, NCCL on GPUs (with gloo for what lies in host memory). Without such an
    environment, or where it names one process, there is no group.

    Args:
        device: ``cpu`` or ``cuda``; on GPUs each rank takes the one of its number on its node.
        timeout: how long to wait for another rank.

    Yields:
        The device of this rank.

    Raises:
        ConnectionError: another rank was lost; the message says how to go on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    with _connection():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timeout
        )
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def _connection() -> Iterator[None]:
    """Name the loss of another rank as what it is; gloo says it with a bare RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        # two errors that come up anywhere, and have names of their own
        if isinstance(error, torch.OutOfMemoryError) or "DataLoader worker" in str(error):
            raise
        raise ConnectionError(
            f"rank {os.environ.get('RANK')} lost another process of its group ("
            f"{str(error).splitlines()[0]}); start the same command again to go on from the last "
            "checkpoint"
        ) from error


def total(value: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Return the sum of a tensor over all ranks, without a graph; the same bits on each.

    Args:
        value: any shape and dtype, the same on every rank.
        op: another reduction, as ``MAX``.
    """
    if world_size() == 1:
        return value
    value = value.detach().clone()
    with _connection():
        dist.all_reduce(value, op)
    return value


class _Total(torch.autograd.Function):
    """:func:`total` with a graph: what every rank made of the sum flows back to every summand."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return total(grad_output)


def differentiable_total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks; gradients find their way back to each rank."""
    return _Total.apply(value)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their sums over all ranks, in one message.

    Args:
        parameters: those without a gradient are passed over; they are the same on every rank,
            since what is switched on depends on the step alone.
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
    """Return the first item of the next rank's batch, of the first rank's after the last.

    Args:
        batch: (B, ...), B >= 1, the same shape on every rank.

    Returns:
        (1, ...). Where there is one process, its own first item.
    """
    first = batch[:1].contiguous()
    if world_size() == 1:
        return first
    firsts = [torch.empty_like(first) for _ in range(world_size())]
    with _connection():
        dist.all_gather(firsts, first)
    return firsts[(rank() + 1) % world_size()]


class SharedError(UserError):
    """Bad input that one rank found, raised on all of them: none waits for another."""


@contextmanager
def together() -> Iterator[None]:
    """Let what one rank finds wrong stop all of them, with its words.

    Every rank enters, and no rank talks to another within.

    Raises:
        SharedError: a rank raised a UserError; the first rank's words count.
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
    told: list[str | None] = [None] * world_size()
    with _connection():
        dist.all_gather_object(told, None if found is None else str(found))
    message = next((text for text in told if text is not None), None)
    if message is not None:
        raise SharedError(message) from found


def launch(work: Callable[..., Result], processes: int, *arguments: Any) -> Result:
    """Call ``work(*arguments)`` in several ranks on this machine; return rank 0's result.

    torch.distributed's elastic launcher starts them. When one is lost, it stops the others and
    starts all anew, at most ``RESTARTS`` times: ``work`` shall go on from its last checkpoint.
    Cores are shared out among the ranks unless ``OMP_NUM_THREADS`` says otherwise.

    Args:
        work: a function of a module, run within :func:`process_group` by whoever wrote it.
        processes: number of ranks.
        arguments: picklable.

    Raises:
        UserError: bad input, found by the ranks.
        FloatingPointError: the ranks' loss is no longer a number.
        ConnectionError: ranks were lost more often than they are restarted.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = max(1, usable_cores() // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # A store that outlives a restart still holds the addresses of the lost ranks, and new ranks
    # would wait for those: each start gets a store of its own.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=RESTARTS,
        start_method="forkserver",
    )
    # imported once, not by every rank and at every restart
    multiprocessing.set_forkserver_preload(["timm", work.__module__])
    try:
        result = elastic_launch(settings, _work)(work, *arguments)[0]
    except ChildFailedError as error:
        lost, failure = error.get_first_failure()
        said = str(failure.message).strip().splitlines() or ["no message"]
        raise ConnectionError(
            f"rank {lost} was lost, and {RESTARTS} restarts did not help ({said[-1]}); start the "
            "same command again to go on from the last checkpoint"
        ) from error
    except SignalException as error:  # by then the launcher has stopped the ranks
        raise SystemExit(128 + error.sigval) from error
    if isinstance(result, Exception):
        raise result
    return result


def _work(work: Callable[..., Result], *arguments: Any) -> Result | Exception:
    # A terminal's Ctrl-C reaches every process: the launcher speaks, its ranks end in silence.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What every rank raises alike is a result: the launcher would try it again.
    try:
        return work(*arguments)
    except (SharedError, FloatingPointError) as error:
        return error
    except ConnectionError:
        # The launcher reports whoever ends first: that shall be the rank that knows why.
        time.sleep(GRACE)
        raise
