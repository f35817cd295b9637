"""The command line, ``ddfp``: one file for each group of commands.

Heavy imports are inside the commands, so that ``ddfp --help`` is quick.
"""

import sys
from collections.abc import Callable

import typer

from ddfp_lib.cli import backbones, data, experiments, methods, runs
from ddfp_lib.errors import UserError

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 plus the number of the signal, as shells have it."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Density-Descending Feature Perturbation for semi-supervised segmentation.",
    epilog="Start with: ddfp reproduce digits   (no GPU needed; 8 to 35 minutes on 2 cores)",
)

app.add_typer(data.app, name="data")
for command in (
    methods.methods,
    backbones.backbones,
    runs.train,
    runs.evaluate,
    runs.predict,
    experiments.reproduce,
    experiments.study,
    experiments.record,
    experiments.report,
):
    app.command()(command)


def run(command: Callable[[], object]) -> int:
    """Call ``command``; return its exit status.

    Bad input prints one line and gives status 2; a loss that is not finite, or a lost process, one
    line and status 1; Ctrl-C one line and status 130.
    """
    try:
        command()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("ddfp: interrupted; start the same command again to continue", file=sys.stderr)
        raise
    except UserError as error:
        print(f"ddfp: {_visible(error)}", file=sys.stderr)
        return 2
    except (FloatingPointError, ConnectionError) as error:
        print(f"ddfp: {_visible(error)}", file=sys.stderr)
        return 1
    return 0


def _visible(error: Exception) -> str:
    r"""Return a message in one line: a line break, as a path may have, is shown as ``\n``."""
    return str(error).replace("\r", "\\r").replace("\n", "\\n")


def main() -> None:
    """Run the command line."""
    sys.exit(run(app))
