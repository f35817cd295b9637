"""Map label names of exported regions to classes; pixels outside all regions are class 0."""

from collections.abc import Collection, Sequence

from ddfp_lib.errors import UserError

BACKGROUND = ("_background_", "background")
"""Names that tools give to class 0."""


def index_labels(
    labels: Sequence[str],
    classes: Sequence[str],
    background: str,
    where: object,
    used: Collection[str] | None = None,
) -> tuple[list[str], dict[str, int]]:
    """Return the names of the classes, and the index of each label.

    Labels are equal if they differ only in white space around them. A label named as in
    :data:`BACKGROUND`, in any case, is class 0.

    Args:
        labels: as the export spells them, in the order of their classes.
        classes: names in the order of the indices; empty for ``background`` and the labels.
        background: name of class 0, where no names are given.
        where: the export, for messages.
        used: labels of regions, which need a class; None if all are.

    Raises:
        UserError: class 0 is a label of the export or background is not first, so that pixels
            without a region would get a wrong class; or a label is not in ``classes``.
    """
    plain = {label: label.strip() for label in labels}
    named = [n for n in dict.fromkeys(plain.values()) if n.lower() not in BACKGROUND]
    names = list(classes) or [background, *named]
    if names[0] in named or any(name.lower() in BACKGROUND for name in names[1:]):
        raise UserError(
            f"--classes {','.join(names)}: unlabeled pixels get the first class; put background "
            "first"
        )
    indices = {}
    for label, name in plain.items():
        if name.lower() in BACKGROUND:
            indices[label] = 0
        elif name in names:
            indices[label] = names.index(name)
        elif used is None or label in used:
            raise UserError(
                f"{where}: label {name!r} is not in --classes {','.join(names)}; add it"
            )
    return names, indices
