# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Your own data
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ddfp/ddfp/blob/main/notebooks/05_your_own_data.ipynb)
# [![Open on GitHub](https://img.shields.io/badge/GitHub-source-black?logo=github)](https://github.com/ddfp/ddfp/blob/main/notebooks/05_your_own_data.ipynb)
#
# A folder of pictures, and masks for a few of them: that is all the method asks for. This lesson
# goes from such a folder to overlays, with the commands you would type, and then breaks things on
# purpose.
#
# **You will** lay out pictures, masks and lists, write a configuration, train, predict, and learn
# to read what goes wrong.
#
# **You need** no earlier lesson, though lesson 4 says what happens in training; less than
# 2 minutes on a laptop CPU, no GPU.

# %%
import subprocess
import sys

if "google.colab" in sys.modules:
    source = "ddfp[notebooks] @ git+https://github.com/ddfp/ddfp"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import io
import os
import shlex
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from ddfp_lib import cli
from ddfp_lib.data.base import read_image, read_mask
from ddfp_lib.data.digits import DigitScenes, DigitScenesConfig
from ddfp_lib.data.splits import read_split
from ddfp_lib.data.voc import Voc, write_voc
from ddfp_lib.errors import UserError
from ddfp_lib.plots.training import history, panels
from ddfp_lib.runs.folder import Run

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bar is drawn here
torch.set_num_threads(1)  # small tensors: more threads only wait for one another

# %% tags=["parameters"]
pictures = 300
masks = 72
steps = 216
seed = 0

# %% [markdown]
# ## How should the folder look?
#
# Like PASCAL VOC. Here it is made of digit scenes, so that the lesson runs anywhere; yours would
# come from a camera and an annotation tool. To be like yours, most masks are deleted.
#
# ```
# pictures/JPEGImages/NAME.jpg (or .png)            every picture
# pictures/SegmentationClass/NAME.png               masks, where there are some
# pictures/ImageSets/Segmentation/train.txt         names to train on, with and without mask
# pictures/ImageSets/Segmentation/val.txt           names to measure on, all with mask
# pictures/labeled.txt                              names in train.txt that have a mask
# pictures/classes.txt                              one class a line; line 1 is mask value 0
# ```

# %%
home, temporary = Path.cwd(), tempfile.TemporaryDirectory()
os.chdir(temporary.name)  # so that paths below read as in your terminal
root = Path("pictures")
making = DigitScenesConfig(
    size=40, classes=3, digits=(1, 1), digit_size=(26, 36), train=pictures, val=40
)
scenes = {subset: DigitScenes(making, subset) for subset in ("train", "val")}
write_voc(scenes, root)

have_mask, have_none = scenes["train"].names[:masks], scenes["train"].names[masks:]
for name in have_none:
    (root / "SegmentationClass" / f"{name}.png").unlink()
(root / "labeled.txt").write_text("\n".join(have_mask) + "\n")

for path in sorted(p.relative_to(root) for p in root.rglob("*") if p.is_dir()):
    files = sum(1 for p in (root / path).iterdir() if p.is_file())
    print(f"{path.as_posix():<26} {files} files")
print("classes.txt:", (root / "classes.txt").read_text().split())

# %% [markdown]
# ## Does the library read it as we mean it?
#
# Before anything is trained: open the list, and read every mask once. An unlabeled picture's mask
# is never asked for, and need not exist.

# %%
dataset = Voc(root, "train")
labeled, unlabeled = read_split(dataset, root / "labeled.txt")
validation = Voc(root, "val")
print(f"{len(dataset)} pictures to train on: {len(labeled)} labeled, {len(unlabeled)} not")
print(f"{len(validation)} to measure on")


def share_of_classes(data: Voc, indices: list[int]) -> pd.DataFrame:
    """Read masks; return in how many a class occurs, and its part of all labeled pixels."""
    count = len(data.classes)
    pixels = torch.stack(
        [torch.bincount(data.mask(i).flatten(), minlength=256)[:count] for i in indices]
    )
    return pd.DataFrame(
        {
            "masks": (pixels > 0).sum(0).tolist(),
            "pixels (%)": (100 * pixels.sum(0) / pixels.sum()).round(decimals=1).tolist(),
        },
        index=pd.Index(data.classes, name="class"),
    ).round(1)


counted = share_of_classes(dataset, labeled)
print(counted.to_string())

# %% [markdown]
# A class that stands in hardly any mask cannot be learned, and no threshold will help: label more
# pictures of it first. Look at what you have, too (white: ignored, or no mask at all).

# %%
few = [*labeled[:4], *unlabeled[:3]]
nothing = torch.full_like(dataset.mask(0), 255)
panels(
    {
        "picture": [dataset.image(i) for i in few],
        "mask": [dataset.mask(i) if i in labeled else nothing for i in few],
    },
    dataset.palette,
)

# %% tags=["check"]
assert len(labeled) == masks and len(labeled) + len(unlabeled) == pictures
assert (counted["masks"] >= 5).all()
assert not (root / "SegmentationClass" / f"{dataset.names[unlabeled[0]]}.png").exists()

# %% [markdown]
# ## What has to be decided?
#
# One file. The library has defaults of the paper's size (ResNet-101, crops for large photographs);
# what follows suits pictures of 40 pixels and a CPU. For photographs, begin with
# `reproduce/configs/camvid.yaml`.

# %%
settings = f"""\
benchmark: my-pictures
eps: 1.0                      # length of the step down the density
data:
  dataset: voc                # the layout, not the data
  labeled: labeled.txt
  test: val                   # there is no test list
  augment:
    crop: 40                  # pixels; smaller than your pictures
    scale: [0.8, 1.25]
    flip: false               # a mirrored 2 is no 2; true for most photographs
network:
  encoder: test_resnet        # a toy; resnet50 for photographs
  low_width: 16
  aspp_width: 32
  dilations: [2, 4]
  embedding: 32
density:
  hidden: 64
  samples: 512                # pixels that the flow learns from in a step
training:
  steps: {steps}
  batch_labeled: 8
  batch_unlabeled: 8
  optimizer: adamw
  lr_encoder: 0.005
  lr_head: 0.005
  weight_decay: 0.01
  consistency_from: 0.25      # first learn from the masks alone,
  perturb_from: 0.4           # then from pseudo-labels, then move features
  confidence: 0.6
  ema_decay: 0.95
  evaluate_every: {max(1, steps // 8)}
  checkpoint_every: {steps}
"""
Path("my-pictures.yaml").write_text(settings)
print(settings.count("\n"), "lines")

# %% [markdown]
# ## Train
#
# In a terminal it would be the line in quotes. `ddfp` here is the same command line, called in this
# process: it returns the exit status and what was printed.


# %%
def ddfp(line: str) -> tuple[int, str]:
    """Run a command of ``ddfp``; return its exit status and what it printed."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = cli.run(lambda: cli.app(shlex.split(line), standalone_mode=False))
    return status, said.getvalue()


status, said = ddfp(f"train my-pictures.yaml --data pictures --out run --seed {seed} --device cpu")
print("exit status", status)
print("in the run's folder:", *sorted(p.name for p in Path("run").iterdir() if p.name[0] != "."))

# %% [markdown]
# ## Did it learn?
#
# The run's `metrics.jsonl` is the first thing to look at, while it still trains.

# %%
run = Run.open(Path("run"))
metrics = run.metrics()
validated = [line for line in metrics if "teacher_miou" in line]
training = run.config.training
begins = {
    "consistency begins": training.consistency_from * steps,
    "perturbation begins": training.perturb_from * steps,
}
history(metrics, begins)

# %% tags=["check"]
assert status == 0
first, last = validated[0], validated[-1]
assert last["teacher_miou"] > first["teacher_miou"] + 10
assert last["teacher_miou"] > 100 / len(run.classes)  # all background has less
assert last["pseudo_coverage"] > 0.7
assert last["pseudo_precision"] > 0.85

# %% [markdown]
# It learned: mIoU is up by more than ten points, more than seven pixels in ten have a pseudo-label,
# and more than 85 % of these are right. Three things would be alarming: mIoU below
# 100 / (number of classes), which naming everything background comes close to; a coverage that
# stays near 0; and a precision that keeps falling.
#
# ## Predict
#
# For each picture two files: class indices, and an overlay to look at.

# %%
names = validation.names[:7]
line = " ".join(f"pictures/JPEGImages/{name}.png" for name in names)
status, said = ddfp(f"predict run {line} --out predictions --device cpu")
print(*said.split()[:4], "...", sep="\n")

# %% tags=["thumbnail"]
indices, count = range(len(names)), len(validation.classes)
panels(
    {
        "picture": [validation.image(i) for i in indices],
        "overlay": [read_image(Path(f"predictions/{name}-overlay.png")) for name in names],
        "classes\nfound": [read_mask(Path(f"predictions/{name}.png"), count) for name in names],
        "true mask": [validation.mask(i) for i in indices],
    },
    validation.palette,
)

# %% tags=["check"]
assert status == 0
assert len(list(Path("predictions").iterdir())) == 2 * len(names)
with Image.open(f"predictions/{names[0]}.png") as written:
    assert written.mode == "P" and written.size == (40, 40)

# %% [markdown]
# Which classes? `ddfp evaluate` prints each one's IoU.

# %%
status, said = ddfp("evaluate run --subset val --device cpu")
print(said.splitlines()[0])
iou = {line.split()[0]: float(line.split()[1]) for line in said.splitlines()[1:]}
print("best:", max(iou, key=iou.get))

# %% tags=["check"]
assert status == 0
assert abs(iou["mIoU"] - validated[-1]["teacher_miou"]) < 0.1
assert iou["background"] > 80

# %% [markdown]
# ## And when it does not work?
#
# What is wrong with the data is said in one line that names the file and the mend; on the command
# line with exit status 2. Here are two of the most frequent ones. First: an annotation tool wrote
# 128 where class 1 was meant.


# %%
def complaint() -> str:
    """Read every labeled mask; return what the first bad one is told, or that all are right."""
    try:
        found = Voc(root, "train")
        chosen, _ = read_split(found, root / "labeled.txt")
        for index in chosen:
            found.mask(index)
    except UserError as error:
        return str(error)
    return "every mask is right"


spoilt = root / "SegmentationClass" / f"{have_mask[2]}.png"
whole = spoilt.read_bytes()
with Image.open(spoilt) as mask:
    values = torch.tensor(list(mask.tobytes()), dtype=torch.uint8).view(mask.height, mask.width)
values[0, 0] = 128
Image.fromarray(values.numpy()).save(spoilt)
strange_value = complaint()
print(strange_value)
spoilt.write_bytes(whole)
print(complaint())

# %% [markdown]
# Second: a name in `labeled.txt` that has a picture and no mask.

# %%
(root / "labeled.txt").write_text("\n".join([*have_mask, have_none[0]]) + "\n")
missing_mask = complaint()
print(missing_mask)
(root / "labeled.txt").write_text("\n".join(have_mask) + "\n")
print(complaint())

# %% [markdown]
# And a slip in the configuration, from the command line:

# %%
status, misspelt = ddfp("train my-pictures.yaml --data pictures --out other --set training.step=9")
print("exit status", status)
print(misspelt)

# %% tags=["check"]
assert "mask value 128 is no class" in strange_value
assert missing_mask.endswith("no such file; check the root and the list of names")
assert complaint() == "every mask is right"
assert status == 2 and "did you mean 'training.steps'?" in misspelt
assert not Path("other").exists()

# %% [markdown]
# Where no line is printed and the result is poor:
#
# | symptom | what to try |
# |---|---|
# | a class has IoU 0 | count its masks (table above); label more pictures of it |
# | a class is taken for another | order of `classes.txt`; `flip: false` if left and right matter |
# | `pseudo_coverage` stays near 0 | lower `training.confidence`; a later `consistency_from` |
# | `pseudo_precision` falls far | raise `training.confidence`; more masks |
# | teacher far below the student | `ema_decay` of about `1 - 10 / steps`, so that it can follow |
# | mIoU drops where perturbation begins | halve `eps`; compare with `--method consistency` |
# | "the loss is ...; lower lr_head" | a third of both learning rates |
# | good on `val`, poor on new pictures | size of objects: `--long-side`, `augment.scale` |
# | out of memory | halve `augment.crop` or the batch sizes |
#
# ## Exercises
#
# **1.** A colleague forgets the last line of `classes.txt`. What will be said, and about which
# file? Guess first.

# %% tags=["solution"]
listed = (root / "classes.txt").read_text()
(root / "classes.txt").write_text("\n".join(listed.split()[:-1]) + "\n")
forgotten = complaint()
print(forgotten)
(root / "classes.txt").write_text(listed)
assert "mask value 3 is no class (0..2" in forgotten

# %% [markdown]
# **2.** A new camera has five times the pixels a side. Enlarge the validation pictures fivefold,
# predict them as they are and with `--long-side 40`, and compare how many digit pixels are right.

# %% tags=["solution"]
Path("large").mkdir()
for name, i in zip(names, indices, strict=True):
    picture = Image.fromarray(validation.image(i).permute(1, 2, 0).numpy())
    picture.resize((200, 200), Image.Resampling.BICUBIC).save(f"large/{name}.png")
line = " ".join(f"large/{name}.png" for name in names)
ddfp(f"predict run {line} --out as-is --device cpu")
ddfp(f"predict run {line} --out shrunk --long-side 40 --device cpu")


def right(folder: str) -> float:
    """Return which part of the digits' pixels has the right class."""
    hits = total = 0
    for name, i in zip(names, indices, strict=True):
        with Image.open(f"{folder}/{name}.png") as found:
            labels = found.resize((40, 40), Image.Resampling.NEAREST).tobytes()
        truth = validation.mask(i).flatten()
        digits = (truth > 0) & (truth < 255)
        hits += int((torch.tensor(list(labels)) == truth)[digits].sum())
        total += int(digits.sum())
    return hits / total


parts = {folder: right(folder) for folder in ("predictions", "shrunk", "as-is")}
assert parts["shrunk"] > parts["as-is"] + 0.05
assert abs(parts["shrunk"] - parts["predictions"]) < 0.1

# %% [markdown]
# **3.** Are the pictures without masks worth their time? Train on the masks alone
# (`--method supervised --out alone`) and compare the validation mIoU. What would you need to be
# sure?

# %% tags=["solution"]
ddfp(f"train my-pictures.yaml --data pictures --out alone --method supervised --seed {seed}")
alone = Run.open(Path("alone")).result()
assert alone.method == "supervised" and alone.split == "labeled"
# One seed and so few steps say little: lesson 4 compares full runs over three seeds, as
# `ddfp reproduce my-pictures.yaml --data pictures` does for yours.

# %%
os.chdir(home)
temporary.cleanup()

# %% [markdown]
# ## What we saw
#
# - Pictures, a few masks, three lists and one configuration file are enough.
# - Reading every mask once, before training, finds what would stop it later.
# - Errors of data and configuration are one line that names the file and the mend.
# - A network knows its objects at the size it was trained on: `--long-side`.
#
# ## In the real method
#
# | here | in `ddfp_lib` | in the release |
# |---|---|---|
# | the layout | `data/voc.py` `Voc` | VOC alone; opens masks of unlabeled images too |
# | lists of names | `data/splits.py` `read_split` | lists; Cityscapes lists do not parse |
# | masks are checked | `data/base.py` `read_mask` | - |
# | settings are checked | `config/reading.py` `load_config` | its logs show keys no code reads |
# | overlays | `evaluation/prediction.py` `predict_files` | - |
#
# ## Next
#
# `reproduce/configs` holds the benchmarks, and `ddfp reproduce YOUR.yaml --data FOLDER` compares
# methods over seeds on your own pictures and writes a report.
