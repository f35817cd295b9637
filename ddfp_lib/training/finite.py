"""Losses and gradients that are not finite: find the first step, and stop the training."""

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
    with damaged weights in between are thrown away.

    Args:
        device: of the numbers.
    """

    NAMES = ("supervised", "clean", "perturbed", "loss", "grad_norm")

    def __init__(self, device: torch.device) -> None:
        self.at_once = device.type == "cpu"
        self._names: tuple[str, ...] = ()
        self._record = torch.zeros(1 + len(self.NAMES), device=device)

    def note(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Record the numbers of a step, unless those of an earlier step were not finite.

        Args:
            step: number of the step.
            values: 0-d tensors on the device, names out of ``NAMES``.

        Raises:
            NotFiniteError: on a CPU, where a value is not finite.
        """
        self._names = tuple(values)
        zero = torch.zeros_like(self._record[0])
        numbers = [values.get(name, zero).detach().float() for name in self.NAMES]
        now = torch.stack([zero + step, *numbers])
        self._record = torch.where(self._record.isfinite().all(), now, self._record)
        if self.at_once:
            self.check()

    def check(self) -> None:
        """Wait for the device and check the record.

        Raises:
            NotFiniteError: a value was not finite, in the step that the error names.
        """
        step, *numbers = self._record.tolist()
        if not all(map(math.isfinite, numbers)):
            found = dict(zip(self.NAMES, numbers, strict=True))
            raise NotFiniteError(int(step), {name: found[name] for name in self._names})
