"""The lessons: executing and storing them, the student's version, and what a stored one must be.

python -m ddfp_lib.lessons store
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ddfp_lib.errors import UserError
from ddfp_lib.lessons import GUARDS, scripts, store, store_texts, student


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, see the module's first lines; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ddfp_lib.lessons")
    commands = parser.add_subparsers(dest="command", required=True)
    storing = commands.add_parser("store", help="execute lessons and store their outputs")
    storing.add_argument("beginnings", nargs="*", metavar="NN", help="such as 02; none: all")
    wording = commands.add_parser("texts", help="store changed texts; nothing is executed")
    wording.add_argument("beginnings", nargs="*", metavar="NN", help="such as 02; none: all")
    teaching = commands.add_parser("student", help="write versions without solutions")
    teaching.add_argument("folder", type=Path)
    commands.add_parser("check", help="say what is wrong with the stored pairs")
    given = parser.parse_args(arguments)
    try:
        if given.command == "store":
            for script in scripts(beginnings=given.beginnings):
                seconds = store(script)
                size = script.with_suffix(".ipynb").stat().st_size
                print(f"{script.stem}: {seconds:.0f} s, {size / 1000:.0f} kB", flush=True)
        elif given.command == "texts":
            for script in scripts(beginnings=given.beginnings):
                store_texts(script)
                print(f"{script.stem}: texts stored")
        elif given.command == "student":
            for script in scripts():
                print(student(script, given.folder))
        else:
            wrong = [
                f"{s.stem}: {line}" for s in scripts() for guard in GUARDS for line in guard(s)
            ]
            print("\n".join(wrong) or "all lessons are as they should be")
            return 1 if wrong else 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
