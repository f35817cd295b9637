"""Making the pages of the explorer.

python -m ddfp_lib.explorer site/explorer
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ddfp_lib.errors import UserError
from ddfp_lib.explorer.pages import PAGES, write_pages
from ddfp_lib.explorer.pictures import IMAGES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, see the module's first lines; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ddfp_lib.explorer",
        description="Write the pages of the explorer; 3 minutes on 2 cores.",
    )
    parser.add_argument("out", type=Path, help="folder of the pages")
    parser.add_argument("--only", default="", help=f"names and commas: {', '.join(PAGES)} [all]")
    parser.add_argument("--run", type=Path, help="show a finished run on the page `pictures`")
    parser.add_argument("--data", type=Path, help="folder of the run's data set")
    parser.add_argument("--images", type=int, default=IMAGES, help="images of the page [8]")
    given = parser.parse_args(arguments)
    try:
        if given.images < 1:
            raise UserError(f"--images {given.images}: give 1 or more")
        names = [name.strip() for name in given.only.split(",") if name.strip()]
        if given.run is not None and not names:
            names = ["pictures"]
        write_pages(given.out, names, run=given.run, data=given.data, images=given.images)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
