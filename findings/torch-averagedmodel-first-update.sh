#!/usr/bin/env bash
# PyTorch: the first update of an `AveragedModel` throws away the weights that were loaded into it.
#
# Guess: with a decay of 0.99 the first update of an EMA teacher moves it by 1 % towards the student.
# Seen: the first `update_parameters` copies the student into the teacher. Weights that were loaded with
#   `teacher.module.load_state_dict(...)` are gone. Every later update averages. timm's `ModelEmaV3`
#   averages from the first update on.
# Hurts: semi-supervised training that starts from a pretrained teacher, or resumes one from a file that
#   holds the plain network. Load into the wrapper with its `n_averaged`, or set
#   `teacher.n_averaged.fill_(1)` after loading.
# Version: torch 2.15.0, timm 1.0.31.
# Source: `torch/optim/swa_utils.py:310` (`copy_param = n_averaged == 0`).

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
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

print("torch", torch.__version__, "timm", timm.__version__)

def network(value):
    layer = torch.nn.Linear(2, 2)
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, value)
    return layer

student, pretrained = network(0.0), network(1.0)
ours = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.99))
marked = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.99))
theirs = ModelEmaV3(student, decay=0.99)
for teacher in (ours, marked, theirs):
    teacher.module.load_state_dict(pretrained.state_dict())
marked.n_averaged.fill_(1)
seen = []
for teacher, update in ((ours, ours.update_parameters), (marked, marked.update_parameters), (theirs, theirs.update)):
    update(student)
    seen.append(round(teacher.module.weight[0, 0].item(), 6))
print("teacher 1, student 0, decay 0.99; teacher's weight after one update:")
print(f"  AveragedModel {seen[0]}, with n_averaged = 1 {seen[1]}, timm ModelEmaV3 {seen[2]}")
sys.exit(0 if seen == [0.0, 0.99, 0.99] else "changed: the first update averages")
EOF
