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
# [All lessons](README.md) · previous: [3. The step down the
# density](03_density_descending_shift.ipynb) · next: [5. Your own data](05_your_own_data.ipynb)
#
# This lesson combines all parts of the method: a network, its teacher, a flow, and the step down
# the density. The network and the flow are trained at the same time. You take one training step by
# hand. Each formula is followed by its code, which is taken from
# [`reference_step.py`](../ddfp_lib/training/reference_step.py). Then you check that the library's
# training step gives the same result as your step by hand, bit for bit.
#
# **You will**
# - train DDFP on small digit scenes, stop half way, and take the next step by hand;
# - see pseudo-labels, strong augmentation and CutMix on real batches;
# - follow the coverage and the precision of the pseudo-labels during training;
# - find out how the authors' code differs from the paper, and reproduce two of these differences.
#
# **You need** lessons 1 to 3, or an idea of pseudo-labels and of normalizing flows. Terms are
# explained in the [glossary](../docs/glossary.md).
#
# **Takes** about 20 minutes to read. The code runs in about a minute on a laptop CPU and needs no
# GPU.

# %%
import copy
import tempfile
import warnings
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import max_pool2d

from ddfp_lib import (
    Learner,
    Run,
    data_of,
    evaluate,
    load_learner,
    reference_step,
    segment,
    split_of,
    train,
    training_step,
)
from ddfp_lib.config import load_method, to_dict
from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.augment import cutmix_box, mix, strong_view
from ddfp_lib.experiments.statistics import paired_difference, verdict
from ddfp_lib.experiments.study import find_study
from ddfp_lib.lessons.digits import PALETTE, batch_of_step, small_config
from ddfp_lib.plots.diagram import diagram
from ddfp_lib.plots.runs import segmentations
from ddfp_lib.plots.training import history, panels
from ddfp_lib.training.losses import PseudoLabels, cross_entropy, density_training_data
from ddfp_lib.training.teacher import ema_decay_at, update_ema

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bar is drawn here
torch.set_num_threads(1)  # small tensors: more threads only wait for one another

# %% tags=["parameters"]
method = "ddfp"
seed = 0
steps = 240

# %% [markdown]
# ## Where are we?
#
# This lesson uses all boxes of the diagram below. The loss is a sum of three terms, one for labeled
# and two for unlabeled images. Let $x$ be a labeled image and $m$ its mask. Let $u$ be a *strongly
# augmented* unlabeled image (see part 2), and $y$ the *pseudo-labels* that the teacher makes. CE is
# the cross-entropy, averaged over pixels. $F$ are the features of $u$, and $\delta$ is the step
# (lesson 3). Then
#
# $$ L \;=\; \underbrace{\mathrm{CE}(x, m)}_{\text{supervised}}
#    \;+\; \tfrac12 \underbrace{\mathrm{CE}(u, y)}_{\text{clean}}
#    \;+\; \tfrac12 \underbrace{\mathrm{CE}(u \text{ with } F + \delta,\; y)}_{\text{perturbed}} $$
#
# The training has three phases. First comes the *warm-up*: the loss is only the supervised term.
# Then *consistency* begins: the clean term is added, with weight 1. Then *perturbation* begins, and
# the loss is $L$.
#
# The clean term and the perturbed term of $L$ are *consistency regularization* (lesson 1): the
# image or its features are perturbed, and the student must still predict the same class. A
# *baseline* is a method to compare with. The baseline `consistency` has no perturbed term, and its
# clean term has weight 1. In this baseline, the teacher sees a weakly augmented image (see part 1).
# The student sees the same image with strong augmentation and must predict the teacher's class.
# DDFP augments images in the same way, and it also moves features.

# %%
diagram("data", "student", "teacher", "perturbed pass", "flow", "step", "losses")

# %% [markdown]
# ## What do we train on?
#
# We train on scenes: each scene is an image of 40 x 40 pixels that shows one real handwritten digit
# on a real photograph. This project's benchmark of digit scenes has more scenes than we use in this
# lesson, and its scenes are more difficult. We use the masks of only 60 training scenes. In each
# mask, a white ring surrounds the digit. The pixels of this ring have no class, so the supervised
# loss and the evaluation do not use them. The function `small_config` returns all settings of the
# data, the network and the training.

# %%
config = small_config(method, seed, steps)
device, training = torch.device("cpu"), config.training
scenes = {subset: data_of(config, subset) for subset in ("train", "val", "test")}
labeled, unlabeled = split_of(config, scenes["train"])
print(f"{len(labeled)} labeled scenes, {len(unlabeled)} unlabeled ones")
print(f"{len(scenes['val'])} for validation, {len(scenes['test'])} for the test")
print(f"classes: {', '.join(scenes['train'].classes)}")
panels(
    {
        "image": [scenes["train"].image(index) for index in labeled[:7]],
        "mask": [scenes["train"].mask(index) for index in labeled[:7]],
    },
    PALETTE,
    classes=scenes["train"].classes,
).described(
    "Seven labeled scenes, each a colored digit on a piece of a photograph, and their masks: "
    "background, the class of the digit, and an ignored ring around the digit in white."
)

# %% [markdown]
# ## Train, and stop half way
#
# `train` writes a run folder: configuration, metrics, checkpoints. We stop the training after half
# of the steps, when the teacher has already learned something, and look at this teacher.

# %% tags=["nbval-ignore-output"]
temporary = tempfile.TemporaryDirectory()
folder, half = Path(temporary.name) / "run", steps // 2
unfinished = train(config, folder, device=device, stop_at=half)
print("in the folder:", ", ".join(sorted(p.name for p in folder.iterdir() if p.name[0] != ".")))

# %% tags=["check"]
assert unfinished is None
assert (folder / "checkpoints" / "index.json").is_file()
assert not (folder / "result.json").exists()

# %% [markdown]
# ## One step by hand
#
# *CutMix* is an augmentation (part 2 explains it). About half of the training steps after the
# warm-up use CutMix. We load the checkpoint and take the next step that uses CutMix. The seed and
# the number of the step determine all randomness of a step, so the step can be repeated exactly.

# %%
run = Run.open(folder)
learner = load_learner(run, device)
student, teacher, augment = learner.student, learner.teacher, config.data.augment
step = next(
    s
    for s in range(half, steps)
    if cutmix_box(*augment.size, augment, learner.generators(s)[0]).any()
)
batch = batch_of_step(config, step)
for_views, for_features = learner.generators(step)
for name, tensor in vars(batch).items():
    print(f"{name:<15} {tensor.dtype!s:<12} {tuple(tensor.shape)}")

# %% [markdown]
# ### Part 1. The teacher makes pseudo-labels
#
# The teacher sees *weakly augmented* images: they are scaled and cropped at random. If the objects
# of a data set keep their class in a flipped image, each image is also flipped with a probability
# of 0.5. (Digits are not flipped.) Where the crop is larger than the scaled image, *padding* fills
# the rest. At each pixel, we take the class with the highest probability. This class becomes the
# pseudo-label if the probability exceeds a threshold:
#
# $$ y = \arg\max_k\, p_\text{teacher}(k), \qquad
#    \text{where } \max_k\, p_\text{teacher}(k) > \tau $$
#
# This rule for pseudo-labels comes from *FixMatch*. The threshold $\tau$ is 0.6 in our small
# training runs and 0.95 in the released code. A higher threshold gives fewer pseudo-labels (see
# exercise 1). We keep the teacher's embeddings $v$, because the flow will learn their density.
#
# **Predict first.** Where is the teacher confident half way through the training: on the
# background, on the digits, or along the outlines of the digits?

# %%
labeled_images, weak = batch.labeled_images / 255, batch.weak_images / 255
size = weak.shape[2:]
with torch.no_grad():
    teacher_v = teacher.embed(teacher.encode(torch.cat([labeled_images, weak])))
    scores = teacher.classify(teacher_v[-len(weak) :], size)
    y_weak = PseudoLabels.of(scores, batch.valid, training.confidence)

probability = scores.softmax(dim=1).amax(dim=1)
panels(
    {
        "weakly\naugmented": list(weak[:7]),
        "highest\nprobability": list(probability[:7]),
        "pseudo-label": list(y_weak.labels[:7]),
    },
    PALETTE,
    classes=scenes["train"].classes,
).described(
    "Seven weakly augmented scenes, the teacher's highest probability at each pixel, and the "
    "pseudo-labels. The probability is near 1 on the background, and lowest along the outlines "
    "of the digits and inside some of them. Pseudo-labels cover the background and parts of most "
    "digits; the other pixels of the digits, and the padding, have none."
)

# %% tags=["nbval-ignore-output"]
print(f"threshold {training.confidence}; coverage {y_weak.coverage():.2f} of the valid pixels")

# %% tags=["check"]
confident = y_weak.labels != IGNORE_INDEX
assert (probability[confident] > training.confidence).all()
assert not confident[~batch.valid].any()
assert 0.5 < float(y_weak.coverage()) < 1

# %% [markdown]
# **Finding.** Half way through the training, the teacher is confident about the background and
# about parts of most digits. A pseudo-label can be wrong: it can have the class of another digit.
# The pixels at which the teacher is not confident, and the padding, have no pseudo-label. (In the
# figure above, the row "pseudo-label" shows these pixels in white.)

# %% [markdown]
# ### Part 2. Strong augmentation
#
# First, the weakly augmented images get random changes of color and random blur. Then CutMix
# replaces a box of each image by the same box of the next image. Let $s_i$ be image $i$ of the
# batch before CutMix, and let $y_i$ be its pseudo-labels. The map $b$ is 1 in the box and 0
# elsewhere. Then the student sees $u_i$ and learns $y_i'$:
#
# $$ u_i = b \odot s_{i+1} + (1 - b) \odot s_i, \qquad
#    y_i' = b \odot y_{i+1} + (1 - b) \odot y_i $$
#
# The product $\odot$ is taken pixel by pixel. Each image is mixed with the next image of the batch.
# The last image of the batch is mixed with the first image. Both formulas use the same box. So each
# pseudo-label moves together with its pixel. From here on, $y$ means the mixed pseudo-labels $y'$.

# %%
box = cutmix_box(*size, augment, for_views)
stronger = strong_view(weak, augment, for_views)
strong, y = mix(stronger, box), y_weak.mixed(box)
panels(
    {
        "weakly\naugmented": list(weak[:7]),
        "new colors\nand blur": list(stronger[:7]),
        "then CutMix": list(strong[:7]),
        "pseudo-label": list(y.labels[:7]),
    },
    PALETTE,
    classes=scenes["train"].classes,
).described(
    "Seven scenes in four rows: weakly augmented, with strong colors and blur, after CutMix, and "
    "their pseudo-labels. CutMix puts a box of the next scene into each scene, and the "
    "pseudo-labels in the box are those of the next scene too."
)

# %% [markdown]
# ### Part 3. The supervised and the clean loss
#
# The student's path is image → $F$ → $v$ → scores. Let $p_j$ be the student's class probabilities
# at pixel $j$: the softmax of the scores at this pixel. The mask gives a class $m_j$ to each pixel
# $j$ of a set $M$. The supervised loss is the mean of $-\log p_j(m_j)$ over this set. Let $C$ be
# the set of pixels that have a pseudo-label, and let $y_j$ be the pseudo-label of pixel $j$. For
# the clean loss, we take the sum of $-\log p_j(y_j)$ over $C$. This sum is divided by the size of
# the larger set $V \supseteq C$ of *valid* pixels, which are all pixels except the padding:
#
# $$ \mathrm{CE}(x, m) = -\frac{1}{|M|} \sum_{j \in M} \log p_j(m_j), \qquad
#    \mathrm{CE}(u, y) = -\frac{1}{|V|} \sum_{j \in C} \log p_j(y_j) $$
#
# So valid pixels without a pseudo-label count as 0, and the clean loss is small if only few pixels
# have a pseudo-label.

# %%
features = student.encode(torch.cat([labeled_images, strong]), generator=for_features)
v = student.embed(features, generator=for_features)
logits = student.classify(v, size)
supervised = cross_entropy(logits[: len(labeled_images)], batch.labels)
clean = y.cross_entropy(logits[len(labeled_images) :], mean="valid")
print("F:", tuple(features.shape), " v:", tuple(v.shape))

# %% [markdown]
# ### Part 4. The step down the density, and the perturbed loss
#
# We move $F$ at each *confident* pixel, that is, at each pixel with a pseudo-label. The flow gives
# the direction in which the log-density falls fastest. The step has length $\varepsilon$ (see
# lesson 3):
#
# $$ \delta = \varepsilon \frac{g}{\lVert g \rVert}, \qquad g = -\nabla_F \log p(v(F)) $$
#
# The perturbed loss has the same formula as the clean loss in part 3. But the class probabilities
# are computed from $F + \delta$ instead of $F$. No gradient flows through $\delta$ itself.
#
# **Predict first.** BatchNorm normalizes features by their mean and variance. For the evaluation,
# it keeps running averages of the mean and of the variance. What happens to these averages if $F$
# and $F + \delta$ go through the same BatchNorm?

# %%
start = features[len(labeled_images) :]
moves = y.at(features.shape[2:]).confident
models = learner.feature_models(for_features)
shift = learner.perturbation(start.detach(), moves, models, for_features)
moved_v = student.embed(start + shift, auxiliary=True, generator=for_features)
perturbed = y.cross_entropy(student.classify(moved_v, size), mean="valid")

with torch.no_grad():
    before = models.log_density(start)
    after = models.log_density(start + shift)
nothing = torch.tensor(float("nan"))
panels(
    {
        "confident": list(moves[:7]),
        "log p before\n(nats)": list(before.where(moves, nothing)[:7]),
        "log p after\nthe step": list(after.where(moves, nothing)[:7]),
    },
    one_scale=True,
).described(
    "Seven scenes at the resolution of the features: where the teacher is confident, log p before "
    "the step, and log p after it. Features in the padding and many on the digits are not "
    "confident and are left white. Nearly all others have a lower log p after the step."
)

# %% tags=["nbval-ignore-output"]
falls = (after < before)[moves].float().mean()
with torch.no_grad():
    log_p_teacher = learner.density.log_prob(teacher_v.movedim(1, -1).flatten(0, -2)).median()
print(f"{100 * falls:.1f} % of the moved features have a lower density after the step")
print(f"median log p of the teacher's v: {log_p_teacher:.1f}; ", end="")
print(f"of the student's, before the step: {before.median():.1f} nats")

# %% tags=["check"]
length = shift.norm(dim=1)
torch.testing.assert_close(length[moves], torch.full_like(length[moves], config.eps))
assert (length[~moves] == 0).all()
assert falls > 0.95
assert abs(log_p_teacher - before.median()) < 5

# %% [markdown]
# **Finding.** Only features at confident pixels move, and all steps have the same length. The step
# lowers the log-density of more than 95 % of these features.
#
# Two details are important. First, the flow learns the density of the *teacher's* embeddings. But
# to compute the step, the flow is evaluated on the *student's* embeddings. The median log-density
# is similar for both kinds of embeddings: the two printed medians differ by less than five nats.
# (In the figure above with $\log p$ before and after the step, the log-densities of different
# features differ by tens of nats.) Second, the option `auxiliary=True` uses the *auxiliary
# BatchNorm*. This is a second BatchNorm with its own statistics and weights, for $F + \delta$ only.
# Without this option, the same running averages would be used for $F$ and for $F + \delta$. We
# think that these shared averages would be wrong for $F$ and for $F + \delta$. In [study
# 4](../reproduce/STUDY.md), DDFP was trained with shared statistics on the full benchmark of digit
# scenes. The steps down the density have length 3 in this study, and length 1 in this lesson. The
# next output shows a difference of two *mIoUs*: the mIoU of DDFP with shared statistics minus the
# mIoU of DDFP with the auxiliary BatchNorm. (The mIoU is a score in percent. The section "How does
# a whole training run go?" defines it.)

# %%
ablations = find_study("ablations")
shared = paired_difference(ablations.stored(), "ddfp, eps 3, shared norm", ablations.baseline)
print(f"shared BatchNorm statistics: {shared['difference']:+.1f} points of test mIoU, ", end="")
print(f"{verdict(shared)}, {shared['seeds']} seeds")

# %% tags=["check"]
assert shared["high"] < 0

# %% [markdown]
# So shared statistics make DDFP much worse on the digit scenes.

# %% [markdown]
# ### Part 5. One backward pass
#
# The total loss is the weighted sum from the beginning of the lesson:
#
# $$ L = \mathrm{CE}(x, m) + \tfrac12\, \mathrm{CE}(u, y)
#    + \tfrac12\, \mathrm{CE}(u \text{ with } F + \delta,\; y) $$
#
# The gradient of this loss changes only the student. The teacher and the flow change in part 6.

# %% tags=["nbval-ignore-output"]
loss = supervised + 0.5 * clean + 0.5 * perturbed
learner.optimizer.zero_grad()
loss.backward()
learner.optimizer_step({"loss": loss.detach()}, step)
print(f"supervised {supervised:.3f}, clean {clean:.3f}, perturbed {perturbed:.3f}: L = {loss:.3f}")

# %% [markdown]
# ### Part 6. The flow learns, and the teacher follows
#
# We update the weights of the flow once, by maximum likelihood on the teacher's embeddings. Where a
# mask gives a class, the flow uses this class (lesson 2). The flow minimizes
#
# $$ -\frac1N \sum_{j=1}^N \log p(v_j + \sigma \xi_j \mid m_j), \qquad
#    \log p(v \mid k) = \log \mathcal N(f(v); \mu_k, I)
#    + \log \left| \det \frac{\partial f}{\partial v} \right| $$
#
# Here $f$ is the map of the flow, and $\mu_k$ is the mean of the Gaussian of class $k$ (lesson 2).
# The term $\sigma \xi_j$ is a little Gaussian noise. The masks are scaled down to the size of $v$.
# Where no mask gives a class, we use the marginal density $p(v) = \frac1K \sum_k p(v \mid k)$
# instead of $p(v \mid m_j)$. $K$ is the number of classes. Each step draws $N = 512$ embeddings at
# random from all embeddings outside the padding.
#
# Then we update the weights of the teacher. They are an exponential moving average (EMA) of the
# student's weights. Lesson 1 uses the same rule (Mean Teacher):
#
# $$ \theta_\text{teacher} \leftarrow a\, \theta_\text{teacher} + (1 - a)\, \theta_\text{student},
#    \qquad a = \min\left(1 - \tfrac1{n+1},\ a_\text{max}\right) \text{ at step } n $$


# %%
def distance(ours, theirs):
    """Return the distance of two networks' weights, relative to the length of the second's."""
    flat = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (ours, theirs)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


rows, classes = density_training_data(teacher_v, batch)
learner.density.fit_step(rows, classes, generator=for_features)
far = distance(teacher, student)
update_ema(teacher, student, step, training.ema_decay)
near = distance(teacher, student)
print(f"embeddings outside the padding: {tuple(rows.shape)}; ", end="")
print(f"{int((classes >= 0).sum())} of them have a class")
print(f"a = {ema_decay_at(step, training.ema_decay):.2f}; ", end="")
print(f"the distance between teacher and student becomes {near / far:.2f} times as large")

# %% [markdown]
# Is our step by hand equal to the step of the library? Our step by hand started from a checkpoint.
# We load this checkpoint twice. One copy takes the step with `reference_step`. The other copy takes
# the step with `training_step`, which is the function that `train` uses. Then we compare all
# weights of each copy with the weights after our step.


# %% tags=["check"]
def weights(learner):
    networks = (learner.student, learner.teacher, learner.density)
    return torch.cat([p.detach().flatten() for net in networks for p in net.parameters()])


for library_step in (reference_step, training_step):
    other = load_learner(run, device)
    library_step(other, batch, step)
    assert torch.equal(weights(other), weights(learner))
assert abs(near / far - ema_decay_at(step, training.ema_decay)) < 1e-3

# %% [markdown]
# **Finding.** Our step by hand gives the same weights as `reference_step` and as `training_step`,
# bit for bit. This is true for student, teacher and flow. So parts 1 to 6 of this lesson are a
# whole training step with perturbation.

# %% [markdown]
# ## How does a whole training run go?
#
# We call `train` again with the run folder from the section "Train, and stop half way". It finds
# the checkpoint and continues the training. *Valid* pixels are all pixels except the padding.
# *Coverage* is the number of valid pixels with a pseudo-label, divided by the number of all valid
# pixels. *Precision* is the fraction of the pseudo-labels that are right. (The next figure and the
# next table show coverage and precision for the validation scenes.) *mIoU*, the mean intersection
# over union, measures how well a segmentation agrees with the mask. The IoU of a class is the
# number of pixels that have this class in both prediction and mask, divided by the number of pixels
# that have it in at least one of the two. mIoU is the mean IoU over all classes. The third panel of
# the next figure shows the flow's loss in *bits per dimension*: the negative log-likelihood with
# logarithms to the base 2, divided by the number of channels of $v$.
#
# **Predict first.** The coverage rises during the training. Does the precision of the pseudo-labels
# rise too, fall, or stay the same?

# %%
halfway = load_learner(run, device).teacher
result = train(config, folder, device=device)
metrics = run.metrics()
begins = {
    "consistency begins": training.consistency_from * steps,
    "perturbation begins": training.perturb_from * steps,
}
history(metrics, begins).described(
    "Three panels over the steps of training. The mIoU of teacher and student more than doubles. "
    "The fraction of pixels with a pseudo-label rises too, while their precision falls a little at "
    "first. The flow's bits per dimension fall quickly at first, rise once by a little and end at "
    "their lowest value."
)

# %% tags=["nbval-ignore-output"]
validated = pd.DataFrame([line for line in metrics if "teacher_miou" in line]).set_index("step")
validated[["teacher_miou", "pseudo_coverage", "pseudo_precision"]].round(2)

# %% tags=["check"]
first, last = validated.iloc[0], validated.iloc[-1]
bits = [line["bits_per_dim"] for line in metrics if "bits_per_dim" in line]
assert result.steps == steps
assert last["pseudo_coverage"] > max(0.8, first["pseudo_coverage"] + 0.1)
assert last["pseudo_precision"] < first["pseudo_precision"]
assert last["teacher_miou"] > 2 * first["teacher_miou"]
half = validated["pseudo_precision"].iloc[len(validated) // 2]
assert abs(last["pseudo_precision"] - half) < 0.03
assert bits[-1] < bits[0] - 0.3

# %% [markdown]
# **Finding.** The teacher's mIoU more than doubles. At the end about nine pixels in ten have a
# pseudo-label. In the first half of the training, coverage rises and precision falls. So the
# teacher becomes confident at more pixels, but a smaller fraction of its pseudo-labels is right. In
# the second half, the precision changes by less than three percentage points. This is a small
# training run of only 240 steps. Study 2 trains DDFP with five seeds on the full benchmark of digit
# scenes, for 2,000 steps. There, the precision falls a little from step 500 to step 1,000 and rises
# later. (These precisions are means over the seeds; see the [measurements of study
# 2](../reproduce/studies/perturbations-mechanism.csv).)

# %% [markdown]
# ## Which digits does the teacher find?
#
# **Predict first.** At the end of the training, will the teacher still miss whole digits? Will it
# give digits a wrong class?

# %% tags=["thumbnail"]
final = load_learner(run, device).teacher
shown = torch.linspace(0, len(scenes["test"]) - 1, 7).long().tolist()
images = [scenes["test"].image(index) for index in shown]
teachers = {"half way": halfway, "at the end": final}
segmentations(
    images,
    [scenes["test"].mask(index) for index in shown],
    {name: [segment(net, image, device) for image in images] for name, net in teachers.items()},
    scenes["test"].classes,
    PALETTE,
).described(
    "Seven test scenes, their true masks, and the teacher's segmentation half way and at the end "
    "of training. Half way some digits are missed nearly completely, and others are found in "
    "part, with a wrong class or with mixed classes. At the end all digits are found and their "
    "shapes are better; some still have mixed classes."
)

# %% [markdown]
# **Finding.** Half way through the training, the teacher misses some of these digits nearly
# completely. It finds only pieces of some other digits, and it gives many pixels in these pieces a
# wrong class. At the end of the training, the teacher finds the digit in each of the seven scenes
# of the figure. In the teacher's segmentation, the shapes of the digits are now better than they
# were half way through the training. But some of the digits still have pixels of a wrong class.
#
# Is DDFP better than the baselines, and is the density the reason? One short run cannot answer
# these two questions. [Lesson 6](06_does_the_density_matter.ipynb) compares the methods with
# several seeds.
#
# ## How does the released code differ from the paper?
#
# The authors published their [code](https://github.com/Gavinwxy/DDFP). We call it the *released
# code* or the *release*. It differs from the description in the paper. A *preset* is a named set of
# settings. The preset `ddfp` follows the paper, and the preset `ddfp_released` follows the released
# code. The next output shows all settings of the method that differ between the two presets. (Four
# settings of the network also follow the release. The presets do not contain these four settings:
# the configuration file `voc.yaml` sets them for every method. See [Parity](../docs/parity.md).)

# %% tags=["nbval-ignore-output"]
ours, released = (to_dict(load_method(name)) for name in ("ddfp", "ddfp_released"))
differences = pd.DataFrame({"ddfp": ours, "ddfp_released": released}).loc[
    [key for key in ours if ours[key] != released[key]]
]
print(differences.drop("name").to_string())

# %% [markdown]
# None of these settings causes an error message. But each setting changes the method. The next
# table describes the settings of the release:
#
# | setting | what the release does |
# |---|---|
# | `consistency_mean` | divides clean and perturbed loss by the number of confident pixels |
# | `moved` | also moves neighbors of confident pixels |
# | `density_void` | the flow does not learn from void (ignored) pixels |
# | `density_query` | uses batch statistics to compute a step (`frozen`: running statistics) |
# | `warmup_norm` | in warm-up, half of the labeled images use the auxiliary BatchNorm |
# | `teacher` | the teacher shares the student's weights (*tied*) |
# | `teacher_mode` | the teacher's BatchNorm uses the statistics of the current batch |
# | `shares` | each of four GPUs averages its losses separately and makes its own CutMix decision |
# | `cutmix_box` | draws a separate CutMix box for each image |
# | `strong_norm` | before perturbation begins, strongly augmented images use auxiliary BatchNorm |
# | `density_schedule` | the flow's learning rate falls once per epoch, not at every step |
#
# [parity.md](../docs/parity.md) says more about each setting and gives the line numbers of the
# released code. Here we look at two settings, `teacher` and `teacher_mode`.
#
# ### A teacher that is the same network as the student
#
# In the second epoch, the released code is meant to copy each weight `s` of the student into the
# weight `t` of the teacher. For this, the code uses `t.data = s.data`. At later steps, it updates
# `t` in place by the EMA formula.
#
# **Predict first.** Which values do `s` and `t` have at the end of the next cell?

# %%
s, t = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(3))
t.data = s.data  # intended: copy the values; actual: share the memory
with torch.no_grad():
    s += 5  # the student learns
    t.copy_(0.99 * t + 0.01 * s)  # the teacher "follows slowly"
print("student", s.tolist(), " teacher", t.tolist())


# %% [markdown]
# Now we train whole networks: eight training steps with an EMA teacher, and eight training steps
# with the release's teacher. After each step, we compare the weights of teacher and student.


# %%
def follow(kind, count=8):
    """Train some steps; return the distance of teacher and student after each, and the learner."""
    more = ["training.consistency_from=0", "training.perturb_from=0", f"method.teacher={kind}"]
    if kind == "tied":  # its BatchNorm statistics are learned in train mode, as released
        more.append("method.teacher_mode=train")
    fresh = Learner(small_config("ddfp", seed, steps, *more), len(scenes["train"].classes), device)
    found = []
    for number in range(count):
        training_step(fresh, batch, number)
        found.append(distance(fresh.teacher, fresh.student))
    return found, fresh


averaged, _ = follow("ema")
tied, with_tie = follow("tied")
table = pd.DataFrame({"EMA teacher": averaged, "as released": tied}, index=range(1, 9))
print("distance between teacher and student (% of the norm of the student's weights)")
print((100 * table).round(1).T.to_string())

# %% tags=["check"]
assert t.tolist() == s.tolist() and t.data_ptr() == s.data_ptr()
assert all(value == 0 for value in tied)
assert all(value > 0.01 for value in averaged[1:])
pairs = zip(with_tie.teacher.parameters(), with_tie.student.parameters(), strict=True)
assert all(theirs is ours for theirs, ours in pairs)

# %% [markdown]
# **Finding.** After the assignment `t.data = s.data`, the released teacher and the student share
# the memory of their weights. So their weights are equal after every step. (Directly after the
# first step, the weights of the EMA teacher are also equal to the student's weights. The first step
# has the number $n = 0$. So the decay in the EMA formula of part 6 of this lesson is $a = 0$.)
# Because the released teacher always has the student's weights, the release does self-training: the
# student learns from its own confident predictions. Self-training is not necessarily worse than
# training with an EMA teacher. Study 3 in [STUDY.md](../reproduce/STUDY.md) compares both kinds of
# teacher.

# %% [markdown]
# ### Pseudo-labels that depend on the other images of the batch
#
# The released teacher stays in train mode. Its BatchNorm uses the statistics of the current batch.
# So the pseudo-labels of a scene depend on the other scenes in the batch. We test this with the
# final teacher of our own training run, in train mode and in evaluation mode. In each mode, the
# teacher labels the same six scenes twice: once in a batch with four labeled scenes, and once in a
# batch with four other labeled scenes.
#
# **Predict first.** Take the teacher in train mode. We put the same six scenes into two batches. In
# each batch, this teacher makes the pseudo-labels of these scenes. What percentage of the pixels of
# these scenes get different pseudo-labels in the two batches? (A pixel that has a pseudo-label in
# only one of the two batches counts as different.)


# %%
def predicted(network, others):
    """Return the pseudo-labels of six scenes in a batch with the labeled scenes ``others``."""
    together = torch.cat([weak[:6], labeled_images[others]])
    with torch.no_grad():
        scores = network(together)[:6]
    return PseudoLabels.of(scores, batch.valid[:6], training.confidence).labels


as_released = copy.deepcopy(final).train()
answers = {
    mode: (predicted(network, slice(0, 4)), predicted(network, slice(4, 8)))
    for mode, network in (("eval", final), ("train", as_released))
}
one, another = answers["train"]
panels(
    {
        "scene": list(weak[:6]),
        "beside four\nscenes": list(one),
        "beside four\nothers": list(another),
        "where they\ndiffer": list(one != another),
    },
    PALETTE,
    classes=scenes["train"].classes,
).described(
    "Six scenes, their pseudo-labels from the teacher in train mode beside four scenes and beside "
    "four others, and where the two differ. On each digit, some differences are thin lines or dots "
    "along the outlines. On some digits, whole pieces differ too."
)

# %% tags=["nbval-ignore-output"]
differing = {mode: float((a != b).float().mean()) for mode, (a, b) in answers.items()}
apart = (one != another).float()[:, None]
eroded = 1 - max_pool2d(1 - apart, 3, stride=1, padding=1)
in_blobs = max_pool2d(eroded, 3, stride=1, padding=1).sum() / apart.sum()  # of 3 x 3 and more
for mode, fraction in differing.items():
    print(f"{mode} mode: {100 * fraction:.1f} % of the pixels differ")
print(f"{100 * in_blobs:.0f} % of them lie in blobs of at least 3 x 3 pixels")

# %% tags=["check"]
assert differing["eval"] == 0
assert differing["train"] > 0.003
assert 0.2 < in_blobs < 0.9

# %% [markdown]
# **Finding.** In train mode, the pseudo-labels of a scene depend on the rest of the batch. We put
# the same six scenes into two batches. In train mode, some pixels of the six scenes have different
# pseudo-labels in these two batches. In some scenes, many of these pixels lie close together and
# fill whole regions of a digit. The other pixels with different pseudo-labels form thin lines and
# dots, most of them along the outlines of the digits. In evaluation mode, the pseudo-labels are the
# same in both batches.

# %% [markdown]
# ## Exercises
#
# **1. The threshold.** The training above has a threshold of 0.6. What are coverage and precision
# of the final teacher's pseudo-labels at 0.5, 0.8, 0.95 and 0.99? Use `evaluate(final,
# scenes["val"], device=device, confidence=...)`. Its result has `.coverage` and `.precision`.

# %% tags=["solution", "nbval-ignore-output"]
thresholds = (0.5, 0.8, 0.95, 0.99)
quality = [evaluate(final, scenes["val"], device=device, confidence=t) for t in thresholds]
table = {"coverage": [q.coverage for q in quality], "precision": [q.precision for q in quality]}
print(pd.DataFrame(table, index=pd.Index(thresholds, name="threshold")).round(3).to_string())
assert table["coverage"] == sorted(table["coverage"], reverse=True)
assert table["precision"][-1] > table["precision"][0] + 0.02

# %% [markdown] tags=["solution"]
# A higher threshold gives fewer and better pseudo-labels.

# %% [markdown]
# **2. Which mean?** The release divides the clean and the perturbed loss by the number of
# *confident* pixels, not by the number of valid pixels (`consistency_mean: confident`). Compute the
# perturbed loss twice: once as a mean over the valid pixels, and once as a mean over the confident
# pixels. Use the embeddings `moved_v` of part 4. First compute `scores =
# student.classify(moved_v.detach(), size).detach()`. The mean over valid pixels is
# `y.cross_entropy(scores, mean="valid")`. For the mean over confident pixels, use
# `mean="confident"`. By what factor do the two means differ? When is this factor large?

# %% tags=["solution", "nbval-ignore-output"]
scores = student.classify(moved_v.detach(), size).detach()
by_valid = y.cross_entropy(scores, mean="valid")
by_confident = y.cross_entropy(scores, mean="confident")
print(f"valid {by_valid:.3f}, confident {by_confident:.3f}: factor {by_confident / by_valid:.2f}")
print(f"1 / coverage: {1 / y.coverage():.2f}")
torch.testing.assert_close(by_confident, by_valid / y.coverage())

# %% [markdown] tags=["solution"]
# The factor is 1 / coverage. It is large when few pixels are confident. Few pixels are confident
# early in the training, when the teacher has learned little. (See the coverage in the table of the
# section "How does a whole training run go?".)

# %% [markdown]
# **3. The early teacher.** The teacher's weights are an exponential moving average (EMA) with the
# decay $a$. Part 6 of this lesson has the formula of $a$. Take $a_\text{max}$ = 0.95, 0.99 and
# 0.999. (The release has 0.999.) For each value, what is the first step at which $a$ equals
# $a_\text{max}$? `ema_decay_at(n, a_max)` returns $a$ at step $n$. What does the result mean for a
# run of 240 steps?

# %% tags=["solution"]
for decay in (0.95, 0.99, 0.999):
    begin = next(n for n in range(2000) if ema_decay_at(n, decay) >= decay)
    print(f"a_max {decay}: from step {begin}")

# %% [markdown] tags=["solution"]
# For each $a_\text{max}$, the output gives one training step: the first step at which $a$ equals
# $a_\text{max}$. At each step before this printed step, the teacher's weights are a plain mean.
# This is the mean of the student's weights after step 0, after step 1, and so on, up to the current
# step. Every step counts equally in this mean, including the first steps, when the student is
# almost random. (At step 0, $a = 0$, so the starting weights are not part of this mean.) After the
# printed step, the teacher forgets the first steps more and more. With $a_\text{max}$ = 0.999, the
# printed step is 999. So in a run of 240 steps, the teacher's weights are the plain mean at every
# step.

# %%
temporary.cleanup()

# %% [markdown]
# ## What we saw
#
# - A training step has six parts. We coded one step by hand. It gives the same weights as the
#   functions `reference_step` and `training_step` of the library, bit for bit.
# - In the warm-up, the loss is only the supervised loss. After consistency begins, the loss is the
#   supervised loss + the clean loss. After perturbation begins, the loss is the supervised loss + ½
#   the clean loss + ½ the perturbed loss.
# - Only features at confident pixels move. The length of the step is exactly $\varepsilon$. The
#   step lowers the log-density of more than 95 % of these features.
# - If teacher and student share the memory of their weights, their weights are always equal. For a
#   teacher in train mode, the pseudo-labels of a scene depend on the other scenes in the batch. In
#   both cases, there is no error message.
#
# ## In the real method
#
# | here | in `ddfp_lib` | in the release |
# |---|---|---|
# | the six parts | `training/reference_step.py` `reference_step` | `train_ddfp_pascal.py:372-524` |
# | pseudo-labels | `training/losses.py` `PseudoLabels` | `train_ddfp_pascal.py:378-399` |
# | the step down | `method/perturb.py` `DensityDescent` | `model/model/attack.py` |
# | the weights of the losses | `training/learner.py` `backward` | `train_ddfp_pascal.py:426` |
# | a training step of the flow | `method/density.py` `fit_step` | `train_ddfp_pascal.py:455-500` |
# | the teacher | `training/teacher.py` `update_ema` | `train_ddfp_pascal.py:505-524` |
# | the loop | `training/loop.py` `train` | |
#
# On PASCAL VOC, the release trains a ResNet-101 on crops of 513 pixels, with 16 labeled and 16
# unlabeled images per training step. The confidence threshold is 0.95, $a_\text{max}$ is 0.999, and
# the steps down the density have length 4.
#
# ## References
#
# - Wang et al., [*Towards the Uncharted: Density-Descending Feature Perturbation for
#   Semi-supervised Semantic Segmentation*](https://arxiv.org/abs/2403.06462), CVPR 2024; [its
#   code](https://github.com/Gavinwxy/DDFP).
# - Tarvainen and Valpola, [*Mean teachers are better role
#   models*](https://arxiv.org/abs/1703.01780), NIPS 2017.
# - Sohn et al., [*FixMatch*](https://arxiv.org/abs/2001.07685), NeurIPS 2020: pseudo-labels from
#   weakly augmented images, training on strongly augmented images.
# - Yun et al., [*CutMix*](https://arxiv.org/abs/1905.04899), ICCV 2019.
# - Yang et al., [*Revisiting Weak-to-Strong Consistency*
#   (UniMatch)](https://arxiv.org/abs/2208.09910), CVPR 2023: feature perturbation by dropout.
# - Chen et al., [*Encoder-Decoder with Atrous Separable Convolution*
#   (DeepLabv3+)](https://arxiv.org/abs/1802.02611), ECCV 2018.
#
# ## Next
#
# [5. Your own data](05_your_own_data.ipynb): your own pictures, most of them without a mask. ·
# Previous: [3. The step down the density](03_density_descending_shift.ipynb) · [All
# lessons](README.md)
