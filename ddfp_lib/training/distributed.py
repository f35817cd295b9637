"""Start the processes of one training run, and react if one of them is lost.

What they exchange is in :mod:`ddfp_lib.ranks`.
"""

import logging
import multiprocessing
import os
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ddfp_lib.data.workers import LostWorkerError
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_text
from ddfp_lib.machine import usable_cores
from ddfp_lib.ranks import (
    SharedError,
    _connection,
)

Result = TypeVar("Result")


TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it takes them for lost."""


NOTE = "what-is-wrong.txt"


RESTARTS = 3
"""How often the launcher starts the ranks again after one was lost."""


GRACE = 5.0
"""Seconds that a rank which lost another leaves it to tell the launcher what it died of."""


@contextmanager
def process_group(device: torch.device, timeout: timedelta = TIMEOUT) -> Iterator[torch.device]:
    """Join the group that torchrun's environment describes, and leave it at the end.

    gloo on CPUs, NCCL on GPUs (with gloo for tensors in host memory). Without such an
    environment, or where it names one process, there is no group.

    Args:
        device: ``cpu`` or ``cuda``; on GPUs each rank takes the one of its number on its node.
        timeout: how long to wait for another rank.

    Yields:
        The device of this rank.

    Raises:
        ConnectionError: another rank was lost; the message says how to continue.
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


def launch(work: Callable[..., Result], processes: int, *arguments: Any) -> Result:
    """Call ``work(*arguments)`` in several ranks on this machine; return rank 0's result.

    torch.distributed's elastic launcher starts them. When one is lost, it stops the others and
    starts all of them again, at most ``RESTARTS`` times: ``work`` must continue from its last
    checkpoint. A problem that only the user can solve, such as too little memory, ends all ranks
    at once, whichever rank finds it. Cores are divided among the ranks unless
    ``OMP_NUM_THREADS`` is set.

    Args:
        work: a function of a module, which uses :func:`process_group` itself.
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
        with tempfile.TemporaryDirectory() as folder, _silent_once(Path(folder) / NOTE):
            result = elastic_launch(settings, _work)(Path(folder) / NOTE, work, *arguments)[0]
    except ChildFailedError as error:
        lost, failure = error.get_first_failure()
        said = str(failure.message).strip().splitlines() or ["no message"]
        raise ConnectionError(
            f"rank {lost} was lost, and {RESTARTS} restarts did not help ({said[-1]}); start the "
            "same command again to continue from the last checkpoint"
        ) from error
    except SignalException as error:  # by then the launcher has stopped the ranks
        raise SystemExit(128 + error.sigval) from error
    if isinstance(result, Exception):
        raise result
    return result


@contextmanager
def _silent_once(note: Path) -> Iterator[None]:
    """Silence PyTorch's launcher from the moment that a rank leaves a note about what is wrong."""

    def speaks(record: logging.LogRecord) -> bool:
        return not note.exists()

    loggers = [
        logging.getLogger(name)
        for name in ("torch.multiprocessing.spawn", "torch.distributed.elastic.multiprocessing.api")
    ]
    for logger in loggers:
        logger.addFilter(speaks)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(speaks)


def _work(note: Path, work: Callable[..., Result], *arguments: Any) -> Result | Exception:
    # A terminal's Ctrl-C reaches every process: only the launcher prints a message.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Found by one rank before this start: the others were waiting for it and had to be stopped.
    if note.exists():
        return UserError(note.read_text(encoding="utf-8"))
    # What every rank raises alike is a result: the launcher would try it again.
    try:
        return work(*arguments)
    except (SharedError, FloatingPointError) as error:
        return error
    except LostWorkerError:
        raise
    except UserError as error:
        write_text(note, str(error))
        os._exit(1)  # without the destructors of a group that the others are still in
    except ConnectionError:
        # The launcher reports the rank that ends first: it should be the one that knows why.
        time.sleep(GRACE)
        raise
