#!/usr/bin/env bash
# nflows, normflows: affine layers whose scale cannot exceed 1.001, in opposite directions.
#
# Guess: a flow of affine layers can learn the scale of its data, whatever it is.
# Seen: the scale is sigmoid(s + 2) + 0.001. In nflows' AffineCouplingTransform it multiplies the data:
#   the layer can shrink, never stretch, so no density above (2 pi)^(-d/2) * 1.001^(d * layers) can be learned.
#   In normflows' MaskedAffineAutoregressive it divides the data: the layer can stretch, never shrink,
#   so data wider than 1 stay wide. Training ends far from the true log-likelihood. RealNVP and MAF in
#   their papers have exp(s), without such a limit.
# Hurts: density estimation on features that were not standardised, and on standardised ones with narrow
#   clusters (nflows). Add an ActNorm or another layer with a free scale.
# Version: nflows 0.14, normflows 1.7.3, torch 2.15.0.
# Source: `nflows/transforms/coupling.py:157`, `normflows/flows/affine/autoregressive.py:102` and `:112`.

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile torch==2.15.0 nflows==0.14 normflows==1.7.3
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import math
import sys
from importlib.metadata import version
import normflows
import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms.base import CompositeTransform
from nflows.transforms.coupling import AffineCouplingTransform

torch.set_num_threads(1)
print("nflows", version("nflows"), "normflows", version("normflows"), "torch", torch.__version__)
width, layers, steps = 2, 4, 300

def coupling_flow():
    masks = ([0, 1], [1, 0])
    net = lambda inputs, outputs: ResidualNet(inputs, outputs, hidden_features=16)
    transform = CompositeTransform([AffineCouplingTransform(masks[i % 2], net) for i in range(layers)])
    return Flow(transform, StandardNormal([width]))

def autoregressive_flow():
    base = normflows.distributions.DiagGaussian(width, trainable=False)
    return normflows.NormalizingFlow(base, [normflows.flows.MaskedAffineAutoregressive(width, 16) for _ in range(layers)])

def fitted(build, std):
    """Mean log-likelihood of new points after training on a normal distribution of this width."""
    torch.manual_seed(0)
    flow = build()
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = -flow.log_prob(std * torch.randn(256, width)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return flow.log_prob(std * torch.randn(2000, width)).mean().item()

seen = {}
for name, build in {"nflows": coupling_flow, "normflows": autoregressive_flow}.items():
    for std in (0.05, 1.0, 20.0):
        truth = -width * (0.5 * math.log(2 * math.pi) + 0.5 + math.log(std))
        seen[name, std] = fitted(build, std) - truth
        print(f"{name:9} width of the data {std:5}: mean log-likelihood {seen[name, std] + truth:7.2f}, true {truth:6.2f}")
limit = -width / 2 * math.log(2 * math.pi) + layers * width * math.log(1.001)
print(f"no density of this nflows model can exceed exp({limit:.2f})")
same = seen["nflows", 0.05] < -1 and seen["normflows", 20.0] < -1
same = same and all(abs(seen[case]) < 0.5 for case in (("nflows", 1.0), ("normflows", 1.0)))
sys.exit(0 if same else "changed: the scale is learned")
EOF
