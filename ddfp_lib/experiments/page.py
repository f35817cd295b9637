"""Turn an executed notebook into one self-contained HTML page without code."""

import html
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --back: #fff; --line: #d0d7de; --soft: #57606a;
  --panel: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --back: #14181e; --line: #3b434d;
  --soft: #a3acb7; --panel: #1f252d; } }
body { margin: 0; color: var(--ink); background: var(--back);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 12px 16px 40px; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2rem; }
.anchor-link { display: none; }
figure { margin: 12px 0; } figure img { width: 100%; height: auto; display: block;
  background: #fff; border-radius: 6px; }
figure a { font-size: .85rem; color: inherit; }
.dataframe, table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; max-width: 100%; margin: 8px 0; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 600; } tbody th { text-align: left; }
code { background: var(--panel); padding: 1px 4px; border-radius: 4px; overflow-wrap: anywhere; }
pre { overflow-x: auto; }
@media (max-width: 640px) { figure { overflow-x: auto; } figure img { min-width: 640px; } }
"""

MOST_BYTES = 1_900_000
"""Links that save a figure stop here, so that the page can still be sent by mail."""

IMAGE = re.compile(r"<img\b[^>]*>", re.DOTALL)
SOURCE = re.compile(r'\bsrc="(?P<address>data:image/(?P<kind>[a-z+]+)[^"]*)"')
TABLE = re.compile(r"<table\b.*?</table>", re.DOTALL)


def to_html(notebook: Path) -> str:
    """Return an executed notebook as one self-contained page, code and progress left out.

    Warnings of the kernel are left out too; they were printed while it ran. Figures fill the
    width and can be saved, tables scroll inside themselves.

    Args:
        notebook: path of the .ipynb. Its first heading is the title of the page.
    """
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    settings = Config()
    settings.HTMLExporter.exclude_input = True
    settings.HTMLExporter.exclude_input_prompt = True
    settings.HTMLExporter.exclude_output_prompt = True
    settings.HTMLExporter.template_name = "basic"
    settings.TagRemovePreprocessor.enabled = True
    settings.TagRemovePreprocessor.remove_cell_tags = {"injected-parameters"}
    settings.TagRemovePreprocessor.remove_all_outputs_tags = {"progress"}
    exporter = HTMLExporter(config=settings)
    exporter.register_preprocessor(_without_warnings, enabled=True)
    body, _ = exporter.from_filename(str(notebook))
    heading = re.search(r"<h1[^>]*>(.*?)<", body)
    title = html.unescape(heading[1]) if heading else notebook.stem
    body = TABLE.sub(lambda table: f'<div class="scroll">{table[0]}</div>', body)
    body = _with_figures(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _with_figures(body: str) -> str:
    """Return a page's body with each picture as a figure that fills the width and can be saved.

    A link without scripts holds the picture once more. Small pictures have one first; those with
    which the page would have more than :data:`MOST_BYTES` have none.
    """
    images = IMAGE.findall(body)
    left, saved = MOST_BYTES - len(body.encode()), set()
    for number in sorted(range(len(images)), key=lambda number: len(images[number])):
        left -= len(images[number])
        if left >= 0:
            saved.add(number)
    numbers = itertools.count()

    def figure(image: re.Match) -> str:
        number = next(numbers)
        source = SOURCE.search(image[0])
        link = ""
        if number in saved and source:
            name = f"figure-{number + 1}.{source['kind'].removesuffix('+xml')}"
            link = f'<a href="{source["address"]}" download="{name}">Save this figure</a>'
        return f"<figure>{image[0]}{link}</figure>"

    return IMAGE.sub(figure, body)


def _without_warnings(
    notebook: "NotebookNode", resources: dict[str, Any]
) -> tuple["NotebookNode", dict[str, Any]]:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    return notebook, resources
