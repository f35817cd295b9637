"""Every page of the site, at two widths: nothing is broken, missing, too wide or too heavy."""

import re
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from conftest import SITE, WIDTHS

MOST_BYTES = 1_500_000
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if not {"_static", "_modules"} & set(path.parts)
)

MODULES = sorted(path.relative_to(SITE).as_posix() for path in SITE.glob("_modules/**/*.html"))
SOME = MODULES[:: max(1, len(MODULES) // 10)]
"""All have one form, the lines of a file; a tenth of them shows whether it fits."""

SHORTEST_ALT = 40
LESSON = "notebooks/03_density_descending_shift.html"

WIDER = """() => {
  const wide = document.documentElement.clientWidth;
  return document.documentElement.scrollWidth > wide + 1
    ? [...document.querySelectorAll("main *, article *")].filter((element) =>
        element.getBoundingClientRect().right > wide + 1).slice(0, 3)
        .map((element) => element.outerHTML.slice(0, 120)).concat("the page scrolls sideways")
    : [];
}"""

PICTURES = """() => [...document.images].map((image) => [image.getAttribute("src") || "",
  image.getAttribute("alt"), image.naturalWidth, image.matches("article img:not(.toggler)")])"""
"""What each picture is; the index of modules has one, a toggler, that folds its rows."""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_errors_and_fits_the_screen(open_page, photograph, name, width):
    page = open_page(name, width)
    page.evaluate("""() => document.querySelectorAll("img[loading=lazy]")
      .forEach((image) => { image.loading = "eager"; })""")
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    page.wait_for_timeout(100)
    photograph(page, f"{name.replace('/', '-').removesuffix('.html')}-{width}")
    assert page.wrong == []
    assert page.evaluate(WIDER) == []
    for source, alt, pixels, in_article in page.evaluate(PICTURES):
        assert pixels > 0, f"{source[:80]} does not show"
        assert alt is not None, f"{source[:80]} has no alternative text"
        assert not re.search(r"_images/|<Picture|\.png$", alt), f"{alt!r} describes nothing"
        assert not in_article or len(alt) >= SHORTEST_ALT, f"{alt!r} says too little"


@pytest.mark.parametrize("name", SOME)
def test_the_lines_of_a_file_fit_a_phone(open_page, name):
    page = open_page(name, 390)
    assert page.wrong == []
    assert page.evaluate(WIDER) == []
    assert page.locator("article pre").first.is_visible()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_light_and_its_links_lead_somewhere(name):
    path = SITE / name
    text = path.read_text(encoding="utf-8")
    explorer = name.startswith("explorer/")
    assert path.stat().st_size <= (2_000_000 if explorer else MOST_BYTES)
    for link in set(re.findall(r'<(?:a|link)\b[^>]*?\bhref="([^"]+)"', text)):
        address, anchor = urldefrag(urljoin(f"http://site/{name}", link.replace("&amp;", "&")))
        parts = urlparse(address)
        if parts.netloc != "site" or parts.scheme != "http":
            continue
        target = SITE / unquote(parts.path).lstrip("/")
        target = target / "index.html" if target.is_dir() else target
        assert target.is_file(), f"{link} leads to nothing"
        if anchor and target.suffix == ".html" and not target.is_relative_to(SITE / "explorer"):
            assert re.search(rf'\b(?:id|name)="{re.escape(anchor)}"', _text(target)), link


_texts: dict[Path, str] = {}


def _text(path):
    if path not in _texts:
        _texts[path] = path.read_text(encoding="utf-8")
    return _texts[path]


def test_formulas_are_rendered_without_scripts(open_page):
    page = open_page("notebooks/02_normalizing_flow_density.html", scripts=False)
    assert page.locator(".katex-html").count() > 5
    assert page.locator(".katex-error").count() == 0
    family = page.evaluate("getComputedStyle(document.querySelector('.katex')).fontFamily")
    assert "KaTeX" in family


@pytest.mark.parametrize("name", ["reproduce/RESULTS.html", "reproduce/STUDY.html"])
def test_words_of_a_table_stay_whole_on_a_phone(open_page, name):
    page = open_page(name, 390)
    broken = page.evaluate("""() => [...document.querySelectorAll("article :is(th, td)")]
      .filter((cell) => /^\\w+$/.test(cell.textContent.trim())).filter((cell) => {
        const text = document.createRange();
        text.selectNodeContents(cell);
        return new Set([...text.getClientRects()].map((box) => Math.round(box.top))).size > 2;
      }).map((cell) => cell.textContent.trim())""")
    assert broken == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 391


def test_solutions_are_folded_and_open(open_page):
    page = open_page(LESSON)
    solution = page.locator("details:has-text('Show a solution')").first
    assert solution.get_attribute("open") is None
    solution.locator("summary").click()
    assert solution.get_attribute("open") is not None
    assert solution.locator("pre").first.is_visible()


def test_search_finds_the_step(open_page):
    page = open_page("search.html?q=DensityDescent")
    page.wait_for_selector("#search-results li")
    assert "DensityDescent" in page.inner_text("#search-results")
    assert page.wrong == []


def test_the_theme_of_the_site_reaches_the_explorer(open_page, photograph):
    page = open_page("explore/separation.html", scheme="dark")
    frame = page.frame_locator("iframe.explorer")
    frame.locator("#under:not(:empty)").wait_for()
    for theme in ("light", "dark"):
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme }", theme)
        frame.locator(f":root[data-theme={theme}]").wait_for(state="attached")
        photograph(page, f"explore-separation-{theme}")


def brightness(page):
    """Of what lies behind the text, 0 to 255."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


@pytest.mark.parametrize("name", ["index.html", LESSON])
def test_a_click_makes_pages_dark_and_light_again(open_page, photograph, name):
    page = open_page(name)

    def choose(theme):
        page.click(".theme-switch-button:visible")  # opens a menu
        page.click(f".theme-change-button[data-mode={theme}]:visible")
        assert page.get_attribute("html", "data-theme") == theme

    assert page.get_attribute("html", "data-theme") == "light"
    assert brightness(page) > 230
    choose("dark")
    assert brightness(page) < 60
    photograph(page, f"{name.replace('/', '-').removesuffix('.html')}-1280-dark")
    page.reload()
    assert page.get_attribute("html", "data-theme") == "dark", "the choice is kept"
    choose("light")
    assert brightness(page) > 230
    assert page.wrong == []


def test_the_next_lesson_and_back(open_page):
    page = open_page(LESSON)
    here = page.inner_text("h1")
    page.click("a.right-next")
    page.wait_for_url("**/notebooks/04_*.html")
    assert page.inner_text("h1").startswith("4.")
    page.click("a.left-prev")
    page.wait_for_url(f"**/{LESSON}")
    assert page.inner_text("h1") == here
    assert here.startswith("3.")
    assert page.wrong == []


def test_a_newcomer_finds_the_four_answers_from_the_first_page(open_page):
    """What is claimed and found, how to run it, where the step is computed: one click each."""
    page = open_page("index.html")
    text = page.inner_text("article")
    assert "make reproduce" in text and "What we found" in text
    page.click("article >> text=DensityDescent")
    assert "DensityDescent" in page.inner_text("dt:target")
    page.click("dt:target >> text=source")
    assert "torch.autograd.grad" in page.inner_text("article")
