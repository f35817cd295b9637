#!/usr/bin/env bash
# FrEIA: a copy of an ActNorm layer overwrites loaded weights with statistics of the next batch.
#
# Guess: `copy = deepcopy(flow)` before training and `copy.load_state_dict(flow.state_dict())` after it
#   gives two equal flows. This is how the best model so far and EMA teachers are kept.
# Seen: ActNorm sets its scale and bias from the first batch it sees. Loading a state dict switches this
#   off, by a hook that holds the layer. In a copy the hook still holds the original layer, so the copy
#   initializes itself on its next batch and the loaded scale and bias are lost. No warning. A new flow
#   that was built instead of copied is right.
# Hurts: log-likelihoods of the kept model; they depend on the first batch that is evaluated.
# Version: FrEIA 0.2, torch 2.15.0.
# Source: `FrEIA/modules/invertible_resnet.py:47` to `:52`.

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile torch==2.15.0 FrEIA==0.2
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import copy
import sys
from importlib.metadata import version
import FrEIA.framework as Ff
import FrEIA.modules as Fm
import torch

torch.set_num_threads(1)
torch.manual_seed(0)
print("FrEIA", version("FrEIA"), "torch", torch.__version__)

def build():
    flow = Ff.SequenceINN(4)
    flow.append(Fm.ActNorm)
    return flow

flow, built = build(), build()
kept = copy.deepcopy(flow)
with torch.no_grad():
    flow(5 * torch.randn(1000, 4) + 3)  # sets scale and bias from data
    for other in (kept, built):
        other.load_state_dict(flow.state_dict())
    batch = torch.randn(10, 4)
    outputs = {name: f(batch) for name, f in {"original": flow, "built anew": built, "copied": kept}.items()}
for name, (z, log_jacobian) in outputs.items():
    print(f"{name:11} first row {[round(v, 3) for v in z[0].tolist()]}, log |det J| {log_jacobian[0].item():.3f}")
z, log_jacobian = outputs["original"]
same = torch.allclose(outputs["built anew"][0], z) and not torch.allclose(outputs["copied"][1], log_jacobian, atol=0.1)
sys.exit(0 if same else "changed: the copy keeps the loaded weights")
EOF
