"""Draw the map of lesson 3 by UMAP, which takes a minute: ``python notebooks/weights/03_map.py``.

``03_map.npz`` beside this file holds, for the network that lesson 3 trains, the place of each
chosen embedding on the map before and after each kind of step, (N, 2) float32, and its class, (N,)
int64. UMAP is fitted to all three groups together, so that they share one map.
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from ddfp_lib import Run, data_of, load_learner, train
from ddfp_lib.lessons.digits import small_config, steps_of
from ddfp_lib.seeds import generator

SHOWN, STEPS = 700, 240


def main() -> None:
    torch.set_num_threads(1)
    config = small_config("ddfp", seed=0, steps=STEPS)
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder), device=torch.device("cpu"))
        learner = load_learner(Run.open(Path(folder)), torch.device("cpu"))
    steps = steps_of(learner, data_of(config, "val"))
    chosen = torch.randperm(int(steps.moved.sum()), generator=generator("chosen"))[:SHOWN]
    groups = {name: v[chosen] for name, v in steps.v.items()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP says that a seed leaves it one thread
        from umap import UMAP

        places = UMAP(random_state=0).fit_transform(torch.cat(list(groups.values())).numpy())
    flat = dict(zip(groups, np.split(places.astype(np.float32), len(groups)), strict=True))
    path = Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, classes=steps.classes[steps.moved][chosen].numpy(), **flat)
    print(path)


if __name__ == "__main__":
    main()
