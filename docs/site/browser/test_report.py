"""The page of an executed notebook, such as the report of a run, in a browser."""

import base64
import io

import nbformat
import pytest
from conftest import WIDTHS
from PIL import Image

from ddfp_lib.experiments.page import to_html

ALT = "Two gray halves, which stand for a figure of a report."


@pytest.fixture
def report(tmp_path):
    """A page with one table that is wider than a phone, one figure and long words."""
    picture = Image.new("L", (900, 300), 230)
    picture.paste(120, (0, 0, 450, 300))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    row = "".join(f"<td>{n}.25 +- 0.{n}</td>" for n in range(20))
    outputs = [
        {"text/html": f"<table><tr>{row}</tr></table>"},
        {"image/png": base64.b64encode(stream.getvalue()).decode()},
    ]
    cells = [nbformat.v4.new_markdown_cell(f"# Methods compared\n\n`{'settings.' * 12}` is long.")]
    for data in outputs:
        metadata = {"image/png": {"alt": ALT, "width": 900}} if "image/png" in data else {}
        output = nbformat.v4.new_output("display_data", data, metadata=metadata)
        cells.append(nbformat.v4.new_code_cell("show()", outputs=[output]))
    path = tmp_path / "report.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    html = path.with_suffix(".html")
    html.write_text(to_html(path), encoding="utf-8")
    return html, stream.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_fits_and_its_figure_can_be_saved(browser, report, photograph, width, scheme):
    path, stored = report
    context = browser.new_context(
        viewport={"width": width, "height": WIDTHS[width]},
        color_scheme=scheme,
        java_script_enabled=False,
        accept_downloads=True,
    )
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.goto(path.as_uri())
    photograph(page, f"report-{width}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inside, across = page.evaluate(
        "(({ scrollWidth, clientWidth }) => [scrollWidth, clientWidth])"
        "(document.querySelector('.scroll'))"
    )
    assert inside > across, "the table scrolls inside itself"
    image = page.locator("figure img")
    assert image.get_attribute("alt") == ALT
    shown, there = (page.locator(each).bounding_box()["width"] for each in ("figure img", "figure"))
    if width == 1280:
        assert shown == pytest.approx(there, abs=1)
        assert shown > 900, "it uses the width"
    else:
        assert shown >= 640, "its labels can be read"
        assert there <= width
    with page.expect_download() as download:
        page.click("text=Save this figure")
    assert download.value.suggested_filename == "figure-1.png"
    assert download.value.path().read_bytes() == stored
    context.close()
