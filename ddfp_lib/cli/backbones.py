"""``ddfp backbones``: which timm backbones work here, and how."""

from pathlib import Path
from typing import Annotated

import typer

WIDTHS = (26, 32, 5, 15, 17, 28)
"""Of the printed columns, but the last."""


def backbones(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="timm's names, such as resnet50 or swin_tiny_patch4_window7_224."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A Markdown page whose table is renewed, such as docs/backbones.md."),
    ] = None,
) -> None:
    """Show the output strides, the image sizes and the normalization of a timm backbone.

    Without names: one small backbone of every module family of timm, in a few minutes. Nothing is
    downloaded.
    """
    from timm.models import list_modules
    from tqdm import tqdm

    from ddfp_lib.models.families import COLUMNS, SMALL, examine, module_of

    chosen = [(module_of(name), name) for name in names or ()]
    chosen = chosen or [
        (module, name) for module, name in SMALL.items() if module in list_modules()
    ]
    rows = []
    tqdm.write(_line(COLUMNS))
    for module, name in tqdm(chosen, unit="backbone", disable=None if len(chosen) > 1 else True):
        rows.append(examine(name).cells(module))
        tqdm.write(_line(rows[-1]))
    if out is not None:
        _renew(out, [COLUMNS, ("---",) * len(COLUMNS), *rows])


def _line(cells: tuple[str, ...]) -> str:
    *fixed, last = cells
    aligned = (f"{cell:<{width}}" for cell, width in zip(fixed, WIDTHS, strict=True))
    return "  ".join([*aligned, last]).rstrip()


def _renew(path: Path, rows: list[tuple[str, ...]]) -> None:
    from ddfp_lib.errors import UserError
    from ddfp_lib.files import write_text
    from ddfp_lib.reports.pages import replace_block

    try:
        page = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    write_text(path, replace_block(page, "backbones", table, by="ddfp backbones"))
