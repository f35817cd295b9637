"""The pages of the site: what is where, and how sources become what Sphinx reads.

A page is a Markdown file or a stored lesson of this repository. Sentences are copied, not edited:
links that leave the site go to the repository, a link that is named after a file gets the title of
its page, solutions are folded, badges are left out. The README is divided in two pages: the first
page, and how to run it.
"""

import json
import os
import re
import shutil
import tomllib
from pathlib import Path

from ddfp_lib.lessons import public_address

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = public_address(ROOT / "pyproject.toml")
"""Where files that are no page are linked to; without an address they are named, not linked."""

CHAPTERS = {
    "Lessons": ["notebooks/README.md", "notebooks/[0-9]*.ipynb", "docs/glossary.md"],
    "Explorer": [
        "docs/explorer.md",
        "explore/separation.md",
        "explore/flow.md",
        "explore/pictures.md",
    ],
    "Use": [
        "README.md",
        "docs/data.md",
        "docs/commands.md",
        "reproduce/README.md",
        "docs/backbones.md",
        "docs/*.md",
    ],
    "Results": [
        "reproduce/STUDY.md",
        "reproduce/PLAN.md",
        "reproduce/RESULTS.md",
        "docs/parity.md",
        "reproduce/released/README.md",
        "bench/GPU.md",
        "bench/RESULTS.md",
        "bench/PHOTOS.md",
        "bench/KNOWN_DENSITY.md",
        "docs/robustness.md",
        "reproduce/LOG.md",
    ],
    "Library": ["docs/architecture.md", "docs/contributing.md"],
    "API": ["api/*.md"],
}
"""Titles of the navigation and their pages, which are taken once: a pattern may match none, a page
that is named by hand must be there."""

TITLES = {
    "README.md": "Run it",
    "notebooks/README.md": "All lessons",
    "reproduce/STUDY.md": "Findings",
    "reproduce/RESULTS.md": "Results beside the paper's",
    "bench/GPU.md": "First check of a GPU",
    "bench/PHOTOS.md": "Training step on photographs",
}
"""Titles that pages have on the site alone: the menu does not show their folder's name. The last
two have none in the repository: bench/RESULTS.md takes them in, under its own headings."""

FIRST_PAGE = ("What we found", "Start here", "Results", "Whose method is it?")
"""Sections of the README that are on the first page; its other sections are the page README.md."""

NO_PAGES = {"docs/phrases.txt"}

EXPLORER = {
    "separation": "Low-density separation",
    "flow": "The flow, coupling by coupling",
    "pictures": "What a step does to a picture",
}

GUIDE = "docs/explorer.md"
"""The page about them; links to its headings lead to the pages themselves."""

LINK = re.compile(r"(?P<head>!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()(?P<target>[^)\s]+)(?P<tail>[^)]*\))")
PICTURE = re.compile(r'(?P<head><img\b[^>]*\bsrc=")(?P<target>[^"]+)(?P<tail>")')
BADGE = re.compile(r"^\[!\[[^\]]*\]\(https?://[^)]*\)\]\([^)]*\)\s*$\n?", re.MULTILINE)
MODULE = re.compile(r"ddfp_lib/[a-z]+/[a-z]\w*\.py")
HEADING = re.compile(r"^# (.+)$", re.MULTILINE)
SECTION = re.compile(r"^(?=## )", re.MULTILINE)
MERMAID = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)
PERCENT = re.compile(r"^([ \t]*)%", re.MULTILINE)
FENCED = re.compile(r"^([ \t]*(?:```|~~~).*?^[ \t]*(?:```|~~~)[^\n]*)$", re.DOTALL | re.MULTILINE)


def chapters(*folders: Path) -> dict[str, list[str]]:
    """Return the pages of each chapter, paths relative to one of the folders.

    A page is in one chapter. Pages that a later chapter names by hand are not taken by an earlier
    pattern.

    Raises:
        FileNotFoundError: a page that is named by hand is in none of the folders.
    """
    by_hand = {name for names in CHAPTERS.values() for name in names if "*" not in name}
    taken: set[str] = set()
    found: dict[str, list[str]] = {}
    for title, patterns in CHAPTERS.items():
        pages = found[title] = []
        for pattern in patterns:
            matches = {
                path.relative_to(folder).as_posix()
                for folder in folders
                for path in folder.glob(pattern)
            }
            if pattern in by_hand and not matches:
                raise FileNotFoundError(f"{pattern}: is missing; {title!r} of CHAPTERS names it")
            for name in sorted(matches):
                if name in taken or ("*" in pattern and name in by_hand):
                    continue
                taken.add(name)
                pages.append(name)
    return found


def stage(source: Path, root: Path = ROOT, *, explorer: Path | None = None) -> list[str]:
    """Fill a folder with what Sphinx reads; return the names of its pages.

    Args:
        source: the folder; it is emptied first.
        root: the repository.
        explorer: folder of the explorer's pages; where one is missing the site says so.
    """
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    _explorer_pages(source, root, explorer)
    _api_pages(source, root)
    names = [name for pages in chapters(root, source).values() for name in pages]
    for name in names:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".ipynb"):
            target.write_text(lesson(root / name, names, source), encoding="utf-8")
            continue
        text = (target if target.exists() else root / name).read_text(encoding="utf-8")
        if name == "README.md":
            text = "# README\n\n" + "".join(
                part for title, part in _sections(text).items() if title not in ("", *FIRST_PAGE)
            )
        if name == "docs/architecture.md":
            text = MERMAID.sub(_house(root), text)
        if name == GUIDE:
            text = _opened(text, explorer)
        if name in TITLES:
            text = HEADING.sub("", text, count=1) if HEADING.match(text) else text
            text = f"# {TITLES[name]}\n\n{text.lstrip()}"
        target.write_text(_linked(text, name, names, source, root), encoding="utf-8")
    (source / "index.md").write_text(_index(root, source, names), encoding="utf-8")
    return [*names, "index.md"]


def lesson(path: Path, names: list[str], source: Path) -> str:
    """Return a stored lesson as the site shows it.

    Args:
        path: of the .ipynb.
        names: all pages.
        source: the staged folder, for pictures that Markdown cells show.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    name = f"{path.parent.name}/{path.name}"
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        text = "".join(cell["source"])
        tags = cell["metadata"].setdefault("tags", [])
        if cell["cell_type"] == "code":
            if "google.colab" in text:
                continue
            if "solution" in tags:
                tags.append("hide-cell")
                _settings(cell)["code_prompt_show"] = "Show a solution"
                _settings(cell)["code_prompt_hide"] = "Hide the solution"
            for output in cell.get("outputs", []):
                alt = output.get("metadata", {}).get("image/png", {}).get("alt")
                if alt:
                    _settings(cell).setdefault("image", {})["alt"] = alt
        else:
            text = BADGE.sub("", text)
            if number == 0:
                text = f"{text.rstrip()}\n\n{_downloads(path)}"
            text = _linked(text, name, names, source, path.parents[1])
        cell["source"] = text
        cells.append(cell)
    notebook["cells"] = cells
    return json.dumps(notebook)


def _settings(cell: dict) -> dict:
    return cell["metadata"].setdefault("mystnb", {})


def _downloads(path: Path) -> str:
    """Return a line of links: the lesson, its version without solutions, the source."""
    stem = path.stem
    source = f'; <a href="{REPOSITORY}/blob/main/notebooks/{stem}.py">source</a>'
    return (
        f'<p class="downloads">Download <a href="../lessons/{stem}.ipynb" download>the lesson</a>, '
        f'<a href="../lessons/student/{stem}.ipynb" download>without solutions</a>'
        f"{source if REPOSITORY else ''}</p>\n"
    )


def _linked(text: str, name: str, names: list[str], source: Path, root: Path) -> str:
    """Return Markdown whose relative links lead to pages, staged pictures or the repository.

    Raises:
        FileNotFoundError: a link leads to nothing.
    """

    def resolved(match: re.Match) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or re.match(r"[a-z]+:", match["target"]):
            return match[0]
        path = Path(os.path.normpath(Path(name).parent / target)).as_posix()
        page = next((n for n, title in EXPLORER.items() if _slug(title) == anchor), None)
        if path == GUIDE and page is not None:
            place = os.path.relpath(f"explore/{page}.md", Path(name).parent)
            return f"{match['head']}{place}{match['tail']}"
        if path == "README.md" and anchor in map(_slug, FIRST_PAGE):
            place = os.path.relpath("index.md", Path(name).parent)
            head = re.sub(r"\[README(\.md)?\]", "[first page]", match["head"])
            return f"{head}{place}#{anchor}{match['tail']}"
        if path in names or (source / path).is_file():
            return f"{_named(match['head'], path, root)}{match['target']}{match['tail']}"
        if not (root / path).exists():
            raise FileNotFoundError(f"{name}: the link {match['target']} leads to nothing")
        if re.search(r"\.(png|svg|jpg)$", path) and match["head"].startswith(("!", "<img")):
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, source / path)
            return match[0]
        if not REPOSITORY:
            label = match["head"].removeprefix("[").removesuffix("](")
            if MODULE.fullmatch(path):  # the site has a description of its own, with the lines
                module = path.removesuffix(".py").replace("/", ".")
                return f"{{py:mod}}`{label.strip('`')} <{module}>`"
            return label
        kind = "tree" if (root / path).is_dir() else "blob"
        anchor = f"#{anchor}" if anchor else ""
        return f"{match['head']}{REPOSITORY}/{kind}/main/{path}{anchor}{match['tail']}"

    # every second piece is fenced; a link may run over the end of a line of the others
    pieces = FENCED.split(text)
    pieces[::2] = [PICTURE.sub(resolved, LINK.sub(resolved, piece)) for piece in pieces[::2]]
    # a line that begins with a percent sign would be a comment there, and left out
    pieces[::2] = [PERCENT.sub(r"\1\%", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _named(head: str, path: str, root: Path) -> str:
    """Return the head of a link to a page; a label that is the name of its file becomes its title.

    Args:
        head: ``[label](``, or that of a picture.
        path: of the page, relative to ``root``.
        root: the repository.
    """
    label = head.removeprefix("[").removesuffix("](").strip("`")
    capitals = label.isupper() and label == Path(path).stem  # as STUDY
    if not (label.endswith(".md") and path.endswith(label)) and not capitals:
        return head
    found = HEADING.search((root / path).read_text(encoding="utf-8"))
    title = TITLES.get(path) or (found[1] if found else label)
    return f"[{title}]("


def _sections(text: str) -> dict[str, str]:
    """Return the sections of the README by their titles; what is above the first has none.

    Raises:
        ValueError: a section of the first page is missing.
    """
    parts = SECTION.split(text)
    found = {
        part.partition("\n")[0].removeprefix("## ") if part.startswith("## ") else "": part
        for part in parts
    }
    for title in FIRST_PAGE:
        if title not in found:
            raise ValueError(f"README.md: has no section {title!r}; see FIRST_PAGE in {__file__}")
    return found


def _house(root: Path) -> str:
    """Return the packages as a stack of boxes, from the layers of pyproject.toml."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(
        each for each in settings["tool"]["importlinter"]["contracts"] if each["type"] == "layers"
    )
    rows = [
        "".join(f"<span>{room.strip()}</span>" for room in layer.split("|"))
        for layer in contract["layers"]
    ]
    boxes = "\n".join(f"<div>{row}</div>" for row in rows)
    return f'<div class="house" role="img" aria-label="Packages, top first">\n{boxes}\n</div>\n'


def _slug(title: str) -> str:
    """Return the anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _opened(text: str, explorer: Path | None) -> str:
    """Return the page about the explorer with a link to each tool below its heading.

    Args:
        text: of the page.
        explorer: folder of the tools; one that is not built yet gets a link to the page that says
            so.
    """
    for name, title in EXPLORER.items():
        heading = f"## {title}\n"
        if heading not in text:
            raise ValueError(f"{GUIDE}: has no heading {title!r}")
        link = f"[Open this page](../explore/{name}.md)"
        if explorer is not None and (explorer / f"{name}.html").is_file():
            link = f'<p><a href="../explorer/{name}.html">Open the tool</a></p>'
        text = text.replace(heading, f"{heading}\n{link}\n")
    return text


def _explorer_pages(source: Path, root: Path, explorer: Path | None) -> None:
    """Write the pages to which lessons link: the guide's words, and the tool in a frame."""
    folder = source / "explore"
    folder.mkdir()
    guide = SECTION.split((root / GUIDE).read_text(encoding="utf-8"))
    for name, title in EXPLORER.items():
        about = next(part for part in guide if part.startswith(f"## {title}\n"))
        words = [part for part in about.split("\n\n")[1:] if not part.startswith("![")]
        if explorer is not None and (explorer / f"{name}.html").is_file():
            frame = (
                "```{raw} html\n"
                f'<iframe class="explorer" src="../explorer/{name}.html" title="{title}">'
                "</iframe>\n"
                f'<p><a href="../explorer/{name}.html">Open it on a page of its own</a></p>\n'
                "```\n"
            )
        else:
            frame = "This page is not built yet: run `make explorer`, then `make site`.\n"
        # lesson 1 has the same title, so the menu and the search need another one
        heading = f"# Explore: {title[0].lower()}{title[1:]}"
        text = "\n\n".join([heading, *(part.strip() for part in words), frame])
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def _api_pages(source: Path, root: Path) -> None:
    """Write a page for each package of the library, with all its modules."""
    folder = source / "api"
    folder.mkdir()
    for room in sorted(path.parent for path in (root / "ddfp_lib").glob("*/__init__.py")):
        modules = sorted(path.stem for path in room.glob("[a-z]*.py"))
        title = f"ddfp_lib.{room.name}"
        parts = [f"# {title}\n\n```{{eval-rst}}\n.. automodule:: {title}\n```\n"]
        if room.name == "cli":
            parts.append(
                "What each command does, with an example: [Commands](../docs/commands.md).\n"
            )
        parts += [
            f"## {room.name}.{module}\n\n```{{eval-rst}}\n"
            f".. automodule:: ddfp_lib.{room.name}.{module}\n   :members:\n```\n"
            for module in modules
        ]
        (folder / f"{room.name}.md").write_text("\n".join(parts), encoding="utf-8")


def _index(root: Path, source: Path, names: list[str]) -> str:
    """Return the first page: sections of the README, the ways on, and the navigation."""
    sections = _sections((root / "README.md").read_text(encoding="utf-8"))
    found, start, results, whose = (
        _linked(sections[title], "index.md", names, source, root) for title in FIRST_PAGE
    )
    lead = _linked(sections[""], "index.md", names, source, root)
    ways = """\
## Where to go

| you want | go to |
|---|---|
| the idea, in the browser | [explorer](docs/explorer.md) |
| the idea, step by step | [lessons](notebooks/README.md) |
| what was found, with figures | [Findings](reproduce/STUDY.md) |
| our scores beside the paper's | [Results beside the paper's](reproduce/RESULTS.md) |
| to run it | `make reproduce`: [Run it](README.md); GPUs and clusters: \
[Reproduce](reproduce/README.md) |
| your own images | [lesson 5](notebooks/05_your_own_data.ipynb), then \
[Data formats](docs/data.md) |
| a command | [Commands](docs/commands.md), each with an example |
| where paper, released code and this project differ | \
[Parity with the release](docs/parity.md) |
| where the step is computed | {py:class}`ddfp_lib.method.perturb.DensityDescent`, and one whole \
training step in {py:mod}`ddfp_lib.training.reference_step` |
| the meaning of a term | [glossary](docs/glossary.md) |
| to add something | [contributing](docs/contributing.md) |

"""
    parts = [lead + found + start + ways + results + whose]
    for title, pages in chapters(source).items():
        entries = "\n".join(Path(page).with_suffix("").as_posix() for page in pages)
        parts.append(
            f"```{{toctree}}\n:hidden:\n:caption: {title}\n:maxdepth: 1\n\n{entries}\n```\n"
        )
    return "\n".join(parts)
