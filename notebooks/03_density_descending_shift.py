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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ddfp/ddfp/blob/main/notebooks/03_density_descending_shift.ipynb)
# [![Open on GitHub](https://img.shields.io/badge/GitHub-source-black?logo=github)](https://github.com/ddfp/ddfp/blob/main/notebooks/03_density_descending_shift.ipynb)
#
# A density has a slope everywhere. DDFP pushes a feature down that slope and asks the classifier
# for the same class there. You see what such a step does, and what it costs.
#
# **You will** draw the step on a density, compare it with random and adversarial steps of the same
# length, count how often each leaves the true class, and follow it into a trained network.
#
# **You need** lessons 1 and 2, or to know what a normalizing flow is; about
# 2 minutes on a laptop CPU, no GPU.

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
import inspect
import tempfile
import warnings
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfp_lib.config import find_benchmark, load_config
from ddfp_lib.constants import IGNORE_INDEX, UNLABELED
from ddfp_lib.data.loaders import evaluation_batches
from ddfp_lib.evaluation.descent import measure_descent
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.method.perturb import AdversarialVAT, DensityDescent, FeatureModels, UniformNoise
from ddfp_lib.models.maps import resize_nearest, to_rows
from ddfp_lib.models.network import evaluating
from ddfp_lib.plots.features import descents, embeddings, step_costs
from ddfp_lib.plots.planes import Panel, Window, maps
from ddfp_lib.plots.training import panels
from ddfp_lib.runs.folder import Run
from ddfp_lib.seeds import generator
from ddfp_lib.training.data import data_of
from ddfp_lib.training.learner import load_learner
from ddfp_lib.training.loop import train

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bar is drawn here
torch.set_num_threads(1)  # small tensors: more threads only wait for one another

# %% tags=["parameters"]
seeds = [0, 1, 2]
points = 600
flow_steps = 250
lengths = [0.1, 0.2, 0.4, 0.8, 1.2]
train_steps = 240
shown = 1200

# %% [markdown]
# ## Where is down?
#
# To judge a step we need a world whose truth is known: three Gaussian classes in the plane. At any
# place we can say the true density, and the most probable class, whoever ended up there.

# %%
centres = torch.tensor([[-1.3, 0.0], [1.0, 0.9], [1.1, -1.1]])
spread = torch.tensor(
    [[[0.35, 0.0], [0.0, 0.9]], [[0.65, 0.0], [-0.2, 0.3]], [[0.55, 0.0], [0.2, 0.3]]]
)
world = torch.distributions.MultivariateNormal(centres, scale_tril=spread)


def true_log_density(x: Tensor) -> Tensor:
    return world.log_prob(x.float()[:, None]).logsumexp(1) - torch.tensor(3.0).log()


def true_class(x: Tensor) -> Tensor:
    return world.log_prob(x[:, None]).argmax(1)


def draw(count: int, *seed: int | str) -> tuple[Tensor, Tensor]:
    noise = torch.randn(count, 2, generator=generator("world", *seed))
    classes = torch.arange(count) % 3
    return centres[classes] + (spread[classes] @ noise[:, :, None])[:, :, 0], classes


# %% [markdown]
# The method does not know the truth. It has a flow, fitted to points of which one in ten has its
# label, and a classifier (which sees all labels here, so that its errors stay out of the way).


# %%
def learn(seed: int) -> FeatureModels:
    x, classes = draw(points, seed)
    labels = classes.where(torch.arange(points) < points // 10, UNLABELED)
    config = DensityConfig(blocks=4, hidden=32, lr=5e-3, noise=0.05)
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
        F.cross_entropy(classifier(x), classes).backward()
        optimizer.step()
    return FeatureModels(flow.log_prob, classifier)


queries = [learn(seed) for seed in seeds]

# %% [markdown]
# The step is the gradient of $-\log p$, brought to length $\varepsilon$. In the library:

# %%
print(inspect.getsource(DensityDescent.__call__))

# %% tags=["thumbnail"]
x, _ = draw(150, "shown")
everywhere = torch.ones(len(x), dtype=torch.bool)
shift = DensityDescent(0.4)(x, everywhere, queries[0], generator("step"))
log_densities = {
    "the true density": true_log_density,
    "what the flow learned": queries[0].log_density,
}
maps(
    [
        # far outside the flow's density is 0 in float32, which has no place on a log scale
        Panel(name, points=x, shift=shift, log_density=lambda at, p=p: p(at).clamp(min=-30))
        for name, p in log_densities.items()
    ],
    Window(-3, 3, -2.8, 2.8),
)

# %% [markdown]
# The arrows point outwards on all sides of a class, not only towards the other classes: down is
# "away from what is usual". Between two classes they point into the valley.

# %% tags=["check"]
assert torch.allclose(shift.norm(dim=1), torch.full((len(x),), 0.4), atol=1e-5)
assert (true_log_density(x + shift) < true_log_density(x)).float().mean() > 0.85

# %% [markdown]
# ## How far down, and at what price?
#
# A random step, and VAT's adversarial one, of the same length are the rivals. Two numbers for each:
# the mean fall of the *true* log-density, and how many points now lie where *another class* is the
# most probable. Those will be trained with a wrong label. A fourth walker goes down in eight short
# steps, looking again for the slope before each. Three seeds: three samples, flows and classifiers.


# %%
def walkers(eps: float) -> dict:
    return {
        "density descent": DensityDescent(eps),
        "random": UniformNoise(eps),
        "adversarial (VAT)": AdversarialVAT(eps),
        "bent descent": DensityDescent(eps, steps=8),
    }


falls = {name: torch.zeros(len(seeds), len(lengths)) for name in walkers(1.0)}
flips = {name: torch.zeros(len(seeds), len(lengths)) for name in walkers(1.0)}
for row, (seed, models) in enumerate(zip(seeds, queries, strict=True)):
    x, _ = draw(1500, "fresh", seed)
    everywhere = torch.ones(len(x), dtype=torch.bool)
    for column, eps in enumerate(lengths):
        for name, walk in walkers(eps).items():
            there = x + walk(x, everywhere, models, generator("walk", seed))
            falls[name][row, column] = (true_log_density(x) - true_log_density(there)).mean()
            flips[name][row, column] = (true_class(there) != true_class(x)).float().mean()
step_costs(lengths, falls, flips)

# %% tags=["check"]
at = lengths.index(0.4)
assert (falls["density descent"][:, at] > 2 * falls["random"][:, at]).all()
assert (falls["density descent"][:, at] > 1.5 * falls["adversarial (VAT)"][:, at]).all()

# %% [markdown]
# At length 0.4 descent falls more than twice as far as a random step, for every seed. But now look
# at the middle: **at the same length descent changes the true class more often than a random step
# does, and from 0.8 more often than the adversarial one.** The idea does not promise that the
# class is kept, and here it is not.
#
# On the right is the fairer question: what does a *fall* cost? Per nat, descent changes fewer
# classes, because a much shorter step is enough.

# %% tags=["check"]
far = lengths.index(0.8)
assert (flips["density descent"][:, far] > flips["random"][:, far]).all()
assert (flips["density descent"][:, far] > flips["adversarial (VAT)"][:, far]).all()
# A fall as deep as the random step's of length 0.8 costs descent half that length, and fewer flips.
assert (falls["density descent"][:, at] > 0.75 * falls["random"][:, far]).all()
assert flips["density descent"][:, at].mean() < 0.75 * flips["random"][:, far].mean()

# %% [markdown]
# ### Exercise 1
#
# Bent descent is as deep as the straight step, and changes the class less than half as often. Where
# do the straight steps go wrong? Split the points of one seed at length 0.8 into those whose class
# changed and the others, and compare the flow's log-density half way with that at the end.

# %% tags=["solution"]
x, _ = draw(1500, "fresh", seeds[0])
shift = DensityDescent(0.8)(x, torch.ones(len(x), dtype=torch.bool), queries[0], generator(0))
changed = true_class(x + shift) != true_class(x)
climbs = queries[0].log_density(x + shift) > queries[0].log_density(x + shift / 2)
share = {str(group): climbs[changed == group].float().mean() for group in (True, False)}
assert share["True"] > share["False"] + 0.2
# A straight step into a valley climbs the other side: it ends in another class's dense region.
# Looking again half way, the bent one stays at the bottom.

# %% [markdown]
# ## Why does a random step fall so little?
#
# In many dimensions a random direction is nearly at right angles to any gradient. Take a standard
# normal density in D dimensions, and steps of length 1.

# %%
table = {}
for dimensions in (2, 8, 32, 128):
    v = torch.randn(4000, dimensions, generator=generator("gauss", dimensions))
    models = FeatureModels(lambda v: -0.5 * v.square().sum(1), lambda v: v)
    rows = torch.ones(len(v), dtype=torch.bool)
    table[dimensions] = {
        name: float(
            (
                0.5 * (v + walk(v, rows, models, generator(1))).square().sum(1)
                - 0.5 * v.square().sum(1)
            ).mean()
        )
        for name, walk in (("density descent", DensityDescent(1.0)), ("random", UniformNoise(1.0)))
    }
pd.DataFrame(table).T.rename_axis("dimensions").round(1)

# %% [markdown]
# Descent falls by about $\varepsilon\sqrt{D} + \varepsilon^2/2$, the random step by
# $\varepsilon^2/2$ in any dimension. In the 32 dimensions of the network below, that is a factor
# of 12.

# %% tags=["check"]
assert abs(table[32]["density descent"] - 32**0.5 - 0.5) < 0.3
assert all(abs(row["random"] - 0.5) < 0.1 for row in table.values())

# %% [markdown]
# ### Exercise 2
#
# How long must a random step be, in 32 dimensions, to fall as far as descent of length 1? Solve it,
# then test it.

# %% tags=["solution"]
length = (2 * 32**0.5 + 1) ** 0.5  # eps^2 / 2 = sqrt(D) + 1/2
v = torch.randn(4000, 32, generator=generator("exercise"))
rows = torch.ones(len(v), dtype=torch.bool)
there = v + UniformNoise(length)(v, rows, models, generator(2))
fall = 0.5 * (there.square().sum(1) - v.square().sum(1)).mean()
assert abs(fall - table[32]["density descent"]) < 0.5
print(f"length {length:.1f}")

# %% [markdown]
# ## Does it hold in a trained network?
#
# A short training of DDFP on digit scenes, made small: three kinds of digits, one large digit in
# each scene, and steps of length 1.

# %%
settings = {
    "data.digits.classes": 3,
    "data.digits.digits": [1, 1],
    "data.digits.digit_size": [26, 36],
    "data.digits.train": 400,
    "data.digits.val": 60,
    "data.digits.test": 10,
    "data.labeled": 60,
    "eps": 1.0,
    "training.steps": train_steps,
    "training.batch_unlabeled": 8,
    "training.consistency_from": 0.25,
    "training.perturb_from": 0.4,
    "training.ema_decay": 0.95,
    "training.evaluate_every": train_steps,
    "training.checkpoint_every": train_steps,
}
config = load_config(find_benchmark("digits"), "ddfp", 0, [f"{k}={v}" for k, v in settings.items()])
with tempfile.TemporaryDirectory() as folder:
    train(config, Path(folder), device=torch.device("cpu"))
    learner = load_learner(Run.open(Path(folder)), torch.device("cpu"))
validation = data_of(config, "val")
validation.classes

# %% [markdown]
# Features F are moved, and the density is of the embedding v = embed(F): the gradient comes through
# two convolutions. All confident features of the validation scenes take the step, none of which the
# flow has seen.

# %%
measured = measure_descent(learner, validation, eps=config.eps)
descents(measured)

# %%
falling = {
    name: float((after < measured.before).float().mean()) for name, after in measured.after.items()
}
depth = {name: float((measured.before - after).median()) for name, after in measured.after.items()}

# %% tags=["check"]
assert falling["density descent"] > 0.9
assert 0.4 < falling["random"] < 0.7
assert depth["density descent"] > 3 * max(depth["random"], depth["adversarial (VAT)"])
assert measured.kept["density descent"] > 0.95

# %% [markdown]
# More than nine of ten features fall under descent; under a random step about every second does,
# which is what chance gives. The median fall is more than three times the adversarial step's, and
# the network keeps its class at more than 95 % of the places. The *network's* class: here
# nobody knows the true one, and the plane has shown that this is not the same.

# %% [markdown]
# ## Where do the shifted features lie?
#
# UMAP draws the 32 dimensions in two. It is fitted to features at rest and after both steps
# together, so that no group is a guest on another's map. It may deceive, so a number from the 32
# dimensions stands beside it: the median distance to the nearest embedding at rest.

# %%
images, masks = next(evaluation_batches(validation, len(validation)))
network, rng = learner.teacher, generator("map")
with torch.no_grad(), evaluating(network):
    models = learner.feature_models(rng, network)
    features = network.encode(images / 255)
    truth = resize_nearest(masks, features.shape[2:])
    confidence = models.logits(features).softmax(1).amax(1)
    moved = (confidence > config.training.confidence) & (truth != IGNORE_INDEX)
    ways = {
        "at rest": features,
        "after a random step": features + UniformNoise(config.eps)(features, moved, models, rng),
        "after descent": features + DensityDescent(config.eps)(features, moved, models, rng),
    }
    log_p = {name: models.log_density(f) for name, f in ways.items()}
    where = {
        name: to_rows(network.embed(f, eval_mode=True))[moved.flatten()] for name, f in ways.items()
    }
chosen = torch.randperm(int(moved.sum()), generator=rng)[:shown]
classes = truth[moved][chosen]
where = {name: v[chosen] for name, v in where.items()}

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from umap import UMAP

    flat = UMAP(random_state=0, n_neighbors=15, n_epochs=150).fit_transform(
        torch.cat(list(where.values()))
    )
places = dict(zip(where, flat.reshape(len(where), -1, 2), strict=True))
embeddings(places, classes, validation.classes, validation.palette)

# %%
rest = torch.cdist(where["at rest"], where["at rest"]).fill_diagonal_(float("inf")).amin(1).median()
nearest = {
    name: float(
        torch.cdist(v, where["at rest"]).fill_diagonal_(float("inf")).amin(1).median() / rest
    )
    for name, v in where.items()
}

# %% tags=["check"]
assert nearest["after descent"] > 1.2
assert abs(nearest["after a random step"] - 1) < 0.15
assert nearest["after descent"] > nearest["after a random step"] + 0.1

# %% [markdown]
# After descent the nearest other feature is more than 1.2 times as far as at rest; after a random
# step nothing has changed. Descent leaves the crowd, random steps stay in it.

# %% [markdown]
# ## Which pixels fell most?
#
# Back to the images: the fall of log p at each confident feature, one feature for 4 x 4 pixels.
# Unconfident and void ones stay blank.

# %%
fall = log_p["at rest"] - log_p["after descent"]
blank = torch.full_like(fall, float("nan"))
drops = torch.where(moved, fall, blank)
some = list(range(0, len(images), len(images) // 6))[:6]
panels(
    {
        "image": [images[i] for i in some],
        "log p at rest": [log_p["at rest"][i].where(moved[i], blank[i]) for i in some],
        "fall by descent": [drops[i] for i in some],
    }
)

# %%
dense = log_p["at rest"][moved].argsort().argsort().float()
steep = fall[moved].argsort().argsort().float()
rank_correlation = float(torch.corrcoef(torch.stack([dense, steep]))[0, 1])

# %% tags=["check"]
assert rank_correlation < -0.2

# %% [markdown]
# Where a feature is rare already, it falls furthest: density at rest and fall have a negative rank
# correlation. One length for all is not one depth for all.
#
# ## What we saw
#
# - The step goes outwards on all sides of a class, with length `eps` exactly.
# - Three seeds: descent falls more than twice as far as a random step of length 0.4.
# - It does not keep the true class for free: at length 0.8 it changes it more often than a random
#   and an adversarial step. Per nat of fall it is cheaper than a random one. Steps across a valley
#   are to blame; `steps=8` avoids most of them.
# - In one trained network more than 90 % of the features fall, and about half under a random step.
#
# ## In the real method
#
# | here | in `ddfp_lib` | in the release |
# |---|---|---|
# | the step | `method/perturb.py` `DensityDescent` | `model/model/attack.py` |
# | one length for all | `method/perturb.py` `scale_to_length` | `model/model/attack.py` |
# | what it may ask | `training/learner.py` `Learner.feature_models` | `model/model/attack.py` |
# | the density | `method/density.py` `log_prob` | `model/flow/loss.py:25-33` |
# | steps, measured | `evaluation/descent.py` `measure_descent` | |
#
# The release takes one straight step, of length 4 in 304 dimensions, for confident pixels and
# those neighbours that the gradient reaches; here neighbours stay.
#
# ## Next
#
# [Lesson 4](04_ddfp_training.ipynb): the whole training, in which this is the third part of six.
