"""Rows, one for each feature: draw rows for a training step, and divide rows to fit the memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddfp_lib.ranks import total, world_size

CHUNK_ROWS = 16384
"""Rows whose graph is alive at a time: no row of a density depends on another."""

CPU_CHUNK_ROWS = 2048
"""The same on a CPU, where activations that stay in its cache are not fetched from memory."""


def chunks(v: Tensor) -> Iterator[slice]:
    """Cut the rows of v into slices whose graphs fit the memory of its device.

    Without rows there is one slice, an empty one: a rank without any still has gradients, zeros.
    """
    size = CPU_CHUNK_ROWS if v.device.type == "cpu" else CHUNK_ROWS
    return (slice(start, start + size) for start in range(0, max(1, len(v)), size))


def rows_of_all(v: Tensor) -> int:
    """Return the number of rows of ``v`` over all ranks."""
    return int(total(torch.tensor(len(v))))


def draw_rows(
    v: Tensor, labels: Tensor, samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw this rank's share of ``samples`` rows; all rows if all ranks together have no more.

    Args:
        v: (N, D) float.
        labels: (N,) int64.
        samples: rows of all ranks. A rank's share is in proportion to its number of rows.
        generator: on any device.

    Returns:
        (M, D) and (M,), M <= N.
    """
    rows = rows_of_all(v)
    if rows <= samples:
        return v, labels
    order = torch.randperm(len(v), generator=generator, device=generator.device)
    chosen = order[: samples * len(v) // rows].to(v.device)
    return v[chosen], labels[chosen]


def draw_counted(
    counted: Tensor, samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw ``samples`` rows at random among rows of which only the device knows the number.

    The host never waits for the device, so the shape of the answer depends on N and ``samples``
    alone: a choice with too few rows is filled up with rows that do not count.

    Args:
        counted: (N,) bool, rows that may be drawn.
        samples: rows that are drawn at most.
        generator: on any device; fastest on that of ``counted``.

    Returns:
        Indices (M,) int64 without repetition, those that count first, and which of them count,
        (M,) bool; M = min(N, samples).

    Source: ours.
    """
    # the smallest of random keys are a random choice; rows that do not count come last
    keys = torch.rand(len(counted), generator=generator, device=generator.device)
    keys = keys.to(counted.device).where(counted, 2.0)
    chosen = keys.topk(min(len(counted), samples), largest=False).indices
    return chosen, counted[chosen]


def draw_counted_of_all(
    counted: Tensor, samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw this rank's share of ``samples`` rows, as :func:`draw_rows`, without a wait for a GPU.

    A rank draws at most twice its even share. Its share is in proportion to the rows that count, so
    that limit matters only to a rank that has twice as many of them as the average.

    Args:
        counted: (N,) bool, rows of this rank that may be drawn.
        samples: rows of all ranks that are drawn at most.
        generator: see :func:`draw_counted`.

    Returns:
        As :func:`draw_counted`.
    """
    world = world_size()
    if world == 1:
        return draw_counted(counted, samples, generator)
    chosen, drawn = draw_counted(counted, -(-2 * samples // world), generator)
    mine = counted.sum()
    share = samples * mine // total(mine).clamp(min=samples)
    return chosen, drawn & (torch.arange(len(drawn), device=drawn.device) < share)
