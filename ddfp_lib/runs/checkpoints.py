"""Checkpoints: written completely, checked when read, and safe to open."""

import io
import json
from pathlib import Path
from typing import Any

import torch

from ddfp_lib.errors import UserError
from ddfp_lib.files import sha256, write_atomically, write_text


class Checkpoints:
    """The last checkpoints of a run, in a folder of their own.

    ``index.json`` lists them, newest first, with step, configuration hash and SHA-256. It is
    written after the checkpoint, so that a process that is killed at any moment leaves the previous
    checkpoint in use. Files are opened with ``weights_only=True``: a checkpoint from elsewhere can
    be wrong, but cannot run code.

    Args:
        folder: folder of the checkpoints; made on the first save.
        config_hash: hash of the run's configuration; checkpoints of another one are refused.
        keep: number of checkpoints that are kept, at least 2, so that one is left if the newest is
            damaged.
    """

    KEEP = 2

    def __init__(self, folder: Path, config_hash: str, keep: int = KEEP) -> None:
        self.folder, self.config_hash, self.keep = Path(folder), config_hash, max(2, keep)
        self.index = self.folder / "index.json"

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write ``state`` as the checkpoint of ``step``, then remove all but the last ``keep``.

        Raises:
            UserError: the folder cannot be written; older checkpoints are kept.
        """
        path = self.folder / f"step-{step:07d}.pt"
        # Through memory: on a full disk torch.save raises an error about its internals.
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(path, lambda partial: partial.write_bytes(content.getbuffer()))
        entry = {
            "file": path.name,
            "step": step,
            "sha256": sha256(path),
            "config": self.config_hash,
        }
        entries = [entry, *(e for e in self.entries() if e["file"] != path.name)][: self.keep]
        write_text(self.index, json.dumps(entries, indent=2))
        kept = {e["file"] for e in entries}
        for old in self.folder.glob("step-*.pt"):
            if old.name not in kept:
                old.unlink()

    def entries(self) -> list[dict[str, Any]]:
        """Return the entries of the index, newest first; an empty list without an index.

        Raises:
            UserError: the index is damaged.
        """
        try:
            entries = json.loads(self.index.read_text(encoding="utf-8"))
            return [e for e in entries if {"file", "step", "sha256", "config"} <= e.keys()]
        except FileNotFoundError:
            return []
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"{self.index}: is damaged; remove it to start this run again"
            ) from error

    def load(self, device: torch.device) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the newest checkpoint that is not damaged, and a line for each that was skipped.

        Args:
            device: device of the returned tensors.

        Returns:
            The state, ``None`` without a checkpoint; and a line for each damaged checkpoint.

        Raises:
            UserError: the checkpoint belongs to another configuration, or all are damaged.
        """
        skipped: list[str] = []
        entries = self.entries()
        for entry in entries:
            path = self.folder / entry["file"]
            if entry["config"] != self.config_hash:
                raise UserError(
                    f"{path}: belongs to configuration {entry['config']}, this run has "
                    f"{self.config_hash}; choose another --out, or the settings of that run"
                )
            if not path.is_file() or sha256(path) != entry["sha256"]:
                skipped.append(f"{path}: is missing or damaged; using the one before it")
                continue
            return read_checkpoint(path, device), skipped
        if entries:
            raise UserError(
                f"{self.folder}: all checkpoints are damaged; remove the folder to start again"
            )
        return None, skipped


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read one checkpoint file, weights only.

    Raises:
        UserError: the file is missing or damaged, or holds more than weights.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist; check the run folder") from error
    except Exception as error:  # other bytes can fail in any way
        # torch's message advises to let the file run code
        raise UserError(
            f"{path}: is not a checkpoint of this project, or is damaged; choose another file"
        ) from error
