"""Pages of the explorer: a template, its script, its data and a still picture in one HTML file."""

import base64
import html
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from string import Template
from typing import Any

import torch

from ddfp_lib.errors import UserError
from ddfp_lib.explorer import flow, pictures, separation
from ddfp_lib.files import write_text
from ddfp_lib.machine import usable_cores

MAX_BYTES = 2_000_000
"""Largest page: what a browser on a phone loads in a few seconds."""

TOOLS = "<!-- other tools -->"
"""Where :func:`write_pages` puts the links of a page to the others."""


@dataclass(frozen=True)
class Page:
    """What a page says about itself.

    Attributes:
        title: in the browser's tab and above the page.
        lead: what to do and to see, one or two sentences.
        lesson: the lesson that explains it, a file name without ending.
    """

    title: str
    lead: str
    lesson: str


PAGES = {
    "separation": Page(
        "Low-density separation",
        "Three labels per class, 240 points. Drag through training and watch the decision boundary "
        "move. The number is the density of the data at the boundary: low means that it runs "
        "where points are sparse.",
        "01_low_density_separation",
    ),
    "flow": Page(
        "The flow, coupling by coupling",
        "Drag the point on the left. Each coupling moves one coordinate by a scale and a shift "
        "that depend on the other one. The grid bends, and the log-determinants add up.",
        "02_normalizing_flow_density",
    ),
    "pictures": Page(
        "What a step does to a picture",
        "Point at a place of an image. One step of the chosen length starts from the feature "
        "there: how far does its density fall, and which class does the network predict then?",
        "03_density_descending_shift",
    ),
}


def _say(line: str) -> None:
    print(line, flush=True)


def page(name: str, data: dict[str, Any], still: tuple[bytes, str]) -> str:
    """Return a page as HTML.

    Args:
        name: a key of :data:`PAGES`.
        data: what its script reads.
        still: the picture for browsers without scripts, as PNG, and its description.

    Raises:
        UserError: the page is too large.
    """
    templates = files("ddfp_lib.explorer") / "templates"
    about = PAGES[name]
    picture, alt = still
    png = base64.b64encode(picture).decode()
    text = Template((templates / "page.html").read_text("utf-8")).substitute(
        title=html.escape(about.title),
        lead=html.escape(about.lead),
        lesson=about.lesson,
        number=int(about.lesson[:2]),
        tools=TOOLS,
        style=(templates / "page.css").read_text("utf-8"),
        body=(templates / f"{name}.html").read_text("utf-8"),
        # "</" would end the script element that holds the data
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/"),
        script="\n".join(
            (templates / file).read_text("utf-8") for file in ("common.js", f"{name}.js")
        ),
        still=f'<img src="data:image/png;base64,{png}" alt="{html.escape(alt)}">',
    )
    size = len(text.encode())
    if size > MAX_BYTES:
        raise UserError(
            f"the page {name} has {size:,} bytes, more than {MAX_BYTES:,}; show fewer or smaller "
            "images with --images or a smaller data.size"
        )
    return text


def links(names: Sequence[str]) -> str:
    """Return links from one page to others, as HTML; an empty text without names."""
    if not names:
        return ""
    to = (f'<a href="{name}.html">{html.escape(PAGES[name].title)}</a>' for name in names)
    return f" Other tools: {', '.join(to)}."


def separation_page(clouds: dict[str, dict[str, Any]], still: tuple[bytes, str]) -> str:
    """Return the page on low-density separation.

    Args:
        clouds: results of :func:`~ddfp_lib.explorer.separation.cloud_data` by the cloud's name.
        still: result of :func:`~ddfp_lib.explorer.separation.still`.
    """
    data = {
        "frames": separation.FRAMES,
        "warmup": separation.WARMUP,
        "lengths": separation.LENGTHS,
        "directions": list(separation.DIRECTIONS),
        "seeds": separation.SEEDS,
        "arrows": separation.ARROWS,
        "stays": separation.STAYS,
        "grid": separation.GRID,
        "units": separation.UNITS,
        "clouds": clouds,
    }
    return page("separation", data, still)


def flow_page() -> str:
    """Train a flow on each cloud and return the page on the flow, as HTML.

    Raises:
        UserError: the page is too large.
    """
    return page("flow", {name: flow.flow_data(name) for name in flow.CLOUDS}, flow.still())


def pictures_page(run: Path | None, data: Path | None, images: int) -> str:
    """Return the page on pictures, of a run or of a small training that is done here.

    Args:
        run: folder of a finished run with a density; None: train one, half a minute.
        data: folder of the run's data set now; None: the folder that the run used.
        images: number of images that are shown.

    Raises:
        UserError: the run does not fit, or the page is too large.
    """
    if run is None:
        if data is not None:
            raise UserError(f"--data {data}: give the run of that data set too, with --run")
        with tempfile.TemporaryDirectory() as folder:
            learner = pictures.small_run(Path(folder))
    else:
        learner = pictures.learner_of(run, data)
    dataset = pictures.validation_of(learner.config)
    others = pictures.photos() if run is None else ()
    shown = pictures.picture_data(learner, dataset, images=images, others=others)
    return page("pictures", shown, pictures.still(learner, dataset))


def write_pages(
    out: Path,
    only: Sequence[str] = (),
    *,
    run: Path | None = None,
    data: Path | None = None,
    images: int = pictures.IMAGES,
    say: Callable[[str], object] = _say,
) -> list[Path]:
    """Make pages, a process for each core, and write them to ``out``; return their paths.

    Args:
        out: folder; the files are ``NAME.html``.
        only: names of pages; none: all.
        run: for the page on pictures, see :func:`pictures_page`.
        data: for the page on pictures, see :func:`pictures_page`.
        images: for the page on pictures, see :func:`pictures_page`.
        say: called with a line whenever a piece of work is done.

    Raises:
        UserError: a page is unknown or too large, or the run does not fit.
    """
    for name in only:
        if name not in PAGES:
            raise UserError(f"page {name!r}: choose from {', '.join(PAGES)}")
    wanted, start = list(only or PAGES), time.perf_counter()
    work: dict[str, tuple] = {}  # longest first
    if "pictures" in wanted:
        work["pictures"] = (pictures_page, run, data, images)
    if "separation" in wanted:
        for cloud in separation.CLOUDS:
            work[cloud] = (separation.cloud_data, cloud)
        work["still"] = (separation.still,)
    if "flow" in wanted:
        work["flow"] = (flow_page,)
    made: dict[str, Any] = {}
    jobs = min(usable_cores(), len(work))
    with ProcessPoolExecutor(jobs, get_context("spawn"), _one_thread) as pool:
        futures = {pool.submit(*call): name for name, call in work.items()}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                made[futures[future]] = future.result()
                seconds = time.perf_counter() - start
                say(f"{futures[future]} done, {done} of {len(futures)}, {seconds:.0f} s")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if "separation" in wanted:
        clouds = {name: made[name] for name in separation.CLOUDS}
        made["separation"] = separation_page(clouds, made["still"])
    written = []
    for name in wanted:
        path = out / f"{name}.html"
        others = [o for o in PAGES if o != name and (o in wanted or (out / f"{o}.html").is_file())]
        write_text(path, made[name].replace(TOOLS, links(others)))
        say(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        written.append(path)
    return written


def _one_thread() -> None:
    """Start a process whose small tensors would only make threads wait for one another."""
    torch.set_num_threads(1)
