"""The explorer in a browser: each control moves, and numbers shown are the library's."""

import numpy as np
import pytest
from conftest import WIDTHS, data_of, pixels, set_value

from ddfp_lib.explorer.encoding import unpacked

NAMES = ("separation", "flow", "pictures")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_draws_and_fits(open_page, photograph, name, width, scheme):
    page = open_page(f"explorer/{name}.html", width, scheme)
    page.wait_for_timeout(300)
    photograph(page, f"explorer-{name}-{width}-{scheme}")
    assert page.wrong == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for canvas in page.locator("canvas").all():
        assert canvas.get_attribute("aria-label")
        assert (
            canvas.evaluate("""(canvas) => { const { width, height } = canvas;
          return new Set(new Uint32Array(canvas.getContext("2d")
            .getImageData(0, 0, width, height).data.buffer)).size; }""")
            > 5
        )
    for control in page.locator("select:visible, button:visible, input[type=range]:visible").all():
        assert control.bounding_box()["height"] >= 40
    for select in page.locator("select:visible").all():
        text, room = select.evaluate("""(select) => { const style = getComputedStyle(select);
          const context = document.createElement("canvas").getContext("2d");
          context.font = style.font;
          const widths = [...select.options].map(({ text }) => context.measureText(text).width);
          const room = select.clientWidth - 2 * parseFloat(style.paddingLeft) - 20;
          return [Math.max(...widths), room]; }""")
        assert text <= room, "the text of a choice is cut"  # 20: the arrow


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_stands_in_where_scripts_are_off(open_page, photograph, name):
    page = open_page(f"explorer/{name}.html", scripts=False)
    photograph(page, f"explorer-{name}-without-scripts")
    image = page.locator("noscript img, main > img").first
    assert len(image.get_attribute("alt")) > 60
    assert page.locator("#app").is_hidden()


def test_the_seed_that_is_shown_first_is_close_to_the_mean_of_all(open_page):
    data = data_of("separation")
    run = data["clouds"]["moons"]["runs"][f"descent {data['lengths'][1]:g}"]
    ends = np.array([[row[-1] for row in run[name]] for name in ("under", "accuracy")])
    ranges = ends.max(axis=1, keepdims=True) - ends.min(axis=1, keepdims=True)
    far = np.abs(ends - ends.mean(axis=1, keepdims=True)) / ranges
    page = open_page("explorer/separation.html")
    assert page.input_value("#seed") == str(far.sum(axis=0).argmin())


def test_the_boundary_has_the_librarys_numbers_in_every_state(open_page):
    data = data_of("separation")
    page = open_page("explorer/separation.html")
    for cloud, found in data["clouds"].items():
        set_value(page, "cloud", cloud)
        for direction in data["directions"]:
            set_value(page, "direction", direction)
            for length in range(len(data["lengths"]) if direction != "none" else 1):
                set_value(page, "length", length)
                eps = data["lengths"][length] if direction != "none" else 0
                run = found["runs"][f"{direction} {eps:g}"]
                seed, frame = length % data["seeds"], len(data["frames"]) - 1 - length
                set_value(page, "seed", seed)
                set_value(page, "frame", frame)
                assert float(page.inner_text("#under")) == run["under"][seed][frame]
                assert float(page.inner_text("#accuracy")) == run["accuracy"][seed][frame]
                column = [row[frame] for row in run["under"]]
                assert float(page.inner_text("#under-low")) == min(column)
                assert float(page.inner_text("#under-high")) == max(column)
    assert page.wrong == []


def test_training_can_be_dragged_and_played_and_moved_by_keys(open_page):
    page = open_page("explorer/separation.html", touch=True)
    box = page.locator("#chart").bounding_box()
    page.mouse.move(box["x"] + 46, box["y"] + 40)
    page.mouse.down()
    assert page.input_value("#frame") == "0"
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 40)
    page.mouse.up()
    last = page.get_attribute("#frame", "max")
    assert page.input_value("#frame") == last
    page.focus("#frame")
    page.keyboard.press("ArrowLeft")
    assert page.input_value("#frame") == str(int(last) - 1)
    assert "of 400" in page.get_attribute("#frame", "aria-valuetext")
    page.click("#play")
    page.wait_for_function("document.getElementById('play').textContent === 'Play'")
    assert page.input_value("#frame") == last
    page.locator("#chart").tap(position={"x": box["width"] / 2, "y": 30})
    assert page.input_value("#frame") != last


def test_the_map_shows_the_density_and_the_classes_that_are_chosen(open_page):
    data = data_of("separation")
    page = open_page("explorer/separation.html")
    set_value(page, "cloud", "circles")  # which the small flow learns coarsely
    before = pixels(page, "map")
    found = data["clouds"]["circles"]
    shades = {
        name: 150 * (unpacked(found[name], "u1") / 255) ** 1.5 for name in ("exact", "learned")
    }
    page.select_option("#density", "learned")
    learned = pixels(page, "map")
    change = learned[..., 3].mean() - before[..., 3].mean()
    expected = shades["learned"].mean() - shades["exact"].mean()
    assert abs(expected) > 2
    assert change == pytest.approx(expected, rel=0.3)  # marks lie over some of it
    page.select_option("#density", "exact")
    assert (pixels(page, "map") == before).all()

    def points_of(shown):  # the color of the first class, #0072B2
        return (shown == (0, 0x72, 0xB2, 255)).all(axis=-1).sum()

    page.check("#truth")
    assert points_of(pixels(page, "map")) > 2 * points_of(before)
    page.uncheck("#truth")
    assert (pixels(page, "map") == before).all()
    assert page.wrong == []


def test_an_address_opens_a_state(open_page):
    page = open_page("explorer/separation.html#cloud=gap&direction=random&length=2&seed=1&frame=4")
    run = data_of("separation")["clouds"]["gap"]["runs"]["random 0.4"]
    assert float(page.inner_text("#under")) == run["under"][1][4]


@pytest.mark.parametrize("cloud", ["moons", "circles", "blobs"])
def test_the_browsers_flow_agrees_with_the_librarys_at_100_points(open_page, cloud):
    check = data_of("flow")[cloud]["check"]
    page = open_page("explorer/flow.html")
    set_value(page, "cloud", cloud)
    found = page.evaluate("(points) => points.map(numbers)", check["points"])
    assert len(found) == 100
    for number, shown in enumerate(found):
        assert shown["logProb"] == pytest.approx(check["log_prob"][number], rel=1e-4, abs=5e-4)
        assert shown["logDet"] == pytest.approx(check["log_det"][number], rel=1e-4, abs=5e-4)
        assert shown["z"] == pytest.approx(check["latents"][number], rel=1e-4, abs=5e-4)


def test_the_point_of_the_flow_follows_pointer_keys_and_couplings(open_page):
    page = open_page("explorer/flow.html", touch=True)
    before = page.inner_text("#log-prob")
    box = page.locator("#data-plane").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 150)
    page.mouse.up()
    assert page.inner_text("#log-prob") != before
    x = [float(page.input_value(control)) for control in ("#x1", "#x2")]
    expected = page.evaluate("(x) => numbers(x).logProb", x)
    assert float(page.inner_text("#log-prob")) == pytest.approx(expected, abs=6e-4)
    rows = page.locator("#couplings tr").all_inner_texts()
    assert len(rows) == 8
    assert float(rows[-1].split()[-1]) == float(page.inner_text("#log-det"))
    page.focus("#stage")
    page.keyboard.press("Home")
    assert page.inner_text("#stage-text") == "0 of 8"
    page.keyboard.press("End")
    assert page.inner_text("#stage-text") == "8 of 8"


def test_the_sliders_and_the_button_of_the_flow(open_page):
    page = open_page("explorer/flow.html")
    for control in ("x1", "x2"):
        planes = [pixels(page, plane) for plane in ("data-plane", "latent-plane")]
        value = float(page.input_value(f"#{control}"))
        page.focus(f"#{control}")
        for _ in range(20):
            page.keyboard.press("ArrowLeft")
        assert float(page.input_value(f"#{control}")) == pytest.approx(value - 0.2, abs=1e-6)
        assert page.inner_text(f"#{control}-text") == f"{value - 0.2:.2f}"
        x = [float(page.input_value(each)) for each in ("#x1", "#x2")]
        numbers = page.evaluate("(x) => numbers(x)", x)
        shown = [float(page.inner_text(each)) for each in ("#log-prob", "#z1", "#z2")]
        assert shown == pytest.approx([numbers["logProb"], *numbers["z"]], abs=6e-4)
        for plane, was in zip(("data-plane", "latent-plane"), planes, strict=True):
            assert (pixels(page, plane) != was).any()
    page.click("#play")  # at the end it begins again
    page.wait_for_function(
        "0 < Number(document.getElementById('stage').value) && "
        "Number(document.getElementById('stage').value) < 7"
    )
    page.click("#play")
    stage = page.input_value("#stage")
    page.wait_for_timeout(300)
    assert page.input_value("#stage") == stage, "Pause stops it"
    assert page.inner_text("#play") == "Play"
    page.click("#play")
    page.wait_for_function("document.getElementById('play').textContent === 'Play'")
    assert page.inner_text("#stage-text") == "8 of 8"
    assert page.wrong == []


def test_a_tap_moves_the_point_of_the_flow(open_page):
    page = open_page("explorer/flow.html", 390, touch=True)
    left, right, bottom, top = data_of("flow")["moons"]["window"]
    box = page.locator("#data-plane").bounding_box()
    for part in ((0.25, 0.75), (0.6, 0.4)):
        page.locator("#data-plane").tap(
            position={"x": part[0] * box["width"], "y": part[1] * box["height"]}
        )
        x = [float(page.input_value(control)) for control in ("#x1", "#x2")]
        place = [left + part[0] * (right - left), top - part[1] * (top - bottom)]
        assert x == pytest.approx(place, abs=0.03)
        expected = page.evaluate("(x) => numbers(x).logProb", x)
        assert float(page.inner_text("#log-prob")) == pytest.approx(expected, abs=6e-4)
    assert page.wrong == []
