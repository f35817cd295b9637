"""When training will end, by its current speed."""

import itertools
from collections import deque
from collections.abc import Mapping, Sequence

WINDOW = 180.0
"""Seconds of the past that an estimate looks at."""


class Pace:
    r"""The current speed of something that counts its steps.

    .. math:: v = \frac{n(t) - n(t_0)}{t - t_0}

    with ``t_0`` the beginning of a recent window. Where nothing was done within the window, it
    reaches back to the last time that something was: the speed of something that hangs falls, and
    an estimate made from it grows.

    Args:
        window: length of the window in seconds.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self.window = window
        self._seen: deque[tuple[float, int]] = deque()

    def observe(self, now: float, done: int) -> None:
        """Note how many steps are done.

        Args:
            now: seconds, of a clock that only goes forward.
            done: steps so far. Fewer than before begin anew: a run went back to its checkpoint.
        """
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        # the oldest entry stays as long as the window would otherwise hold no progress
        while (
            len(self._seen) > 2
            and self._seen[1][0] <= now - self.window
            and self._seen[1][1] < done
        ):
            self._seen.popleft()

    def seconds_for(self, steps: int) -> float | None:
        """Return how long further steps will take; ``None`` where no step was seen yet."""
        if not self._seen:
            return None
        (then, before), (now, done) = self._seen[0], self._seen[-1]
        return steps * (now - then) / (done - before) if done > before else None


def seconds_left(
    lines: Sequence[Mapping[str, float]], steps: int, silent: float = 0.0, window: float = WINDOW
) -> float | None:
    """Estimate the time to the end of a run from its log.

    Args:
        lines: of ``metrics.jsonl``, with ``step`` and ``seconds`` of training.
        steps: of the whole run.
        silent: seconds since the last line was written.
        window: length of the past to look at, in seconds of training.

    Returns:
        Seconds, or ``None`` where the log is too short.
    """
    pace = Pace(window)
    for line in lines:
        if "seconds" in line:
            pace.observe(line["seconds"], line["step"])
    if not lines or "seconds" not in lines[-1]:
        return None
    # a line is due only after some steps: the silence counts as far as it is longer than usual
    last, recent = lines[-1], lines[-10:]
    usual = [
        after["seconds"] - before["seconds"]
        for before, after in itertools.pairwise(recent)
        if "seconds" in before and "seconds" in after
    ]
    late = max(0.0, silent - max(usual, default=0.0))
    pace.observe(last["seconds"] + late, last["step"])
    return pace.seconds_for(steps - last["step"])


def in_words(seconds: float) -> str:
    """Write a duration as ``40 s``, ``12 min`` or ``3 h 20 min``, rounded."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
