"""Questions to the machine that Linux and macOS answer differently."""

import os
import sys

import torch

from ddfp_lib.machine import peak_resident, usable_cores


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 6}, raising=False)
    assert usable_cores() == 3


def test_cores_are_counted_where_no_process_is_tied_to_some(monkeypatch):
    """As on macOS, where asking for them would be an AttributeError."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert usable_cores() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_the_peak_is_in_bytes_on_either_system(monkeypatch):
    held = torch.ones(100_000_000)  # 400 MB
    peak = peak_resident()
    assert held.nbytes < peak < 100 * held.nbytes
    other = "linux" if sys.platform == "darwin" else "darwin"
    monkeypatch.setattr(sys, "platform", other)
    assert peak_resident() / peak > 500 or peak / peak_resident() > 500
