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
# # 6. Does the density matter? How to test a paper's claim
#
# [All lessons](README.md) · previous: [5. Your own data](05_your_own_data.ipynb)
#
# The paper reports good scores for DDFP. The paper gives this reason: DDFP moves features *down the
# density*, and so the decision boundary moves to a region with few features. A good score does not
# show that this reason is right. DDFP moves a feature by a *step*. Perhaps a step of the same
# length in another direction has the same effect on the score. Perhaps no step is needed: DDFP
# sends the features through `embed` and `classify` twice, and perhaps this *second pass* alone has
# the same effect on the score. This lesson tests the reason. It uses stored results of this
# project, and one small experiment that runs in this notebook. You can test the claims of other
# papers in the same way.
#
# **You will**
# - split a claim into parts, and test each part separately;
# - choose controls, and learn what makes a control fair;
# - compute paired differences and their confidence intervals, and learn what "significant" means;
# - use a density that no method was trained with, and measure whether the boundary really moves to
#   a region with few features;
# - find the flaw in each of two comparisons, and plan a test of your own.
#
# **You need** lessons 1 to 4, or an idea of pseudo-labels and of the step down the density. You
# also need to know what a mean and a standard deviation are. Terms are explained in the
# [glossary](../docs/glossary.md).
#
# **Takes** about 30 minutes to read. The code runs in about a minute on a laptop CPU and needs no
# GPU.

# %%
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from ddfp_lib import AdversarialVAT, DensityConfig, DensityEstimator, FeatureModels
from ddfp_lib.evaluation.descent import UNPERTURBED
from ddfp_lib.evaluation.mechanism import learned_densities
from ddfp_lib.experiments.statistics import (
    bound,
    difference_table,
    of_common_seeds,
    paired_difference,
    signed,
    verdict,
)
from ddfp_lib.experiments.study import find_study, group_scores, studies
from ddfp_lib.lessons.plane import draw_labels, train_consistently, two_moons
from ddfp_lib.plots.diagram import diagram
from ddfp_lib.plots.lines import seed_dots
from ddfp_lib.plots.runs import scores as draw_scores
from ddfp_lib.plots.study import boundary
from ddfp_lib.plots.style import METHOD_COLOURS
from ddfp_lib.seeds import generator

torch.set_num_threads(1)  # small tensors: more threads only wait for one another

# %% tags=["parameters"]
points = 240
labels_per_class = 3
seeds = 12  # of the live experiment
eps = 0.2
steps = 300

# %% [markdown]
# ## What exactly is the claim?
#
# The claim of the paper is about the flow and the step. These are the colored boxes of the diagram
# below. The other boxes do not need a density. Among them are the boxes of the teacher, the
# pseudo-labels, the strong augmentation and the second pass. Other methods have some or all of the
# boxes that do not need a density.

# %%
diagram("flow", "step")

# %% [markdown]
# | part of the claim | measured by | compared with |
# |---|---|---|
# | 1. DDFP scores higher than `consistency` | test mIoU | `consistency`: no second pass, no step |
# | 2. The reason: DDFP moves features | test mIoU | `second pass alone`: δ = 0 |
# | 3. The reason: DDFP moves features *down the density* | test mIoU | `noise`, `dropout`, `vat` |
# | 4. The density must be good and keep learning | test mIoU | fitted once; mixture without flow |
# | 5. The step moves the boundary | boundary percentile (part 5) | `consistency`, `noise`, `vat` |
#
# The controls of part 3 take steps in a direction that does not come from the density. `noise`
# takes a step in a random direction. `dropout` takes a step in the direction of channel dropout
# (which sets some channels to zero). `vat` takes an adversarial step (lesson 3).
#
# A **baseline** is a method to compare with. A **control** is a baseline that differs from DDFP in
# only *one* respect. If the scores differ by more than chance, this one respect is the reason.
# (In practice, a control can differ in a second respect too: you will see an example.) An
# **ablation** removes one piece of the method.
#
# **Predict first.** The table above splits the claim into five parts. Is each part true or false?
# Write down your five answers.

# %% [markdown]
# ## The smallest experiment
#
# We use two moons, three labels per class and the training of lesson 1, but with twelve seeds and
# 300 training steps. (Lesson 1 has eight seeds and 400 training steps.) An *arm* is one variant of
# this training. In all arms, the student must predict the pseudo-label of a point twice: at the
# point $x$ itself, and at the point $x + \delta$ after a step $\delta$. The arms differ only in
# $\delta$. In the arm "second pass alone", $\delta = 0$. In the other five arms, $\delta$ has
# length $\varepsilon$. Three of them are descent, the usual random step and the adversarial step.
# The other two arms are controls that are not in the table of the section "What exactly is the
# claim?":
#
# - **up the density**: a step in the direction opposite to descent;
# - **random, drawn once**: we draw one random direction for each point. The point keeps this
#   direction during the whole training. (The usual random step draws a new direction at every
#   training step.)
#
# **Predict first.** Order the six arms by accuracy: "second pass alone", descent, the usual random
# step, the adversarial step, "up the density" and "random, drawn once".

# %%
moons = two_moons()
x, classes = moons.sample(points, generator("train"))
test, test_classes = moons.sample(2000, generator("test"))
labels = torch.stack([draw_labels(classes, labels_per_class, seed) for seed in range(seeds)])

density = DensityEstimator(
    2, 2, DensityConfig(blocks=4, hidden=32, lr=0.01), total_steps=400
).double()
for step in range(400):
    density.fit_step(x, generator=generator("density", step))
gradient = -density.score(x)
down = eps * gradient / gradient.norm(dim=1, keepdim=True)
once = torch.randn(x.shape, generator=generator("once"), dtype=x.dtype)
once = eps * once / once.norm(dim=1, keepdim=True)


# %%
noise_rng, vat_rng = generator("noise"), generator("vat")


def random_direction(students, x, rng=noise_rng):
    direction = torch.randn(x.shape, generator=rng, dtype=x.dtype)
    return eps * direction / direction.norm(dim=1, keepdim=True)


def adversarial(students, x, rng=vat_rng):
    moved = torch.ones(x[:, 0].shape, dtype=torch.bool)
    return AdversarialVAT(eps)(x, moved, FeatureModels(None, students), rng)


arms = {
    "second pass alone": lambda students, x: torch.zeros_like(x),
    "random, new each step": random_direction,
    "random, drawn once": lambda students, x: once.T,
    "adversarial": adversarial,
    "descent": lambda students, x: down.T,
    "up the density": lambda students, x: -down.T,
}
students = {name: train_consistently(x, labels, arm, steps=steps) for name, arm in arms.items()}

# %% tags=["thumbnail"]
accuracy = {
    name: networks.accuracy(test, test_classes).numpy() for name, networks in students.items()
}
gains = {name: values - accuracy["second pass alone"] for name, values in accuracy.items()}
del gains["second pass alone"]
kinds = dict(zip(gains, ("noise", "noise", "vat", "ddfp", "entropy"), strict=True))
seed_dots(
    {"two moons": gains},
    "accuracy minus that of the second pass alone (points)",
    {name: METHOD_COLOURS[kind] for name, kind in kinds.items()},
).described(
    "Accuracy minus that of the second pass alone for five arms, a dot for each of twelve seeds "
    "and a bar at the mean. Descent gains most; a random direction that is drawn once gains more "
    "than one that is new in each step; the adversarial step gains little. Steps up the density "
    "lose."
)


# %% tags=["nbval-ignore-output"]
def interval(differences, confidence=0.95):
    """Return the mean of paired differences and Student's t interval of it."""
    n, mean = len(differences), np.mean(differences)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * np.std(differences, ddof=1) / math.sqrt(n)
    return mean, mean - half, mean + half


print("minus second pass alone (points)")
for name, differences in gains.items():
    mean, low, high = interval(differences)
    print(f"  {name:<22} {mean:+5.1f} (95 % CI {bound(low)} to {bound(high)})")
for one, other in (
    ("descent", "random, new each step"),
    ("descent", "random, drawn once"),
    ("random, drawn once", "random, new each step"),
):
    mean, low, high = interval(gains[one] - gains[other])
    print(f"{one} minus {other}: {mean:+.1f} (95 % CI {bound(low)} to {bound(high)})")

# %% tags=["check"]
new, drawn_once = gains["random, new each step"].mean(), gains["random, drawn once"].mean()
assert gains["descent"].mean() > drawn_once > new + 0.5
assert gains["up the density"].mean() < -1

# %% [markdown]
# **Finding.** On the moons the direction of the step matters. Compared with the second pass alone,
# descent gains the most accuracy, and the step up the density clearly loses accuracy. (It also
# matters which density gives the direction. In exercise 2 of [lesson
# 1](01_low_density_separation.ipynb), descent in the exact density of the moons gains less accuracy
# than descent in the learned density.) Now compare the two arms with random steps: the usual random
# step, and the random step that is drawn once. Their steps have the same length, and neither arm
# uses the density. But the arm whose directions are *drawn once* gains more. In this arm, each
# point moves in the same way at every training step. This is also true for descent, because points
# and density do not change in this experiment. The usual random step differs from descent in *two*
# respects: it has another direction, and it is new every time. Descent is about 3 points better
# than the usual random step. The random step that is drawn once differs from descent only in
# direction. The accuracy with descent is also higher than with this random step, but by less than 2
# points. The 95 % confidence interval (CI) of descent minus "random, drawn once" begins just
# below 0. The interval contains 0, so the difference is not *significant* (explained below).
#
# A control must differ in one respect only. It is easy to overlook a second difference.

# %% [markdown]
# ## What makes a control fair?
#
# One possible rule is that all steps have the same length. But steps of the same length can have
# effects of different size. We take the students of the arm "second pass alone". We move the points
# by each kind of step and compute the predictions again. The *KL divergence* measures how much the
# prediction after the step differs from the prediction before the step. It is 0 if the two
# predictions are equal.
#
# **Predict first.** Which kind of step changes the prediction most? Which one lowers $\log p$ most?


# %% tags=["nbval-ignore-output"]
def strength(shift):
    """Return how a shift changes the prediction: mean KL divergence, and flipped classes in %."""
    model, rows = students["second pass alone"], x.T.expand(seeds, 2, -1)
    with torch.no_grad():
        before, after = (model(at).log_softmax(1) for at in (rows, rows + shift))
    divergence = (before.exp() * (before - after)).sum(1).mean().item()
    return divergence, 100 * (before.argmax(1) != after.argmax(1)).double().mean().item()


rows = x.T.expand(seeds, 2, -1)
shifts = {
    "random": random_direction(None, rows, generator("strength")),
    "adversarial": adversarial(students["second pass alone"], rows, generator("strength")),
    "descent": down.T.expand(seeds, 2, -1),
}
table = {}
for name, shift in shifts.items():
    for factor in (1, 2):
        change, flipped = strength(factor * shift)
        fall = density.log_prob(x).mean().item()
        moved = (rows + factor * shift).mT.reshape(-1, 2)
        fall -= density.log_prob(moved).mean().item()
        table[f"{name}, length {factor * eps:.1f}"] = {
            "change of the prediction (KL, nats)": change,
            "flipped classes (%)": flipped,
            "fall of log p (nats)": fall,
        }
pd.DataFrame(table).T.round(2)

# %% tags=["check"]
change, flipped, fall = pd.DataFrame(table).to_numpy()
random, adversarial_step, descent = (row * 2 for row in range(3))  # columns of length eps
assert change[adversarial_step] > 1.3 * max(change[random], change[descent])
assert fall[descent] > 2 * max(fall[random], fall[adversarial_step])

# %% [markdown]
# **Finding.** At equal length, the adversarial step changes the prediction most. Descent lowers the
# log-density most. So equal length is not the only fair comparison. We can also compare steps at
# equal change of the prediction, at equal percentage of flipped classes, or at equal fall of log p.
# (A *flipped class* is a predicted class that the step changes.) A method can be better in one of
# these comparisons and worse in another. So make more than one comparison.
#
# Study 10 of this project ([STUDY.md](../reproduce/STUDY.md)) makes two comparisons on digit
# scenes. In the first comparison, the steps have an *equal effect*: all of them change the
# prediction by about the same amount. Descent takes a step of length 3 (`ddfp, eps 3`). For the
# same effect, a random step needs length 11.5 (`noise, eps 11.5`), and an adversarial step needs
# length 1 (`vat, eps 1`). (We chose the lengths 11.5 and 1 so that both the KL divergence and the
# percentage of flipped classes are about the same as for descent.) In the second comparison, all
# steps have length 3 (`noise, eps 3` and `vat, eps 3`). The output shows four differences: the test
# mIoU of descent minus the test mIoU of `noise, eps 11.5`, `vat, eps 1`, `noise, eps 3` and
# `vat, eps 3`:

# %%
equal = find_study("equal_effect")
for name in equal.variants:
    if name != "ddfp, eps 3":
        compared = paired_difference(equal.stored(), "ddfp, eps 3", name)
        print(
            f"ddfp, eps 3 minus {name:<16}{compared['difference']:+5.1f}  {verdict(compared)}; "
            f"seeds: {compared['seeds']}"
        )

# %% tags=["check"]
longer = paired_difference(equal.stored(), "ddfp, eps 3", "noise, eps 11.5")
assert longer["difference"] < 0 < longer["high"]

# %% [markdown]
# **Finding.** At equal effect, random steps (length 11.5) and adversarial steps (length 1) have
# higher mean scores than descent. These two differences are not significant. At equal length too,
# both kinds of steps have higher mean scores than descent, and adversarial steps are significantly
# better. So neither the comparison at equal effect nor the comparison at equal length gives a sign
# that descent is better than random or adversarial steps.

# %% [markdown]
# ## Choose the length of each method in the same way
#
# One fair rule is that each method takes steps of the length that is best for this method. Choose
# this length from the *same number* of candidates for each method. Choose the candidate with the
# best score on *validation* data. Do not look at the scores on test data before this choice. Study
# 1 chose the lengths on the digit scenes in this way, with two seeds and four lengths for each
# method:

# %%
choice = find_study("eps")
tried = choice.stored()
named = tried["method"].str.extract(r"^(\w+), eps ([\d.]+)$")
table = tried.assign(preset=named[0], eps=named[1].astype(float)).pivot_table(
    index="preset", columns="eps", values=choice.score
)
print("validation mIoU (%), mean of", tried["seed"].nunique(), "seeds\n")
print(table.round(1).to_string())
print("\nchosen:", {name: float(best) for name, best in table.idxmax(axis=1).items()})

# %% tags=["check"]
variants = find_study("perturbations").variants
for name, best in table.idxmax(axis=1).items():
    assert f"{name}, eps {best:g}" in variants  # study 2 uses the lengths that were chosen here

# %% [markdown]
# This choice has limits. Two seeds are not enough to prove which length is best. For noise and
# dropout, the best length was the longest length that we tried. So a longer step may be even better
# for these two methods. But the choice treats all methods equally: each method has the same number
# of tuning runs.
#
# ## Pairs of runs with the same seed
#
# Study 2 trained all methods on digit scenes with five seeds, and always with the same labeled
# images. A seed fixes the starting weights and the order of the data. So we can compare two methods
# that were trained with the same seed. The table shows the test mIoU (%) of each method with each
# seed:

# %%
study = find_study("perturbations")
runs = study.stored()
methods = [name for name in runs["method"].unique() if "steps" not in name]
runs = runs[runs["method"].isin(methods)]
wide = runs.pivot(index="seed", columns="method", values=study.score)[methods]
wide.round(1).T

# %% [markdown]
# A comparison of two methods within the same seed is *paired*. How much narrower does pairing make
# the confidence interval of the mean difference? Take DDFP and the second pass alone, with $n$
# seeds. Let $s_1$ and $s_2$ be the standard deviations of their scores. For each seed, subtract the
# score of the second pass alone from the score of DDFP. Let $s_d$ be the standard deviation of
# these $n$ differences. Without pairing, the standard error of the mean difference is
# $\sqrt{(s_1^2 + s_2^2)/n}$. With pairing, it is $s_d/\sqrt n$.
#
# **Predict first.** The paired interval is narrower than the unpaired interval. By which factor?

# %%
ddfp, second = wide["ddfp, eps 3"], wide["second pass alone"]
differences = (ddfp - second).to_numpy()
mean, low, high = interval(differences)
n, t = len(differences), stats.t.ppf(0.975, 2 * len(differences) - 2)
unpaired = t * math.sqrt((ddfp.var() + second.var()) / n)
print("differences by seed:", ", ".join(f"{d:+.1f}" for d in differences))
print(f"paired:   {mean:+.1f} (95 % CI {low:+.1f} to {high:+.1f})")
print(f"unpaired: {mean:+.1f} (95 % CI {mean - unpaired:+.1f} to {mean + unpaired:+.1f})")

# %% tags=["check"]
library = paired_difference(runs, "ddfp, eps 3", "second pass alone")
assert np.allclose([mean, low, high], [library[key] for key in ("difference", "low", "high")])
assert high - low < 0.8 * 2 * unpaired

# %% [markdown]
# **Finding.** Most of the variation of the scores comes from the seeds. Pairing removes this part
# of the variation. The unpaired interval is more than three times as wide as the paired interval.
#
# ## Parts 1 to 3: the scores
#
# All methods in the next picture train for 2,000 steps. But the methods do not need the same time:
# a training step of DDFP takes longer than a training step of `supervised`, `consistency`, `noise`,
# `dropout` or `vat`. So study 2 also has runs of DDFP with only 1,500 training steps. They take a
# little longer than 2,000 training steps of `consistency`
# ([bench/RESULTS.md](../bench/RESULTS.md)). The last line of the output below the picture compares
# these runs of DDFP (1,500 training steps) with `consistency` (2,000 training steps).
# [STUDY.md](../reproduce/STUDY.md) has the results of all variants.
#
# **Predict first.** Which of the four steps (random, dropout, adversarial, descent) gains most over
# the second pass alone?

# %%
draw_scores(runs, "consistency")


# %%
def compare(baseline, others):
    """Print paired differences to a baseline, and what their intervals show."""
    print(f"minus {baseline}, {n} seeds")
    for name in others:
        gap = paired_difference(runs, name, baseline)
        print(f"  {name:<22}{gap['difference']:+5.1f}  {verdict(gap)}")


perturbed = ["noise, eps 10", "dropout, eps 10", "vat, eps 3", "ddfp, eps 3"]
compare("consistency", ["second pass alone", *perturbed])
compare("second pass alone", perturbed)
compare("ddfp, eps 3", [name for name in perturbed if not name.startswith("ddfp")])
short = paired_difference(study.stored(), "ddfp, eps 3, 1,500 steps", "consistency")
print(f"in about equal time, ddfp minus consistency: {short['difference']:+.1f}  {verdict(short)}")


# %% tags=["check"]
def gap(variant, baseline):
    return paired_difference(runs, variant, baseline)


assert gap("consistency", "supervised")["low"] > 10
assert gap("ddfp, eps 3", "consistency")["low"] > 0  # part 1
gains = {name: gap(name, "second pass alone")["difference"] for name in perturbed}
assert max(gains, key=gains.get) == "vat, eps 3" and min(gains, key=gains.get) == "ddfp, eps 3"
assert gap("ddfp, eps 3", "consistency")["difference"] - short["difference"] > 7
assert gap("second pass alone", "consistency")["difference"] > 0
assert gap("ddfp, eps 3", "second pass alone")["low"] < 0  # part 2, for DDFP
assert gap("noise, eps 10", "second pass alone")["low"] > 0  # part 2, for a random step
for other in ("noise, eps 10", "vat, eps 3"):
    assert gap(other, "ddfp, eps 3")["difference"] > 0  # part 3

# %% [markdown]
# **Finding.** For each kind of step (random, dropout, adversarial and descent), we compare the mean
# score with the mean score of the second pass alone. The gain is largest for adversarial steps and
# smallest for descent. Part 1 of the claim (DDFP scores higher than `consistency`): the difference
# is significant. (After the correction for several comparisons, this is no longer true; see below.)
# Part 2 of the claim (the reason is that DDFP moves features): the results for DDFP do not show
# whether this is true. The second pass alone has more than half of the gain of DDFP over
# `consistency`. DDFP is not significantly better than the second pass alone. The random step is
# significantly better than the second pass alone, even after the correction. Part 3 of the claim
# (the reason is that DDFP moves features *down the density*): the results do not support this part
# of the claim. Random, dropout and adversarial steps all have a *higher* mean score than descent.
# (Each method takes steps of the length that was best for this method in the tuning runs.) Random,
# dropout and adversarial steps are significantly better than the second pass alone. (After the
# correction, only random steps are significantly better than the second pass alone.) So moving
# features helps on this benchmark, but we have not shown this for descent. We find no sign that a
# direction from the density helps more than another direction. With about equal training time, DDFP
# (1,500 training steps) has a lower score than `consistency` (2,000 training steps). With 1,500
# training steps, the score of DDFP is more than seven points lower than with 2,000. We did not
# investigate the reason for this large difference between 1,500 and 2,000 steps. Both the second
# pass and the density take time. `noise` has a second pass but no density. A training step of
# `noise` takes longer than a training step of `consistency`. A training step of DDFP takes even
# longer. (In the output, the difference in mIoU between random steps and DDFP is `noise` minus
# `ddfp`. The [README](../README.md#what-we-found) shows it with the opposite sign: `ddfp` minus
# `noise`.)

# %% [markdown]
# ## What does "significant" mean?
#
# In study 2, the difference DDFP minus the second pass alone has "95 % CI −0.4 to +1.5" (see the
# output in the section "Parts 1 to 3: the scores"). What does this mean? Suppose that we repeat
# study 2 many times, for example 100 times. Each time, we use new seeds and compute an interval.
# Then about 95 of the 100 intervals contain the true difference. (The calculation assumes that the
# paired differences, one for each seed, are roughly normally distributed.) A difference is
# *significant* if its interval does not contain 0. If the interval contains 0, there can still be a
# difference. Perhaps the number of seeds is too small to find this difference.
#
# Be careful in three cases.
#
# 1. **Several comparisons.** If you compute many 95 % intervals, some of them will probably miss
#    the true difference by chance. The *Bonferroni* correction is simple: for $m$ comparisons,
#    compute each interval at the level $1 - 0.05/m$ instead of $0.95$.
# 2. **Few seeds.** With five seeds, the intervals (Student's t) are wide, so small effects are
#    often not significant.
# 3. **One benchmark.** All seeds use the same data set, the same network and the same number of
#    labels. So the intervals do not tell us what happens with other data.

# %%
comparisons = [(name, "consistency") for name in ["second pass alone", *perturbed]]
comparisons += [(name, "second pass alone") for name in perturbed]
comparisons += [(name, "ddfp, eps 3") for name in perturbed[:-1]]
m = len(comparisons)
print(f"{m} comparisons: 95 % intervals, and intervals corrected to {100 * (1 - 0.05 / m):.2f} %\n")
single = corrected = 0
for name, baseline in comparisons:
    differences = (wide[name] - wide[baseline]).to_numpy()
    mean, low, high = interval(differences)
    _, lower, higher = interval(differences, 1 - 0.05 / m)
    single += low * high > 0
    corrected += lower * higher > 0
    print(
        f"{name:<18} minus {baseline:<18} {mean:+.1f}  ({low:+.1f} to {high:+.1f})"
        f"  ({lower:+.1f} to {higher:+.1f})"
    )
print(f"\nintervals without 0: {single} of {m}; after the correction: {corrected} of {m}")

# %% tags=["check"]
assert corrected < single


# %% [markdown]
# **Finding.** Before the correction, nine of 12 intervals exclude 0. After the correction, two
# intervals exclude 0. These two intervals are for random steps minus `consistency` and for random
# steps minus the second pass alone. Neither of them is about DDFP. In a long table, the best score
# is probably partly due to chance. So before the experiment, decide which comparison will answer
# your question, and write down this decision. For study 2, we did not write down a decision. For
# the photographs of animals and persons (below), we wrote a plan before the main experiment.
#
# How many seeds do you need to find a difference of 0.5 points? The number depends on the *paired
# standard deviation*, the standard deviation of the paired differences. It also depends on the
# *power* of the test, the probability that the test finds an existing difference. A usual power is
# 80 %.


# %%
def seeds_needed(difference, deviation, power=0.8):
    """Return the smallest number of seeds at which a paired t test has this power."""
    for n in range(2, 10_000):
        critical, shift = stats.t.ppf(0.975, n - 1), difference / deviation * math.sqrt(n)
        if stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift) > power:
            return n
    return math.inf


for name in ("second pass alone", "noise, eps 10"):
    deviation = (wide["ddfp, eps 3"] - wide[name]).std()
    needed = {d: seeds_needed(d, deviation) for d in (0.5, 1.0, 2.0)}
    print(f"ddfp minus {name}: paired standard deviation {deviation:.2f}; seeds for", end=" ")
    print(", ".join(f"{d} points: {n}" for d, n in needed.items()))
alone = math.sqrt(wide["ddfp, eps 3"].var() + wide["noise, eps 10"].var())
print(f"without pairing, standard deviation {alone:.2f}: {seeds_needed(0.5, alone)} for 0.5 points")

# %% tags=["check"]
assert seeds_needed(0.5, deviation) > len(wide)
assert seeds_needed(0.5, alone) > 3 * seeds_needed(0.5, deviation)

# %% [markdown]
# **Finding.** To find a difference of half a point, we need 22 seeds for DDFP minus the second pass
# alone, and 29 seeds for DDFP minus random steps. We have five seeds. Without pairing, we need more
# than ten times as many: 321 seeds instead of 29. Many papers have tables with only one run per
# method. Such a table cannot show whether a difference of half a point is more than chance.

# %% [markdown]
# ## Part 4: does DDFP need a good density that keeps learning?
#
# Study 4 changes one part of DDFP at a time, with three seeds. For seven variants that concern the
# density, the output shows the test mIoU of the variant minus that of DDFP, in points:

# %%
ablations = find_study("ablations")
table = difference_table(ablations.stored(), ablations.baseline)
for name, row in table.iterrows():
    piece = name.removeprefix("ddfp, eps 3, ")
    if any(word in piece for word in ("frozen", "mixture", "block", "labels", "conditional")):
        print(f"{piece:<24}{row['difference']:+5.1f}  {verdict(row)}")

# %% tags=["check"]
kinds = [name for name in table.index if "frozen" in name or "without flow" in name]
assert len(kinds) == 3 and (table.loc[kinds, "difference"] < 0).all()

# %% [markdown]
# **Finding.** Three of the seven variants replace the flow of DDFP by another density. We call
# these three variants *controls*. The first control has no flow: its density is a mixture of
# Gaussians that keeps learning during the whole training. The other two densities (another mixture
# and a kernel density) are fitted once and then *frozen*: they do not change after that. All three
# controls have a lower mean score than DDFP. But for each control, the interval of the control
# minus DDFP contains 0. So the three seeds of study 4 do not prove a difference. Two more variants
# change how the density uses the classes. In the first variant, the flow is trained without labels.
# In the second variant (*class-conditional* descent), a step goes down the density of a single
# class. This class is the pseudo-label of the feature. These two variants do not differ
# significantly from DDFP. (A step of DDFP goes down the marginal density, the mean of the densities
# of all classes.) Variants with one or four blocks in the flow (DDFP has two) do not differ
# significantly from DDFP either.
#
# Is the density itself good? In exercise 2 of lesson 2, we trained a flow on points in 16
# dimensions, with new points at every training step. We compared this flow and two kernel densities
# with the exact density. Of the three, this flow was closest to the exact density. But lesson 2
# also has flows that learn the density of two rings. In some places between the rings, the density
# of these flows stays too high ("bridges"). For the features of a network, we do not know the exact
# density, so we can only compare densities with one another. For this comparison, we compute the
# log-likelihood of the features of *validation* images. We call a density better if it gives these
# features a higher log-likelihood. We also test whether the network is more often wrong at pixels
# with a low density. Then we compare low density with low confidence. Which of the two is a better
# sign of an error? (We measure the quality of a sign with the AUROC, the area under the ROC curve.
# 50 % is a random guess, and 100 % is perfect. In the output below, "both" is a logistic regression
# on confidence and density, and "confidence fitted" is a logistic regression on confidence alone.)
#
# **Predict first.** After the warm-up, the flow learns at every step of the training. Does the flow
# fit the features better than one Gaussian does?

# %%
pairs = (
    ("log-likelihood, flow", "log-likelihood, Gaussian"),
    ("log-likelihood, flow", "log-likelihood, mixture"),
    ("AUROC (%), density", "AUROC (%), confidence"),
    ("AUROC (%), both", "AUROC (%), confidence fitted"),
)
for name, variant in (("perturbations", "ddfp, eps 3"), ("photographs", "ddfp, eps 1")):
    measured = find_study(name)
    quality = learned_densities(measured.stored_mechanism())[variant]
    alone = quality.loc[quality["method"] == "AUROC (%), density", "value"].mean()
    print(f"study {measured.number}, {measured.benchmark}, {quality['seed'].nunique()} seeds")
    for one, other in pairs:
        gap_of_pair = paired_difference(quality, one, other, "value")
        print(f"  {one:<22} minus {other:<30}{signed(gap_of_pair)}")
    print(f"  AUROC of the density alone: {alone:.1f}")

# %% [markdown]
# **Finding.** On the digits, the flow has a clearly higher log-likelihood than one Gaussian. On the
# photographs of study 9 (animals and persons), we see no sign that the flow is better than one
# Gaussian. On both benchmarks, a mixture of 16 Gaussians has a higher log-likelihood than the flow.
# (The comparison is not quite fair. The flow learns while the features still change. It learns from
# augmented crops, and also from void pixels (pixels to which the mask gives no class). The
# Gaussians are fitted once, to the features of the trained network.) On the digits, low density
# hardly predicts errors: the AUROC is 51.8 %, and 50 % is a random guess. On the photographs, low
# density does predict errors, but low confidence predicts them better. On both benchmarks,
# confidence and density together are hardly better than confidence alone.

# %% [markdown]
# ## Part 5: does the step move the boundary?
#
# Does the boundary move to lower density *because of* descent? The flow of DDFP was trained
# together with the network, so a measurement with this flow could favor DDFP. So we fit another
# density to the features of each network: a mixture of 16 Gaussians. No method was trained with
# this mixture. (We measure at several steps of the training, and fit a new mixture each time.) The
# mixture gives each feature a *percentile*: 50 is the median feature, and 0 is the feature with the
# lowest density. A feature is at the boundary if its two highest class probabilities differ by less
# than 0.2. The *boundary percentile* is the mean percentile of these features. (The density at the
# boundary in lesson 1 is a different quantity, an integral.) The *error percentile* is the mean
# percentile of the features that the network classifies wrongly. The figure below shows the
# boundary percentile and the error percentile. It also shows the precision and the coverage of the
# pseudo-labels, and the percentage of features at the boundary.
#
# **Predict first.** At training step 500, the boundary lies near percentile 55 with all methods.
# Where does it lie at the end of the training: with labels alone, with consistency training, and
# with DDFP?

# %%
inside = study.stored_mechanism()
boundary(inside)

# %%
last = inside[inside["step"] == inside["step"].max()]
whole, moved = last[last["features"] == "all"], last[~last["features"].isin(["all", "density"])]
ends = whole.pivot_table(index="method", columns="quantity", values="value", sort=False)
print("networks at the end of training, means over seeds\n")
print(ends[["boundary percentile", "error percentile"]].round(1).to_string())
kinds = moved.pivot_table(index="features", columns="quantity", values="value", sort=False)
kinds = kinds.rename(index={UNPERTURBED: "unperturbed"})
print("\nconfident features of ddfp, and where a step takes them\n")
print(kinds[["percentile", "true class"]].round(1).to_string())
there = whole[whole["quantity"] == "boundary percentile"].rename(columns={"value": "boundary"})
shift = paired_difference(there, "ddfp, eps 3", "consistency", "boundary")
print(f"\nboundary percentile, ddfp minus consistency: {signed(shift)}")
there = of_common_seeds(find_study("photographs").stored_mechanism())
path = there[there["quantity"] == "boundary percentile"].pivot_table(
    index="method", columns="step", values="value", sort=False
)
print("\nphotographs (study 9): boundary percentile by step of training\n")
print(path.round(1).to_string())

# %% tags=["check"]
percentile = kinds["percentile"]
assert percentile["density descent"] < 0.5 * percentile["random"]  # the step goes down
assert percentile["density descent"] < percentile["adversarial (VAT)"]
pseudo = ends.drop(index="supervised")
assert (pseudo["boundary percentile"] < 45).all()  # boundaries are among sparser features
assert pseudo["boundary percentile"].max() - pseudo["boundary percentile"].min() < 5
assert ends.loc["supervised", "boundary percentile"] > 48  # but not with labels alone
assert (pseudo["error percentile"] < 48).all()

# %% [markdown]
# **Finding.** The step of DDFP moves features to a lower density, as the paper says. Confident
# features lie near percentile 50 before the step, and near percentile 8 after the step down the
# density. After a random step of the same length, they lie near percentile 48. After an adversarial
# step of this length, they lie near percentile 33. (The column `true class` shows the percentage of
# these features that the network classifies correctly.) With DDFP, the boundary moves to features
# with a lower density. But it also moves to a lower density with `noise`, `vat` and `consistency`,
# which also use pseudo-labels. `consistency` takes no step. So the boundary moves without a step,
# too. With `supervised` (training on labels alone), the boundary has about the same percentile at
# the end of the training as at training step 500. Does the boundary lie at a lower percentile at
# the end with DDFP than with `consistency`? We cannot say, because the interval of `ddfp` minus
# `consistency` is wide (-6.2 to +6.0). On the photographs (study 9), we measured four methods. The
# output shows means over the three seeds that all four methods have. These means of the boundary
# percentile are about 17 to 21. The means on the digits are higher. On the photographs, compare
# step 300 with the end of the training (step 900). The mean boundary percentiles of these two steps
# differ by less than one percentile for `ddfp`, `noise` and `consistency`. We did not measure
# before step 300.
#
# On the digits, we also measured the error percentile. It is the mean percentile of the features
# that the network classifies wrongly. For `ddfp`, `noise`, `vat` and `consistency`, this percentile
# is between 43 and 46, a little below the median (50). But in the figure of this section, the 95 %
# interval of the error percentile contains 50 for each of these four methods.

# %% [markdown]
# ## How does the release differ from the paper?
#
# The preset `ddfp_released` follows the released code (lesson 4). In study 2, this preset has the
# highest mean test mIoU of all methods. Two more studies look for the reason. Study 3 compares
# `ddfp` with `ddfp_released` (below: "the release"), with variants of `ddfp` and with variants of
# the release. Most of these variants change a single setting of `ddfp` or of the release. The
# scores of this study are on validation images. One variant is the release with random steps
# instead of steps down the density. In study 6, all methods have the teacher of the release. This
# teacher is *tied*: it shares the weights of the student. It is also in *train mode*: its BatchNorm
# uses the statistics of the current batch. The flow receives embeddings and computes the direction
# of a step. Study 6 has two variants of `ddfp` (see the output below). In the variant "asked in
# train mode", these embeddings are normalized with the statistics of the current batch. In the
# other variant, they are normalized with running statistics.
#
# **Predict first.** Study 6 compares four methods with consistency training: the second pass alone,
# random steps, adversarial steps and descent. All five methods have the teacher of the release.
# Which of the four methods will be better than consistency training?

# %%
for name, baseline in (
    ("released", "ddfp, eps 3"),
    ("teacher", "consistency, tied teacher in train mode"),
):
    other = find_study(name)
    print(f"study {other.number}: {other.question}\n  minus {baseline}")
    rows = difference_table(other.stored(), baseline, other.score)
    for variant, row in rows.iterrows():
        print(f"    {variant:<62}{row['difference']:+5.1f}  {verdict(row)}")
    print(f"  {len(rows)} comparisons, not corrected for their number")

# %% tags=["check"]
released = difference_table(
    find_study("released").stored(), "ddfp, eps 3", find_study("released").score
)
assert released.loc["released, noise, eps 10", "difference"] > 0

# %% [markdown]
# **Finding.** In study 3, the mean score of the release is 0.8 points above that of `ddfp`. This
# difference is significant. The mean score of the release with random steps is 1.6 points above
# that of `ddfp` with its steps down the density, but this difference is not significant. With the
# teacher of the release, three methods are significantly better than consistency training: the
# second pass alone, random steps and adversarial steps. Neither of the two variants of `ddfp` in
# study 6 is significantly better than consistency training. So we see no sign that the density is
# the reason for the higher score of the release. But three seeds are few, and most of the intervals
# are wide.

# %% [markdown]
# ## Real photographs
#
# Five studies use real photographs instead of digit scenes. Two of them use street scenes (CamVid):
# in study 7, the network starts from random weights, and in study 11, it is pretrained. The other
# three use photographs of animals and persons (a part of PASCAL VOC), with a pretrained network. We
# call these photographs "the animals" (studies 8, 9 and 12). In study 12, the backbone of the
# network does not learn. For the animals, we wrote a [plan](../reproduce/PLAN.md) before the main
# experiment (study 9). The plan says which comparisons count, how many seeds they have, and what we
# may claim. Before the plan, we had tuned two methods, `supervised` and `consistency`, on
# validation images. The runs of this tuning also stored test scores. No setting was chosen by these
# test scores.
#
# **Predict first.** The plan compares DDFP with consistency training, with the second pass alone
# and with random steps. In how many of these three comparisons is DDFP significantly better?

# %%
photographs = [s for s in studies() if s.benchmark != "digits"]
photographs += [] if any("voc" in s.benchmark for s in photographs) else ["voc_animals"]
for other in photographs:
    stored = None if isinstance(other, str) else other.stored()
    if stored is None:
        print(f"{getattr(other, 'benchmark', other)}: not measured yet")
        continue
    for split, some in stored.groupby("split", sort=False):
        print(f"study {other.number}: {other.benchmark}, {split} labeled, minus {other.baseline}")
        for name, row in difference_table(some, other.baseline, other.score).iterrows():
            print(
                f"  {name:<31}{row['difference']:+.1f}  {verdict(row)}; seeds: {row['seeds']:.0f}"
            )
street = find_study("street")
groups, group = group_scores(street, street.stored_classes()), "few right pseudo-labels"
print(f"study {street.number}: mean IoU of six classes with {group}, minus {street.baseline}")
for name in ("supervised", "consistency, threshold 0.95"):
    gain = paired_difference(groups, name, street.baseline, group)
    print(f"  {name:<31}{gain['difference']:+.1f}  {verdict(gain)}")

# %%
animals = find_study("photographs")
runs_there = animals.stored()
print("study 9: the three comparisons of the plan, 95 % and 98.3 % (corrected for three)")
for baseline in ("consistency", "second pass alone", "noise, eps 3"):
    planned = paired_difference(runs_there, "ddfp, eps 1", baseline)
    strict = paired_difference(runs_there, "ddfp, eps 1", baseline, confidence=0.983)
    print(
        f"  ddfp minus {baseline:<18}{planned['difference']:+z5.1f}  {verdict(planned)}; corrected "
        f"{bound(strict['low'])} to {bound(strict['high'])}; seeds: {planned['seeds']}"
    )
gaps = [paired_difference(runs_there, *two) for two in combinations(animals.variants, 2)]
clear = sum(each["low"] * each["high"] > 0 for each in gaps)
print(f"95 % intervals without 0, of all {len(gaps)} pairs of methods: {clear}")
frozen = find_study("photo_frozen")
against = paired_difference(frozen.stored(), "noise, eps 3", "ddfp, eps 1")
print(
    f"study {frozen.number}, frozen backbone: noise minus ddfp {against['difference']:+.1f}", end=""
)
print(f"  {verdict(against)}; seeds: {against['seeds']}")
print("\nIoU of groups of classes, ddfp minus consistency")
groups = group_scores(animals, animals.stored_classes())
for group, members in animals.groups.items():
    gain = paired_difference(groups, "ddfp, eps 1", "consistency", group)
    print(f"  {', '.join(members):<22}{gain['difference']:+5.1f}  {verdict(gain)}")

# %% tags=["check"]
assert strict["low"] < planned["low"] < 0 < planned["high"] < strict["high"]
assert clear == 0

# %% [markdown]
# **Finding.** On the animals (study 9), the plan has three comparisons. The 95 % intervals of all
# three contain 0. DDFP and the second pass alone have three common seeds. On these seeds, their
# means are almost equal. So on the animals, we see no sign that DDFP is better than consistency
# training, the second pass alone or random steps. For the three classes that look similar (cow,
# horse, sheep), we see no sign that DDFP is better than `consistency`. The confidence interval for
# the difference between DDFP and the second pass alone is narrow. The interval of DDFP minus
# `consistency` is wide, although these two methods have five seeds. (We added two of the five seeds
# later, by a rule of the plan. The rule applies to a difference that is not significant, but is
# larger than a limit. This limit is the standard deviation, between seeds, of the difference
# `noise` minus `consistency`. If you add seeds after you have seen a result, the new interval is
# less reliable. So be even more careful with DDFP minus `consistency`.)
#
# The comparisons on the animals (study 9) have three more limitations. First, the chosen step
# length of DDFP is the shortest length that we tried. A step of this length changes few predictions
# (see study 9 in [STUDY.md](../reproduce/STUDY.md)). So we cannot expect a large difference between
# DDFP and the second pass alone. Second, consistency training gains only 3 points over training on
# labels alone. This gain is not significant with three seeds, because it varies a lot between
# seeds. (Each seed has different labeled images.) Third, the step lengths were chosen in study 8.
# Its runs have only one seed, and half as many training steps as the runs of study 9.
#
# In study 12, the backbone keeps its ImageNet weights, so the features change less during the
# training. There too, DDFP is not significantly better than `consistency`. In study 12, the
# interval of DDFP minus `consistency` is narrow (-0.5 to +0.7, three seeds). Random steps are
# significantly better than DDFP in this study, but the difference is only 0.3 points. (The interval
# of random steps minus DDFP is not corrected for the number of comparisons.)
#
# Now look at `supervised` in the lines of study 7 (street scenes, CamVid). These lines are in the
# first output of this section. On the test images, training on labels alone is *better* than
# consistency training. (On the validation images, the mean of `supervised` is lower than the mean
# of `consistency`: see [study 7](../reproduce/STUDY.md).) The runs of study 7 have three seeds and
# 600 steps, and start from random weights. On the test images of study 7, the mean scores of DDFP
# and noise are higher than that of `consistency`, but lower than that of `supervised`. In study 11,
# the network is pretrained, and training on labels alone is better than consistency training there
# too. For six classes that get few right pseudo-labels, the mean IoU is lower with `consistency`
# than with labels alone. If the threshold for pseudo-labels is 0.95 instead of 0.8, the mean IoU of
# these six classes with `consistency` rises. But it is still lower than with labels alone. Both
# studies show why you should always report the simplest baseline too (here training on labels
# alone).
#
# ## What may we conclude?
#
# The six conclusions below are for the small digit scenes and a small network. Each method was
# trained with five seeds, unless we give another number. The step lengths were chosen on validation
# images.
#
# 1. DDFP is 1.6 points (+0.2 to +2.9) better than consistency training, which does not perturb
#    features. After the correction for 12 comparisons, this difference is not significant (-1.3 to
#    +4.4).
# 2. The second pass alone, without any step, is 1.0 points (+0.4 to +1.7) better than consistency
#    training. This is more than half of the 1.6 points that DDFP gains over consistency training.
#    After the correction for 12 comparisons, the gain of the second pass alone is not significant
#    (-0.3 to +2.4).
# 3. We see no sign that a step down the density is better than a random step. The score with random
#    steps minus the score with descent is +0.9 points (-0.3 to +2.0). According to this interval,
#    descent is probably at most 0.3 points better than random steps. The score with adversarial
#    steps minus the score with descent is +1.0 points (+0.3 to +1.7). After the correction for 12
#    comparisons, adversarial steps are not significantly better than descent (-0.5 to +2.5).
# 4. Perhaps DDFP needs a density that fits the features well and keeps learning. Three seeds are
#    not enough to know this.
# 5. On the digit scenes, we measured the density at the decision boundary for each of four methods
#    that use pseudo-labels. With all four methods, the boundary moves to features with a lower
#    density. One of these methods, `consistency`, takes no step.
# 6. On the digit scenes, the flow fits the features better than one Gaussian, but a mixture of 16
#    Gaussians fits them better than the flow. Low density hardly predicts the errors of the
#    network.
#
# In study 9 (the animals), the network is pretrained, and each method has three or five seeds. No
# difference in mIoU between two methods is significant in this study. DDFP minus the second pass
# alone is +0.0 points (-0.6 to +0.6), with three seeds. After the correction for three comparisons,
# this interval is -1.1 to +1.1. In study 12, where the backbone does not learn, random steps are
# significantly better than DDFP.
#
# The results of this lesson do *not* tell us whether DDFP works in the paper's setting. According
# to the released code, this setting has photographs with crops of 513 pixels, 21 classes, a
# ResNet-101 and a confidence threshold of 0.95. We have not run it yet, because it needs a GPU. A
# test on a small benchmark can be a reason to doubt a claim. But it cannot show whether the claim
# is true in other settings.

# %% [markdown]
# ## Exercises
#
# **1. Find the flaw.** "We compare the methods `ddfp` and `noise` on validation images. DDFP is
# better with every seed." The output below shows the differences in validation mIoU. The runs come
# from study 1. These numbers are real:

# %%
faulty = paired_difference(tried, "ddfp, eps 3", "noise, eps 0.3", choice.score)
print(f"DDFP minus noise: {signed(faulty)} points of mIoU, {faulty['seeds']} seeds")
by_seed = tried.pivot(index="seed", columns="method", values=choice.score)
print("by seed:", (by_seed["ddfp, eps 3"] - by_seed["noise, eps 0.3"]).round(1).tolist())

# %% [markdown]
# What is wrong with this comparison? `tried` has all runs of study 1, and `by_seed` has their
# scores (a row for each seed, a column for each method and length). Make a fair comparison with
# `paired_difference`, and print it.

# %% tags=["solution"]
for method in ("ddfp", "noise"):
    lengths = by_seed.filter(like=f"{method}, ").mean()
    print(f"lengths of {method}: best {lengths.idxmax()}, worst {lengths.idxmin()}")
fair = paired_difference(tried, "ddfp, eps 3", "noise, eps 10", choice.score)
print(f"each at its best of four: {signed(fair)} points")
assert fair["difference"] < faulty["difference"]

# %% [markdown] tags=["solution"]
# In the comparison of the exercise, the step of DDFP (length 3) is ten times as long as the step of
# noise (length 0.3). DDFP has the best of its four lengths, but noise has the worst of its four
# lengths. If each method has the best of its four lengths, the mIoUs of DDFP and noise differ only
# a little. With only two seeds, we cannot conclude anything. In the unfair comparison (the
# comparison of the exercise), DDFP is 1.5 points better than noise with one seed and 1.4 points
# better with the other seed. These two differences are almost equal, perhaps by chance. So the
# interval of the unfair comparison (+0.7 to +2.3) is narrow and does not contain 0. In the fair
# comparison, each method has its best length. The unfair comparison and the fair comparison use the
# validation images on which the lengths were chosen. To test whether DDFP is better than noise, we
# need test images, as in study 2.

# %% [markdown]
# **2. Find the flaw.** "The paper reports an mIoU of 81.2 on VOC with 732 labeled images. My run
# has 80.9 at the end. So my model is worse than the model of the paper." Now look at the *paper's
# own* log, which also ends at 80.9. (Be careful with this log: it was edited, and the released code
# did not write it. See [the notes](../reproduce/released/README.md).)

# %%
log = pd.read_csv(Path("../reproduce/released/voc-732-miou.csv"))
log.tail(3)

# %% [markdown]
# The column `first_line_miou` of `log` is the student's score on the validation images after each
# epoch. The paper's score was computed on the same images. Why is the paper's score higher than the
# last score of its log? Now suppose that the network no longer improves from epoch to epoch, so
# that its scores vary only by chance. On average, how far is the best of 20 such scores above their
# mean? To answer this second question, take the scores of the last 20 epochs, and ignore their
# small trend. Draw 20 of these scores with replacement, and take the best of the 20. Repeat the
# draw of 20 scores many times, and compute the mean of the best scores. How far is it above the
# mean of the last 20 scores?

# %% tags=["solution"]
values = log["first_line_miou"].to_numpy()
rng = np.random.default_rng(0)
late = values[-20:]
best = rng.choice(late, (10_000, 20)).max(axis=1).mean()
print(f"best epoch {values.max():.2f}, last epoch {values[-1]:.2f}")
print(f"last 20 epochs: mean {late.mean():.2f}; best of 20 drawn from them: {best:.2f} on average")
print(f"what choosing the best adds: {best - late.mean():.2f} points")
assert values.max() > values[-1] and best > late.mean()

# %% [markdown] tags=["solution"]
# The score 81.2 is the *best of 80 epochs*. The best epoch was chosen with the same images that
# give the reported score. The score 80.9 is the score of the last epoch in the paper's log. The
# best of many noisy scores is higher than a typical score. With more evaluations, the best score
# becomes even higher. For the paper's log, we ignore the small trend of the last 20 scores. We draw
# 20 times from these scores, with replacement, and take the best drawn score. On average, it is
# 0.34 points above the mean of the last 20 scores. So compare the last score of your run with the
# last score in the paper's log. Or choose the best epoch on images that are not used for the
# reported score.

# %% [markdown]
# **3. Plan a test.** UniMatch (CVPR 2023) is a method that *drops channels* of the features at
# random. Its paper reports that dropping channels improves semi-supervised segmentation. Split the
# claim into parts. Name a control for each part. Which things would you keep the same in all
# methods? Which single comparison is the best test of the claim? How many seeds do you need to find
# a difference of half a point? Use `seeds_needed(0.5, spread)`. Here `spread` is the standard
# deviation of the paired differences `dropout, eps 10` minus `noise, eps 10`. The table `wide` has
# a column for each of these two methods.

# %% tags=["solution"]
spread = (wide["dropout, eps 10"] - wide["noise, eps 10"]).std()
print(f"paired standard deviation {spread:.2f}: {seeds_needed(0.5, spread)} seeds for 0.5 points")

# %% [markdown] tags=["solution"]
# This is one possible plan. *Parts:* (1) feature perturbation improves the score; (2) the second
# pass alone does not explain the gain; (3) dropping *channels* is better than another random
# change. *Controls:* for part (1), the control is `consistency`. For part (2), it is a second pass
# in which nothing is dropped. For part (3), there are two controls. The first control adds noise.
# This noise has the same length as the change that channel dropout makes. The second control drops
# single values instead of channels. *Kept equal:* all methods have the same labeled images, the
# same starting weights, the same number of training steps and the same loss weights. All methods
# have the same number of candidates for the strength of the perturbation. The strength is chosen on
# validation images. *The comparison:* we compare channel dropout with noise. Each method has its
# chosen strength. We use the scores on test images after the last training step, and pair them by
# seed. *Seeds:* according to the output above, we need 20 seeds to find a difference of half a
# point. We decide this number before the first run. *Mechanism:* one possible reason for a gain is
# that a network with dropout depends less on single channels. To test this reason, evaluate each
# trained network with one channel of the features set to zero. Then compare two groups of networks:
# those that were trained with channel dropout, and those that were trained with noise. Which group
# loses less accuracy?

# %% [markdown]
# ## What we saw
#
# - A claim has parts. Each part needs a control that differs from the method in one respect.
# - In a fair comparison, all methods are tuned in the same way, trained with the same budget and
#   measured in the same way. The tuning does not use the test data. The budget is a number of
#   training steps or a time. Say which of the two you use.
# - Compare methods within each seed. Report intervals. Decide before the experiment which
#   comparison will answer your question.
# - If a result is not significant, there can still be an effect. If a result is significant, the
#   effect can still be small, or absent on other data.
# - Also test the reason that the paper gives for its good scores. Here we measured the density at
#   the boundary with a mixture of Gaussians. No method was trained with this mixture.
#
# ## In the real method
#
# | here | where |
# |---|---|
# | the presets of all methods | [`ddfp_lib/presets`](../ddfp_lib/presets) |
# | intervals and differences | `experiments/statistics.py` `paired_difference` |
# | the mixture of Gaussians in part 5 | `evaluation/mechanism.py` `IndependentDensity` |
# | studies and their results | [STUDY.md](../reproduce/STUDY.md) |
# | a study of your own | [reproduce/README.md](../reproduce/README.md) |
#
# ## References
#
# - Wang et al., [*Towards the Uncharted: Density-Descending Feature Perturbation for
#   Semi-supervised Semantic Segmentation*](https://arxiv.org/abs/2403.06462), CVPR 2024; [its
#   code](https://github.com/Gavinwxy/DDFP).
# - Oliver et al., [*Realistic Evaluation of Deep Semi-Supervised Learning
#   Algorithms*](https://arxiv.org/abs/1804.09170), NeurIPS 2018: equal tuning, strong baselines.
# - Bouthillier et al., [*Accounting for Variance in Machine Learning
#   Benchmarks*](https://arxiv.org/abs/2103.03098), MLSys 2021.
# - Lipton and Steinhardt, [*Troubling Trends in Machine Learning
#   Scholarship*](https://arxiv.org/abs/1807.03341), 2018: papers often do not separate explanation
#   from speculation.
# - Yang et al., [*Revisiting Weak-to-Strong Consistency*
#   (UniMatch)](https://arxiv.org/abs/2208.09910), CVPR 2023.
# - Miyato et al., [*Virtual Adversarial Training*](https://arxiv.org/abs/1704.03976), TPAMI 2018.
#
# ## Next
#
# Run a comparison yourself: `make reproduce` trains four methods with three seeds in 8 to 35
# minutes. · Previous: [5. Your own data](05_your_own_data.ipynb) · [All lessons](README.md)
