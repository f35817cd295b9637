"""Disks that are full or read-only: one line that says so, and the last checkpoint is good."""

from pathlib import Path

import pytest
import torch

from ddfp_lib.errors import UserError
from ddfp_lib.runs.checkpoints import Checkpoints
from ddfp_lib.training.loop import train
from tests.faults.victims import (
    AtStep,
    end_of,
    fill_the_disk,
    fill_the_disk_of_the_log,
    said,
    start,
    take_write_permission,
)

CPU = torch.device("cpu")


@pytest.mark.fault(
    "disk full or read-only", "from step 3 on, for checkpoints, the log, or the whole run folder"
)
@pytest.mark.parametrize(
    ("happen", "words"),
    [
        (fill_the_disk, "step-0000004.pt: cannot be written (File too large)"),
        (fill_the_disk_of_the_log, "metrics.jsonl: cannot be written (No space left on device)"),
        (take_write_permission, "cannot be written (Permission denied)"),
    ],
)
def test_the_last_good_checkpoint_stays(tiny_config, tmp_path, happen, words):
    tmp_path.chmod(0o755)
    config, folder = tiny_config("ddfp"), tmp_path / "run"
    assert end_of(start(config, folder, AtStep(3, happen))) == 2, said(folder)
    assert words in said(folder)
    assert said(folder).count("\n") == 1
    state, passed_over = Checkpoints(folder / "checkpoints", config.config_hash).load(CPU)
    assert (state["step"], passed_over) == (2, [])
    for path in (folder, *folder.rglob("*")):  # the disk is mended
        if not path.is_symlink():
            path.chmod(0o755)
    (folder / "metrics.jsonl").unlink()
    assert end_of(start(config, folder)) == 0, said(folder)


@pytest.mark.fault("disk full or read-only", "the run folder cannot be made")
@pytest.mark.parametrize("out", ["/proc/ddfp", "/dev/null/run"])
def test_a_folder_that_cannot_be_made(tiny_config, out):
    with pytest.raises(UserError, match=rf"{out}: cannot be written .*; choose --out"):
        train(tiny_config("ddfp"), Path(out), device=CPU)
