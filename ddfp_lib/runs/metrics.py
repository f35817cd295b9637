"""``metrics.jsonl``, the log of a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddfp_lib.errors import UserError
from ddfp_lib.files import raises_user_error, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line, each with its step.

    Args:
        path: path of the file.
        start: lines of later steps are dropped; the resumed run writes them again.
        tensorboard: also write all numbers for TensorBoard, into ``tensorboard`` next to the file.

    Raises:
        UserError: ``tensorboard`` is set and TensorBoard is not installed.
    """

    def __init__(self, path: Path, start: int, *, tensorboard: bool = False) -> None:
        self.path = path
        # An evaluation is logged before the step of its number, losses after it: when the
        # checkpoint of `start` was written, only the evaluation was there.
        kept = [
            line
            for line in self.lines()
            if line["step"] < start or (line["step"] == start and "loss" not in line)
        ]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.board = _board(path.with_name("tensorboard"), start) if tensorboard else None
        for line in kept:
            if line["step"] == start:  # TensorBoard drops what it has from here on
                self._show(line)

    def lines(self) -> list[dict[str, Any]]:
        """Return all complete lines; an incomplete last line is left out."""
        return read_metrics(self.path)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            UserError: the file cannot be written, or the disk is full.
        """
        with raises_user_error(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self._show({"step": step, **values})

    def _show(self, line: dict[str, Any]) -> None:
        if self.board is None:
            return
        for name, value in line.items():
            if name != "step":
                self.board.add_scalar(name, value, line["step"])
        self.board.flush()


def _board(folder: Path, start: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard: TensorBoard is not installed; pip install 'ddfp[tensorboard]', or "
            "leave the flag out"
        ) from error
    return SummaryWriter(str(folder), purge_step=start)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl`` of a run, which may still be written.

    Raises:
        UserError: a line other than the last is damaged.
    """
    if not Path(path).is_file():
        return []
    *lines, _ = Path(path).read_text(encoding="utf-8").split("\n")
    metrics = []
    for number, line in enumerate(lines, start=1):
        try:
            metrics.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: is damaged; delete the line") from error
    return metrics
