#!/usr/bin/env bash
# timm: `features_only=True` of a plain ViT leaves out the final LayerNorm.
#
# Guess: the last map of `create_model("vit_...", features_only=True)` is `forward_features` as an image.
# Seen: `features_only` returns the tokens before the final norm, and the model has no norm at all.
#   `forward_features` returns them after the norm. The norm's weights are dropped when a checkpoint
#   is loaded. Applying the norm to the map gives `forward_features` exactly.
# Hurts: linear probes, k-NN and density estimation on features of DINOv2-like models: the scale of the
#   channels differs from the published features.
# Version: timm 1.0.31.
# Source: `timm/models/_features.py:458` and `:475` (`norm=False`, `prune_norm=not norm`).

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile torch==2.15.0 torchvision==0.29.2 timm==1.0.31
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import timm
import torch

torch.set_num_threads(1)
torch.manual_seed(0)
print("timm", timm.__version__, "torch", torch.__version__)
name, options = "vit_tiny_patch16_224", {"img_size": 64}
whole = timm.create_model(name, num_classes=0, **options).eval()
torch.nn.init.uniform_(whole.norm.weight, 0.5, 5.0)  # a trained norm is not the identity
maps = timm.create_model(name, features_only=True, **options).eval()
weights = whole.state_dict()
dropped = sorted(set(weights) - set(maps.model.state_dict()))
maps.model.load_state_dict({k: v for k, v in weights.items() if k not in dropped})
image = torch.randn(1, 3, 64, 64)
with torch.no_grad():
    tokens = whole.forward_features(image)[:, 1:]
    last = maps(image)[-1].flatten(2).transpose(1, 2)
    difference = (tokens - last).abs().max().item()
    after_norm = (tokens - whole.norm(last)).abs().max().item()
print("weights that features_only does not have:", dropped)
print(f"largest difference: {difference:.3g}; after applying the norm: {after_norm:.3g}")
same = dropped == ["norm.bias", "norm.weight"] and difference > 0.1 and after_norm < 1e-4
sys.exit(0 if same else "changed: features_only and forward_features agree, or differ in another way")
EOF
