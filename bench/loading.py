"""How many images a second become batches: reading, resizing, cropping, with and without workers.

    .venv/bin/python bench/loading.py camvid DIR
    .venv/bin/python bench/loading.py cityscapes DIR --crop 801 --images 320 --workers 0 8

Half of the images are labeled, so half have a mask to read too. From the second batch on: the first
waits for the workers to start. Batches are taken and discarded, nothing trains. The CPU time of
this process says what an image costs on any machine, however busy; with workers it is theirs, and
only the wall time says whether they keep up.
"""

import argparse
import os
import time
from pathlib import Path

import torch

from ddfp_lib.data import open_dataset
from ddfp_lib.data.augment import AugmentConfig
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import training_batches
from ddfp_lib.machine import usable_cores

BATCH = 8  # labeled images, and as many unlabeled


def measure(
    dataset: SegmentationDataset, crop: int, images: int, workers: int
) -> tuple[float, float]:
    """Return images a second, and this process's CPU milliseconds an image."""
    steps = max(1, images // (2 * BATCH))
    everything = range(len(dataset))
    batches = training_batches(
        dataset,
        everything,
        everything,
        AugmentConfig(crop=crop),
        batch_labeled=BATCH,
        batch_unlabeled=BATCH,
        seed=0,
        start_step=0,
        stop_step=1 + steps,
        workers=workers,
    )
    next(batches)
    began, used = time.perf_counter(), time.process_time()
    for _ in batches:
        pass
    seconds, used = time.perf_counter() - began, time.process_time() - used
    count = 2 * BATCH * steps
    return count / seconds, 1000 * used / count


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Time the making of batches.")
    parser.add_argument("dataset", help="voc, cityscapes or camvid")
    parser.add_argument("root", type=Path)
    parser.add_argument("--crop", type=int, default=513)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = open_dataset(arguments.dataset, "train", root=arguments.root)
    cores, load = usable_cores(), os.getloadavg()[0]
    print(f"{arguments.dataset}, crop {arguments.crop}, {cores} cores, load {load:.1f}\n")
    print("| workers | images a second | CPU ms an image, here |\n|---:|---:|---:|")
    for workers in arguments.workers:
        rate, used = measure(dataset, arguments.crop, arguments.images, workers)
        print(f"| {workers} | {rate:.0f} | {used:.1f} |")


if __name__ == "__main__":
    main()
