"""The page on the flow: the browser gets the weights of a flow and maps points."""

from typing import Any

import torch

from ddfp_lib.explorer.clouds import Sample, draw, make_clouds
from ddfp_lib.explorer.encoding import packed, rounded
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.method.flow import ATAN_SLOPE, CouplingBlock
from ddfp_lib.plots.planes import Panel, Window, maps
from ddfp_lib.seeds import generator

CLOUDS = ("moons", "circles", "blobs")
STEPS = 600
SHOWN = 150
"""Points of the cloud that the page draws and carries along."""

CHECKED = 100
"""Points with the library's numbers, which a test compares with the browser's."""


def fit(sample: Sample, steps: int = STEPS) -> DensityEstimator:
    """Return a flow, in float64, trained on the points with their classes."""
    config = DensityConfig(blocks=4, hidden=32, lr=0.01)
    classes = int(sample.classes.max()) + 1
    density = DensityEstimator(2, classes, config, total_steps=steps).double()
    rng = generator("flow page")
    for _ in range(steps):
        density.fit_step(sample.x, sample.classes, generator=rng)
    return density


def flow_data(name: str, steps: int = STEPS) -> dict[str, Any]:
    """Train a flow on a cloud; return its weights, points, and numbers to check the page by.

    Returns:
        Numbers, lists and base64 texts, ready for JSON; ``templates/flow.js`` reads them.
    """
    sample = draw(make_clouds()[name], seeds=1)
    density = fit(sample, steps)
    window = sample.window
    return {
        "window": [window.left, window.right, window.bottom, window.top],
        "points": rounded(sample.x[:SHOWN], 3),
        "classes": sample.classes[:SHOWN].tolist(),
        **weights_data(density),
        "check": check_data(density, window),
    }


def weights_data(density: DensityEstimator) -> dict[str, Any]:
    """Return the parameters of a flow over two features.

    Each block has two subnets, ``right`` (which reads the right half) and ``left``. The layers of a
    subnet are its weights, row by row, then its biases, all float32.
    """
    return {
        "slope": ATAN_SLOPE,
        "clamp": density.config.clamp,
        "hidden": density.config.hidden,
        "blocks": [
            {
                "permutation": block.permutation.tolist(),
                "right": _subnet_data(block, "from_right"),
                "left": _subnet_data(block, "from_left"),
            }
            for block in density.flow.blocks
        ],
        "means": density.mixture.means.detach().tolist(),
    }


def _subnet_data(block: CouplingBlock, name: str) -> str:
    parameters = getattr(block, name).parameters()
    return packed(torch.cat([parameter.detach().flatten() for parameter in parameters]), "f4")


@torch.no_grad()
def check_data(density: DensityEstimator, window: Window) -> dict[str, Any]:
    """Return random points of the window and the library's numbers for them."""
    rng = generator("flow page", "check")
    low = torch.tensor([window.left, window.bottom], dtype=torch.float64)
    high = torch.tensor([window.right, window.top], dtype=torch.float64)
    points = low + (high - low) * torch.rand(CHECKED, 2, generator=rng, dtype=torch.float64)
    z, log_det = density.flow(points)
    return {
        "points": points.tolist(),
        "latents": z.tolist(),
        "log_det": log_det.tolist(),
        "log_prob": density.log_prob(points).tolist(),
    }


def still() -> tuple[bytes, str]:
    """Return the picture for browsers without scripts, as PNG, and its description."""
    sample = draw(make_clouds()["moons"], seeds=1)
    density = fit(sample)
    with torch.no_grad():
        z, _ = density.flow(sample.x)
    panels = [
        Panel("data x", points=sample.x, classes=sample.classes, log_density=density.log_prob),
        Panel(
            "latents z = f(x)",
            points=z,
            classes=sample.classes,
            log_density=density.mixture.log_prob,
            centres=density.mixture.means.detach(),
            axis_names=("latent 1", "latent 2"),
        ),
    ]
    alt = (
        "Left: the two moons and the density that the flow has learned. Right: the same points "
        "after all couplings, where each class is a round Gaussian around its mean."
    )
    return maps(panels, [sample.window, Window.around(z).square()]).png(), alt
