"""Numbers of classes and images, and image sizes: known or estimated before files are read."""

from ddfp_lib.config.schema import Config
from ddfp_lib.data import camvid, cityscapes, voc

_PUBLISHED = {
    "camvid": (len(camvid.COLOURS), 101, (360, 480)),
    "cityscapes": (len(cityscapes.CLASSES), 500, (1024, 2048)),
    "voc": (len(voc.CLASSES), 1449, (375, 500)),
}
"""Of published data sets: classes, validation images, usual height and width of an image. Data of
your own are estimated by VOC's."""


def expected_classes(config: Config) -> int:
    """Return the number of classes; of data of your own, VOC's unless ``data.classes`` is set."""
    if config.data.classes is not None:
        return len(config.data.classes)
    if config.data.dataset == "digits":
        return config.data.digits.classes + 1
    return _published(config)[0]


def expected_validation_images(config: Config) -> int:
    """Return the number of validation images; of data of your own, VOC's."""
    if config.data.dataset == "digits":
        return config.data.digits.val
    return _published(config)[1]


def expected_image_size(config: Config) -> tuple[int, int]:
    """Return height and width of a whole image, in pixels; of data of your own, VOC's."""
    if config.data.size is not None:
        return config.data.size
    if config.data.dataset == "digits":
        return config.data.digits.size, config.data.digits.size
    return _published(config)[2]


def _published(config: Config) -> tuple[int, int, tuple[int, int]]:
    return _PUBLISHED.get(config.data.dataset, _PUBLISHED["voc"])
