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
# # 2. Normalizing flows: a network that is a density
#
# [All lessons](README.md) · previous: [1. Low-density
# separation](01_low_density_separation.ipynb) · next: [3. The step down the
# density](03_density_descending_shift.ipynb)
#
# DDFP takes steps down a density. For a step, DDFP needs the gradient of the log-density at a
# point. The points are vectors that a network computes, and they change during training. DDFP
# learns the density of these vectors with a *normalizing flow*. This lesson starts with one
# equation in one dimension. Then it builds a flow that also predicts classes. At the end, it
# compares the flow with two classical density estimators and tests the limits of the flow.
#
# **You will**
# - compute by hand how a map changes a density, and check the result numerically;
# - write a *coupling block*, a piece of a flow, in ten lines, and compare it with the block of the
#   library;
# - give a flow one Gaussian per class, and predict classes with this flow;
# - find out after how many training steps a flow is as good as a kernel density (a classical
#   estimator), and look for overfitting;
# - see whether the density of a flow can have the shape of a ring.
#
# **You need** Python and a little PyTorch. You need to know what a Gaussian, a derivative and a
# determinant are. From lesson 1 you need one fact: DDFP uses the gradient of a log-density. Terms
# are explained in the [glossary](../docs/glossary.md).
#
# **Takes** about 25 minutes to read. The code runs in about a minute on a laptop CPU and needs no
# GPU.

# %%
import inspect
import math

import numpy as np
import pandas as pd
import torch
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity, KNeighborsClassifier
from torch.nn.utils import vector_to_parameters

from ddfp_lib import CouplingBlock, DensityConfig, DensityEstimator
from ddfp_lib.constants import UNLABELED
from ddfp_lib.experiments.statistics import paired_difference, verdict
from ddfp_lib.experiments.study import find_study
from ddfp_lib.lessons.plane import draw_labels, two_moons, two_rings
from ddfp_lib.plots.diagram import diagram
from ddfp_lib.plots.lines import against_steps, change_of_variables, curves
from ddfp_lib.plots.planes import Panel, Window, maps
from ddfp_lib.plots.style import METHOD_COLOURS
from ddfp_lib.seeds import generator

torch.set_num_threads(1)  # small tensors: more threads only wait for one another

# %% tags=["parameters"]
held_out = 2000
short = 200  # steps of the flow that is trained here
sweep_points = 100  # for the many small flows near the end
sweep_seeds = 2
sweep_steps = 120

# %% [markdown]
# ## Where are we?
#
# This lesson is about the flow, a network that returns $\log p(v)$ for a vector $v$. In the method,
# $v$ is an *embedding*, which the segmentation network computes for each pixel. In this lesson, $v$
# is a point of the plane or a number.

# %%
diagram("flow")

# %% [markdown]
# ## One dimension, by hand
#
# Let $z = f(x)$ with an increasing map $f$, and let $z$ be standard normal. What is the density of
# $x$? The map $f$ takes a short interval $\mathrm dx$ to an interval $\mathrm dz$. Both intervals
# have the same probability, so $p(x)\, \mathrm dx = p(z)\, \mathrm dz$. Divide by $\mathrm dx$ and
# take the logarithm:
#
# $$ \log p(x) = \log \mathcal N(f(x); 0, 1)
#    + \log \left| \frac{\mathrm d f}{\mathrm d x} \right| $$
#
# This is the *change of variables*. The first term is the log-density of $z$ at $f(x)$, the place
# to which the map $f$ sends $x$. The second term accounts for stretching: where $f$ is steep,
# points that are close in $x$ are far apart in $z$.
#
# **Predict first.** The map below is steep at -1 and 1, and nearly flat between them. Where is the
# density of $x$ high?


# %%
def f(x):
    return 0.3 * x + torch.tanh(3 * (x - 1)) + torch.tanh(3 * (x + 1))


def log_slope(x):
    """Return log df/dx by hand: the derivative of tanh is 1 - tanh^2."""
    flat = torch.tanh(3 * (x - 1)).square() + torch.tanh(3 * (x + 1)).square()
    return (0.3 + 3 * (2 - flat)).log()


def log_normal(z):
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def log_density(x):
    return log_normal(f(x)) + log_slope(x)


change_of_variables(
    f, log_density, log_normal, reach=2.6, intervals=[(-1.3, -0.7), (-0.3, 0.3)]
).described(
    "The map z = f(x) between two densities: a Gaussian of z on the left, the density of x below. "
    "The map rises steeply at -1 and 1 and is nearly flat between; the density of x has its two "
    "peaks near the steep places. The map takes the interval of x around -1 to a wide "
    "interval of z, and the interval around 0 to a narrow one; both pairs are shaded."
)

# %% tags=["check"]
x = torch.linspace(-12, 12, 20_001, dtype=torch.float64).requires_grad_()
(slope,) = torch.autograd.grad(f(x).sum(), x)
torch.testing.assert_close(slope.log(), log_slope(x))  # the derivative by hand is right
x = x.detach()
assert abs(torch.trapezoid(log_density(x).exp(), x) - 1) < 1e-6  # the density integrates to 1
for start, stop in [(-1.3, -0.7), (-0.3, 0.3)]:  # and each shaded pair has the same area
    part = x[(x >= start) & (x <= stop)]
    mass = torch.trapezoid(log_density(part).exp(), part)
    low, high = torch.special.ndtr(f(torch.tensor([start, stop], dtype=torch.float64)))
    assert abs(mass - (high - low)) < 2e-3

# %% [markdown]
# **Finding.** The density of $x$ has two modes (peaks), although the density of $z$ is one
# Gaussian. The modes lie near -1 and 1, the two places where $f$ is steep. The left mode lies a
# little to the right of -1, and the right mode lies a little to the left of 1. So both modes are
# shifted a little towards $x = 0$. The reason: the density of $z$ is highest at $z = 0$, and
# $f(0) = 0$. A flow is an invertible map like $f$, but in many dimensions and with many parameters.
# A flow is built so that the second term of the change of variables (the log of the slope) is cheap
# to compute in many dimensions too.

# %% [markdown]
# ## Many dimensions, in ten lines
#
# In $D$ dimensions, the change of variables has $\left| \det \partial f / \partial x \right|$ in
# the place of the slope $\mathrm d f / \mathrm d x$. This is the absolute value of the determinant
# of the Jacobian, the matrix of derivatives. In general, this determinant costs about $D^3$
# operations. A *coupling block* makes the determinant cheap. The block splits its input into two
# halves, $a$ and $b$. A network reads $b$ and returns a log-scale $s$ and a shift $t$ for each
# number of $a$:
#
# $$ a' = a \cdot \exp s(b) + t(b), \qquad \log \left| \det \right| = \sum_i s_i(b) $$
#
# Then the halves exchange their roles. A setting, the *clamp* $c$, keeps each $s$ between $-c$ and
# $c$, so that no scale becomes extreme. The network does not return $s$ directly. Its output
# consists of two vectors of equal length, $q$ and $t$. From $q$, the code computes
# $s = c \cdot 0.636 \cdot \arctan q$. The factor $0.636 \approx 2/\pi$ scales the arctangent to the
# range from -1 to 1.


# %%
def coupling(x, block):
    """Map x (N, D) to z (N, D); return z and log |det dz/dx|, (N,)."""
    a, b = x.split((block.left, block.right), dim=1)
    s, t = block.from_right(b).chunk(2, dim=1)
    s = block.clamp * 0.636 * s.atan()
    a = a * s.exp() + t
    r, u = block.from_left(a).chunk(2, dim=1)
    r = block.clamp * 0.636 * r.atan()
    b = b * r.exp() + u
    return torch.cat([a, b], dim=1)[:, block.permutation], s.sum(1) + r.sum(1)


# %% [markdown]
# `block` provides two small networks (`from_right` and `from_left`), a fixed permutation, the clamp
# and the sizes of the halves. In the library, the forward pass of a block returns the same values
# as `coupling`. For speed, the forward pass calls a function `_Affine` once for each half. For the
# half $a$, `_Affine` gets the output of `from_right`. From this output, `_Affine` computes `s`, `t`
# and the new `a`. In `coupling`, the three lines that begin with `s, t =`, `s =` and `a =` compute
# the same values. The gradient of `_Affine` also has its own code: PyTorch's autograd does not
# compute it. The next cell prints the library's code for the forward pass of a block:

# %%
print(inspect.getsource(CouplingBlock.forward))

# %% tags=["check"]
block = CouplingBlock(5, hidden=16, init_std=0.5, generator=generator("block")).double()
x = torch.randn(4, 5, generator=generator("x"), dtype=torch.float64)
z, log_det = coupling(x, block)
assert all(torch.allclose(*pair) for pair in zip((z, log_det), block(x), strict=True))

jacobian = torch.autograd.functional.jacobian(lambda v: coupling(v[None], block)[0][0], x[0])
assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, log_det[0])
assert torch.allclose(block.inverse(z), x)

# %% [markdown]
# Why is the determinant so cheap? A block changes first $a$ and then $b$. Look at the Jacobian of
# the first half of the block: this half changes only $a$. The input has five numbers: $a$ is the
# first two numbers, and $b$ is the other three.
#
# **Predict first.** Which entries of this Jacobian are 0, and which are 1?


# %%
def first_half(v):
    a, b = v[None].split((block.left, block.right), dim=1)
    s, t = block.from_right(b).chunk(2, dim=1)
    return torch.cat([a * (block.clamp * 0.636 * s.atan()).exp() + t, b], dim=1)[0]


pd.DataFrame(torch.autograd.functional.jacobian(first_half, x[0]).numpy()).round(2)

# %% [markdown]
# **Finding.** The Jacobian is triangular, so its determinant is the product of the entries on the
# diagonal. The log of this product is the sum of the $s_i$. For the determinant, we do not need the
# derivatives or the inverses of the two small networks `from_right` and `from_left`. Several
# coupling blocks in a row form a *flow*. Real NVP and Glow are flows of this type.
#
# **Play with it.** The explorer is a set of interactive pages. On its [page on the
# flow](../docs/explorer.md#the-flow-coupling-by-coupling), you can move a point. The page shows
# where each coupling (one half of a block) takes the point, and what this coupling adds to the
# log-determinant. In a clone of the repository, the command `make explorer` builds the page.

# %% [markdown]
# ## One Gaussian per class
#
# A flow needs a *base density* for $z$. DDFP uses the base density of FlowGMM, an earlier flow that
# classifies (see the references). This base density is a mixture of $K$ Gaussians, one per class.
# In DDFP, the means $\mu_k$ are learned, and each covariance is the identity matrix. For a point
# without a label we use the mixture. For a labeled point we use only the Gaussian of its class $y$:
#
# $$ p(z) = \frac1K \sum_{k=1}^K \mathcal N(z; \mu_k, I), \qquad
#    p(z \mid y) = \mathcal N(z; \mu_y, I) $$
#
# The density $p(z)$ is called the *marginal* density. The flow sends each point to its *latent*
# $z$. Training adds a little noise to the points and maximizes their mean log-likelihood.
# Log-likelihoods are in *nats*, the unit of the natural logarithm. We test the density on
# *held-out* points, which are not used for training. Now we train a flow for 200 steps on 300
# points of the *two moons*. These are two half circles with noise, and each half circle is one
# class. Three points of each class have a label:

# %%
weights = np.load("weights/02_flows.npz")  # flows trained for 2,000 steps, see 02_flows.py there
moons, rings = two_moons(), two_rings()
seeds = range(4)
train_set = [moons.sample(300, generator("moons", seed)) for seed in seeds]
test_set = [moons.sample(held_out, generator("held out", seed)) for seed in seeds]


def new_flow(seed=0, steps=2000, blocks=6, **options):
    """Return an untrained flow for points of the plane, with two classes."""
    config = DensityConfig(**{"blocks": blocks, "hidden": 32, "lr": 0.005} | options)
    return DensityEstimator(2, 2, config, total_steps=steps, seed=seed).double()


def fit(x, labels=None, seed=0, steps=2000, **options):
    """Train a flow on points (N, 2)."""
    density, rng = new_flow(seed, steps, **options), generator("noise", seed)
    for _ in range(steps):
        density.fit_step(x, labels, generator=rng)
    return density


def stored(name, seed):
    """Return a flow that was trained for 2,000 steps."""
    density = new_flow(seed)
    vector = torch.from_numpy(weights[f"{name}, seed {seed}"]).double()
    vector_to_parameters(vector, density.parameters())
    return density


x, classes = train_set[0]
labels = draw_labels(classes, 3, seed=0)
begun = fit(x, labels, steps=short, lr=0.01)
print(f"held-out log-likelihood after {short} steps: ", end="")
print(f"{begun.log_prob(test_set[0][0]).mean():.2f} nats per point")

# %% [markdown]
# The next flow and some later flows are trained for 2,000 steps, with a learning rate of 0.005
# instead of 0.01. That takes minutes, so a [script](weights/02_flows.py) trained them beforehand
# and stored their weights.

# %% tags=["thumbnail"]
flow = stored("moons, 3 labels", 0)
with torch.no_grad():
    z, _ = flow.flow(x)
plane, latent = Window.around(x), Window.around(z, margin=1)
maps(
    [
        Panel("data, and their learned density", x, classes, labels, log_density=flow.log_prob),
        Panel(
            "latents z, and their base density",
            z,
            classes,
            labels,
            log_density=flow.mixture.log_prob,
            centres=flow.mixture.means.detach(),
            axis_names=("latent 1", "latent 2"),
        ),
        Panel("classes by the flow", x, labels=labels, classifier=flow.class_log_prob),
    ],
    [plane.square(), latent.square(), plane.square()],
).described(
    "Three maps. Left: two moons, and the learned density, which follows both of them. Middle: "
    "the latents of the same points lie in one round cloud, with the two classes side by side and "
    "the means of the classes close together. Right: the boundary between the classes of the flow "
    "follows the gap between the moons over most of its length."
)

# %% tags=["check"]
by_class = flow.class_log_prob(x)
assert by_class.shape == (300, 2)
marginal = by_class.logsumexp(1) - math.log(2)
torch.testing.assert_close(marginal, flow.log_prob(x))
conditional = flow.log_prob(x, labels)[labels == 1]
torch.testing.assert_close(conditional, by_class[labels == 1, 1])
box = Window(-4, 5, -4, 4)
mass = np.exp(box.ask(flow.log_prob, resolution=400)).mean() * 9 * 8
assert abs(mass - 1) < 0.02  # the flow is a density: nothing has to be normalized

# %% [markdown]
# The left picture shows the learned density. The middle picture shows the latents of the points,
# with a cross at the mean $\mu_k$ of each Gaussian. The right picture shows the predicted class of
# each place: the class whose Gaussian gives the highest density. In code, this class is
# `class_log_prob(x).argmax(1)`.
#
# ## Does the flow predict the right class?
#
# **Predict first.** Six of 300 points have a label. Is that enough for the flow to learn which
# Gaussian belongs to which class? We compare the flow with a simple classifier that predicts the
# class of the nearest labeled point. We train both of them in two settings: with three labels per
# class, and with thirty labels per class.


# %%
def right(density, seed):
    """Return the percentage of held-out points that the flow puts into their class."""
    x, classes = test_set[seed]
    return 100 * (density.class_log_prob(x).argmax(1) == classes).double().mean().item()


def nearest(per_class, seed):
    """Return the same for the nearest labeled point."""
    x, classes = train_set[seed]
    labels = draw_labels(classes, per_class, seed)
    known = labels != UNLABELED
    model = KNeighborsClassifier(1).fit(x[known], labels[known])
    return 100 * model.score(*test_set[seed])


found = {}
for many in (3, 30):
    name = f"moons, {many} labels"
    found[f"flow, {many} labels a class"] = [right(stored(name, s), s) for s in seeds]
    found[f"nearest label, {many} a class"] = [nearest(many, s) for s in seeds]
pd.DataFrame(found, index=[f"seed {s} (% right)" for s in seeds]).T.round(1)

# %% tags=["check"]
few, many = (np.array(found[f"flow, {n} labels a class"]) for n in (3, 30))
assert few.min() < 50 and many.min() > 95

# %% [markdown]
# **Finding.** With thirty labels per class, the flow classifies more than 95 % of the held-out
# points correctly. This is true for every seed. With thirty labels per class, the simple classifier
# is right for nearly all held-out points. This is true for every seed, too. With three labels per
# class, the flow is more accurate than the simple classifier for two seeds, and less accurate for
# the other two seeds. For seed 3 with three labels per class, the flow swaps the two classes for
# most held-out points. A probable reason: the initialization was bad, and the labels were too few
# to correct it. With three labels per class, only 2 % of the training points have a label, and the
# likelihood gives all training points the same weight. (For seed 3, we did not train a second flow
# that has the same points and labels, but other starting weights.) DDFP does not use the flow as a
# classifier. The step down the density needs only the marginal density, which stays the same when
# the classes are swapped.

# %% [markdown]
# Two choices need a reason: the flow has one Gaussian per class, and it has six blocks in this
# lesson.
#
# *Why does the flow have one Gaussian per class, although the step uses only the marginal density?*
# FlowGMM made this choice, because it classifies with the flow. DDFP keeps this choice.
#
# *Why does the flow have six blocks here, and two blocks in the method?* In the code that the
# authors of DDFP released, the flow has two blocks. We chose six blocks for points in the plane,
# which have only two coordinates, $a$ and $b$. In the first half of a block, $a$ gets a scale and a
# shift that depend on $b$. So all points with the same $b$ get the same scale and the same shift.
# In the second half of the block, $a$ and $b$ exchange their roles. A single block makes only maps
# of this kind: it scales and shifts $a$ once, and then $b$ once. A more complex map needs several
# blocks, one after another. (Four blocks fit better than one or two: see "What do blocks, clamp and
# noise do?" below. We did not compare a flow of six blocks with flows that have fewer or more
# blocks.)
#
# In DDFP, the flow is trained with labels and has two blocks. In [study 4](../reproduce/STUDY.md),
# we trained DDFP on digit scenes (small images with handwritten digits). We changed one setting of
# the flow at a time: we trained the flow without labels, with one block, or with four blocks. The
# mIoU is a score for segmentation, in percent (see lesson 4). The next output shows the effect of
# each change on the test mIoU, in percentage points:

# %%
study = find_study("ablations")
for change in ("flow without labels", "1 block", "4 blocks"):
    pair = paired_difference(study.stored(), f"ddfp, eps 3, {change}", study.baseline)
    print(f"{change:<20}{pair['difference']:+.1f}, {verdict(pair)}, {pair['seeds']} seeds")

# %% [markdown]
# None of the three effects is significant. (*Not significant* means that the 95 % confidence
# interval, CI, contains 0. Lesson 6 explains such intervals.) With only three seeds, the 95 %
# confidence intervals for one block and for four blocks are wide: an effect of two percentage
# points is possible. (The flow without labels still has one Gaussian per class, but it does not
# learn which Gaussian belongs to which class. We did not test a flow whose base density is a single
# Gaussian for all classes.)

# %% [markdown]
# ## How long must a flow train?
#
# We compare the flow with two classical estimators, which need no gradient steps. A *kernel density
# estimate* puts a small Gaussian on every training point. All these Gaussians have the same width,
# which is chosen by cross-validation. A *Gaussian mixture* is a weighted mean of a few Gaussians.
# We use full covariances, so the contours of each Gaussian can be ellipses in any direction. The EM
# algorithm fits the mixture by repeating two steps: assign points to Gaussians, then fit the
# Gaussians. We fit one mixture with 2 Gaussians and one with 12. We compare log-likelihoods on
# held-out points. The next figure shows how far each log-likelihood is below the log-likelihood of
# the exact density. So a perfect estimate has the value 0. The flows in this figure are trained
# without labels.
#
# **Predict first.** After how many steps is the flow as good as the kernel density? Does the flow
# ever overfit?

# %%
exact = np.array([moons.log_density(x).mean().item() for x, _ in test_set])


def classical(x, seed):
    """Return the classical estimators, fitted to points (N, 2)."""
    widths = {"bandwidth": [0.05, 0.07, 0.1, 0.14, 0.2]}
    return {
        "12 Gaussians": GaussianMixture(12, random_state=seed, reg_covar=1e-3).fit(x),
        "kernel density": GridSearchCV(KernelDensity(), widths).fit(x).best_estimator_,
        "2 Gaussians": GaussianMixture(2, random_state=seed).fit(x),
    }


fitted = [classical(x, seed) for seed, (x, _) in enumerate(train_set)]
gap = {
    name: [exact[s] - fitted[s][name].score_samples(test_set[s][0]).mean() for s in seeds]
    for name in fitted[0]
}
likelihood = np.array([weights[f"likelihood, 0 labels, seed {seed}"] for seed in seeds])
training_gap, flow_gap = (exact[:, None] - likelihood[..., which] for which in (0, 1))
against_steps(
    weights["steps"],
    {"held-out points": flow_gap, "training points": training_gap},
    {name: float(np.mean(values)) for name, values in gap.items()},
    "below the exact density (nats per point)",
).described(
    "How far the flow's log-likelihood is below that of the exact density, over the steps of "
    "training, for held-out points and for training points; a thin line for each of four seeds, a "
    "thick one for the mean. Both curves fall. The held-out curve flattens near the dashed lines "
    "of kernels and of 12 Gaussians, which are far below that of 2 Gaussians. The training curve "
    "goes on and ends below 0."
)

# %% tags=["nbval-ignore-output"]
at_step = dict(zip(weights["steps"].tolist(), flow_gap.T, strict=True))
rows = {f"flow, {step:,} steps": at_step[step] for step in (200, 1000, 2000)} | gap
for name, values in rows.items():
    print(f"{name:<18} {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} nats below the exact")

# %% tags=["check"]
kernels = np.mean(gap["kernel density"])
assert at_step[200].mean() > 2 * kernels
assert at_step[2000].mean() < 1.3 * kernels
assert (training_gap[:, -1] < 0.02).all()  # as likely as the exact density, or more
assert at_step[2000].mean() < np.mean(gap["2 Gaussians"]) / 3

# %% [markdown]
# **Finding.** After 200 steps, the flow is on average 0.33 nats below the exact density, and the
# kernel density is only 0.13 nats below. After 2,000 steps, the flow is about as good as the kernel
# density. So 200 steps were too few for this flow. A fair comparison must state how long each
# method was trained.
#
# The figure above has two panels: held-out points on the left and training points on the right. In
# both panels, the horizontal lines show the classical estimators on held-out points. The right
# panel shows **overfitting**: for most seeds, the curve of the training points falls below 0. Where
# this curve is below 0, the flow gives its training points a higher mean log-likelihood than the
# exact density gives the held-out points. In the left panel, the mean curve of the held-out points
# changes little from 1,000 to 2,000 steps. We did not try longer training.

# %% [markdown]
# The next figure shows the densities for one seed. (In the next figure, the flow with 200 steps is
# the first flow of the section "One Gaussian per class". It was trained with six labels and a
# learning rate of 0.01. The previous figure shows log-likelihoods over the training steps. Its
# flows were trained without labels, with a learning rate of 0.005.)

# %%
x, _ = train_set[0]


def of(model):
    """Return a scikit-learn density as a function on the plane."""
    return lambda v: torch.from_numpy(model.score_samples(v.numpy()))


maps(
    [
        Panel("exact density", x, log_density=moons.log_density),
        Panel(f"flow, {short} steps", x, log_density=begun.log_prob),
        Panel("flow, 2,000 steps", x, log_density=stored("moons, 0 labels", 0).log_prob),
        Panel("kernel density", x, log_density=of(fitted[0]["kernel density"])),
        Panel("12 Gaussians", x, log_density=of(fitted[0]["12 Gaussians"])),
        Panel("2 Gaussians", x, log_density=of(fitted[0]["2 Gaussians"])),
    ],
    plane,
    columns=3,
).described(
    "Six densities of the moons as contours: the exact one, the flow after 200 and after 2,000 "
    "steps, kernels, 12 Gaussians and 2 Gaussians. After 200 steps the flow fills the space "
    "between the moons; after 2,000 steps it follows both moons, with a thin bridge between them. "
    "Kernels and 12 Gaussians follow the moons too, in pieces; 2 Gaussians are two wide ellipses."
)

# %% [markdown]
# ## Can a flow make a ring?
#
# A flow bends and stretches the plane. But a flow cannot cut the plane, and it cannot glue two
# different points together. So it is often said that a flow cannot turn a Gaussian into a ring. Is
# that true?
#
# **Predict first.** Can a flow make a ring with an empty hole? Can it make a ring that is blurred
# by noise? Will the density of a small trained flow show two separate rings?
#
# Draw points on a circle of radius 1 around 0. Add Gaussian noise with standard deviation 0.08 to
# both coordinates. We call the density of these points a *blurred ring*. The radius of a point is
# its distance from 0. Let $g$ be a function of the radius. We look at the map that sends each point
# $x$ to $z = g(\lVert x \rVert)\, x / \lVert x \rVert$. This map changes only the radius of a
# point. Choose the function $g$ so that the radius of $z$ has the same distribution as the radius
# of a standard normal point. This map is smooth and has a smooth inverse. The next cell compares
# two log-densities: the log-density of the blurred ring, and the log-density that the change of
# variables gives for this map. The second log-density is:
#
# $$ \log p(x) = \log \mathcal N(z; 0, I) + \log g'(r) + \log \frac{g(r)}{r}, \qquad
#    r = \lVert x \rVert $$
#
# (At a point with radius $r$, the map stretches the plane by the factor $g'(r)$ in the direction of
# the radius. Along the circle with radius $r$ around 0, it stretches the plane by the factor
# $g(r) / r$.)

# %%
blur = 0.08
r = torch.linspace(1e-4, 2, 20_001, dtype=torch.float64)
# the density of a blurred circle: a Gaussian in r, times a Bessel function
log_ring = (
    -(r - 1).square() / (2 * blur**2)
    + torch.special.i0e(r / blur**2).log()
    - math.log(2 * math.pi * blur**2)
)
inside = torch.cumulative_trapezoid(2 * math.pi * r * log_ring.exp(), r)
g = (-2 * torch.log1p(-inside)).sqrt()  # a Gaussian has 1 - exp(-g^2 / 2) inside radius g
r, log_ring = r[1:], log_ring[1:]
(slope,) = torch.gradient(g, spacing=(r,))
carried = -0.5 * g.square() - math.log(2 * math.pi) + slope.log() + (g / r).log()
near = (r > 0.6) & (r < 1.4)
error = (carried - log_ring)[near].abs().max()
print(f"largest error of the log-density between radius 0.6 and 1.4: {error:.4f} nats")

# %% tags=["check"]
assert error < 0.01
assert (g[1:] >= g[:-1]).all()

# %% [markdown]
# **Finding.** A flow can make a blurred ring: a smooth invertible map turns *one* Gaussian exactly
# into this ring. In the hole of the blurred ring, the density is tiny but not zero. No flow can
# make a ring with density zero in its hole, because a smooth invertible map cannot make a hole in
# the *support*, the region where the density is not zero.
#
# Can a small flow *learn* blurred rings? The next figure shows two rings and three flows. One flow
# was trained for 200 steps, on the same 300 points at every step. The other two flows were trained
# for 2,000 steps, on new points at every step:

# %%
x, _ = rings.sample(300, generator("shown rings"))
young = fit(x, steps=short, lr=0.01)
trained_rings = [stored("rings", seed) for seed in (0, 1)]
box = Window.around(x).square()
maps(
    [
        Panel("exact density", x, log_density=rings.log_density),
        Panel(f"flow, {short} steps", x, log_density=young.log_prob),
        Panel("flow, 2,000 steps", x, log_density=trained_rings[0].log_prob),
        Panel("another seed", x, log_density=trained_rings[1].log_prob),
    ],
    box,
).described(
    "Four densities of two rings as contours: the exact one, the flow after 200 steps, and two "
    "seeds of the flow after 2,000 steps. The exact density has an empty hole, and a gap that is "
    "nearly empty. After 200 steps the flow is one disc. After 2,000 steps the outer ring shows in "
    "parts, the inner ring is still a disc, and bridges join them."
)

# %% tags=["nbval-ignore-output"]
unseen, _ = rings.sample(held_out, generator("unseen rings"))
turn = torch.linspace(0, 2 * math.pi, 361, dtype=torch.float64)
valley = 0.725 * torch.stack([turn.cos(), turn.sin()], dim=1)  # half way between the rings
densities = {
    "exact": rings.log_density,
    f"flow, {short} steps": young.log_prob,
    "flow, 2,000 steps": trained_rings[0].log_prob,
    "another seed": trained_rings[1].log_prob,
}
table = pd.DataFrame(
    {
        name: {
            "held-out log-likelihood": p(unseen).mean().item(),
            "density between the rings, median": p(valley).exp().median().item(),
            "density between the rings, highest": p(valley).exp().max().item(),
        }
        for name, p in densities.items()
    }
).T
table.round(3)

# %% tags=["check"]
score, middle, bridge = (table[column] for column in table)
for name in ("flow, 2,000 steps", "another seed"):
    assert score["exact"] > score[name] > score[f"flow, {short} steps"] + 0.1
    assert middle[name] < 0.85 * middle[f"flow, {short} steps"]
    assert middle[name] > 10 * middle["exact"] and bridge[name] > middle[name]

# %% [markdown]
# **Finding.** After 200 steps, the density of the flow is one disc instead of two rings. After
# 2,000 steps, the outer ring is visible in parts, and the inner ring is still a disc. After 2,000
# steps, the held-out log-likelihood is clearly higher than after 200 steps. But it is still lower
# than the held-out log-likelihood of the exact density. In some places between the two rings, the
# density of the flows with 2,000 steps stays high. We call these places *bridges*. The median
# density between the rings is lower after 2,000 steps than after 200 steps. For one of the two
# flows with 2,000 steps, the highest density between the rings is about the same as for the flow
# with 200 steps. For the other flow with 2,000 steps, the highest density between the rings is
# higher than for the flow with 200 steps. We did not find the cause of the bridges. The cause may
# be the size of the flow (six blocks with clamped scales) or the training. Some smooth invertible
# maps make no bridges. An example is a map of the form
# $z = g(\lVert x \rVert)\, x / \lVert x \rVert$, like the map from the beginning of this section.
# There, $g$ is chosen for one blurred ring. If $g$ is chosen for two blurred rings instead, the map
# gives exactly their density. (The number of steps is not the only difference between these flows.
# The flows with 2,000 steps had new points at every step, but the flow with 200 steps had the same
# points at every step. So a comparison of the flow with 200 steps and the flows with 2,000 steps
# does not show the effect of the number of steps alone. In lesson 1, a flow that was trained for
# 400 steps, on the same points at every step, also turned the rings into one disc.)

# %% [markdown]
# ## What do blocks, clamp and noise do?
#
# We train many small flows on few points, so that you see overfitting. We change one option at a
# time: the number of blocks, the clamp, or the standard deviation of the noise on the points. For
# each value of the option, we train two flows with different seeds. Then we measure the
# log-likelihood of the training points and of held-out points.
#
# **Predict first.** Which number of blocks, which clamp and which noise will be best for held-out
# points?


# %%
def likelihoods(**options):
    """Return the log-likelihoods of training points and of held-out points, for each seed."""
    rows = []
    for seed in range(sweep_seeds):
        x, _ = moons.sample(sweep_points, generator("few", seed))
        usual = {"blocks": 4, "hidden": 16, "lr": 0.02, "steps": sweep_steps}
        density = fit(x, seed=seed, **usual | options)
        rows.append([density.log_prob(v).mean().item() for v in (x, test_set[seed][0])])
    return list(zip(*rows, strict=True))


usual = likelihoods()  # 4 blocks, clamp 2, noise 0.05


def sweep(option, values, usual_value):
    """Return both log-likelihoods for each value of an option."""
    found = [usual if v == usual_value else likelihoods(**{option: v}) for v in values]
    return {
        "training points": (values, [training for training, _ in found]),
        "held-out points": (values, [unseen for _, unseen in found]),
    }


swept = {
    "blocks of the flow": sweep("blocks", [1, 2, 4], 4),
    "clamp of the scale": sweep("clamp", [0.1, 2.0, 8.0], 2.0),
    "noise on the points": sweep("noise", [0.0, 0.05, 0.2], 0.05),
}
colours = {
    "training points": METHOD_COLOURS["supervised"],
    "held-out points": METHOD_COLOURS["ddfp"],
}
curves(swept, "log-likelihood (nats per point)", colours, categories=True).described(
    "Log-likelihood of training points and of held-out points against three options, lines at the "
    "mean of two seeds. With more blocks both rise. With the clamp both are lowest at 0.1 and "
    "highest at 2. With more noise the training points become less likely: the two lines are far "
    "apart without noise and close together with the most."
)

# %% tags=["nbval-ignore-output"]
rows = {}
for option, by_name in swept.items():
    for number, value in enumerate(by_name["held-out points"][0]):
        rows[f"{option}: {value:g}"] = {
            name: ", ".join(f"{v:.2f}" for v in by_seed[number])
            for name, (_, by_seed) in by_name.items()
        }
pd.DataFrame(rows).T

# %% tags=["check"]
unseen = {option: np.mean(found["held-out points"][1], axis=1) for option, found in swept.items()}
assert unseen["blocks of the flow"][2] > unseen["blocks of the flow"][0] + 0.05
assert unseen["clamp of the scale"][0] < unseen["clamp of the scale"][1] - 0.1
_, fitted_points = swept["noise on the points"]["training points"]
ahead = np.mean(fitted_points, axis=1) - unseen["noise on the points"]  # sign of overfitting
assert ahead[0] > ahead[1] + 0.05 > ahead[2] + 0.05
assert unseen["noise on the points"][2] < unseen["noise on the points"][1] - 0.1

# %% [markdown]
# **Finding.** With more blocks, the flow fits both the training points and the held-out points
# better. A clamp of 0.1 restricts the flow too much. With each of the two seeds of this experiment,
# a clamp of 8 is worse than a clamp of 2. If training points are more likely than held-out points,
# this is a sign of overfitting. Without noise, the training points are clearly more likely than the
# held-out points. With noise of 0.05, the value of the released code, the difference is smaller.
# But in these short training runs, this noise does not make the held-out points more likely: their
# log-likelihood is about the same as without noise, or a little lower. Noise of 0.2 blurs the
# density, because the points themselves scatter around the arcs of the moons with a standard
# deviation of only 0.1. So with noise of 0.2, training points and held-out points have a lower
# log-likelihood than with noise of 0.05.

# %% [markdown]
# The clamp bounds the log-determinant: each block changes it by at most clamp · $D$. So the
# log-determinant stays finite, even for an input far away from all data:

# %%
far = torch.tensor([[1e3, 0.0], [-50.0, 2e4]], dtype=torch.float64)
with torch.no_grad():
    _, log_det = flow.flow(far)
print("log-determinants:", log_det.numpy().round(1), " bound:", 6 * 2 * flow.config.clamp)

# %% tags=["check"]
assert (log_det.abs() <= 6 * 2 * flow.config.clamp).all()
assert flow.log_prob(far).isfinite().all()

# %% [markdown]
# ## Exercises
#
# **1. The way back.** We can draw new points from a flow: draw $z$ from the base density and apply
# the inverse of the map. Write the inverse of `coupling`. Check that the inverse returns the input
# of `coupling`. (The last operation of `coupling` is the permutation. Undo it first. The index
# `block.permutation.argsort()` undoes the permutation. `block` is the coupling block from the
# section "Many dimensions, in ten lines". Its input has the shape (N, 5) and double precision. For
# example, `torch.randn(100, 5, dtype=torch.float64)` is a possible input.)


# %% tags=["solution"]
def uncoupling(z, block):
    a, b = z[:, block.permutation.argsort()].split((block.left, block.right), dim=1)
    r, u = block.from_left(a).chunk(2, dim=1)
    b = (b - u) * (-block.clamp * 0.636 * r.atan()).exp()
    s, t = block.from_right(b).chunk(2, dim=1)
    a = (a - t) * (-block.clamp * 0.636 * s.atan()).exp()
    return torch.cat([a, b], dim=1)


x = torch.randn(100, 5, generator=generator("x"), dtype=torch.float64)
z, _ = coupling(x, block)
torch.testing.assert_close(uncoupling(z, block), x)
print("the inverse returns the input")
drawn = stored("moons, 0 labels", 0).sample(300, generator("sample"))
maps(
    [Panel("training points", train_set[0][0]), Panel("drawn from the flow", drawn)], plane
).described(
    "Two clouds of points: the training points, and points that were drawn from the flow. Both "
    "have the shape of two moons; some of the drawn points lie on the bridge between them."
)

# %% [markdown]
# **2. A stream of points.** Features of a network have many dimensions. At every training step, the
# network computes new features. So we append 14 standard normal numbers to each point of the moons.
# The exact log-density is the sum of the log-density of the moons and the log-density of the 14
# numbers. In the next cell, `wide` makes such points. Its first argument is the number of points.
# Its second argument is a name, and each name gives other points: `wide(300, "a")` and
# `wide(300, "b")` are two different sets of 300 points. `exact_of_wide` returns the exact
# log-density of such points. Train two flows for 150 steps: one on the same 300 points at every
# step, one on 300 fresh points at every step. Create each flow with
# `DensityEstimator(16, 2, config, total_steps=150)`, where
# `config = DensityConfig(blocks=4, hidden=32, lr=0.01)`. Train each flow with `fit_step`, as the
# function `fit` does in the section "One Gaussian per class". Then compare both flows with two
# kernel densities. Fit one kernel density to 300 points and the other one to 3,000 points, each
# with `KernelDensity(bandwidth=0.7).fit(points)`. For each of the two flows and each of the two
# kernel densities, compute the mean log-likelihood of 1,000 other points. How far is it below the
# mean log-likelihood that the exact density gives to these 1,000 points? Does one of the flows
# overfit?


# %%
def wide(count, *name):
    """Return points (N, 16): moons and 14 standard normal numbers."""
    rng = generator("wide", *name)
    x, _ = moons.sample(count, rng)
    return torch.cat([x, torch.randn(count, 14, generator=rng, dtype=torch.float64)], dim=1)


def exact_of_wide(x):
    return moons.log_density(x[:, :2]) + log_normal(x[:, 2:]).sum(1)


# %% tags=["solution", "nbval-ignore-output"]
def trained_on(points_of_step, steps=150):
    config = DensityConfig(blocks=4, hidden=32, lr=0.01)
    density = DensityEstimator(16, 2, config, total_steps=steps).double()
    for step in range(steps):
        density.fit_step(points_of_step(step), generator=generator("fit", step))
    return density


test = wide(1000, "test")
same, more = wide(300, "same"), wide(3000, "more")
narrow = trained_on(lambda step: same)
log_p = {
    "flow, the same 300 points": narrow.log_prob(test).numpy(),
    "flow, 300 fresh points a step": trained_on(lambda step: wide(300, step))
    .log_prob(test)
    .numpy(),
}
for name, points in (("300", same), ("3,000", more)):
    kernels = KernelDensity(bandwidth=0.7).fit(points)
    log_p[f"kernel density, {name} points"] = kernels.score_samples(test)
below = {name: exact_of_wide(test).mean().item() - p.mean() for name, p in log_p.items()}
for name, nats in below.items():
    print(f"{name:<30} {nats:5.1f} nats below the exact density")
above = (narrow.log_prob(same) - exact_of_wide(same)).mean().item()
print(
    f"flow, the same 300 points: its training points are {above:.1f} nats above the exact density"
)
assert above > 1
assert below["flow, 300 fresh points a step"] < below["kernel density, 3,000 points"]
assert below["flow, the same 300 points"] > 2 * below["flow, 300 fresh points a step"]

# %% [markdown] tags=["solution"]
# The flow that is trained on the same 300 points at every step overfits badly. It gives its
# training points a much higher log-likelihood than the exact density gives them. It gives other
# points a much lower log-likelihood than the exact density gives them. We compared two flows and
# two kernel densities: the flow with fresh points at every step is closest to the exact density. A
# kernel density that is fitted to 300 points is 3.2 nats below the exact density. A kernel density
# that is fitted to 3,000 points is 2.1 nats below the exact density. The comparison is not fair:
# the flow with fresh points was trained on 150 x 300 = 45,000 different points, and we did not
# choose the width of the kernels by cross-validation. But the flow stores none of these points, and
# a kernel density must store all its points. In DDFP, the features have many dimensions, and they
# are new at every step. A flow does not have to store them, and this is one argument for a flow. In
# lesson 6, DDFP is trained with other densities instead of the flow, and we compare the scores.

# %% [markdown]
# ## What we saw
#
# - The change of variables gives the density after a map. In a coupling block the log-determinant
#   is a simple sum.
# - A flow with one Gaussian per class is both a density and a classifier.
# - On the moons, a flow that was trained for 2,000 steps is about as good as a kernel density.
#   After 200 steps, the flow is worse than the kernel density.
# - A smooth invertible map can turn one Gaussian into a blurred ring. Our small trained flows do
#   not separate two rings: bridges of density join the rings.
# - A flow that is trained on few points overfits. Noise on the points makes the log-likelihoods of
#   training and held-out points more similar. In exercise 2, a flow with new points at every step
#   is much closer to the exact density than a flow with the same points at every step.
#
# ## In the real method
#
# The flow of DDFP is an object of the same Python class as the flows of this lesson:
# `DensityEstimator`. It has two blocks. Each embedding $v$ has 256 numbers in the method and 32 or
# 64 numbers in our small networks. After the warm-up, the flow learns from the teacher's embeddings
# at every training step. For the pixels that have a label, the flow also learns from the label:
#
# ```python
# # ddfp_lib/training/reference_step.py
#         learner.density.fit_step(rows, classes, generator=for_features)
# ```
#
# In the library, the class `CouplingBlock` scales and shifts the two halves $a$ and $b$ of its
# input with these two lines:
#
# ```python
# # ddfp_lib/method/flow.py
#         y_a, log_det_a = _Affine.apply(x_a, self.from_right(x_b), self.clamp)
#         y_b, log_det_b = _Affine.apply(x_b, self.from_left(y_a), self.clamp)
# ```
#
# [Study 4](../reproduce/STUDY.md) compares flows with one, two and four blocks.
#
# ## References
#
# - Wang et al., [*Towards the Uncharted: Density-Descending Feature Perturbation for
#   Semi-supervised Semantic Segmentation*](https://arxiv.org/abs/2403.06462), CVPR 2024.
# - Dinh et al., [*Density estimation using Real NVP*](https://arxiv.org/abs/1605.08803), ICLR 2017:
#   coupling blocks.
# - Kingma and Dhariwal, [*Glow*](https://arxiv.org/abs/1807.03039), NeurIPS 2018.
# - Izmailov et al., [*Semi-Supervised Learning with Normalizing Flows*
#   (FlowGMM)](https://arxiv.org/abs/1912.13025), ICML 2020: one Gaussian per class.
# - Papamakarios et al., [*Normalizing Flows for Probabilistic Modeling and
#   Inference*](https://arxiv.org/abs/1912.02762), JMLR 2021: a survey, also on what flows can
#   represent.
#
# ## Next
#
# [3. The step down the density](03_density_descending_shift.ipynb): how far a step goes down the
# density, and how often it changes the class. · Previous: [1. Low-density
# separation](01_low_density_separation.ipynb) · [All lessons](README.md)
