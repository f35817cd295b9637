"""The segmentation network as three calls: ``encode`` to F, ``embed`` to v, ``classify``."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ddfp_lib.config import NetworkConfig, normalisation
from ddfp_lib.config.schema import IMAGENET_MEAN, IMAGENET_STD
from ddfp_lib.models.decoder import Embedding, Fusion
from ddfp_lib.models.encoder import Encoder
from ddfp_lib.models.fast import use_fast_layers
from ddfp_lib.models.maps import resize
from ddfp_lib.models.stochastic import global_draws
from ddfp_lib.seeds import derive_seed


def _in_precision(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run one of the network's calls under autocast and return its result as float32."""

    @functools.wraps(method)
    def run(self: "SegmentationNetwork", x: Tensor, **options: Any) -> Tensor:
        if self.precision == torch.float32:
            return method(self, x, **options)
        with torch.autocast(x.device.type, self.precision):
            return method(self, x, **options).float()

    return run


class SegmentationNetwork(nn.Module):
    """DeepLabv3+ on a timm backbone, as three calls.

    ======================  =====================================  ===============================
    call                    maps                                   what training does there
    ======================  =====================================  ===============================
    ``encode(images)``      images (B, 3, H, W) to F (B, C, h, w)  F is what is perturbed
    ``embed(F)``            F to v (B, D, h, w)                    p(v) is what the flow learns
    ``classify(v)``         v to logits (B, K, h, w)
    ======================  =====================================  ===============================

    Images are float32 in [0, 1], red, green and blue. h = H/4, w = W/4 (stride 3.5 with DINOv2; H
    and W are rounded up to the multiple that the backbone needs). Training interrupts the network
    at F and at v. F, v and logits are always float32, so densities, perturbations and losses do not
    depend on the precision of the convolutions.

    Images are normalized by ``config.mean`` and ``config.std``. Where these are ``None``, timm's
    values for the backbone are used with starting weights, and ImageNet's without.

    Args:
        config: widths, backbone, output stride, normalization.
        classes: number of classes K.
        seed: seed of the random starting weights.
        precision: ``float32``, or the type of convolutions under autocast: ``bfloat16``,
            ``float16``. Weights are always float32.

    Raises:
        UserError: timm has no such backbone, or it cannot be used, see
            :class:`~ddfp_lib.models.encoder.Encoder`.

    Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution for Semantic Image
    Segmentation, ECCV 2018 (https://arxiv.org/abs/1802.02611).
    """

    def __init__(
        self, config: NetworkConfig, classes: int, seed: int = 0, precision: str = "float32"
    ) -> None:
        super().__init__()
        self.precision: torch.dtype = getattr(torch, precision)
        # PyTorch's layers draw their weights from the global generator, which is seeded here and
        # restored afterwards. Only the CPU's: torch.manual_seed would also seed every GPU's.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, 0))
            self.encoder = Encoder(
                config.encoder,
                config.output_stride,
                config.pretrained,
                config.encoder_options,
                config.weights,
                config.weights_sha256,
            )
            self.fusion = Fusion(
                self.encoder.low_channels,
                self.encoder.high_channels,
                config.low_width,
                config.aspp_width,
                config.dilations,
                self.encoder.enlarge,
                head_kernel=config.head_kernel,
                pooling_norm=config.pooling_norm,
                channel_dropout=config.dropout if config.dropout_of == "channels" else 0.0,
                align_corners=config.align_corners,
            )
            self.embedding = Embedding(
                self.fusion.channels,
                config.embedding,
                config.dropout,
                channels=config.dropout_of == "channels",
            )
            self.classifier = nn.Conv2d(config.embedding, classes, 1)
        use_fast_layers(self)
        self.classes, self.align_corners = classes, config.align_corners
        mean, std = config.mean, config.std
        if mean is None or std is None:
            started = config.pretrained or config.weights is not None
            usual = (IMAGENET_MEAN, IMAGENET_STD)
            if started:
                usual = normalisation(config.encoder, config.encoder_options)
            mean, std = mean or usual[0], std or usual[1]
        # not persistent: a checkpoint holds what is learned, and these are settings
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), False)

    def compile_parts(self, **options: Any) -> None:
        """Let torch.compile compile encoder and decoder; calls and state stay the same.

        Args:
            options: arguments of torch.compile.
        """
        for part in self.children():
            part.compile(**options)

    @_in_precision
    def encode(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Map images to features F (B, C, h, w).

        Args:
            images: (B, 3, H, W), float in [0, 1].
            generator: draws the dropout masks of a training pass, where ``dropout_of: channels``
                drops channels of F, and what the backbone draws; ``None``: no dropout of ours, and
                the backbone draws from PyTorch's global generator.
        """
        drawing = self.training and self.encoder.draws and generator is not None
        with global_draws(generator) if drawing else nullcontext():
            low, high = self.encoder((images - self.mean) / self.std)
        return self.fusion(low, high, generator)

    @_in_precision
    def embed(
        self,
        features: Tensor,
        *,
        auxiliary: bool = False,
        eval_mode: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Map features F (B, C, h, w) to embeddings v (B, D, h, w).

        Args:
            features: F, float.
            auxiliary: normalize by the statistics of perturbed features.
            eval_mode: normalize by running statistics without updating them; no dropout.
            generator: draws the dropout masks in training; ``None`` means no dropout.
        """
        return self.embedding(
            features, auxiliary=auxiliary, eval_mode=eval_mode, generator=generator
        )

    def classify(self, embeddings: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Map embeddings v (B, D, h, w) to logits (B, K, h, w).

        Args:
            embeddings: v, float.
            size: height and width to which the logits are resized; ``None`` leaves them.
        """
        logits = self._classify(embeddings)
        return logits if size is None else resize(logits, size, self.align_corners)

    @_in_precision
    def _classify(self, embeddings: Tensor) -> Tensor:
        return self.classifier(embeddings)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W), float in [0, 1], to logits (B, K, H, W)."""
        return self.classify(self.embed(self.encode(images)), images.shape[2:])


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put ``network`` in evaluation mode, and restore its mode afterwards."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
