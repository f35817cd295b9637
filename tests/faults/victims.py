"""Trainings in processes of their own, to which something happens."""

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import ddfp_lib.training.loop as loop
from ddfp_lib.cli import run
from ddfp_lib.config import Config
from tests.fixtures.server import SERVER

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")


def start(config: Config, folder: Path, fault: Callable[[Path], None] | None = None) -> BaseProcess:
    """Start a training in ``folder``; ``fault`` is called in its process beforehand.

    What it says on standard error lies in ``folder.err``.
    """
    child = SERVER.Process(target=_train, args=(config, folder, fault))
    child.start()
    return child


def end_of(child: BaseProcess) -> int:
    """Wait for a child and return its exit status, the negative signal where it was killed."""
    child.join(900)
    assert child.exitcode is not None, "the training hangs"
    return child.exitcode


def said(folder: Path) -> str:
    return folder.with_suffix(".err").read_text()


def _train(config: Config, folder: Path, fault: Callable[[Path], None] | None) -> None:
    torch.set_num_threads(1)
    loop.LOG_EVERY = 1
    if fault:
        fault(folder)
    with folder.with_suffix(".err").open("w") as file, contextlib.redirect_stderr(file):
        status = run(lambda: loop.train(config, folder, device=torch.device("cpu")))
    sys.exit(status)


# Faults: each is pickled, sent to the child and called there --------------------------------------


class KillAtFileEvent:
    """``kill -9`` right before the n-th time that something in the folder is opened or renamed.

    Without n: count them, into ``folder.events``.
    """

    def __init__(self, number: int | None) -> None:
        self.number, self.seen = number, 0

    def __call__(self, folder: Path) -> None:
        def hook(event: str, arguments: tuple) -> None:
            if event in FILE_EVENTS and str(arguments[0]).startswith(f"{folder}{os.sep}"):
                self.seen += 1
                if self.number is None:
                    os.write(tally, b".")
                elif self.seen == self.number:
                    os.kill(os.getpid(), signal.SIGKILL)

        if self.number is None:
            tally = os.open(folder.with_suffix(".events"), os.O_WRONLY | os.O_CREAT)
        sys.addaudithook(hook)


class KillInHalfACheckpoint:
    """``kill -9`` when half of the n-th checkpoint's bytes are on the disk."""

    def __init__(self, number: int) -> None:
        self.number, self.seen = number, 0

    def __call__(self, folder: Path) -> None:
        write = Path.write_bytes

        def torn(path: Path, content: memoryview) -> int:
            self.seen += 1
            if self.seen == self.number:
                write(path, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return write(path, content)

        Path.write_bytes = torn


class AtStep:
    """Let something happen to the folder right before a step."""

    def __init__(self, step: int, happen: Callable[[Path], None]) -> None:
        self.step, self.happen = step, happen

    def __call__(self, folder: Path) -> None:
        step = loop.training_step

        def disturbed(learner: object, batch: object, number: int) -> dict:
            if number == self.step:
                self.happen(folder)
            return step(learner, batch, number)

        loop.training_step = disturbed


def take_write_permission(folder: Path) -> None:
    """As if the folder's disk had been mounted anew, read-only."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:  # root may write all the same
        os.seteuid(65534)


def fill_the_disk(folder: Path) -> None:
    """No file can have more than 1,000 bytes from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def fill_the_disk_of_the_log(folder: Path) -> None:
    log = folder / "metrics.jsonl"
    log.unlink()
    log.symlink_to("/dev/full")
