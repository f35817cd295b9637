"""Losses and gradients that are not finite: find where they start, and stop the training."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class NotFiniteError(FloatingPointError):
    """A loss or a gradient is not finite.

    Args:
        step: in which it happened.
        values: losses and gradient norm of that step.
    """

    def __init__(self, step: int, values: Mapping[str, float]) -> None:
        listed = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        super().__init__(f"step {step}: not a finite number ({listed})")
        self.step = step


class FiniteCheck:
    """Remembers the first step whose numbers are not finite.

    On a CPU :meth:`note` raises at once, before the optimizer's step. On a GPU reading the numbers
    would make the host wait at every step. There they stay on the device until :meth:`check` reads
    them, which must happen before anything is logged, measured or saved: steps that were taken
    with damaged weights in between are discarded.

    Args:
        device: device of the numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self.at_once = device.type == "cpu"
        self._records: dict[tuple[str, ...], Tensor] = {}

    def note(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Record the numbers of a step, unless those of an earlier step were not finite.

        Args:
            step: number of the step.
            values: 0-d tensors on one device. A step may be noted several times, with other names.

        Raises:
            NotFiniteError: on a CPU, where a value is not finite.
        """
        names = tuple(values)
        numbers = torch.stack([value.detach().float() for value in values.values()])
        now = torch.nn.functional.pad(numbers, (1, 0), value=float(step))
        before = self._records.get(names, now)
        self._records[names] = torch.where(before.isfinite().all(), now, before)
        if self.at_once:
            self.check()

    def check(self) -> None:
        """Wait for the device and check the records.

        Raises:
            NotFiniteError: a value was not finite, in the first step with such a value.
        """
        failed: list[tuple[int, dict[str, float]]] = []
        for names, record in self._records.items():
            step, *numbers = record.tolist()
            if not all(map(math.isfinite, numbers)):
                failed.append((int(step), dict(zip(names, numbers, strict=True))))
        if failed:
            raise NotFiniteError(*min(failed, key=lambda each: each[0]))
