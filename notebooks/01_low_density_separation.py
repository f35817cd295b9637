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
# # 1. Low-density separation: watch a boundary move
#
# [All lessons](README.md) · next: [2. Normalizing flows](02_normalizing_flow_density.ipynb)
#
# Six points have a label, and 234 points have no label. Where should we put the decision boundary
# between two classes? *Semi-supervised learning* trains on points with a label and on points
# without a label. One of its oldest ideas is the **cluster assumption**: points of one cluster
# share a class. If this is true, the boundary should lie in regions with few points. This second
# idea is called *low-density separation*.
#
# **DDFP**, *Density-Descending Feature Perturbation* (CVPR 2024), builds on the cluster assumption.
# The method learns the density of the features. It moves a feature one step *down the density*.
# Then it trains the classifier to predict the same class before and after the step. The paper
# claims that this training moves the decision boundary into regions with few features. This course
# builds the method and then tests the claim. This lesson uses points in the plane, so you can see
# the points, the density and the boundary.
#
# **You will**
# - see why the boundary often runs through the middle of the data if only a few points have labels;
# - write three *rules* (losses that need no labels): entropy minimization, random steps, density
#   descent;
# - compare the three rules over eight seeds, by accuracy and by the density at the boundary;
# - find a data set on which the cluster assumption is false.
#
# **You need** Python and a little PyTorch. You should know what a classifier, a gradient and the
# cross-entropy loss are. Terms are explained where they first appear, and again in the
# [glossary](../docs/glossary.md).
#
# **Takes** about 20 minutes to read. The code runs in about a minute on a laptop CPU and needs no
# GPU.

# %%
import copy

import pandas as pd
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from ddfp_lib import AdversarialVAT, DensityConfig, DensityDescent, DensityEstimator, FeatureModels
from ddfp_lib.constants import UNLABELED
from ddfp_lib.lessons.plane import (
    Classifiers,
    draw_labels,
    misplaced_gap,
    three_blobs,
    two_moons,
    two_rings,
)
from ddfp_lib.plots.diagram import diagram
from ddfp_lib.plots.lines import seed_dots
from ddfp_lib.plots.planes import Panel, Window, density_under_boundary, maps
from ddfp_lib.plots.style import METHOD_COLOURS
from ddfp_lib.seeds import generator

torch.set_num_threads(1)  # small tensors: more threads only wait for one another

# %% tags=["parameters"]
points = 240  # in a cloud
labels_per_class = 3
seeds = 8  # each draws its own labels and starting weights
eps = 0.2  # length of a step
steps = 400  # training steps
warmup = 60  # the first steps, on labels alone
confidence = 0.95  # a prediction needs a higher probability to be a pseudo-label
density_steps = 400  # training steps of the flow

# %% [markdown]
# ## Where are we?
#
# The diagram shows the whole method. Lesson 4 trains a network with this method. This lesson is
# about the colored boxes: the flow (a network) learns a density, and the step goes down this
# density. Later lessons explain the other boxes. In this lesson, each "image" is a point in the
# plane, and both F and v in the diagram are this point.

# %%
diagram("flow", "step")

# %% [markdown]
# ## Clouds with a known density
#
# We start with three *clouds* of points. The first cloud has the shape of two moons, the second
# cloud has the shape of two rings, and the third cloud has the shape of three blobs. Each moon,
# ring or blob is one class. The points of a cloud are drawn from a mixture of $M$ small Gaussians
# in the plane. All Gaussians have the same weight and the same covariance $\sigma^2 I$. We choose
# their centers $s_1, \dots, s_M$, so we know the density of the cloud exactly:
#
# $$ p(x) = \frac1M \sum_{m=1}^M \mathcal N(x;\, s_m,\, \sigma^2 I) $$
#
# Until exercise 2, we use the exact density only to *measure* the results. *Training* with density
# descent uses a learned density. The other two rules, entropy minimization and random steps, use no
# density. For each seed, we choose three points of each class at random and give them a label. The
# other points have no label.

# %%
clouds = {"moons": two_moons(), "rings": two_rings(), "blobs": three_blobs()}
train_set = {name: cloud.sample(points, generator("train")) for name, cloud in clouds.items()}
test_set = {name: cloud.sample(2000, generator("test")) for name, cloud in clouds.items()}
labels = {
    name: torch.stack([draw_labels(classes, labels_per_class, seed) for seed in range(seeds)])
    for name, (_, classes) in train_set.items()
}
{name: tuple(rows.shape) for name, rows in labels.items()}  # (seeds, points)

# %% tags=["check"]
for name, cloud in clouds.items():
    box = Window.around(cloud.skeleton, margin=6 * cloud.scatter)
    area = (box.right - box.left) * (box.top - box.bottom)
    mass = box.ask(lambda x, cloud=cloud: cloud.log_density(x).exp()).mean() * area
    assert abs(mass - 1) < 0.02, (name, mass)
    for k in cloud.classes.unique():
        assert ((labels[name] == k).sum(1) == labels_per_class).all()

# %% [markdown]
# ## How do we train, and what do we measure?
#
# The classifier has three linear layers. There is one classifier per seed. For one cloud and one
# rule, the classifiers of all seeds train at the same time, so tensors have the shape (seeds,
# features, points).
#
# On labeled points the loss is the cross-entropy. The first training steps (the *warm-up*) use only
# this loss. After the warm-up, a *rule* adds a second loss, which uses all points. The classifier
# that we train is the *student*. Some rules need pseudo-labels (explained below). The pseudo-labels
# come from a second network, the *teacher*. The teacher's weights $\theta_\text{teacher}$ are an
# exponential moving average (EMA) of the student's weights $\theta_\text{student}$. Such a teacher
# is called a *Mean Teacher* (Tarvainen and Valpola 2017):
#
# $$ \theta_\text{teacher} \leftarrow a\, \theta_\text{teacher} + (1 - a)\, \theta_\text{student},
#    \qquad a = \min\left(1 - \tfrac1{n+1},\ 0.98\right) \text{ at step } n $$


# %%
def train(name, rule=None, keep=()):
    """Train all seeds on a cloud; return the students at the steps in ``keep`` and at the end."""
    cloud, classes = train_set[name]
    x = cloud.T.expand(seeds, 2, -1)
    labeled = (labels[name] != UNLABELED).nonzero()[:, 1].view(seeds, -1)  # which points, by seed
    known_x, known = cloud[labeled].mT, labels[name].gather(1, labeled)
    student = Classifiers(range(seeds), int(classes.max()) + 1)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    frames = {}
    for step in range(steps):
        if step in keep:
            frames[step] = copy.deepcopy(student)
        loss = cross_entropy(student(known_x), known)
        if rule is not None and step >= warmup:
            loss = loss + rule(student, teacher, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 1 - min(1 - 1 / (step + 1), 0.98))
    return frames | {steps: student}


# %% [markdown]
# We measure two numbers. The first number is the accuracy on fresh points (points that are not used
# for training). The second number is the *density at the boundary*, the integral of the exact
# density along the boundary:
#
# $$ \int_{\text{boundary}} p(x) \, \mathrm d\ell $$
#
# The density at the boundary has a simple meaning. If the whole boundary moves sideways by 0.01, it
# passes over some of the data. The fraction of the data that it passes over is about 0.01 times the
# density at the boundary. If the boundary lies in an empty region, the density at the boundary is
# near zero, even for a long boundary.


# %%
def accuracy(name, model):
    """Return the percentage of fresh points that get the right class, (seeds,)."""
    x, classes = test_set[name]
    with torch.no_grad():
        found = model(x.T.expand(seeds, 2, -1)).argmax(1)
    return 100 * (found == classes).double().mean(1)


def at_boundary(name, model, which=range(seeds)):
    """Return the exact density at the boundary of each seed in ``which``."""
    cloud = clouds[name]
    window = Window.around(cloud.skeleton, margin=5 * cloud.scatter)
    found = [density_under_boundary(model.of(seed), cloud.log_density, window) for seed in which]
    return torch.tensor(found, dtype=torch.float64)


def measured(name, trained):
    """Return accuracy and density at the boundary of each rule at the end, (seeds,) each."""
    last = {rule: frames[steps] for rule, frames in trained.items()}
    return (
        {rule: accuracy(name, model) for rule, model in last.items()},
        {rule: at_boundary(name, model) for rule, model in last.items()},
    )


def panel(name, model, title, seed, **more):
    """Return the map of one seed's classifier, with the density at its boundary."""
    density_there = at_boundary(name, model, [seed]).item()
    return Panel(
        title,
        points=train_set[name][0],
        labels=labels[name][seed],
        classifier=model.of(seed),
        note=f"at the boundary: {density_there:.2f}",
        **more,
    )


# %% [markdown]
# ## What do labels alone achieve?
#
# **Predict first.** Each class has three labels. What percentage of fresh points will get the right
# class, on the moons, the rings and the blobs?

# %%
supervised = {name: train(name, keep=[warmup]) for name in clouds}
windows = {name: Window.around(train_set[name][0]).square() for name in clouds}
maps(
    [panel(name, frames[steps], f"{name}: labels alone", 0) for name, frames in supervised.items()],
    list(windows.values()),
).described(
    "Three maps of the plane: moons, rings and blobs, each with its points in gray, three labeled "
    "points a class, and the decision boundary that labels alone give. The boundary cuts through "
    "both moons and crosses the outer ring twice. Only on the blobs does it run between the "
    "clusters."
)

# %%
pd.DataFrame(
    {
        name: {
            "accuracy, mean (%)": accuracy(name, frames[steps]).mean().item(),
            "lowest seed (%)": accuracy(name, frames[steps]).min().item(),
            "density at the boundary": at_boundary(name, frames[steps]).mean().item(),
        }
        for name, frames in supervised.items()
    }
).T.round(2)

# %% tags=["check"]
alone = {name: accuracy(name, frames[steps]).mean() for name, frames in supervised.items()}
assert 75 < alone["moons"] < 85 and 68 < alone["rings"] < 78 and alone["blobs"] > 95

# %% [markdown]
# **Finding.** The loss depends only on the labeled points. So the boundary separates the labeled
# points, but in the figure above the table, the boundary crosses both moons and the outer ring. On
# the moons, about a fifth of the points get the wrong class, and on the rings more than a quarter.
# On the blobs, the accuracy is already about 98 %.

# %% [markdown]
# ## In which direction does the density fall?
#
# A *normalizing flow* learns the density of the points, without labels. [Lesson
# 2](02_normalizing_flow_density.ipynb) explains how. Here we train one flow for each cloud with the
# library. After this training, the flow of a cloud does not change. It returns $\log p(x)$, and
# PyTorch computes the gradient of $\log p(x)$.


# %%
def learn_density(name):
    """Return a flow trained on all points of a cloud."""
    x, classes = train_set[name]
    config = DensityConfig(blocks=4, hidden=32, lr=0.01)
    density = DensityEstimator(2, int(classes.max()) + 1, config, total_steps=density_steps)
    density, rng = density.double(), generator("density")
    for _ in range(density_steps):
        density.fit_step(x, generator=rng)
    return density


density = {name: learn_density(name) for name in clouds}

# %% [markdown]
# The step $\delta$ down the density has the direction of $g$, the negative gradient of $\log p(x)$.
# Its length $\varepsilon$ is fixed:
#
# $$ g = -\nabla_x \log p(x), \qquad \delta = \varepsilon \, \frac{g}{\lVert g \rVert} $$
#
# **Predict first.** Each flow was trained on only 240 points. Will a step down the learned density
# also lower the exact density? On which clouds will a step down the learned density and a step down
# the exact density have nearly the same direction?


# %%
def step_down(log_density, x, eps):
    """Return the step of each point down a density, (N, 2)."""
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(-log_density(x).sum(), x)
    return eps * g / g.norm(dim=1, keepdim=True)


downhill = {name: step_down(density[name].log_prob, train_set[name][0], eps) for name in clouds}
fewer = slice(None, None, 3)  # every third point has an arrow: more would hide the density
maps(
    [
        Panel(
            name,
            points=train_set[name][0][fewer],
            log_density=density[name].log_prob,
            shift=downhill[name][fewer],
        )
        for name in clouds
    ],
    list(windows.values()),
).described(
    "Contours of the density that the flow learned for moons, rings and blobs, and an arrow for "
    "the step of every third point down this density. The contours are coarse: the two rings have "
    "become one disc. Most arrows point outwards, away from the dense middle of a cluster."
)

# %% tags=["nbval-ignore-output"]
table = {}
for name, cloud in clouds.items():
    x, learned = train_set[name][0], downhill[name]
    falls = density[name].log_prob(x + learned) < density[name].log_prob(x)
    truly = cloud.log_density(x + learned) < cloud.log_density(x)
    exact = step_down(cloud.log_density, x, eps)
    table[name] = {
        "learned density falls (% of points)": 100 * falls.double().mean().item(),
        "exact density falls (% of points)": 100 * truly.double().mean().item(),
        "cosine with the exact step": cosine_similarity(learned, exact).mean().item(),
    }
pd.DataFrame(table).T.round(1)

# %% tags=["check"]
everywhere = torch.ones(points, dtype=torch.bool)
for name in clouds:
    models = FeatureModels(density[name].log_prob, None)
    library = DensityDescent(eps)(train_set[name][0], everywhere, models, generator("unused"))
    torch.testing.assert_close(downhill[name], library)  # the library's step is this one
    assert table[name]["learned density falls (% of points)"] > 90
    assert table[name]["exact density falls (% of points)"] > 80
assert table["blobs"]["cosine with the exact step"] > 0.8
assert table["moons"]["cosine with the exact step"] > 0.3
assert table["rings"]["cosine with the exact step"] < 0.3

# %% [markdown]
# **Finding.** On each cloud, nearly all steps lower the learned density. More than 80 % of the
# steps lower the exact density. On the blobs, a step down the learned density and a step down the
# exact density have nearly the same direction. But on the moons and the rings, the two directions
# often differ a lot. The mean cosine of the angle between the two directions is about 0.5 on the
# moons and 0.2 on the rings. The reason is probably that the flows are small and were trained for
# only 400 steps. So the flow for the moons and the flow for the rings fit their clouds only
# roughly. (Lesson 2 trains larger flows for 2,000 steps. They fit the moons well, but not the
# rings.) From here on, descent uses the *learned* density, except in exercise 2. So the results of
# descent also depend on the errors of the flow.

# %% [markdown]
# ## Three rules for points without labels
#
# A **pseudo-label** is a label that a model has made. The teacher predicts a class for each point.
# If the probability of this class exceeds a threshold, the class becomes the pseudo-label of the
# point. The student learns to predict this pseudo-label. *Consistency regularization* also perturbs
# the input or the features of the student. The student must predict the same pseudo-label after the
# perturbation. Of the three rules below, the random step and density descent are forms of
# consistency regularization.
#
# - **Entropy minimization**: the classifier must be certain at every training point. The loss is
#   the entropy of the prediction, $-\sum_k p_k \log p_k$, where $p_k$ is the probability of class
#   $k$. The entropy is 0 if one class has probability 1.
# - **Random step**: the student must predict the pseudo-label both at the point and after a step of
#   length $\varepsilon$ in a random direction.
# - **Density descent**: the student must predict the pseudo-label both at the point and after a
#   step of length $\varepsilon$ *down the density*.


# %%
def entropy(student, teacher, x):
    scores = student(x)
    return -(scores.softmax(1) * scores.log_softmax(1)).sum(1).mean()


def keep_class(step):
    """Return the rule: predict the pseudo-label at x and at x + ``step(x)``, of equal weight."""

    def rule(student, teacher, x):
        probability, pseudo = teacher(x).softmax(1).max(1)
        target = pseudo.masked_fill(probability <= confidence, UNLABELED)
        both = student(torch.cat([x, x + step(x)], dim=2))
        loss = cross_entropy(both, target.repeat(1, 2), ignore_index=UNLABELED, reduction="sum")
        return loss / both[:, 0].numel()  # the mean over all points, confident or not

    return rule


def random_step(eps):
    rng = generator("noise")

    def step(x):
        direction = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        return eps * direction / direction.norm(dim=1, keepdim=True)

    return keep_class(step)


def descent(name, eps, log_density=None):
    """These points never move, so their steps down the density are computed once."""
    log_density = log_density or density[name].log_prob
    shift = step_down(log_density, train_set[name][0], eps).T
    return keep_class(lambda x: shift)


def compare(name, keep=()):
    """Train with each rule; return all students, by rule and by step."""
    rules = {"entropy": entropy, "random": random_step(eps), "descent": descent(name, eps)}
    trained = {rule: train(name, function, keep) for rule, function in rules.items()}
    return {"labels alone": supervised[name]} | trained


# %% [markdown]
# ## Which rule wins, and by how much?
#
# **Predict first.** On which clouds will training with density descent give a higher accuracy than
# training with a random step? Which rule will move the boundary to the lowest density?

# %%
moments = (warmup, 90, 150, 250)
trained = {name: compare(name, keep=moments if name == "moons" else ()) for name in clouds}
scores, densities = {}, {}
for name in clouds:
    scores[name], densities[name] = measured(name, trained[name])
colours = {
    "labels alone": METHOD_COLOURS["supervised"],
    "entropy": METHOD_COLOURS["entropy"],
    "random": METHOD_COLOURS["noise"],
    "descent": METHOD_COLOURS["ddfp"],
}
seed_dots(scores, "accuracy on fresh points (%)", colours).described(
    "Accuracy on fresh points under four rules, a panel for each cloud, a dot for each of eight "
    "seeds and a bar at the mean. On the moons the mean of descent is highest. On the rings "
    "entropy and descent are below labels alone, and the seeds lie tens of points apart. On the "
    "blobs all means are close together, near 98 %."
)

# %% [markdown]
# On the moons and the rings, the results of each rule differ a lot between seeds. The seed
# determines the labeled points and the starting weights. So we compare each rule with training on
# labels alone *within a seed*: both training runs of a comparison have the same seed. For each
# seed, the training run with the rule and the training run on labels alone have the same labeled
# points and the same starting weights. For each seed, we compute the result of the rule minus the
# result of labels alone. This is a *paired* comparison. For each cloud and each rule, the table
# below has the mean ± standard deviation of the eight differences, one for each seed. Differences
# in accuracy are in *percentage points*, which tables and pictures call "points". The column "seeds
# that lost" counts the seeds whose accuracy is more than 0.5 points lower with the rule than with
# labels alone.


# %% tags=["nbval-ignore-output"]
def changes(name):
    """Return what each rule changed against labels alone, over the seeds of a cloud."""
    rows = {}
    for rule in ("entropy", "random", "descent"):
        gain = scores[name][rule] - scores[name]["labels alone"]
        moved = densities[name][rule] - densities[name]["labels alone"]
        rows[rule] = {
            "accuracy (points)": f"{gain.mean():+z.1f} ± {gain.std():.1f}",
            "seeds that lost": f"{int((gain < -0.5).sum())} of {seeds}",
            "density at the boundary": f"{moved.mean():+z.2f} ± {moved.std():.2f}",
        }
    return pd.DataFrame(rows).T


pd.concat({name: changes(name) for name in clouds})


# %% tags=["check"]
# Findings are checked with slack, for the parameters above: others may give other findings.
def mean_changes(name):
    return {
        rule: tuple(
            (found[name][rule] - found[name]["labels alone"]).mean().item()
            for found in (scores, densities)
        )
        for rule in ("entropy", "random", "descent")
    }


change = {name: mean_changes(name) for name in clouds}
assert change["moons"]["descent"][0] > change["moons"]["random"][0] + 2
assert abs(change["moons"]["descent"][1] - change["moons"]["random"][1]) < 0.05
assert change["rings"]["descent"][0] < change["rings"]["random"][0] - 2
assert change["rings"]["descent"][1] > change["rings"]["random"][1] + 0.05
assert all(abs(gain) < 2 for gain, _ in change["blobs"].values())

# %% [markdown]
# **Finding.** The results differ between clouds.
#
# - *Moons:* descent gains the most accuracy. On average, it gains about five percentage points more
#   than a random step. With descent, no seed loses more than 0.5 points. But the mean density at
#   the boundary changes by about the same amount with all three rules. Each rule gives eight
#   changes of this density, one for each seed. With each rule, the mean of these changes is closer
#   to 0 than one standard deviation. So the density at the boundary does not explain why descent
#   gains more accuracy than the other rules.
# - *Rings:* descent loses about five percentage points on average, and the loss varies a lot
#   between seeds. A random step hardly changes the mean accuracy, but half of the seeds lose
#   accuracy. On average, the random step and entropy minimization move the boundary to a *lower*
#   density than descent does.
# - *Blobs:* the mean accuracy is near 98 % with all rules, and also with labels alone.
#
# On the rings, the mean density at the boundary is lower with each of the three rules than with
# labels alone. On the moons, the mean density at the boundary is also lower with each rule, but the
# changes are small and differ a lot between seeds. So eight seeds do not prove that the rules lower
# the density on the moons.

# %% [markdown]
# ## How does the boundary move during training?
#
# The next maps show one seed. A single seed can mislead, so we choose a typical seed. For each
# seed, we compute two changes in the density at the boundary: from labels alone to the random step,
# and from labels alone to descent. The typical seed is the one whose two changes are closest to
# their averages over all seeds. In the maps, the dashed line is the boundary at step 60, before the
# rules begin.
#
# **Predict first.** We already know that descent gains more accuracy than the other rules on the
# moons. At the end of training with descent, will the boundary follow the whole gap between the
# moons? Will the boundary differ more between rules or between seeds?


# %%
def unlike_the_mean(name):
    """Return for each seed how far its changes of density are from the mean changes, (seeds,)."""
    far = torch.zeros(seeds, dtype=torch.float64)
    for rule in ("random", "descent"):
        moved = densities[name][rule] - densities[name]["labels alone"]
        far += (moved - moved.mean()).abs()
    return far


typical = int(unlike_the_mean("moons").argmin())
print(f"typical seed on the moons: {typical}")

# %% tags=["thumbnail"]
films = trained["moons"]
start = films["labels alone"][warmup].of(typical)
maps(
    [
        panel(
            "moons",
            model,
            f"{rule}, step {step}",
            typical,
            before=None if step == warmup else start,
        )
        for rule in ("entropy", "random", "descent")
        for step, model in films[rule].items()
    ],
    windows["moons"],
    columns=len(moments) + 1,
).described(
    "Fifteen maps of the moons for one seed: rows for entropy, random step and descent, columns "
    "for the steps 60, 90, 150, 250 and 400. At step 60 the boundary is steep and "
    "crosses both moons. Under each rule its lower half then turns to the left, and at step 400 it "
    "still crosses both moons. Its upper half stays under descent; under random steps it moves too."
)

# %% [markdown]
# The next maps show the end of training for other seeds. Here the dashed line is the boundary at
# the *end* of training on labels alone.

# %%
maps(
    [
        panel(
            "moons",
            films[rule][steps],
            f"{rule}, seed {seed}: {scores['moons'][rule][seed]:.0f} % right",
            seed,
            before=films["labels alone"][steps].of(seed),
        )
        for rule in ("random", "descent")
        for seed in range(4)
    ],
    windows["moons"],
    columns=4,
).described(
    "Eight maps of the moons at the end of training: random steps above, descent below, seeds 0 "
    "to 3, with the boundary of labels alone dashed. The boundary differs more between seeds than "
    "between rules. With descent more points are right for each of the four seeds, but no "
    "boundary follows the whole gap."
)

# %% [markdown]
# **Finding.** No boundary in these maps follows the whole gap. These maps compare two rules: random
# and descent. In most cases, the boundary differs more between two seeds (same rule) than between
# the two rules (same seed). So the maps of one seed prove nothing. Rely on the table under "Which
# rule wins, and by how much?", which uses all eight seeds.
#
# **Play with it.** The explorer is a set of interactive pages. Its [page on low-density
# separation](../docs/explorer.md#low-density-separation) has all clouds of this lesson. There you
# can choose the seed, and the direction and the length of the step. A slider shows the boundary at
# different moments of training. In a clone of the repository, the command `make explorer` builds
# the page.

# %% [markdown]
# ## How long should a step be?
#
# **Predict first.** At its narrowest places, the gap between the moons is about 0.5 wide. What will
# steps of length 0.8 do?

# %% tags=["nbval-ignore-output"]
lengths = [eps, 0.4, 0.8]
gains = {"random": {}, "descent": {}}
for length in lengths:
    for rule, function in (("random", random_step(length)), ("descent", descent("moons", length))):
        model = trained["moons"][rule] if length == eps else train("moons", function)
        gains[rule][length] = accuracy("moons", model[steps]) - scores["moons"]["labels alone"]
table = pd.DataFrame(gains).rename_axis("length of the step")
table.map(lambda gain: f"{gain.mean():+z.1f} ± {gain.std():.1f} points")

# %% tags=["check"]
assert gains["descent"][0.4].mean() > 2 > gains["descent"][0.8].mean()
assert gains["descent"][0.4].std() > 1.5 * gains["descent"][eps].std()

# %% [markdown]
# **Finding.** At the lengths 0.2 and 0.4, both random steps and steps down the density lead to a
# higher mean accuracy than labels alone. For descent, the standard deviation of the gain is more
# than 1.5 times as large at length 0.4 as at length 0.2. With steps of length 0.8, the mean
# accuracy is lower than with labels alone. The length of such a step is greater than the width of
# the gap. Probably such a step moves many points to the other moon. The points would keep their
# pseudo-labels, so the student would learn the wrong class there. The best length depends on the
# width of the gap, and this width is not known beforehand. The length is a *hyperparameter*, a
# setting that is chosen and not learned. Choose the length on validation data, *in the same way for
# every method* (see lesson 6).

# %% [markdown]
# ## A gap in the wrong place
#
# The cluster assumption is false for the next cloud. Class 0 has two clusters with a wide gap
# between them. One of these clusters is on the left, and the other is in the middle. The middle
# cluster touches the cluster of class 1. So the only gap in the data lies between the two clusters
# of class 0 and does not separate the classes.
#
# **Predict first.** Where will descent move the boundary? Will descent gain or lose accuracy?

# %%
clouds["gap"] = misplaced_gap()
train_set["gap"] = clouds["gap"].sample(points, generator("train"))
test_set["gap"] = clouds["gap"].sample(2000, generator("test"))
classes = train_set["gap"][1]
labels["gap"] = torch.stack([draw_labels(classes, labels_per_class, s) for s in range(seeds)])
windows["gap"] = Window.around(train_set["gap"][0])
density["gap"] = learn_density("gap")
supervised["gap"] = train("gap")
trained["gap"] = compare("gap")
scores["gap"], densities["gap"] = measured("gap", trained["gap"])
typical_gap = int(unlike_the_mean("gap").argmin())
maps(
    [
        panel(
            "gap",
            trained["gap"][rule][steps],
            f"{rule}, seed {typical_gap}: {scores['gap'][rule][typical_gap]:.0f} % right",
            typical_gap,
            before=None
            if rule == "labels alone"
            else trained["gap"]["labels alone"][steps].of(typical_gap),
        )
        for rule in ("labels alone", "random", "descent")
    ],
    windows["gap"],
    columns=3,
).described(
    "Three maps of the cloud with a misplaced gap, for one seed: labels alone, random step, "
    "descent. Class 0 is the left cluster and the middle one, which touches class 1 on the right. "
    "With labels alone the boundary cuts through the middle cluster, a random step moves it a "
    "little, and descent moves it into the wide gap, so the whole middle cluster gets the wrong "
    "class."
)

# %% tags=["nbval-ignore-output"]
further = densities["gap"]["descent"] - densities["gap"]["random"]
print(f"density at the boundary, descent minus random: {further.mean():+.2f} ± {further.std():.2f}")
changes("gap")

# %% tags=["check"]
change["gap"] = mean_changes("gap")
lost = scores["gap"]["descent"] < scores["gap"]["labels alone"] - 0.5
assert change["gap"]["descent"][1] < change["gap"]["random"][1] - 0.05  # to lower density
assert change["gap"]["descent"][0] < -1 and lost.sum() > seeds / 2  # and it loses accuracy

# %% [markdown]
# **Finding.** On this cloud, the mean density at the boundary is lowest for descent: for each of
# the other rules, it is more than 0.1 higher. This is not true for any other cloud. (For each seed,
# we compute a difference: the density at the boundary with descent minus the density at the
# boundary with the random step. This difference varies a lot between seeds. So eight seeds do not
# prove that the mean difference is below 0.) But on this cloud, for most seeds, descent has a lower
# accuracy than labels alone. The difference in accuracy between descent and labels alone varies a
# lot from seed to seed. The cluster assumption is an assumption about *classes*. Points without
# labels cannot confirm or refute this assumption.

# %% [markdown]
# ## Exercises
#
# **1. Use the classifier, not the density.** *Virtual adversarial training* (VAT) moves each point
# in the direction in which the *prediction* changes fastest. `AdversarialVAT(eps)(x, moved,
# FeatureModels(None, student), rng)` returns the VAT step of each point. `FeatureModels` has the
# functions that a step may use: a log-density (here none) and a classifier. `moved` is a boolean
# tensor of shape (seeds, points). It is True everywhere. `rng` is `generator("vat")`. Write a
# function `rule(student, teacher, x)`. Inside `rule`, define a function `step(x)` that returns the
# VAT step. It must be inside `rule`, because the VAT step needs the student. Create `rng` outside
# of `rule`, so that each training step uses new random numbers. The last line of `rule` must be
# `return keep_class(step)(student, teacher, x)`. Then call `train(name, rule)` for the clouds
# "moons" and "gap". `change[name]["random"]` and `change[name]["descent"]` each have two numbers.
# The numbers in `change[name]["random"]` compare the random step to labels alone. The numbers in
# `change[name]["descent"]` compare descent to labels alone. In `change[name]["random"]` and in
# `change[name]["descent"]`, the first number is the mean gain in accuracy, and the second number is
# the mean change in the density at the boundary. Is the gain of VAT closer to the gain of the
# random step or to the gain of descent?


# %% tags=["solution", "nbval-ignore-output"]
def vat(eps):
    perturb, rng = AdversarialVAT(eps), generator("vat")

    def rule(student, teacher, x):
        def step(x):
            moved = torch.ones(x[:, 0].shape, dtype=torch.bool)
            return perturb(x, moved, FeatureModels(None, student), rng)

        return keep_class(step)(student, teacher, x)

    return rule


def gained(name, rule):
    """Return what a rule gains on a cloud, in points."""
    gain = accuracy(name, train(name, rule)[steps]) - scores[name]["labels alone"]
    return f"{gain.mean():+z.1f} ± {gain.std():.1f} points"


for name in ("moons", "gap"):
    found = {"random": change[name]["random"][0], "descent": change[name]["descent"][0]}
    known = ", ".join(f"{rule} {gain:+z.1f}" for rule, gain in found.items())
    print(f"{name}: VAT {gained(name, vat(eps))}; {known}")

# %% [markdown] tags=["solution"]
# On average, VAT gains about as much as the random step. We did not investigate why. One probable
# reason: where the classifier is certain, its prediction hardly changes in any direction. So the
# direction of the fastest change has little meaning there.

# %% [markdown]
# **2. A better density.** The learned density is a coarse copy of the exact density.
# `descent(name, eps, log_density)` returns the rule for density descent. The argument `log_density`
# can be any log-density. The exact log-density is `clouds[name].log_density`. Train with the exact
# log-density on the clouds "moons" and "gap". What do you expect? What do you find?

# %% tags=["solution", "nbval-ignore-output"]
for name in ("moons", "gap"):
    better = gained(name, descent(name, eps, clouds[name].log_density))
    print(f"{name}: exact density {better}, learned density {change[name]['descent'][0]:+z.1f}")

# %% [markdown] tags=["solution"]
# Perhaps you expected a better result with the exact density than with the learned density. On
# "gap", the mean accuracy of descent is indeed higher with the exact density than with the learned
# density. With the learned density, this mean accuracy is lower than the mean accuracy with labels
# alone. On "gap", the mean accuracy of descent with the exact density is about the same as the mean
# accuracy with labels alone. (On "gap", the gain of descent with the exact density varies a lot
# between seeds. This gain is the accuracy of descent minus the accuracy of labels alone.) But on
# "moons", the gain of descent is *smaller* with the exact density than with the learned density. We
# did not investigate why. Steps down the learned density have other directions than steps down the
# exact density, because the flow has errors. So the result of descent on "gap" and on "moons" seems
# to depend on these *errors*. The paper says that DDFP works because steps down the density move
# the decision boundary into regions with few features. Is the paper's reason right? Lesson 6 tests
# this.

# %% [markdown]
# ## What we saw
#
# - If we train only on a few labels, the boundary often runs through the middle of the data.
# - On the rings, the mean density at the boundary is lower with each of the three rules than with
#   labels alone. On the moons, this density is only a little lower with each rule than with labels
#   alone. For each rule and each of the eight seeds, we computed a change on the moons: the density
#   at the boundary with this rule minus the density at the boundary with labels alone. For each
#   rule, the absolute value of the mean of these eight changes is smaller than their standard
#   deviation. We did not investigate why the boundary moves. A probable reason is that the
#   classifier learns from its own confident predictions, and some of these predictions are wrong.
#   The confident predictions, right or wrong, spread from point to point until they reach a region
#   with few points.
# - On the moons, density descent gains more accuracy than the other rules. On the rings and on the
#   cloud with the misplaced gap, descent loses about five percentage points on average. On the
#   rings, the learned density is not close to the exact density. But the errors of the learned
#   density may not be the reason why descent loses accuracy on the rings. Entropy minimization uses
#   no density, and it also loses accuracy on the rings.
# - On the cloud with the misplaced gap, descent leads to a lower mean density at the boundary than
#   each of the other rules. Each difference is more than 0.1. This is not true for any other cloud.
#   But on the cloud with the misplaced gap, one of these differences varies a lot between seeds:
#   the density at the boundary with descent minus the density at the boundary with the random step.
#   So eight seeds do not prove that descent leads to a lower density than the random step. On the
#   cloud with the misplaced gap, the mean accuracy with descent is lower than with labels alone.
# - On the moons and the rings, the results of each rule differ a lot between seeds. Compare two
#   rules only with the same seed. Repeat the comparison with several seeds.
#
# ## In the real method
#
# In the real method, the points are features of pixels, with hundreds of dimensions. These features
# change while the network learns, so after a warm-up, the flow learns at every training step. Later
# in the training, features also move down the density. At every training step, the method computes
# a new step down the density for each feature whose pixel has a pseudo-label. In the code, the
# variable `shift` contains these steps down the density:
#
# ```python
# # ddfp_lib/training/reference_step.py
#         shift = learner.perturbation(start.detach(), confident, models, for_features)
# ```
#
# Is a step down the density better than a random step? [Lesson 6](06_does_the_density_matter.ipynb)
# and [the studies](../reproduce/STUDY.md) compare both steps.
#
# ## References
#
# - Wang et al., [*Towards the Uncharted: Density-Descending Feature Perturbation for
#   Semi-supervised Semantic Segmentation*](https://arxiv.org/abs/2403.06462), CVPR 2024. The paper.
# - Chapelle and Zien, [*Semi-Supervised Classification by Low Density
#   Separation*](http://proceedings.mlr.press/r5/chapelle05b.html), AISTATS 2005.
# - Grandvalet and Bengio, [*Semi-supervised Learning by Entropy
#   Minimization*](https://papers.nips.cc/paper/2740-semi-supervised-learning-by-entropy-minimization),
#   NIPS 2004.
# - Tarvainen and Valpola, [*Mean teachers are better role
#   models*](https://arxiv.org/abs/1703.01780), NIPS 2017.
# - Miyato et al., [*Virtual Adversarial Training*](https://arxiv.org/abs/1704.03976), TPAMI 2018.
#
# ## Next
#
# [2. Normalizing flows](02_normalizing_flow_density.ipynb): how a network can return a density. ·
# [All lessons](README.md)
