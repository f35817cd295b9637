"""The explorer shows what the library computes: every number is compared with the library's."""

import base64
import io
import json
import math
import re
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddfp_lib.constants import UNLABELED
from ddfp_lib.errors import UserError
from ddfp_lib.explorer import clouds, flow, pages, separation
from ddfp_lib.explorer.encoding import data_url, packed, unpacked
from ddfp_lib.lessons.plane import train_consistently
from ddfp_lib.method.perturb import DensityDescent, FeatureModels
from ddfp_lib.plots.planes import Window, density_under_boundary

FRAMES, STEPS, WARMUP, EPS = (0, 20, 30), 30, 15, 0.2


@pytest.fixture(scope="module")
def moons() -> clouds.Sample:
    return clouds.draw(clouds.make_clouds()["moons"], seeds=2)


@pytest.fixture(scope="module")
def density(moons):
    return clouds.learn_density(moons, steps=20)


def trained(sample, direction, density):
    return clouds.train(sample, direction, EPS, density, frames=FRAMES, steps=STEPS, warmup=WARMUP)


@pytest.mark.parametrize("name", separation.CLOUDS)
def test_the_density_of_a_cloud_integrates_to_one(name):
    cloud = clouds.make_clouds()[name]
    box = Window.around(cloud.skeleton, margin=6 * cloud.scatter)
    area = (box.right - box.left) * (box.top - box.bottom)
    assert abs(np.exp(box.ask(cloud.log_density)).mean() * area - 1) < 0.02


def test_each_seed_has_as_many_labels_of_each_class_and_they_are_right(moons):
    for row in moons.labels:
        known = row != UNLABELED
        assert torch.equal(row[known], moons.classes[known])
        assert row[known].bincount().tolist() == [clouds.LABELS_PER_CLASS] * 2


def test_frames_have_the_steps_of_the_library(moons, density):
    models = FeatureModels(lambda v: density.log_prob(v[0].T)[None], lambda v: v)
    everywhere = torch.ones(1, len(moons.x), dtype=torch.bool)
    expected = DensityDescent(EPS)(moons.x.T[None], everywhere, models, torch.Generator())[0]
    start, *later = trained(moons, "density", density)
    assert start.step == 0 and start.shift is None
    for frame in later:
        for seed in range(2):
            torch.testing.assert_close(frame.shift[seed], expected * frame.moved[seed])


def test_training_follows_the_recipe_of_lesson_1(moons, monkeypatch):
    """Losses are added here and averaged there; Adam with twice the epsilon undoes that."""
    adam = torch.optim.Adam
    averaged = train_consistently(
        moons.x, moons.labels, lambda _, x: torch.zeros_like(x), steps=STEPS, warmup=WARMUP
    )
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr: adam(p, lr=lr, eps=2e-8))
    added = trained(moons, "none", None)[-1].student
    for one, other in zip(added.parameters(), averaged.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("direction", ["noise", "vat", "none"])
def test_steps_have_their_length_where_points_move(moons, density, direction):
    last = trained(moons, direction, density)[-1]
    length = last.moved * (0.0 if direction == "none" else EPS)
    torch.testing.assert_close(last.shift.norm(dim=1), length.double())


def test_a_training_can_be_repeated_and_a_seed_does_not_depend_on_how_many_there_are(density):
    cloud = clouds.make_clouds()["moons"]
    first, again = (trained(clouds.draw(cloud, seeds=2), "density", density) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert all(map(torch.equal, one.student.parameters(), other.student.parameters()))
    more = trained(clouds.draw(cloud, seeds=3), "density", density)
    for few, many in zip(
        first[-1].student.parameters(), more[-1].student.parameters(), strict=True
    ):
        torch.testing.assert_close(few, many[:2])


@pytest.fixture(scope="module")
def moons_data():
    return separation.cloud_data(
        "moons",
        seeds=2,
        lengths=(EPS,),
        frames=FRAMES,
        steps=STEPS,
        warmup=WARMUP,
        density_steps=20,
    )


def test_the_page_has_the_librarys_numbers(moons_data, moons, density):
    run = moons_data["runs"][f"descent {EPS}"]
    arrows = unpacked(run["arrows"], "u1").reshape(2, len(FRAMES), separation.ARROWS)
    for number, frame in enumerate(trained(moons, "density", density)):
        for seed in range(2):
            under = density_under_boundary(
                frame.student.of(seed), moons.cloud.log_density, moons.window
            )
            assert run["under"][seed][number] == pytest.approx(under, abs=6e-4)
            assert run["accuracy"][seed][number] == pytest.approx(
                clouds.accuracy(moons, frame.student)[seed].item(), abs=0.051
            )
            codes = torch.from_numpy(arrows[seed, number].copy())
            moved = codes != separation.STAYS
            if frame.shift is None:
                assert not moved.any()
                continue
            shift = frame.shift[seed, :, : separation.ARROWS]
            assert torch.equal(moved, frame.moved[seed, : separation.ARROWS])
            angle = codes.double() / 255 * 2 * math.pi
            shown = EPS * torch.stack([angle.cos(), angle.sin()])
            assert ((shown - shift).norm(dim=0)[moved] < EPS * math.pi / 250).all()


def test_drawn_boundaries_are_where_two_classes_have_equal_scores(moons_data, moons, density):
    last = trained(moons, "density", density)[-1]
    window, lines = moons.window, moons_data["runs"][f"descent {EPS}"]["lines"][0][-1]
    assert lines
    for line in lines:
        units = torch.tensor(line, dtype=torch.float64).view(-1, 2)
        size = torch.tensor([window.right - window.left, window.top - window.bottom]).double()
        corner = torch.tensor([window.left, window.bottom]).double()
        places = (corner + units / separation.UNITS * size).requires_grad_()
        scores = last.student.of(0)(places)
        gap = scores[:, 0] - scores[:, 1]
        (slope,) = torch.autograd.grad(gap.sum(), places)
        # To first order the distance from the boundary; a cell of the grid is 1/119 of the window.
        assert ((gap.abs() / slope.norm(dim=1)) < float(size[0]) / 119).all()


def test_of_three_classes_most_boundaries_are_drawn_once():
    one, other = np.array([[0, 0], [1, 1.0]]), np.array([[2, 0], [2, 1.0]])
    assert len(separation._once([one, other, one[::-1]])) == 2


def by_hand(data: dict, points: np.ndarray) -> np.ndarray:
    """Return log-densities by numpy, from the exported weights alone, as templates/flow.js does."""

    def subnet(text, x):
        values, hidden, at = unpacked(text, "f4").astype(float), data["hidden"], 0
        x = x[:, None]
        for layer, (n, m) in enumerate([(1, hidden), (hidden, hidden), (hidden, 2)]):
            weight = values[at : at + n * m].reshape(m, n)
            bias = values[at + n * m : at + n * m + m]
            at += n * m + m
            x = x @ weight.T + bias
            x = np.maximum(x, 0) if layer < 2 else x
        assert at == len(values)
        return x.T

    z, log_det = points.astype(float), np.zeros(len(points))
    for block in data["blocks"]:
        a, b = z.T
        u, t = subnet(block["right"], b)
        s = data["clamp"] * data["slope"] * np.arctan(u)
        a, log_det = a * np.exp(s) + t, log_det + s
        u, t = subnet(block["left"], a)
        s = data["clamp"] * data["slope"] * np.arctan(u)
        b, log_det = b * np.exp(s) + t, log_det + s
        z = np.stack([a, b], axis=1)[:, block["permutation"]]
    squared = ((z[:, None] - np.array(data["means"])) ** 2).sum(-1)
    mixture = np.logaddexp.reduce(-squared / 2, axis=1)
    return mixture - math.log(2 * math.pi) - math.log(len(data["means"])) + log_det


def test_exported_weights_give_the_librarys_log_density():
    data = flow.flow_data("moons", steps=30)
    check = data["check"]
    assert len(check["points"]) == 100
    np.testing.assert_allclose(
        by_hand(data, np.array(check["points"])), check["log_prob"], rtol=1e-4, atol=1e-4
    )


STILL = (b"png", 'two "moons"')


def test_a_page_is_one_file_with_its_data_a_still_picture_and_no_other_host():
    text = pages.page("flow", {"moons": "</script>"}, STILL)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert json.loads(found[1]) == {"moons": "</script>"}
    assert not re.search(
        r"(?:https?:)?//[\w-]+\.\w|<link[^>]+href=\"(?!data:)|\bsrc=\"(?!data:)", text
    )
    still = re.search(r"<noscript>.*?<img ([^>]*)>", text, re.DOTALL)[1]
    assert base64.b64encode(b"png").decode() in still
    assert "two &quot;moons&quot;" in still
    assert '<html lang="en">' in text and "$" + "title" not in text


def test_every_control_of_a_page_has_a_label():
    for name in pages.PAGES:
        text = pages.page(name, {}, STILL)
        body = re.sub(r"<label.*?</label>", "", text, flags=re.DOTALL)
        assert not re.search(r"<(?:select|input)\b", body), name
        assert all('role="img"' in canvas for canvas in re.findall(r"<canvas[^>]*>", text))


def test_a_page_that_is_too_large_is_not_written(monkeypatch):
    monkeypatch.setattr(pages, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="--images"):
        pages.page("flow", {}, STILL)


def test_lessons_that_pages_link_to_exist():
    notebooks = Path(__file__).parents[1] / "notebooks"
    for page in pages.PAGES.values():
        assert (notebooks / f"{page.lesson}.ipynb").is_file()


class Here:
    """Runs everything in this process."""

    def __init__(self, *_):
        self.shutdown = lambda **_: None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except UserError as error:
            future.set_exception(error)
        return future


def test_a_page_links_to_those_beside_it_and_to_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ProcessPoolExecutor", Here)
    for name in ("flow", "pictures"):
        monkeypatch.setattr(
            pages, f"{name}_page", lambda *_, name=name: pages.page(name, {}, STILL)
        )

    def linked(name):
        text = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        return re.findall(r'<a href="([\w.]+)"', text)

    pages.write_pages(tmp_path, ["flow"], say=lambda line: None)
    assert linked("flow") == []
    pages.write_pages(tmp_path, ["pictures"], say=lambda line: None)
    assert linked("pictures") == ["flow.html"]
    pages.write_pages(tmp_path, ["flow", "pictures"], say=lambda line: None)
    assert linked("flow") == ["pictures.html"] and linked("pictures") == ["flow.html"]


@pytest.mark.parametrize(
    ("only", "options", "message"),
    [
        (["flows"], {}, "choose from separation, flow, pictures"),
        (["pictures"], {"data": Path("voc")}, "--run"),
        (["pictures"], {"run": Path("nothing-here")}, "nothing-here"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, monkeypatch, only, options, message):
    monkeypatch.setattr(pages, "ProcessPoolExecutor", Here)
    with pytest.raises(UserError, match=re.escape(message)):
        pages.write_pages(tmp_path / "out", only, say=lambda line: None, **options)
    assert not (tmp_path / "out").exists()


def test_packed_numbers_come_back_and_what_does_not_fit_is_refused():
    assert unpacked(packed(np.array([[0, 255]]), "u1"), "u1").tolist() == [0, 255]
    with pytest.raises(ValueError, match="do not fit"):
        packed(np.array([256]), "u1")
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    png = base64.b64decode(data_url(image).split(",", 1)[1])
    with Image.open(io.BytesIO(png)) as stored:
        assert torch.equal(torch.from_numpy(np.array(stored)).permute(2, 0, 1), image)
