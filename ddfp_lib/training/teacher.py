"""The teacher, which makes pseudo-labels: by default, an EMA of the student."""

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from ddfp_lib.models.network import SegmentationNetwork


def make_teacher(student: SegmentationNetwork, kind: str, mode: str) -> SegmentationNetwork:
    """Return a teacher that starts equal to the student.

    Args:
        student: the network to follow.
        kind: ``ema``: own weights, see :func:`update_ema`. ``tied``: the student's very parameters
            with BatchNorm statistics of its own. The release meant an average and has this:
            ``t.data = s.data`` makes the two storages one (train_ddfp_pascal.py:358-364), and the
            average that follows changes nothing (505-524).
            ``student``: the student's parameters and statistics, in evaluation mode: the student
            teaches itself, as in UniMatch.
        mode: ``eval``: running statistics, no dropout. ``train``: batch statistics and dropout, as
            released.
    """
    teacher = copy.deepcopy(student).train(mode == "train")
    if kind == "ema":
        return teacher.requires_grad_(False)
    for ours, theirs in zip(teacher.modules(), student.modules(), strict=True):
        for name, parameter in theirs.named_parameters(recurse=False):
            setattr(ours, name, parameter)
        if kind == "student":
            for name, buffer in theirs.named_buffers(recurse=False):
                setattr(ours, name, buffer)
    return teacher


def ema_decay_at(step: int, decay: float) -> float:
    """Return the fraction of itself that the teacher keeps: ``min(1 - 1 / (step + 1), decay)``.

    Without the first term the random starting weights would stay in the average for about
    ``1 / (1 - decay)`` steps; with it, the early teacher is the plain mean of all students so far.
    """
    return min(1 - 1 / (step + 1), decay)


@torch.no_grad()
def update_ema(
    teacher: SegmentationNetwork, student: SegmentationNetwork, step: int, decay: float
) -> None:
    """Move the teacher towards the student: ``t <- keep * t + (1 - keep) * s``.

    BatchNorm statistics are averaged like the weights: evaluation mode uses them, and statistics of
    other weights would not fit. Counters are copied.

    Args:
        teacher: a teacher of kind ``ema``; changed in place.
        student: followed.
        step: number of this step, from 0.
        decay: see :func:`ema_decay_at`.
    """
    weight = 1 - ema_decay_at(step, decay)
    averaged: list[tuple[Tensor, Tensor]] = []
    for ours, theirs in zip(_tensors(teacher), _tensors(student), strict=True):
        if ours.is_floating_point():
            averaged.append((ours, theirs))
        else:
            ours.copy_(theirs)
    torch._foreach_lerp_(*map(list, zip(*averaged, strict=True)), weight)


def _tensors(network: SegmentationNetwork) -> Iterator[Tensor]:
    """Yield each parameter and buffer once, in one walk through the modules.

    ``parameters()`` and ``buffers()`` walk once each, and ``state_dict()`` takes longer than both;
    the step of a small network, as of digit scenes, notices.
    """
    seen: set[int] = set()
    for module in network.modules():
        for tensor in chain(module._parameters.values(), module._buffers.values()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
