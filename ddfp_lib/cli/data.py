"""``ddfp data``: prepare data sets, check every file, and choose the labeled images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddfp_lib.errors import UserError

if TYPE_CHECKING:
    from ddfp_lib.data.verify import Checked

app = typer.Typer(no_args_is_help=True, help="Prepare and verify data sets, fetch or make splits.")
prepare = typer.Typer(
    no_args_is_help=True,
    help="Prepare a data set. Run the command again to continue.",
)
splits = typer.Typer(no_args_is_help=True, help="Lists of labeled and unlabeled images.")
app.add_typer(prepare, name="prepare")
app.add_typer(splits, name="splits")

Root = Annotated[
    Path, typer.Option("--root", help="Folder of the data set; other commands call it --data.")
]
Partial = Annotated[
    bool,
    typer.Option(
        "--partial",
        help="Accept fewer or more images than were published, such as only some cities.",
    ),
]
Name = Annotated[str, typer.Argument(help="voc, cityscapes or camvid.")]


@prepare.command("voc")
def prepare_voc(
    root: Root,
    voc_archive: Annotated[
        Path | None, typer.Option(help="VOCtrainval_11-May-2012.tar, if it is on disk already.")
    ] = None,
    sbd_archive: Annotated[
        Path | None, typer.Option(help="SBD's benchmark.tgz, if it is on disk already.")
    ] = None,
) -> None:
    """Fetch PASCAL VOC 2012 and SBD, and make the 10,582 training masks from them."""
    from ddfp_lib.data.prepare import prepare_voc

    prepare_voc(root, voc_archive, sbd_archive)
    _next("voc", root)


@prepare.command("cityscapes")
def prepare_cityscapes(root: Root, partial: Partial = False) -> None:
    """Map the masks of Cityscapes, which you have downloaded and unpacked, to its 19 classes."""
    from ddfp_lib.data.prepare import prepare_cityscapes

    prepare_cityscapes(root, partial=partial)
    _next("cityscapes", root)


@prepare.command("camvid")
def prepare_camvid(root: Root) -> None:
    """Check that the folder has CamVid in the SegNet layout, or say how to get it."""
    from ddfp_lib.data.prepare import prepare_camvid

    prepare_camvid(root)
    _next("camvid", root)


@app.command()
def verify(
    name: Name,
    root: Root,
    sheet: Annotated[
        Path | None, typer.Option(help="Picture of samples to write [ROOT/samples.png].")
    ] = None,
    partial: Partial = False,
) -> None:
    """Decode every image and mask, count classes, and draw a sheet of samples."""
    from ddfp_lib.data.verify import class_table
    from ddfp_lib.data.verify import verify as look

    checked = look(name, root, partial=partial)
    problems = [problem for subset in checked.values() for problem in subset.problems]
    for problem in problems[:20]:
        print(problem)
    if problems:
        raise UserError(f"{root}: {len(problems)} problems, the first {len(problems[:20])} above")
    for notice in [notice for subset in checked.values() for notice in subset.notices]:
        print(f"note: {notice}")
    for subset, found in checked.items():
        without = f", {found.unlabeled:,} without a mask" if found.unlabeled else ""
        print(f"{subset}: {len(found.dataset):,} images{without}")
        print("".join(f"  {line}\n" for line in class_table(found)), end="")
    print(_write_sheet(checked["train"], sheet or root / "samples.png"))


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="Folder or JSON file that an annotation tool exported.")
    ],
    root: Root,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Table of the classes: labelmap.txt, or lines name,r,g,b (color) or value,name."
        ),
    ] = None,
    classes: Annotated[
        str,
        typer.Option(help="Names in the order of the mask values, for example background,cell."),
    ] = "",
    kind: Annotated[
        str | None,
        typer.Option(
            help="Kind of the export [by its files]: colours, values, binary, label-studio, coco "
            "or labelme."
        ),
    ] = None,
) -> None:
    """Make masks of class indices from colored masks, from 0/255 masks, or from a tool's export."""
    from ddfp_lib.data.convert import convert

    names = [name.strip() for name in classes.split(",") if name.strip()]
    done = convert(source, root, kind=kind, table=table, classes=names)
    by = f", drawn by {done.tool}: others differ at borders" if done.tool else ""
    print(f"{root / 'SegmentationClass'}: {len(done.masks):,} masks, read as {done.kind}{by}")
    for name, count in zip((*done.classes, "(ignored)"), done.pixels, strict=True):
        print(f"  {name:<14} {100 * count / max(1, sum(done.pixels)):6.2f} % of pixels")
    print(f"{root / 'classes.txt'}: {', '.join(done.classes)}")
    for notice in done.notices:
        print(f"note: {notice}")


@splits.command()
def fetch(
    name: Annotated[str, typer.Argument(help="voc or cityscapes.")],
    root: Root,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of the lists on disk: <n>/labeled.txt and so on."),
    ] = None,
) -> None:
    """Fetch the lists of the paper's release, and check them against recorded hashes."""
    from ddfp_lib.data.published import fetch_splits

    for folder in fetch_splits(name, root, source):
        print(folder)
    print(f"use one with: --data {root} --labeled splits/{folder.name}/labeled.txt")


@splits.command()
def make(
    name: Name,
    root: Root,
    labeled: Annotated[
        str, typer.Option(help="Labeled images: a count, or a fraction such as 1/16.")
    ],
    seed: Annotated[int, typer.Option(help="Seed of the random choice.")] = 0,
) -> None:
    """Choose labeled images at random, with each class at least once where possible."""
    from ddfp_lib.data import open_dataset
    from ddfp_lib.data.splits import make_split, write_split

    dataset = open_dataset(name, "train", root=root)
    split = make_split(dataset, labeled, seed)
    folder = root / "splits" / f"{len(split[0])}-seed{seed}"
    write_split(dataset, split, folder)
    print(f"{folder}: {len(split[0]):,} labeled, {len(split[1]):,} unlabeled")
    print(f"use it with: --data {root} --labeled splits/{folder.name}/labeled.txt")


def _next(name: str, root: Path) -> None:
    print(f"now look at it: ddfp data verify {name} --root {root}")


def _write_sheet(checked: "Checked", path: Path) -> Path:
    from ddfp_lib.files import write_atomically
    from ddfp_lib.plots.runs import samples
    from ddfp_lib.plots.style import DPI, figure_style

    dataset, chosen = checked.dataset, checked.examples(10)
    figure = samples(
        [dataset.image(index) for index in chosen],
        [dataset.mask(index) for index in chosen],
        [dataset.names[index] for index in chosen],
        dataset.classes,
        dataset.palette,
    )
    with figure_style():
        write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=2 * DPI))
    return path
