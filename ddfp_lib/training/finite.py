"""Numbers that are no longer finite: the step they first appear in, and a training that stops."""

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
        told = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        super().__init__(f"step {step}: not a finite number ({told})")
        self.step = step


class FiniteCheck:
    """Remembers the first step whose numbers are not finite.

    A CPU has the numbers at hand, so :meth:`note` raises at once, before the optimizer moves. On a
    GPU looking at them would make the host wait for every step. There the record stays on the
    device until :meth:`check` asks for it, which has to happen before anything is logged, measured
    or saved: steps that were taken with spoilt weights in between are thrown away.

    Args:
        device: of the numbers.
    """

    NAMES = ("supervised", "clean", "perturbed", "loss", "grad_norm")

    def __init__(self, device: torch.device) -> None:
        self.at_once = device.type == "cpu"
        self._names: tuple[str, ...] = ()
        self._record = torch.zeros(1 + len(self.NAMES), device=device)

    def note(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Take a step's numbers down, unless an earlier one's were not finite.

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
        """Wait for the device and look.

        Raises:
            NotFiniteError: a value was not finite, in the step that the error names.
        """
        step, *numbers = self._record.tolist()
        if not all(map(math.isfinite, numbers)):
            found = dict(zip(self.NAMES, numbers, strict=True))
            raise NotFiniteError(int(step), {name: found[name] for name in self._names})
