"""A browser, and the built site served from this machine."""

import functools
import http.server
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from ddfp_lib.explorer.encoding import unpacked

SITE = Path(os.environ.get("DDFP_SITE", Path(__file__).parents[3] / "site"))
PICTURES = Path(os.environ.get("DDFP_SCREENSHOTS", SITE.parent / "build" / "screenshots"))
WIDTHS = {1280: 800, 390: 844}

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]


def data_of(name):
    """Return the data of a page of the explorer."""
    text = (SITE / "explorer" / f"{name}.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def set_value(page, control, value):
    """Set a control as a user would."""
    page.evaluate(
        """([id, value]) => { const element = document.getElementById(id);
        element.value = value; element.dispatchEvent(new Event("input", { bubbles: true })); }""",
        [control, str(value)],
    )


def pixels(page, canvas):
    """Return what a canvas shows, (H, W, 4) uint8."""
    found = page.evaluate(
        """(id) => { const canvas = document.getElementById(id); const { width, height } = canvas;
        const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
        let text = ""; for (const value of data) text += String.fromCharCode(value);
        return [height, width, btoa(text)]; }""",
        canvas,
    )
    return unpacked(found[2], "u1").reshape(found[0], found[1], 4)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address():
    if not (SITE / "index.html").is_file():
        pytest.exit(f"{SITE}: holds no site; run 'make explorer' and 'make site' first", 2)
    handler = functools.partial(Quiet, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        # without a Chromium of the system playwright takes its own: playwright install chromium
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, address):
    """Return a function that opens a page and collects what goes wrong there."""
    contexts = []

    def opened(name, width=1280, scheme="light", scripts=True, touch=False):
        context = browser.new_context(
            viewport={"width": width, "height": WIDTHS[width]},
            color_scheme=scheme,
            java_script_enabled=scripts,
            has_touch=touch,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(180_000)  # on a busy machine the explorer takes a minute to draw
        page.wrong = []
        page.on("console", lambda m: m.type == "error" and page.wrong.append(m.text))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on(
            "request",
            lambda r: (
                r.url.startswith(("http", "ws"))
                and not r.url.startswith(address)
                and page.wrong.append(f"asks another host: {r.url}")
            ),
        )
        page.on("response", lambda r: r.status >= 400 and page.wrong.append(f"{r.status}: {r.url}"))
        page.goto(f"{address}/{name}", wait_until="load")
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def photograph():
    """Return a function that stores a picture of a page to look at."""
    PICTURES.mkdir(parents=True, exist_ok=True)

    def taken(page, name):
        page.screenshot(path=PICTURES / f"{name}.png", full_page=True)

    return taken
