"""Checkpoints that are whole, of the right run, and safe to open."""

import io
import json
from pathlib import Path
from typing import Any

import torch

from ddfp_lib.errors import UserError
from ddfp_lib.files import sha256, write_atomically, write_text


class Checkpoints:
    """The last checkpoints of a run, in a folder of their own.

    ``index.json`` names them, newest first, with step, configuration hash and SHA-256; it is
    renamed into place after the checkpoint it names, so that a kill at any moment leaves the
    previous one in charge. Files are opened with ``weights_only=True``: a stranger's checkpoint can
    be wrong, but cannot run code.

    Args:
        folder: made on the first save.
        config_hash: of the run; checkpoints of another configuration are refused.
        keep: how many stay; at least 2, so that there is one to go back to.
    """

    KEEP = 2

    def __init__(self, folder: Path, config_hash: str, keep: int = KEEP) -> None:
        self.folder, self.config_hash, self.keep = Path(folder), config_hash, max(2, keep)
        self.index = self.folder / "index.json"

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write ``state`` as the checkpoint of ``step``, then forget all but the last ``keep``.

        Raises:
            UserError: the folder cannot be written; older checkpoints are still there.
        """
        path = self.folder / f"step-{step:07d}.pt"
        # By way of memory: where the disk is full, torch's own writing fails with its internals.
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
        """Return what the index says, newest first; nothing where there is no index.

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
                f"{self.index}: is damaged; remove it to start this run anew"
            ) from error

    def load(self, device: torch.device) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the newest checkpoint that is whole, and what was found on the way to it.

        Args:
            device: where the tensors shall be.

        Returns:
            The state, or ``None`` where there is no checkpoint; and a line for each checkpoint that
            was passed over.

        Raises:
            UserError: the checkpoint is of another configuration, or none of them is whole.
        """
        passed_over: list[str] = []
        entries = self.entries()
        for entry in entries:
            path = self.folder / entry["file"]
            if entry["config"] != self.config_hash:
                raise UserError(
                    f"{path}: is of configuration {entry['config']}, this run is "
                    f"{self.config_hash}; choose another --out, or the settings it was made with"
                )
            if not path.is_file() or sha256(path) != entry["sha256"]:
                passed_over.append(f"{path}: is missing or damaged; using the one before it")
                continue
            return read_checkpoint(path, device), passed_over
        if entries:
            raise UserError(
                f"{self.folder}: no checkpoint in it is whole; remove the folder to start anew"
            )
        return None, passed_over


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read one checkpoint file, weights only.

    Raises:
        UserError: the file is missing, damaged, or holds more than weights.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: is not there; check the run folder") from error
    except Exception as error:  # bytes that are no checkpoint can fail in any way
        # torch's own message advises to let the file run code
        raise UserError(
            f"{path}: is no checkpoint of this project, or damaged; choose another file"
        ) from error
