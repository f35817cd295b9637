"""PyTorch's flags that choose kernels: TF32, cuDNN's benchmark mode, determinism, compilation.

They are global in PyTorch. Here they are set for the length of a ``with`` block and restored after
it. On a CPU the first two have no effect.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""cuBLAS computes the same bits in each run only with a workspace of fixed size."""


RECOMPILED = 64
"""Cases for which torch.compile compiles one function: more than training has."""


@contextmanager
def training_kernels(allow_tf32: bool, benchmark: bool, only_deterministic: bool) -> Iterator[None]:
    """Choose kernels for a training, as its configuration says.

    Args:
        allow_tf32: see :func:`tf32`.
        benchmark: see :func:`cudnn_benchmark`.
        only_deterministic: see :func:`deterministic`; switches off the other two.
    """
    fast = not only_deterministic
    with (
        tf32(allow_tf32 and fast),
        cudnn_benchmark(benchmark and fast),
        deterministic(only_deterministic),
    ):
        yield


@contextmanager
def compiling(on: bool, strict: bool = True) -> Iterator[None]:
    """Let torch.compile compile a function for all the ways in which training calls it, or fail.

    The decoder alone is called for two networks, with two sets of statistics, with and without
    gradients, in training and evaluation. After 8 such cases PyTorch would silently stop compiling.

    Args:
        on: without it nothing happens.
        strict: fail after ``RECOMPILED`` cases; else PyTorch goes on without compiling.
    """
    if not on:
        yield
        return
    import torch._dynamo.config as settings  # takes seconds to import

    with settings.patch(recompile_limit=RECOMPILED, fail_on_recompile_limit_hit=strict):
        yield


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in float32 matrix products and convolutions on GPUs.

    TF32 rounds the factors to 10 bits of mantissa, as float16 has, and sums in float32. NVIDIA GPUs
    since Ampere compute it several times faster than float32.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


@contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    """Let cuDNN time its convolutions and take the fastest, once for each shape of its inputs."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Let PyTorch use deterministic kernels, where it has them; it warns where it has none."""
    if not on:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, workspace = torch.backends.cudnn.deterministic, os.environ.get(CUBLAS[0])
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    os.environ.setdefault(*CUBLAS)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
        torch.backends.cudnn.deterministic = cudnn
        if workspace is None:
            os.environ.pop(CUBLAS[0], None)
