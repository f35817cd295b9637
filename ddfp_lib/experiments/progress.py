"""Estimate when a training run will end, from its current speed."""

import itertools
from collections import deque
from collections.abc import Mapping, Sequence

WINDOW = 180.0
"""The most seconds of the past that an estimate looks at."""

SHORTEST = 45.0
"""The fewest. Near the end a long past would hide a change of speed until it is over."""


class Pace:
    r"""The current speed of something that counts its steps.

    .. math:: v = \frac{n(t) - n(t_0)}{t - t_0}

    with ``t_0`` the beginning of a recent window. The window is a tenth of the time that is left,
    between :data:`SHORTEST` and ``window``: a run that slows down shortly before its end has a new
    estimate within a minute. Where the count rose less than twice within the window, it reaches
    back to the rise before: the speed of something that hangs falls, and an estimate made from it
    grows.

    Args:
        window: length of the longest window in seconds.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self.window = window
        self._reached: deque[tuple[float, int]] = deque()  # when each count was seen first
        self._now = 0.0

    def observe(self, now: float, done: int) -> None:
        """Note how many steps are done.

        Args:
            now: seconds, of a clock that only goes forward.
            done: steps so far. Fewer than before restart the count: a run went back to its
                checkpoint.
        """
        if self._reached and done < self._reached[-1][1]:
            self._reached.clear()
        if not self._reached or done > self._reached[-1][1]:
            self._reached.append((now, done))
        self._now = now
        while len(self._reached) > 3 and self._reached[1][0] <= now - self.window:
            self._reached.popleft()

    def seconds_for(self, steps: int) -> float | None:
        """Return how long further steps will take; ``None`` where no step was seen yet."""
        left = self._at_speed_of(min(SHORTEST, self.window), steps)
        if left is None or left <= 10 * SHORTEST:
            return left
        return self._at_speed_of(min(left / 10, self.window), steps)

    def _at_speed_of(self, window: float, steps: int) -> float | None:
        """Return how long steps take at the speed of the last ``window`` seconds."""
        if len(self._reached) < 2:
            return None
        earlier = list(self._reached)[:-1]
        old = [entry for entry in earlier[:-1] if entry[0] <= self._now - window]
        then, before = old[-1] if old else earlier[0]
        return steps * (self._now - then) / (self._reached[-1][1] - before)


def seconds_left(
    lines: Sequence[Mapping[str, float]], steps: int, silent: float = 0.0, window: float = WINDOW
) -> float | None:
    """Estimate the time to the end of a run from its log.

    Args:
        lines: lines of ``metrics.jsonl``, with ``step`` and ``seconds`` of training.
        steps: number of steps of the whole run.
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
