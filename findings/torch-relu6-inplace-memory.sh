#!/usr/bin/env bash
# PyTorch: `nn.ReLU6(inplace=True)` keeps one more activation for the backward pass than `nn.ReLU`.
#
# Guess: `inplace=True` saves the same memory for ReLU6 as for ReLU.
# Seen: after BatchNorm + ReLU + convolution, autograd keeps 2 maps: the input of BatchNorm and the
#   output of ReLU, which is also the input of the convolution. With ReLU6 it keeps 3, in place or not:
#   the in-place kernel clones its input first. Hardswish and SiLU behave like ReLU6.
# Hurts: training of MobileNetV2 and EfficientNet-Lite at large crops: a third of what is
#   kept around each BatchNorm is this clone. Plain ReLU avoids it.
# Version: torch 2.15.0.
# Source: `torchgen/packaged/autograd/derivatives.yaml:2187`: the gradient of hardtanh is a function of
#   its input (`self`); that of relu is a function of its result.

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
import torch
from torch import nn

torch.set_num_threads(1)
print("torch", torch.__version__)
image = torch.randn(4, 8, 64, 64)

def kept(activation):
    """Bytes that autograd keeps, as multiples of one map; shared storage counts once."""
    storages = {}
    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor
    layers = nn.Sequential(nn.BatchNorm2d(8), activation, nn.Conv2d(8, 8, 3))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layers(image)
    assert output.requires_grad
    return round(sum(size for size, _ in storages.values()) / image.nbytes, 1)

seen = {}
for name, kind in {"ReLU": nn.ReLU, "ReLU6": nn.ReLU6, "Hardswish": nn.Hardswish, "SiLU": nn.SiLU}.items():
    seen[name] = kept(kind()), kept(kind(inplace=True))
    print(f"{name:10} maps kept: {seen[name][0]}, in place {seen[name][1]}")
same = seen["ReLU"] == (2.0, 2.0) and all(seen[n] == (3.0, 3.0) for n in ("ReLU6", "Hardswish", "SiLU"))
sys.exit(0 if same else "changed: autograd keeps another number of maps")
EOF
