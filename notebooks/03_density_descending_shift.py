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
# # 3. The step down the density
#
# [All lessons](README.md) · previous: [2. Normalizing flows](02_normalizing_flow_density.ipynb) ·
# next: [4. Training](04_ddfp_training.ipynb)
#
# DDFP takes a step: it moves a feature down the density. DDFP trains the classifier to predict the
# same class before and after the step. This lesson measures such steps: how much the log-density
# falls, and how often the class changes. The first half uses points in the plane, and the second
# half uses features of a trained network.
#
# **You will**
# - draw the step on a density, and compare it with random and adversarial steps of equal length;
# - count how often each kind of step moves a point to a place where another class is the true
#   class. You compare the kinds of steps at equal length, and at an equal fall of the log-density;
# - show with a formula why a random step lowers the density so little in many dimensions;
# - measure what density descent, random steps and adversarial steps do in a trained segmentation
#   network.
#
# **You need** lessons 1 and 2. If you know what a normalizing flow is, you can start here. Terms
# are explained in the [glossary](../docs/glossary.md).
#
# **Takes** about 15 minutes to read. The code runs in about a minute on a laptop CPU and needs no
# GPU.

# %%
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ddfp_lib import (
    AdversarialVAT,
    DensityConfig,
    DensityDescent,
    DensityEstimator,
    FeatureModels,
    Run,
    UniformNoise,
    data_of,
    load_learner,
    measure_descent,
    train,
)
from ddfp_lib.constants import UNLABELED
from ddfp_lib.evaluation.descent import UNPERTURBED
from ddfp_lib.lessons.digits import PALETTE, small_config, steps_of
from ddfp_lib.plots.diagram import diagram
from ddfp_lib.plots.features import descents, embeddings, step_costs
from ddfp_lib.plots.planes import Panel, Window, maps
from ddfp_lib.plots.training import panels
from ddfp_lib.seeds import generator

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bar is drawn here
torch.set_num_threads(1)  # small tensors: more threads only wait for one another

# %% tags=["parameters"]
seeds = [0, 1, 2]
points = 600
flow_steps = 250
lengths = [0.1, 0.2, 0.4, 0.8, 1.2]
train_steps = 240
shown = 700  # features on the map

# %% [markdown]
# ## Where are we?
#
# We divide a segmentation network into three stages. `encode` turns the image into *features* $F$.
# `embed` turns the features into *embeddings* $v$. `classify` turns the embeddings into a score for
# each class. Features, embeddings and scores are maps with one vector at each pixel of the map.
# ($F$ and $v$ have a lower resolution than the image.) We call the vector at one pixel of $F$ a
# *feature*. The step moves $F$. The flow models the density of $v$.

# %%
diagram("step", "flow")

# %% [markdown]
# The step at one pixel has length $\varepsilon$ and goes against the gradient of the log-density:
#
# $$ g = -\nabla_F \log p(v(F)), \qquad \delta = \varepsilon \, \frac{g}{\lVert g \rVert} $$
#
# The flow models the density of $v$, but the step moves $F$. So we compute the gradient with
# respect to $F$, by the chain rule.
#
# ## Where is down?
#
# To assess a step, we need data with a known density and known classes. We use three Gaussian
# classes in the plane. Then we know two things at every point: the true density and the most
# probable class. In this lesson, the *true class* of a point in the plane is its most probable
# class. In the first half of this lesson, $v$ and $F$ are both the point itself.

# %%
centres = torch.tensor([[-1.3, 0.0], [1.0, 0.9], [1.1, -1.1]])
spread = torch.tensor(
    [[[0.35, 0.0], [0.0, 0.9]], [[0.65, 0.0], [-0.2, 0.3]], [[0.55, 0.0], [0.2, 0.3]]]
)
gaussians = torch.distributions.MultivariateNormal(centres, scale_tril=spread)


def true_log_density(x):
    return gaussians.log_prob(x.float()[:, None]).logsumexp(1) - torch.tensor(3.0).log()


def true_class(x):
    return gaussians.log_prob(x[:, None]).argmax(1)


def draw(count, *seed):
    noise = torch.randn(count, 2, generator=generator("world", *seed))
    classes = torch.arange(count) % 3
    return centres[classes] + (spread[classes] @ noise[:, :, None])[:, :, 0], classes


# %% [markdown]
# The method knows neither the true density nor the true classes. It has a classifier and a flow.
# The flow is trained on points, and one in ten of these points has a label. (The flow gets only the
# labels of this tenth of the points. But in this example, we train the classifier with the labels
# of all points. Later, we compare density descent with the adversarial step, which uses the
# classifier. A better classifier makes this comparison fairer.)
#
# **Predict first.** We move each point by one step down the density that the flow learned. Will the
# points of one class move towards the other classes, or in all directions?


# %%
def learn(seed):
    """Train a flow and a classifier; return both as what a step may use."""
    x, classes = draw(points, seed)
    labels = classes.where(torch.arange(points) < points // 10, UNLABELED)
    config = DensityConfig(blocks=4, hidden=32, lr=5e-3)
    flow = DensityEstimator(2, 3, config, total_steps=flow_steps, seed=seed)
    rng = generator("fit", seed)
    for _ in range(flow_steps):
        flow.fit_step(x, labels, generator=rng)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = nn.Sequential(
            nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
        )
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        cross_entropy(classifier(x), classes).backward()
        optimizer.step()
    return FeatureModels(log_density=flow.log_prob, logits=classifier)


learned = [learn(seed) for seed in seeds]

# %% tags=["thumbnail"]
x, _ = draw(150, "shown")
everywhere = torch.ones(len(x), dtype=torch.bool)
shift = DensityDescent(0.4)(x, everywhere, learned[0], generator("step"))
log_densities = {
    "the true density": true_log_density,
    "what the flow learned": learned[0].log_density,
}
maps(
    [
        # far outside, the flow's density is 0 in float32, which a log scale cannot show
        Panel(name, points=x, shift=shift, log_density=lambda at, p=p: p(at).clamp(min=-30))
        for name, p in log_densities.items()
    ],
    Window(-3, 3, -2.8, 2.8),
).described(
    "The true density of three classes as contours, and the density that the flow learned, each "
    "with the same points and the same arrows, which are steps down the learned density. The true "
    "density has three separate "
    "hills; the flow's hills are joined by wide bridges. The arrows point outwards on all sides "
    "of a hill, and between two hills into the valley."
)

# %% tags=["check"]
assert torch.allclose(shift.norm(dim=1), torch.full((len(x),), 0.4), atol=1e-5)
assert (true_log_density(x + shift) < true_log_density(x)).float().mean() > 0.85

# %% [markdown]
# **Finding.** Both panels show the same steps, down the learned density. On all sides of a class,
# these steps point outwards, even on the sides where there is no other class. "Down" means "away
# from typical points". Where the flow has a valley of low density between two classes, the steps
# point into this valley.

# %% [markdown]
# ## How far down does a step go, and how often does the class change?
#
# We compare four kinds of steps: density descent, a random step, the adversarial step of *VAT*
# (virtual adversarial training), and descent in eight small steps. The adversarial step has the
# direction in which the prediction changes fastest. Descent in eight small steps computes a new
# gradient before each small step. Density descent, the random step and the adversarial step have
# equal length. The lengths of the eight small steps add up to this length too. But the path of the
# eight steps may bend. If the path bends, the distance from its start to its end is smaller than
# the length of one straight step. We measure two quantities on fresh points, for three seeds:
#
# - how much the *true* log-density falls, in *nats* (the unit of the natural logarithm);
# - for how many points the true class *changes*. In training, a moved point keeps the label from
#   before the step. If the true class changes, this label is wrong.
#
# **Predict first.** Which kind of step moves the most points to a place with another true class:
# density descent, the random step, the adversarial step, or descent in eight small steps?


# %%
def steps_of_length(eps):
    return {
        "density descent": DensityDescent(eps),
        "random": UniformNoise(eps),
        "adversarial (VAT)": AdversarialVAT(eps),
        "descent in 8 steps": DensityDescent(eps, steps=8),
    }


names = list(steps_of_length(1.0))
falls = {name: torch.zeros(len(seeds), len(lengths)) for name in names}
flips = {name: torch.zeros(len(seeds), len(lengths)) for name in names}
for row, (seed, models) in enumerate(zip(seeds, learned, strict=True)):
    x, _ = draw(1500, "fresh", seed)
    everywhere = torch.ones(len(x), dtype=torch.bool)
    for column, eps in enumerate(lengths):
        for name, step in steps_of_length(eps).items():
            there = x + step(x, everywhere, models, generator("walk", seed))
            falls[name][row, column] = (true_log_density(x) - true_log_density(there)).mean()
            flips[name][row, column] = (true_class(there) != true_class(x)).float().mean()
step_costs(lengths, falls, flips).described(
    "Three panels for density descent, random, adversarial steps and descent in 8 steps. Left: "
    "both kinds of descent fall much further than the other steps of the same length. Middle: for "
    "long steps descent changes the true class most often, descent in 8 steps least often. Right: "
    "for the same fall, adversarial steps change the class most often, then random ones, then "
    "descent, then descent in 8 steps."
)

# %% tags=["nbval-ignore-output"]
at, far = lengths.index(0.4), lengths.index(0.8)
pd.DataFrame(
    {
        name: {
            f"{what}, length {lengths[column]}": values[name].mean(0)[column].item() * scale
            for what, values, scale in (
                ("fall (nats)", falls, 1),
                ("class changed (%)", flips, 100),
            )
            for column in (at, far)
        }
        for name in names
    }
).T.round(1)

# %% tags=["check"]
descent, random, vat = (falls[name] for name in names[:3])
assert (descent[:, at] > 2 * random[:, at]).all()
assert (descent[:, at] > 1.5 * vat[:, at]).all()
descent, random, vat, eight = (flips[name] for name in names)
assert (descent[:, far] > random[:, far]).all()
assert (descent[:, far] > vat[:, far]).all()
assert (eight[:, far] < 0.7 * descent[:, far]).all()
# At half the length (0.4), descent falls nearly as far as random steps of 0.8, with fewer flips.
assert (falls["density descent"][:, at] > 0.75 * falls["random"][:, far]).all()
assert flips["density descent"][:, at].mean() < 0.75 * flips["random"][:, far].mean()

# %% [markdown]
# **Finding.** At length 0.4, one step of descent lowers the log-density about three times as much
# as a random step does. But at this length, one step of descent changes the true class more often
# than a random step does. At length 0.8, one step of descent also changes the true class more often
# than the adversarial step does. The method assumes that a step keeps the class. In this example,
# one step of descent breaks this assumption more often than a random step of the same length does.
#
# The right panel compares the steps at equal *fall* of the log-density. For the same fall, descent
# changes the class of fewer points than a random step does. Descent of length 0.4 lowers the
# log-density nearly as much as a random step of length 0.8 does. For shorter steps, the difference
# is even larger: descent of length 0.1 lowers the log-density more than a random step of length 0.2
# does. Which comparison is fair, at equal length or at equal fall? If we can choose the length of
# the step for each method, equal length is not the only fair comparison. Lesson 6 returns to this
# question.

# %% [markdown]
# ## Why does a random step lower the density so little?
#
# In many dimensions a random direction is nearly orthogonal to any gradient. For a standard normal
# density in $D$ dimensions, $\log p(v) = -\lVert v \rVert^2 / 2 + \text{const}$ and
#
# $$ \log p(v + \delta) - \log p(v) = - v \cdot \delta - \varepsilon^2 / 2 . $$
#
# For descent, $v \cdot \delta = \varepsilon \lVert v \rVert \approx \varepsilon \sqrt D$. If
# $\delta$ has a random direction, $v \cdot \delta$ is normally distributed with mean 0 and standard
# deviation $\varepsilon$, for every number of dimensions $D$.
#
# **Predict first.** For what fraction of the points does a random step of length 1 lower $\log p$?
# Is this fraction more or less than half?

# %%
table = {}
for dimensions in (2, 8, 32, 48, 128):
    v = torch.randn(4000, dimensions, generator=generator("gauss", dimensions))
    normal = FeatureModels(lambda v: -0.5 * v.square().sum(1), lambda v: v)
    rows = torch.ones(len(v), dtype=torch.bool)
    change = {
        name: normal.log_density(v + step(v, rows, normal, generator(1))) - normal.log_density(v)
        for name, step in (("descent", DensityDescent(1.0)), ("random", UniformNoise(1.0)))
    }
    table[dimensions] = {
        "descent: mean fall (nats)": -change["descent"].mean().item(),
        "random: mean fall (nats)": -change["random"].mean().item(),
        "random: points that fall (%)": 100 * (change["random"] < 0).float().mean().item(),
    }
pd.DataFrame(table).T.rename_axis("dimensions").round(1)

# %% tags=["check"]
assert abs(table[48]["descent: mean fall (nats)"] - 48**0.5 - 0.5) < 0.3
assert all(abs(row["random: mean fall (nats)"] - 0.5) < 0.1 for row in table.values())
assert all(64 < row["random: points that fall (%)"] < 74 for row in table.values())

# %% [markdown]
# **Finding.** Under descent, the mean log-density falls by about
# $\varepsilon \sqrt D + \varepsilon^2/2$. Under a random step, the mean log-density falls by
# $\varepsilon^2/2$. At $\varepsilon = 1$, a random step lowers the log-density of about 69 % of the
# points, which is more than half. The network below has 48 channels in $F$. If $F$ were standard
# normal, descent of length 1 would lower the log-density of $F$ about 15 times as much as a random
# step would. In a trained network, $F$ is not normally distributed. So for a trained network, we
# measure how much a step lowers the log-density.

# %% [markdown]
# ## In a trained network, does descent also lower the density more than a random step?
#
# We train a network with DDFP for a few seconds. Each image is a small scene: a photograph with one
# large handwritten digit (0, 1 or 2). Lesson 4 explains this training. A feature is *confident* if
# the network predicts a class for it with a probability above a threshold. After the training, we
# take all confident features of the validation scenes and compare three kinds of steps of length 1:
# descent, a random step and the adversarial step. Each step starts from the unperturbed feature.
# The flow was not trained on these scenes.
#
# **Predict first.** For what percentage of the features is $\log p$ lower after the step than
# before? Give one answer for descent, one for a random step and one for the adversarial step.

# %%
config = small_config("ddfp", seed=0, steps=train_steps)
with tempfile.TemporaryDirectory() as folder:
    train(config, Path(folder), device=torch.device("cpu"))
    learner = load_learner(Run.open(Path(folder)), torch.device("cpu"))
validation = data_of(config, "val")
print("channels of F:", learner.student.fusion.channels, " of v:", config.network.embedding)
print("length of the step:", config.eps)

# %%
measured = measure_descent(learner, validation, eps=config.eps)
descents(measured).described(
    "Cumulative curves of the change of log p by three kinds of step. Nearly all features fall "
    "under density descent, many of them by tens of nats. The random curve rises steeply at 0, "
    "with more than half of the features below it; the adversarial curve is wider, and more than "
    "half fall as well."
)

# %% tags=["nbval-ignore-output"]
summary = {
    name: {
        "features that fall (%)": 100 * (after < measured.before).float().mean().item(),
        "median fall (nats)": (measured.before - after).median().item(),
        "network keeps its class (%)": 100 * measured.kept[name],
        "network finds the true class (%)": 100 * measured.right[name],
    }
    for name, after in measured.after.items()
}
beside = pd.DataFrame(summary).T
beside.loc["no step", "network finds the true class (%)"] = 100 * measured.right[UNPERTURBED]
beside.map(lambda value: "" if np.isnan(value) else f"{value:.1f}")

# %% tags=["check"]
descent, random, vat = (summary[name] for name in measured.after)
assert descent["features that fall (%)"] > 90
assert 50 < random["features that fall (%)"] < 65
assert descent["median fall (nats)"] > 3 * max(
    random["median fall (nats)"], vat["median fall (nats)"]
)
assert descent["median fall (nats)"] > 8
assert descent["network keeps its class (%)"] > 95 > vat["network keeps its class (%)"]
right = "network finds the true class (%)"
unmoved = beside.loc["no step", right]
assert unmoved > descent[right] > vat[right] and abs(random[right] - unmoved) < 1

# %% [markdown]
# **Finding.** Descent lowers the log-density of nearly all features. A random step lowers the
# log-density of only slightly more than half of the features. In the example with the standard
# normal density above, a random step lowers the log-density of about 69 % of the points. The median
# fall is more than 8 nats for descent, about 1 nat for the adversarial step, and about 0 for the
# random step. For more than 95 % of the features, descent does not change the class that the
# network predicts. But this class can be wrong. The column "network finds the true class" shows the
# percentage of features for which the network predicts the *true* class. This percentage is about
# 94 % without a step, and also about 94 % after a random step. The percentage is a little lower
# after descent, and lowest after the adversarial step. The column "network keeps its class" shows
# that, in this network, the adversarial step changes the predicted class of more features than
# descent does. (In the plane, the result was the opposite for long steps: descent changed the true
# class of more points than the adversarial step did.)
#
# ## Where do the moved features lie?
#
# We project the embeddings onto their first two *principal components*, the directions in which
# they vary most. A line joins each embedding to its place after the step. The projection shows only
# two dimensions of the embeddings and hides all other dimensions. So we also compute one number
# that uses all dimensions. For each of 700 random features, we measure a distance twice, before and
# after the step: the distance from the embedding of this feature to the nearest unperturbed
# embedding of another feature. For each kind of step, the number is the median distance after the
# step, divided by the median distance before the step. The steps have equal length in $F$, but not
# in $v$. So this number depends on two things: how far a step moves $v$, and in which direction the
# step moves $v$.
#
# **Predict first.** How does the median distance change after a random step? How does it change
# after descent?

# %%
steps = steps_of(learner, validation)
chosen = torch.randperm(int(steps.moved.sum()), generator=generator("chosen"))[:shown]
some = {name: v[chosen] for name, v in steps.v.items()}
mean = some["unperturbed"].mean(0)
_, _, components = torch.linalg.svd(some["unperturbed"] - mean, full_matrices=False)
flat = {name: ((v - mean) @ components[:2].T).numpy() for name, v in some.items()}
before = flat.pop("unperturbed")
embeddings(before, flat, steps.classes[steps.moved][chosen], validation.classes, PALETTE).described(
    "Embeddings on two principal components, colored by class, with a line from each "
    "feature to its place after a step; random steps on the left, density descent on the right. "
    "The random steps are so short that they hardly show. The lines of descent are long, and many "
    "lead outwards from the clusters."
)

# %% tags=["nbval-ignore-output"]
distance = {
    name: torch.cdist(v, some["unperturbed"]).fill_diagonal_(float("inf")).amin(1).median().item()
    for name, v in some.items()
}
nearest = {name: value / distance["unperturbed"] for name, value in distance.items()}
for name, value in nearest.items():
    print(f"{name:<16} median distance: {value:.2f} times the median before the step")

# %% tags=["check"]
assert nearest["density descent"] > 1.2
assert abs(nearest["random step"] - 1) < 0.15

# %% [markdown]
# The projection onto two principal components is a linear map. *UMAP* (McInnes et al.) makes a
# nonlinear map that tries to keep neighbors close to one another. UMAP takes a minute, so we stored
# its result. The script `weights/03_map.py` fits UMAP to three groups of embeddings together:
# unperturbed embeddings, embeddings after random steps and embeddings after descent. On a UMAP map,
# the distances between clusters have no clear meaning. So trust the median distances above, not the
# distances on the UMAP map below.

# %%
stored = np.load("weights/03_map.npz")
places = {name: stored[name] for name in ("random step", "density descent")}
stored_classes = torch.from_numpy(stored["classes"])
embeddings(stored["unperturbed"], places, stored_classes, validation.classes, PALETTE).described(
    "The same two groups of steps on a UMAP map. Background features make two large groups, and "
    "the digits 0, 1 and 2 have clusters of their own. Random steps hardly show; the lines of "
    "descent are longer, and some cross to another group."
)

# %% [markdown]
# **Finding.** After descent, the median distance to the nearest unperturbed neighbor is about one
# and a half times the median distance before the step. After a random step, this distance hardly
# changes. So descent moves an embedding away from the unperturbed embeddings of other features. In
# the projection onto two principal components, descent also moves $v$ farther than a random step
# does. This longer movement of $v$ may be one reason why the median distance is larger after
# descent.

# %% [markdown]
# ## Where does log p fall most?
#
# Now we look at the images. Each feature covers 4 x 4 pixels of the image. In the maps of $\log p$
# below, a white square is a feature that we did not move. Such a feature is not confident, or the
# pixel at the center of the feature is *ignored* (the mask gives no class for this pixel).
#
# **Predict first.** For which features does $\log p$ fall most: for features with a high density,
# or for features that already have a low density?

# %%
nothing = torch.tensor(float("nan"))
log_p = {name: value.where(steps.moved, nothing) for name, value in steps.log_p.items()}
where = list(range(0, len(steps.images), len(steps.images) // 6))[:6]
panels(
    {
        "image": [steps.images[i] for i in where],
        "log p,\nunperturbed": [log_p["unperturbed"][i] for i in where],
        "log p after\na random step": [log_p["random step"][i] for i in where],
        "log p after\ndescent": [log_p["density descent"][i] for i in where],
    },
    one_scale=True,
).described(
    "Six validation scenes, and log p of their confident features: unperturbed, after a random "
    "step, after descent. Low values lie on and around the digits. A random step hardly changes "
    "the picture; after descent most features are lower, and those that were low "
    "already tend to fall most."
)

# %% tags=["nbval-ignore-output"]
before = steps.log_p["unperturbed"][steps.moved]
fall = before - steps.log_p["density descent"][steps.moved]
ranks = torch.stack([values.argsort().argsort().float() for values in (before, fall)])
rank_correlation = torch.corrcoef(ranks)[0, 1].item()
print(f"rank correlation of log p and fall: {rank_correlation:.2f}")

# %% tags=["check"]
assert rank_correlation < -0.2

# %% [markdown]
# **Finding.** The rank correlation between $\log p$ before the step and the fall of $\log p$ is
# negative. (A *rank correlation* compares two orders of the same features: here, the order by
# $\log p$ before the step and the order by the fall of $\log p$. It is 1 for equal orders, -1 if
# one order is the reverse of the other order, and near 0 for unrelated orders.) So $\log p$ tends
# to fall more for features with a low density than for features with a high density. Steps of equal
# length do not lower $\log p$ by equal amounts.
#
# **Play with it.** On the [explorer's page on
# pictures](../docs/explorer.md#what-a-step-does-to-a-picture) you can choose a feature of an image
# and the length of the step. The page has three kinds of steps: density descent, a random step and
# an adversarial step. For each of them, it shows $\log p$ before and after the step. In a clone of
# the repository, the command `make explorer` builds the page.

# %% [markdown]
# ## Exercises
#
# **1. Where do straight steps go wrong?** Descent in eight steps lowers the log-density about as
# much as descent in one straight step. But at length 0.8, descent in eight steps changes the true
# class about half as often as descent in one straight step. Take the first seed, `seeds[0]`, and
# the length 0.8. Draw 1,500 points with `draw(1500, "fresh", seeds[0])`, and move them with
# `DensityDescent(0.8)` and `learned[0]`, which contains the flow's log-density and the classifier.
# Split the points into two groups: points whose true class changed, and points whose true class did
# not change. The function `true_class` returns the true class. Each point moves by one straight
# step. For each point, compare the flow's log-density (`learned[0].log_density`) in the middle of
# this step and at the end of this step. In which group is the log-density at the end more often
# *higher* than the log-density in the middle?

# %% tags=["solution", "nbval-ignore-output"]
x, _ = draw(1500, "fresh", seeds[0])
shift = DensityDescent(0.8)(x, torch.ones(len(x), dtype=torch.bool), learned[0], generator(0))
changed = true_class(x + shift) != true_class(x)
rises = learned[0].log_density(x + shift) > learned[0].log_density(x + shift / 2)
for group, words in ((changed, "class changed"), (~changed, "class kept")):
    print(f"{words}: log p rises again for {100 * rises[group].float().mean():.0f} % of the points")
assert rises[changed].float().mean() > rises[~changed].float().mean() + 0.2

# %% [markdown] tags=["solution"]
# For nearly half of the points whose class changed, log p rises again in the second half of the
# step. For the points whose class did not change, this almost never happens. A step with such a
# rise crosses a valley of the density and goes up on its other side. Descent in eight small steps
# computes a new gradient before each small step. So its path could turn around at the bottom of the
# valley. We did not measure how often this happens.

# %% [markdown]
# **2. Equal fall.** In 48 dimensions, descent of length 1 lowers the log-density by some amount.
# How long must a random step be to lower the log-density by the same amount? Compute this length
# for the standard normal density, with the two formulas from the finding in "Why does a random step
# lower the density so little?". Then test this length on 4,000 points from the standard normal
# density, with `UniformNoise(length)` and `normal.log_density`.

# %% tags=["solution", "nbval-ignore-output"]
length = (2 * 48**0.5 + 1) ** 0.5  # eps^2 / 2 = sqrt(D) + 1/2
v = torch.randn(4000, 48, generator=generator("exercise"))
rows = torch.ones(len(v), dtype=torch.bool)
there = v + UniformNoise(length)(v, rows, normal, generator(2))
fall = (normal.log_density(v) - normal.log_density(there)).mean().item()
wanted = table[48]["descent: mean fall (nats)"]
print(f"length {length:.1f}: random steps lower log p by {fall:.1f} nats, descent by {wanted:.1f}")
assert abs(fall - wanted) < 0.5

# %% [markdown] tags=["solution"]
# In 48 dimensions, a random step must have a length of nearly 4 to lower the log-density by the
# same amount as descent of length 1.

# %% [markdown]
# ## What we saw
#
# - The step of density descent has length $\varepsilon$. Its direction is outwards, away from the
#   dense middle of a class.
# - At equal length, descent lowers the log-density more than a random step or an adversarial step
#   does.
# - In the plane, a step can also change the true class. At the lengths 0.8 and 1.2, one straight
#   step of descent changes it more often than a random step or an adversarial step of the same
#   length. If a step of descent and a random step lower the log-density by the same amount, descent
#   changes the true class less often. In the trained network, the adversarial step changes the
#   predicted class most often, descent less often, and a random step hardly ever.
# - With one seed, we looked at straight steps of density descent that have length 0.8 and change
#   the true class. In nearly half of these steps, the flow's log-density rises again between the
#   middle and the end of the step. At length 0.8, in the mean over three seeds, descent in eight
#   small steps changes the true class about half as often as descent in one straight step.
# - In one trained network, descent lowers the log-density of nearly all confident features. A
#   random step lowers the log-density of more than half of the confident features.
#
# ## In the real method
#
# | here | in `ddfp_lib` | in the release |
# |---|---|---|
# | the step | `method/perturb.py` `DensityDescent` | `model/model/attack.py` |
# | scaling a step to its length | `method/perturb.py` `scale_to_length` | `model/model/attack.py` |
# | what a step may use | `training/learner.py` `Learner.feature_models` | `model/model/attack.py` |
# | the density | `method/density.py` `log_prob` | `model/flow/loss.py:25-33` |
# | measuring steps | `evaluation/descent.py` `measure_descent` | |
#
# The released code takes one straight step of length 4 in 304 dimensions. The gradient for this
# step is computed from the log-densities at confident pixels only. `embed` contains convolutions,
# so the density at a confident pixel also depends on the features of its neighbors, and the
# gradient with respect to these features is not zero. The released code moves these features even
# if they are not confident. By default, our code moves only confident features.
#
# ## References
#
# - Wang et al., [*Towards the Uncharted: Density-Descending Feature Perturbation for
#   Semi-supervised Semantic Segmentation*](https://arxiv.org/abs/2403.06462), CVPR 2024; [its
#   code](https://github.com/Gavinwxy/DDFP).
# - Miyato et al., [*Virtual Adversarial Training*](https://arxiv.org/abs/1704.03976), TPAMI 2018.
# - Chen et al., [*Encoder-Decoder with Atrous Separable Convolution*
#   (DeepLabv3+)](https://arxiv.org/abs/1802.02611), ECCV 2018: the network that we divide into
#   encode, embed and classify.
# - McInnes et al., [*UMAP*](https://arxiv.org/abs/1802.03426), 2018.
#
# ## Next
#
# [4. Training](04_ddfp_training.ipynb): the whole training, in which this step is part 4 of six. ·
# Previous: [2. Normalizing flows](02_normalizing_flow_density.ipynb) · [All lessons](README.md)
