"""The table of all files in ``docs/architecture.md``, made from the files' docstrings."""

import ast
import re
from pathlib import Path

LIBRARY = Path(__file__).parents[1]

ROLE = re.compile(r":\w+:`~?([\w.]+)`")


def files_table(rooms: list[str]) -> str:
    """Return a table in Markdown: each module and the first line of its docstring.

    Args:
        rooms: folders of the library, in the order of the table. Files that lie in none come last.
    """
    lines = ["| file | what it is about |", "|---|---|"]
    for folder in [*(LIBRARY / room for room in rooms), LIBRARY]:
        for path in sorted(folder.glob("*.py")):
            if not path.name.startswith("__"):
                name = path.relative_to(LIBRARY).as_posix()
                lines.append(f"| [`{name}`](../ddfp_lib/{name}) | {_promise(path)} |")
    return "\n".join(lines)


def _promise(path: Path) -> str:
    """Return the first line of a module's docstring, in Markdown."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = ROLE.sub(r"`\1`", docstring.split("\n", 1)[0])
    return first.replace("``", "`").replace("|", "\\|")
