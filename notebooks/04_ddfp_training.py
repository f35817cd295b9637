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
# # 4. Training: one step in six parts
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ddfp/ddfp/blob/main/notebooks/04_ddfp_training.ipynb)
# [![Open on GitHub](https://img.shields.io/badge/GitHub-source-black?logo=github)](https://github.com/ddfp/ddfp/blob/main/notebooks/04_ddfp_training.ipynb)
#
# Everything comes together: a network, its teacher, a flow that learns while they do, and the step
# down the density. You take one training step by hand, part by part, and find that it is the very
# step the library takes.
#
# **You will** train DDFP on digit scenes, stop half way and look inside, compare the method with
# its rivals over five seeds, and catch the errors of the released code in the act.
#
# **You need** lessons 1 to 3, or a rough idea of pseudo-labels and of normalizing flows; less
# than 2 minutes on a laptop CPU, no GPU.

# %%
import subprocess
import sys

if "google.colab" in sys.modules:
    source = "https://github.com/ddfp/ddfp"
    subprocess.run(["git", "clone", "-q", source, "ddfp"], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "-e", "ddfp[notebooks]"], check=True
    )
    sys.path.insert(0, "ddfp")

# %%
import copy
import tempfile
import warnings
from pathlib import Path

import pandas as pd
import torch

from ddfp_lib.config import Config, find_benchmark, load_config, load_method, to_dict
from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.augment import cutmix_boxes, mix, strong_view
from ddfp_lib.data.loaders import training_batches
from ddfp_lib.evaluation.prediction import segment
from ddfp_lib.evaluation.scores import evaluate
from ddfp_lib.experiments.statistics import (
    difference_table,
    paired_difference,
    score_table,
    verdict,
)
from ddfp_lib.experiments.study import find_study
from ddfp_lib.models.maps import resize
from ddfp_lib.plots import runs as run_figures
from ddfp_lib.plots.training import distances, history, panels
from ddfp_lib.runs.folder import Run
from ddfp_lib.training.data import data_of, split_of
from ddfp_lib.training.learner import Learner, load_learner
from ddfp_lib.training.loop import train
from ddfp_lib.training.losses import PseudoLabels, cross_entropy, density_training_data
from ddfp_lib.training.step import training_step
from ddfp_lib.training.teacher import ema_decay_at, update_ema

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bar is drawn here
torch.set_num_threads(1)  # small tensors: more threads only wait for one another

# %% tags=["parameters"]
method = "ddfp"
seed = 0
classes = 3
scenes = 400
labeled = 60
steps = 240

# %% [markdown]
# ## What are we going to train?
#
# The benchmark of this project, `reproduce/configs/digits.yaml`, made small and easy: three kinds
# of digits instead of five, larger ones, one in a scene; an eighth of the steps, a teacher that
# follows faster, and moves of length 1, not 3. A configuration holds everything that determines a
# result.

# %%
half = steps // 2


def small(name: str, *more: str) -> Config:
    """Return the benchmark's configuration of a method, made small for this lesson."""
    smaller = {
        "data.digits.classes": classes,
        "data.digits.digits": [1, 1],
        "data.digits.digit_size": [26, 36],
        "data.digits.train": scenes,
        "data.digits.val": 60,
        "data.digits.test": 120,
        "data.labeled": labeled,
        "eps": 1.0,
        "training.steps": steps,
        "training.batch_unlabeled": 8,
        "training.consistency_from": 0.25,
        "training.perturb_from": 0.4,
        "training.ema_decay": 0.95,
        "training.evaluate_every": max(1, steps // 8),
        "training.checkpoint_every": half,
    }
    overrides = [f"{key}={value}" for key, value in smaller.items()]
    return load_config(find_benchmark("digits"), name, seed, [*overrides, *more])


device = torch.device("cpu")
config = small(method)
training = config.training
scenes_of = {subset: data_of(config, subset) for subset in ("train", "val", "test")}
known, unknown = split_of(config, scenes_of["train"])
print(f"{len(known)} labeled scenes, {len(unknown)} unlabeled ones")
print(f"{len(scenes_of['val'])} for validation, {len(scenes_of['test'])} for the test")
print(f"classes: {', '.join(scenes_of['train'].classes)}")

# %%
palette = scenes_of["train"].palette
some = known[:6]
panels(
    {
        "image": [scenes_of["train"].image(index) for index in some],
        "label": [scenes_of["train"].mask(index) for index in some],
    },
    palette,
)

# %% [markdown]
# Real handwriting on real photographs. White pixels are ignored: the ring around a digit.
#
# ## Train - and stop half way
#
# `train` writes a run folder: configuration, metrics, checkpoints. We interrupt it after half of
# its steps, as a power cut would, to have a look at a teacher that has learned something.

# %%
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name) / "run"
unfinished = train(config, folder, device=device, stop_at=half)
print("result:", unfinished)
print("in the folder:", ", ".join(sorted(p.name for p in folder.iterdir() if p.name[0] != ".")))

# %% tags=["check"]
assert unfinished is None
assert (folder / "checkpoints" / "index.json").is_file()
assert not (folder / "result.json").exists()

# %% [markdown]
# ## One step by hand
#
# The next cells are `training_step` cut into its six parts: the same calls, in the same order. We
# take the next step at which CutMix happens, which it does in half of all steps.

# %%
run = Run.open(folder)
learner = load_learner(run, device)
student, teacher, density = learner.student, learner.teacher, learner.density
step = next(
    s
    for s in range(half, steps)
    if cutmix_boxes(*config.data.augment.size, config.data.augment, learner.generators(s)[0]).any()
)
batch = next(
    training_batches(
        scenes_of["train"],
        known,
        unknown,
        config.data.augment,
        batch_labeled=training.batch_labeled,
        batch_unlabeled=training.batch_unlabeled,
        seed=config.seed,
        start_step=step,
        stop_step=step + 1,
    )
)
for name, tensor in vars(batch).items():
    print(f"{name:<15} {tensor.dtype!s:<12} {tuple(tensor.shape)}")

# %% [markdown]
# ### Part 1. What does the teacher believe?
#
# The teacher sees the weak views. Where its highest probability exceeds the threshold, its class
# becomes the pseudo-label. What it saw on the way, the embeddings v, the flow will learn from.

# %%
host, on_device = learner.generators(step)
labeled_images, weak = batch.labeled_images / 255, batch.weak_images / 255

with torch.no_grad():
    seen = teacher.embed(teacher.encode(torch.cat([labeled_images, weak])), generator=on_device)
    scores = resize(teacher.classify(seen[-len(weak) :]), weak.shape[2:])
    pseudo = PseudoLabels.of(scores, batch.valid, training.confidence)

probability = scores.softmax(dim=1).amax(dim=1)
panels(
    {
        "weak view": list(weak[:6]),
        "highest\nprobability": list(probability[:6]),
        "pseudo-label": list(pseudo.labels[:6]),
    },
    palette,
)

# %% [markdown]
# Half way through, the teacher is sure of the ground and of small parts of some digits. Elsewhere,
# and in the padding, it stays silent (white).

# %% tags=["check"]
confident = pseudo.labels != IGNORE_INDEX
assert (probability[confident] > training.confidence).all()
assert not confident[~batch.valid].any()
assert 0.5 < float(pseudo.coverage()) < 1

# %% [markdown]
# ### Part 2. What does the student see?
#
# The same images with other colours and less sharp, and a box of each replaced by its neighbour's.
# The pseudo-labels move with the pixels.

# %%
box = cutmix_boxes(*weak.shape[2:], config.data.augment, host)
stronger = strong_view(weak, config.data.augment, host)
strong = mix(stronger, box)
target = pseudo.mixed(box)
features = student.encode(torch.cat([labeled_images, strong]))
clean = student.embed(features, generator=on_device)
print("F, which is moved:               ", tuple(features.shape))
print("v, whose density the flow learns:", tuple(clean.shape))
panels(
    {
        "weak view": list(weak[:6]),
        "strong view": list(stronger[:6]),
        "with CutMix": list(strong[:6]),
        "what to\nlearn there": list(target.labels[:6]),
    },
    palette,
)

# %% [markdown]
# ### Part 3. Which way is down?
#
# For every confident pixel the flow says in which direction of F the density falls fastest. The
# step has length `eps`, whatever the slope.

# %%
movable = features[len(labeled_images) :].detach()
confident_here = target.at(movable.shape[2:]).confident
models = learner.feature_models(on_device)
shift = learner.perturbation(movable, confident_here, models, on_device)

with torch.no_grad():
    before = models.log_density(movable)
    change = models.log_density(movable + shift) - before
fell = (change[confident_here] < 0).float().mean()
nowhere = torch.full_like(change, float("nan"))
panels(
    {
        "confident\npixels": list(confident_here[:6]),
        "log p before\n(nats)": list(before[:6]),
        "its change by\nthe step": list(change.where(confident_here, nowhere)[:6]),
    }
)

# %% tags=["check"]
length = shift.norm(dim=1)
torch.testing.assert_close(
    length[confident_here], torch.full_like(length[confident_here], config.eps)
)
assert (length[~confident_here] == 0).all()
assert fell > 0.95

# %% [markdown]
# Only confident pixels move, all by the same length, and more than 95 % of them go down.
#
# ### Part 4. Same class there: three cross-entropies, one backward pass
#
# Moved features pass through a BatchNorm with statistics of their own (`auxiliary`), for they are
# distributed differently.

# %%
mean = config.method.consistency_mean
logits = resize(student.classify(clean), weak.shape[2:])
losses = {
    "supervised": cross_entropy(logits[: len(labeled_images)], batch.labels),
    "clean": target.cross_entropy(logits[len(labeled_images) :], mean),
}
moved = student.embed(features[len(labeled_images) :] + shift, auxiliary=True, generator=on_device)
logits_moved = resize(student.classify(moved), weak.shape[2:])
losses["perturbed"] = target.cross_entropy(logits_moved, mean)
summed: dict[str, torch.Tensor] = {}
learner.backward(losses, summed)
told = learner.optimizer_step(summed, step)
print("told of the step:", ", ".join(told))

# %% [markdown]
# ### Part 5. The flow takes its own step

# %%
rows, row_classes = density_training_data(seen, batch)
fit = density.fit_step(rows, row_classes, generator=on_device)
losses["bits_per_dim"] = fit.bits_per_dim
print(f"rows of v: {tuple(rows.shape)}, {(row_classes >= 0).sum()} of them with a class")

# %% [markdown]
# ### Part 6. The teacher follows


# %%
def distance(ours: torch.nn.Module, theirs: torch.nn.Module) -> float:
    """Return the distance between two networks' weights, as a part of the second one's length."""
    flat = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (ours, theirs)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


far = distance(teacher, student)
update_ema(teacher, student, step, training.ema_decay)
near = distance(teacher, student)
keep = ema_decay_at(step, training.ema_decay)
print(f"the teacher keeps {keep:.3f} of itself; its distance shrinks to {near / far:.3f} of it")

# %% [markdown]
# Was that really the library's step? Load the same checkpoint again, let `training_step` take the
# step, and compare.

# %% tags=["check"]
other = load_learner(run, device)
whole = training_step(other, batch, step)
for name, value in losses.items():
    torch.testing.assert_close(value.detach(), whole[name])
torch.testing.assert_close(pseudo.coverage(), whole["coverage"])
assert distance(student, other.student) < 1e-4
assert distance(teacher, other.teacher) < 1e-4
assert abs(near / far - keep) < 1e-3

# %% [markdown]
# It was: every loss agrees, and so do the weights of student and teacher. There is nothing else in
# a training step.
#
# ## How does a whole training go?
#
# The same call again: it finds the checkpoint and goes on.

# %%
result = train(config, folder, device=device)
metrics = run.metrics()
validated = [line for line in metrics if "teacher_miou" in line]
begins = {
    "consistency begins": training.consistency_from * steps,
    "perturbation begins": training.perturb_from * steps,
}
history(metrics, begins)

# %% tags=["check"]
first, last = validated[0], validated[-1]
bits = [line["bits_per_dim"] for line in metrics if "bits_per_dim" in line]
assert result.steps == steps
assert last["teacher_miou"] > first["teacher_miou"] + 10
assert last["pseudo_coverage"] > max(0.8, first["pseudo_coverage"] + 0.1)
assert last["pseudo_precision"] < first["pseudo_precision"]
assert bits[-1] < bits[0] - 0.3

# %% [markdown]
# The teacher gets bolder faster than it gets better: at the end at least four pixels in five have a
# pseudo-label, and a smaller part of them is right than at the start. The flow's bits fall by more
# than 0.3 a dimension, although what it measures moves all the time.
#
# ## What does it see?
#
# Test scenes, by the teacher half way and at the end.

# %% tags=["thumbnail"]
test = scenes_of["test"]
final = load_learner(run, device).teacher
shown = torch.linspace(0, len(test) - 1, 7).long().tolist()
images = [test.image(index) for index in shown]
teachers = {"half way": other.teacher, "at the end": final}
run_figures.segmentations(
    images,
    [test.mask(index) for index in shown],
    {name: [segment(net, image, device) for image in images] for name, net in teachers.items()},
    test.classes,
    palette,
)

# %% [markdown]
# ## Is it better than its rivals?
#
# One short run says nothing. A study does: `ddfp study rivals` trained the full benchmark (2,000
# steps, five digits, 85 labeled scenes) with five seeds, and its table lies in the repository. Each
# perturbation takes the step length that validation images chose for it, out of four. A seed fixes
# starting weights, data order and views, so that methods are compared seed by seed.

# %%
study = find_study("rivals")
runs = study.stored()
print(score_table(runs, study.score).to_string(float_format="{:.1f}".format))


# %%
def against(rival: str) -> None:
    """Print every variant's paired difference to a rival, and what its interval allows to say."""
    for name, gap in difference_table(runs, rival).iterrows():
        interval = f"{gap['low']:+5.1f} to {gap['high']:+5.1f}"
        print(f"{name:<26}{gap['difference']:+6.1f}   95 %: {interval}   {verdict(gap)}")


print("minus consistency\n")
against("consistency")
print("\nminus ddfp\n")
against("ddfp, eps 3")

# %%
run_figures.scores(runs, study.rival)


# %% tags=["check"]
def gap(variant: str, rival: str) -> dict[str, float]:
    return paired_difference(runs, variant, rival)


assert gap("consistency", "supervised")["low"] > 10
assert gap("ddfp, eps 3", "consistency")["low"] > 0
assert gap("second pass alone", "consistency")["low"] > 0
assert gap("ddfp, eps 3", "second pass alone")["low"] < 0
assert gap("vat, eps 3", "ddfp, eps 3")["low"] > 0

# %% [markdown]
# **Finding.** Pseudo-labels are worth fourteen points. The step down the density adds 1.7 to them,
# beyond the noise of five seeds. But more than half of that comes from the second pass through the
# decoder, whose features need not move at all (`second pass alone`); and random steps and VAT, at
# their own best lengths, gain more, VAT beyond the noise. So perturbing features helps here, and it
# hardly matters that the density says where to. Scores of one method lie up to five points apart:
# only the comparison within a seed is sharp.
#
# And the release, with all its differences, has the highest mean of all. What are they?
#
# ## What did the released code do instead?
#
# Its behaviour is a preset. These are all the settings in which it differs:

# %%
ours, released = (to_dict(load_method(name)) for name in ("ddfp", "ddfp_released"))
differences = pd.DataFrame({"ddfp": ours, "ddfp_released": released}).loc[
    [key for key in ours if ours[key] != released[key]]
]
print(differences.drop("name").to_string())

# %% [markdown]
# None of them raises an error, and each changes the method. Two experiments.
#
# ### A teacher that is its own student
#
# In epoch 1 the release hands the student's weights over with `t.data = s.data`, and later averages
# in place. In four lines:

# %%
s, t = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(3))
t.data = s.data  # meant: copy the values; done: share the memory
with torch.no_grad():
    s += 5  # the student learns
    t.copy_(0.99 * t + 0.01 * s)  # the teacher "follows slowly"
print("student", s.tolist(), " teacher", t.tolist())

# %% [markdown]
# The teacher is where the student is, whatever the 0.99. Now with whole networks: eight steps with
# the method's average and eight with the release's tie, consistency on from the start.


# %%
def follow_for(kind: str, count: int = 8) -> tuple[list[float], Learner]:
    """Train some steps; return teacher's distance to student after each, and the learner."""
    settings = ("training.consistency_from=0", "training.perturb_from=0")
    if kind == "tied":  # it learns its BatchNorm statistics in train mode, as released
        settings += ("method.teacher_mode=train",)
    fresh = Learner(small("ddfp", f"method.teacher={kind}", *settings), len(palette), device)
    batches = training_batches(
        scenes_of["train"],
        known,
        unknown,
        config.data.augment,
        batch_labeled=4,
        batch_unlabeled=4,
        seed=seed,
        start_step=0,
        stop_step=count,
    )
    found = []
    for number, some_batch in enumerate(batches):
        training_step(fresh, some_batch, number)
        found.append(distance(fresh.teacher, fresh.student))
    return found, fresh


averaged, _ = follow_for("ema")
tied, with_tie = follow_for("tied")
distances({"moving average": averaged, "tied, as released": tied})

# %% tags=["check"]
assert t.tolist() == s.tolist() and t.data_ptr() == s.data_ptr()
assert all(value == 0 for value in tied)
assert all(value > 0.01 for value in averaged[1:])
pairs = zip(with_tie.teacher.parameters(), with_tie.student.parameters(), strict=True)
assert all(theirs is ours for theirs, ours in pairs)

# %% [markdown]
# The tied teacher's weights equal the student's at every step, to the last bit; the average keeps
# its distance. What the release trains is self-training: the student learns what it already
# believes.
#
# ### Pseudo-labels that depend on the company
#
# The release's teacher stays in training mode: it normalises by the statistics of the batch. So
# the pseudo-label of a scene depends on which other scenes happen to be there. We ask the trained
# teacher about six scenes, in the company of four others and of yet another four.


# %%
def believed(network: torch.nn.Module, company: slice) -> torch.Tensor:
    """Return the classes of six scenes, asked together with the labeled ones of ``company``."""
    together = torch.cat([weak[:6], labeled_images[company]])
    with torch.no_grad():
        return network(together)[:6].argmax(dim=1)


as_released = copy.deepcopy(final).train()
answers = {
    mode: (believed(network, slice(0, 4)), believed(network, slice(4, 8)))
    for mode, network in (("eval", final), ("train", as_released))
}
one, another = answers["train"]
panels(
    {
        "scene": list(weak[:6]),
        "class, in\none company": list(one),
        "in another": list(another),
        "where they\ndiffer": list(one != another),
    },
    palette,
)

# %% tags=["check"]
differing = {mode: float((a != b).float().mean()) for mode, (a, b) in answers.items()}
assert differing["eval"] == 0
assert differing["train"] > 0.003

# %% [markdown]
# In training mode the company decides some pixels, mostly along the outlines: noise in what the
# student is told. In eval mode it decides none.
#
# ## Exercises
#
# **1.** The threshold of these runs is 0.6. What do coverage and precision of the final teacher's
# pseudo-labels become at 0.5, 0.8, 0.95 and 0.99? Use `evaluate(..., confidence=...)` on the
# validation scenes.

# %% tags=["solution"]
quality = {
    threshold: evaluate(final, scenes_of["val"], device=device, confidence=threshold)
    for threshold in (0.5, 0.8, 0.95, 0.99)
}
coverages = [found.coverage for found in quality.values()]
assert coverages == sorted(coverages, reverse=True)
assert quality[0.99].coverage < quality[0.5].coverage - 0.1
assert quality[0.99].precision > quality[0.5].precision + 0.02
# A higher threshold gives fewer and better pseudo-labels.

# %% [markdown]
# **2.** The release divides the consistency loss by the number of confident pixels, not of valid
# ones (`consistency_mean: confident`). Compute both for the batch above. By which factor do they
# differ, and when is that factor large?

# %% tags=["solution"]
by_valid = target.cross_entropy(logits_moved.detach(), "valid")
by_confident = target.cross_entropy(logits_moved.detach(), "confident")
torch.testing.assert_close(by_confident, by_valid / target.coverage())
# 1 / coverage: large in the beginning, when few pixels are confident and the teacher knows least.

# %% [markdown]
# **3.** The teacher keeps `min(1 - 1 / (n + 1), decay)` of itself at step n. From which step on is
# that the decay, for 0.99 and for the release's 0.999? What does it mean for a run of 240 steps?

# %% tags=["solution"]
for decay in (0.99, 0.999):
    begin = next(n for n in range(2000) if ema_decay_at(n, decay) >= decay)
    print(f"decay {decay}: from step {begin}")
# Before that step the teacher is the plain mean of all students so far, random start included:
# with 0.999 for the whole of a run of 240 steps.

# %%
temporary.cleanup()

# %% [markdown]
# ## What we saw
#
# - A training step is six parts, each a call or two; by hand it gives the library's losses.
# - Only confident pixels move, by exactly `eps`, and more than 95 % of them to lower density.
# - Coverage of the pseudo-labels rises over a training while their precision falls.
# - On digit scenes, 85 labels, five seeds: pseudo-labels gain 14 points over labels alone, the step
#   down the density 1.7 more, a random step 2.4, VAT 2.6, a second pass alone 1.0.
# - A tied teacher is the student; a teacher in training mode changes its mind with the company.
#   Neither raises an error.
#
# ## In the real method
#
# | here | in `ddfp_lib` | in the release |
# |---|---|---|
# | the six parts | `training/reference_step.py` `reference_step` | `train_ddfp_pascal.py:372-524` |
# | pseudo-labels | `training/losses.py` `PseudoLabels` | `train_ddfp_pascal.py:378-399` |
# | the step down | `method/perturb.py` `DensityDescent` | `model/model/attack.py` |
# | the sum of losses | `training/learner.py` `backward` | `train_ddfp_pascal.py:426` |
# | the flow's step | `method/density.py` `fit_step` | `train_ddfp_pascal.py:455-500` |
# | the teacher | `training/teacher.py` `update_ema` | `train_ddfp_pascal.py:505-524` |
# | the loop | `training/loop.py` `train` | |
#
# The paper's setting has a ResNet-101, crops of 513 pixels, 16 + 16 images a step, a threshold of
# 0.95, an average of 0.999 and steps of length 4.
#
# ## Next
#
# [Lesson 5](05_your_own_data.ipynb): your own pictures, most of them without a mask. And
# `ddfp reproduce digits` runs the benchmark itself.
