"""The data sets and the split that a configuration names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddfp_lib.config import Config
from ddfp_lib.data import open_dataset
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.inspection import Findings, inspect_data
from ddfp_lib.data.pairs import FilePairs
from ddfp_lib.data.splits import find_list, make_split, read_names, read_split
from ddfp_lib.errors import UserError
from ddfp_lib.runs.identity import Identity, data_digest, files_digest, mask_digests


def data_of(config: Config, subset: str) -> SegmentationDataset:
    """Open a set of images of the configured data set, prepared as the configuration says.

    Args:
        config: its ``data`` is used.
        subset: ``train`` (without the images of ``data.val``), ``val`` (the images of ``data.val``,
            or else the data set's own), ``test`` (the set that ends a run: ``data.test``), or
            another list of a VOC folder.

    Raises:
        UserError: the data set, one of its lists or an image in a list is not there.
    """
    own = config.data.val
    if subset == "test":
        return _open(config, config.data.test)
    if own is None or subset not in ("train", "val"):
        return _open(config, subset)
    training = _open(config, "train")
    if not isinstance(training, FilePairs):
        raise UserError("data.val: is for data sets of files; digit scenes have their own")
    path = find_list(Path(config.data.root or ""), own, "data.val")
    held_out = read_names(path, training)
    places = {name: place for place, name in enumerate(training.names)}
    if subset == "train":
        return training.only([p for n, p in places.items() if n not in set(held_out)])
    unknown = [name for name in held_out if name not in places]
    if unknown and config.data.dataset == "voc":  # any image of the folder can be listed
        return _open(config, str(path))
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} of {len(held_out)} names are not training images of "
            f"{training.name}, the first is {unknown[0]!r}; correct the list"
        )
    return training.only([places[name] for name in held_out])


def split_of(config: Config, dataset: SegmentationDataset) -> tuple[list[int], list[int]]:
    """Return the indices of the labeled and of the unlabeled training images.

    Args:
        config: its ``data`` is used.
        dataset: ``data_of(config, "train")``.

    Raises:
        UserError: a list is missing, empty or names unknown images; a labeled image is one of
            ``data.val``; or a count does not fit.
    """
    data = config.data
    if not str(data.labeled).endswith(".txt"):
        return make_split(dataset, data.labeled, data.split_seed)
    root = Path(data.root or "")
    unlabeled = None if data.unlabeled is None else root / data.unlabeled
    held_out = read_names(find_list(root, data.val, "data.val"), dataset) if data.val else ()
    among = set(read_names(find_list(root, data.only, "data.only"), dataset)) if data.only else None
    return read_split(dataset, root / str(data.labeled), unlabeled, held_out=held_out, among=among)


@dataclass(frozen=True)
class RunData:
    """All images of a run.

    Attributes:
        training: training images.
        labeled: indices of the labeled ones.
        unlabeled: indices of the unlabeled ones.
        validation: validation images.
        test: the images that end the run.
        findings: findings of the inspection; empty where images are made, not read.
    """

    training: SegmentationDataset
    labeled: list[int]
    unlabeled: list[int]
    validation: SegmentationDataset
    test: SegmentationDataset
    findings: Findings

    @property
    def identity(self) -> Identity:
        """What names these data."""
        parts = (self.training, self.labeled, self.unlabeled, self.validation)
        return Identity(
            classes=tuple(self.training.classes),
            images=data_digest(*parts),
            labeled=len(self.labeled),
            unlabeled=len(self.unlabeled),
            masks=mask_digests(self.findings),
            files={
                "labeled": files_digest(self.training, self.labeled),
                "validation": files_digest(self.validation),
                "test": files_digest(self.test),
            },
        )


def open_run_data(
    config: Config, *, inspect: bool = True, say: Callable[[str], object] = lambda line: None
) -> RunData:
    """Open and inspect all images that a run uses, before any work starts.

    Args:
        config: configuration of the run.
        inspect: look at the files; one of several processes is enough.
        say: called with a line before many files are read.

    Raises:
        UserError: a folder, list, image or mask is missing or not right; or the inspection found
            an error, see :func:`~ddfp_lib.data.inspection.inspect_data`.
    """
    training, validation, test = (data_of(config, name) for name in ("train", "val", "test"))
    root, name = config.data.root, config.data.dataset
    findings = Findings()
    split = None
    if inspect and isinstance(training, FilePairs):
        if not str(config.data.labeled).endswith(".txt"):
            # the draw reads every mask: say what is wrong with all of them first
            inspect_data(root, {"training": training}, say=say).check(name, root)
        split = split_of(config, training)
        sets = {"labeled": training.only(split[0]), "validation": validation, "test": test}
        findings = inspect_data(root, sets, training, say=say)
        findings.check(name, root)
    labeled, unlabeled = split or split_of(config, training)
    return RunData(training, labeled, unlabeled, validation, test, findings)


def _open(config: Config, subset: str) -> SegmentationDataset:
    data = config.data
    dataset = open_dataset(
        data.dataset,
        subset,
        root=data.root,
        digits=data.digits,
        size=data.size,
        classes=data.classes,
        long_side=data.long_side,
    )
    if data.only is None:
        return dataset
    if not isinstance(dataset, FilePairs):
        raise UserError("data.only: is for data sets of files; digit scenes are made")
    path = find_list(Path(data.root or ""), data.only, "data.only")
    wanted = set(read_names(path, dataset))
    kept = [place for place, name in enumerate(dataset.names) if name in wanted]
    if not kept:
        raise UserError(f"{path}: names no image of {dataset.name}; take the list of this data set")
    return dataset.only(kept)
