"""``ddfp methods``: what methods there are, and how two of them differ."""

from typing import Annotated

import typer


def methods(
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Two methods, such as ddfp noise: print the keys in which they differ."),
    ] = None,
) -> None:
    """List the methods that `--method` and `--methods` accept, or print how two of them differ.

    A .yaml file of your own is a method too: it holds the keys in which it differs from
    ddfp_lib/presets/base.yaml.
    """
    from ddfp_lib.config import differences, presets, summary

    if diff is None:
        for name in presets():
            print(f"{name:<14} {summary(name)}")
        return
    rows = [("key", *diff)]
    rows += [(key, str(one), str(other)) for key, (one, other) in differences(*diff).items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )
