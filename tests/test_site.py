"""The sources of the site: every page is staged, every link leads somewhere.

Building it needs packages that the tests do without; `make site` does, and fails on a warning.
"""

import importlib.util
import json
import re
import shutil
import sys
import types
from pathlib import Path

import pytest

from ddfp_lib.explorer.pages import PAGES
from ddfp_lib.lessons import scripts
from ddfp_lib.plots.style import figure_style, new_picture

ROOT = Path(__file__).parents[1]
SHORTEST_ALT = 40
"""Characters; docs/site/browser counts the same, with those that lessons have stored."""


def loaded(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site = loaded(ROOT / "docs" / "site" / "pages.py")


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    explorer = tmp_path_factory.mktemp("explorer")
    (explorer / "flow.html").touch()
    folder = tmp_path_factory.mktemp("site") / "source"
    return folder, site.stage(folder, explorer=explorer)


def cells(path: Path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        yield cell, "".join(cell["source"])


def test_the_navigation_has_each_page_once(staged):
    folder, names = staged
    index = (folder / "index.md").read_text(encoding="utf-8")
    entries = [
        line
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
        for line in tree.splitlines()
        if line and not line.startswith(":")
    ]
    assert len(entries) == len(set(entries))
    assert set(entries) == {str(Path(name).with_suffix("")) for name in names} - {"index"}
    assert all((folder / name).is_file() for name in names)
    for script in scripts():
        assert f"notebooks/{script.stem}" in entries
    assert {"reproduce/STUDY", "docs/contributing", "docs/architecture", "api/method"} < set(
        entries
    )


def test_a_page_that_is_named_by_hand_must_be_there(staged, tmp_path, monkeypatch):
    folder, names = staged
    parts = ["GPU", "RESULTS", "PHOTOS", "KNOWN_DENSITY"]
    assert [name for name in names if name.startswith("bench/")] == [
        f"bench/{part}.md" for part in parts
    ]
    text = (folder / "bench" / "GPU.md").read_text(encoding="utf-8")
    assert text.startswith("# First check of a GPU\n\n")
    monkeypatch.setattr(site, "CHAPTERS", {"Use": ["b.md", "docs/*.md", "api/*.md"]})
    here, there = tmp_path / "here", tmp_path / "there"
    for name in ("here/docs/a.md", "there/docs/c.md", "there/b.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert site.chapters(here, there) == {"Use": ["b.md", "docs/a.md", "docs/c.md"]}
    with pytest.raises(FileNotFoundError, match=r"b\.md: is missing; 'Use'"):
        site.chapters(here)


def test_the_readme_is_divided_in_two_pages(staged):
    """Each of its sections stands once: on the first page, or on the page that says how to run."""
    folder, _ = staged
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    index = (folder / "index.md").read_text(encoding="utf-8")
    other = (folder / "README.md").read_text(encoding="utf-8")
    assert other.startswith("# Run it\n")
    for title in re.findall(r"^## (.+)$", readme, re.MULTILINE):
        heading = f"\n## {title}\n"
        assert (heading in index) == (title in site.FIRST_PAGE)
        assert (heading in other) == (title not in site.FIRST_PAGE)
    assert "make reproduce" in index
    for page in ("docs/parity.md", "notebooks/05_your_own_data.ipynb", "docs/data.md", "README.md"):
        assert f"]({page})" in index
    with pytest.raises(ValueError, match="has no section 'What we found'"):
        site._sections("# Title\n\n## Start here\n")


def test_no_two_pages_have_one_title(staged):
    folder, names = staged
    titles = []
    for name in names:
        path = folder / name
        text = next(cells(path))[1] if path.suffix == ".ipynb" else path.read_text("utf-8")
        titles.append(site.HEADING.search(text)[1])
    plain = [re.sub(r"^\d\. |: .*$", "", title) for title in titles if "ddfp_lib" not in title]
    assert len(plain) - plain.count("Explore") == len({*plain} - {"Explore"})
    assert len(titles) == len(set(titles))


def test_a_link_named_after_a_file_gets_the_title_of_its_page(tmp_path):
    for name in ("README.md", "docs/a.md", "reproduce/STUDY.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("# About a\n")
    names = ["README.md", "docs/a.md", "reproduce/STUDY.md"]

    def linked(text):
        return site._linked(text, "docs/a.md", names, tmp_path / "source", tmp_path)

    assert linked("[a.md](a.md#x), [`docs/a.md`](a.md)") == "[About a](a.md#x), [About a](a.md)"
    assert linked("[STUDY](../reproduce/STUDY.md)") == "[Findings](../reproduce/STUDY.md)"
    assert linked("the [a](a.md) of it") == "the [a](a.md) of it"
    assert (
        linked("[README](../README.md#what-we-found)") == "[first page](../index.md#what-we-found)"
    )
    assert linked("[README.md](../README.md#map)") == "[Run it](../README.md#map)"


def test_relative_links_and_pictures_lead_to_staged_files(staged):
    folder, names = staged
    seen, short = 0, []
    for name in names:
        path = folder / name
        texts = (
            [text for cell, text in cells(path) if cell["cell_type"] == "markdown"]
            if path.suffix == ".ipynb"
            else [path.read_text(encoding="utf-8")]
        )
        for text in texts:
            text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
            found = [m["target"] for m in (*site.LINK.finditer(text), *site.PICTURE.finditer(text))]
            alts = re.findall(r"!\[([^\]]*)\]\(|<img\b[^>]*\balt=\"([^\"]*)\"", text)
            short += [(name, alt) for alt in map("".join, alts) if len(alt) < SHORTEST_ALT]
            for target in found:
                if re.match(r"[a-z]+:|#", target):
                    continue
                seen += 1
                assert (path.parent / target.partition("#")[0]).exists(), (name, target)
    assert seen > 50
    assert short == [], "say what a picture shows"


def test_lessons_are_shown_with_solutions_folded_and_without_badges(staged):
    folder, _ = staged
    for script in scripts():
        shown = list(cells(folder / "notebooks" / f"{script.stem}.ipynb"))
        text = "\n".join(text for _, text in shown)
        assert "img.shields.io" not in text and "colab" not in text
        solutions = [
            cell
            for cell, _ in shown
            if cell["cell_type"] == "code" and "solution" in cell["metadata"]["tags"]
        ]
        assert len(solutions) >= 2
        for cell in solutions:
            assert "hide-cell" in cell["metadata"]["tags"]
            assert cell["metadata"]["mystnb"]["code_prompt_show"] == "Show a solution"
        assert f"lessons/student/{script.stem}.ipynb" in shown[0][1]


def test_the_alternative_text_of_a_picture_is_stored_and_shown(tmp_path):
    with figure_style():
        picture, _ = new_picture()
    assert "alt" not in picture._repr_png_()[1]
    assert picture.described("Two\n  curves.") is picture
    metadata = picture._repr_png_()[1]
    assert metadata["alt"] == "Two curves." and metadata["width"] == 900
    output = {"output_type": "display_data", "data": {"image/png": ""}}
    described = {**output, "metadata": {"image/png": metadata}}
    notebook = {
        "cells": [
            {"cell_type": "code", "source": ["a\n", "b"], "metadata": {}, "outputs": [o]}
            for o in (described, {**output, "metadata": {}})
        ]
    }
    path = tmp_path / "notebooks" / "01_x.ipynb"
    path.parent.mkdir()
    path.write_text(json.dumps(notebook))
    first, second = json.loads(site.lesson(path, [], tmp_path / "staged"))["cells"]
    assert first["metadata"]["mystnb"] == {"image": {"alt": "Two curves."}}
    assert "mystnb" not in second["metadata"]


def test_a_link_goes_to_a_page_a_picture_or_the_repository(tmp_path, monkeypatch):
    root, source = tmp_path / "root", tmp_path / "source"
    step = "ddfp_lib/training/step.py"
    for name in ("docs/a.md", "docs/b.md", "docs/p.png", "code/x.py", step):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    text = "[b](b.md#top) ![p](p.png) [x](../code/x.py) [code](../code) [w](https://a.org) [h](#h)"
    monkeypatch.setattr(site, "REPOSITORY", "")  # no public address: named, not linked
    linked = site._linked(text, "docs/a.md", ["docs/a.md", "docs/b.md"], source, root)
    assert linked == "[b](b.md#top) ![p](p.png) x code [w](https://a.org) [h](#h)"
    linked = site._linked(f"[`step.py`](../{step})", "docs/a.md", [], source, root)
    assert linked == "{py:mod}`step.py <ddfp_lib.training.step>`"
    monkeypatch.setattr(site, "REPOSITORY", "https://github.com/somebody/copy")
    linked = site._linked(text, "docs/a.md", ["docs/a.md", "docs/b.md"], source, root)
    assert linked == (
        f"[b](b.md#top) ![p](p.png) [x]({site.REPOSITORY}/blob/main/code/x.py) "
        f"[code]({site.REPOSITORY}/tree/main/code) [w](https://a.org) [h](#h)"
    )
    assert (source / "docs" / "p.png").is_file()
    fenced = "```\n[x](nothing.py)\n```"
    assert site._linked(fenced, "docs/a.md", [], source, root) == fenced
    wrapped = site._linked("its bytes at 70\n% of the bandwidth", "docs/a.md", [], source, root)
    assert wrapped == "its bytes at 70\n\\% of the bandwidth"  # MyST: % begins a comment
    with pytest.raises(FileNotFoundError, match=r"docs/a.md: the link nothing.md leads to nothing"):
        site._linked("[n](nothing.md)", "docs/a.md", [], source, root)


def test_the_site_has_a_page_for_each_page_of_the_explorer(staged):
    folder, _ = staged
    assert {name: page.title for name, page in PAGES.items()} == site.EXPLORER
    assert "<iframe" in (folder / "explore" / "flow.md").read_text()
    assert "make explorer" in (folder / "explore" / "pictures.md").read_text()
    for name, page in PAGES.items():
        text = (folder / "explore" / f"{name}.md").read_text()
        assert text.startswith("# Explore: ")
        assert f'The interactive page "{page.title}" belongs to [lesson' in " ".join(text.split())
        assert "![" not in text and "## " not in text
    guide = (folder / "docs" / "explorer.md").read_text()
    for name, page in PAGES.items():
        if name == "flow":  # the only one that is built here
            assert '<a href="../explorer/flow.html">Open the tool</a>' in guide
        else:
            assert f"[Open this page](../explore/{name}.md)" in guide
        text = "".join(text for _, text in cells(folder / "notebooks" / f"{page.lesson}.ipynb"))
        assert f"](../explore/{name}.md)" in text, "the lesson links its page"


def test_the_settings_can_be_read_where_they_are_staged(tmp_path, monkeypatch):
    """Sphinx reads a copy of them, beside the staged pages."""
    katex = types.ModuleType("sphinxcontrib.katex")  # the tests do without it
    katex.KaTeXServer = types.SimpleNamespace(start_network_socket=None)
    monkeypatch.setitem(sys.modules, "sphinxcontrib", types.ModuleType("sphinxcontrib"))
    monkeypatch.setitem(sys.modules, "sphinxcontrib.katex", katex)
    monkeypatch.setattr(sys.modules["sphinxcontrib"], "katex", katex, raising=False)
    shutil.copy(ROOT / "docs" / "site" / "conf.py", tmp_path)
    settings = loaded(tmp_path / "conf.py")
    assert settings.html_theme_options["repository_url"] == site.REPOSITORY
    assert settings.SHAPE.sub("<>", "of (B, C, *S) and (N, 2)") == "of <> and <>"
    shown = (
        "(root: ~types.Annotated[~pathlib.Path | None, <typer.models.OptionInfo object at 0x7f>])"
    )
    plain, _ = settings._options_as_types(None, "function", "verify", None, {}, shown, "")
    assert plain == "(root: ~pathlib.Path | None)"
    lines = ["Pixels: a size.", "And more."]
    settings._values_without_types(None, "data", "SIZE", None, {}, lines)
    assert ":" not in lines[0], "napoleon would take 'Pixels' for a type"
    settings._colons_again(None, "data", "SIZE", None, {}, lines)
    assert lines == ["Pixels: a size.", "And more."]


def test_lessons_link_the_explorer_in_the_repository_too():
    """There the link leads to a heading of a page that says how to make it."""
    guide = (ROOT / "docs" / "explorer.md").read_text(encoding="utf-8")
    assert "make explorer" in guide
    for page in PAGES.values():
        assert f"\n## {page.title}\n" in guide
        lesson = ROOT / "notebooks" / f"{page.lesson}.ipynb"
        text = " ".join("".join(text for _, text in cells(lesson)).split())
        assert f"](../docs/explorer.md#{site._slug(page.title)})" in text
        assert "make explorer" in text
