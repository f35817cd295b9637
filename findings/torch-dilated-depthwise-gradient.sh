#!/usr/bin/env bash
# PyTorch on a CPU: the backward pass of a dilated depthwise convolution takes 50 to 200 times as long as
# the same sums done by a forward pass.
#
# Guess: the gradient with respect to the input costs about as much as the forward pass. With stride 1
#   it is a convolution of the output's gradient with the mirrored kernel.
# Seen: without dilation both take the same time. With dilation 2 the gradient takes far longer than
#   `conv2d(gradient, weight.flip(2, 3))`, which gives the same numbers (55 and 211 times in two runs with
#   one thread on a busy machine).
# Hurts: everyone who trains an EfficientNet or MobileNet encoder with `output_stride` 8 or 16 on a CPU.
# Version: torch 2.15.0 (oneDNN), x86-64.
# Source: measured here. The script exits 0 while the ratio is above 10.

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile torch==2.15.0
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import time
import torch
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
channels = 1152

def timed(call):
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return best, result

ratios = {}
for dilation in (1, 2):
    image = torch.randn(6, channels, 10, 10, requires_grad=True)
    weight = torch.randn(channels, 1, 5, 5)
    options = {"padding": 2 * dilation, "dilation": dilation, "groups": channels}
    output = F.conv2d(image, weight, **options)
    gradient = torch.randn_like(output)
    slow, a = timed(lambda: torch.autograd.grad(output, image, gradient, retain_graph=True)[0])
    fast, b = timed(lambda: F.conv2d(gradient, weight.flip(2, 3), **options))
    ratios[dilation] = slow / fast
    print(f"dilation {dilation}: autograd {slow * 1e3:.1f} ms, mirrored kernel {fast * 1e3:.1f} ms, "
          f"ratio {slow / fast:.1f}, largest difference {(a - b).abs().max():.1e}")
    if not torch.allclose(a, b, atol=1e-3):
        sys.exit("changed: the two results differ")
sys.exit(0 if ratios[2] > 10 else "changed: the backward pass is not 10 times slower any more")
EOF
