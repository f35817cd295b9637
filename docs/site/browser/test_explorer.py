"""The explorer in a browser: each control moves, and numbers shown are the library's."""

import json
import re

import pytest
from conftest import SITE, WIDTHS

NAMES = ("separation", "flow", "pictures")


def data_of(name):
    text = (SITE / "explorer" / f"{name}.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def set_value(page, control, value):
    page.evaluate(
        """([id, value]) => { const element = document.getElementById(id);
        element.value = value; element.dispatchEvent(new Event("input", { bubbles: true })); }""",
        [control, str(value)],
    )


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


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_stands_in_where_scripts_are_off(open_page, photograph, name):
    page = open_page(f"explorer/{name}.html", scripts=False)
    photograph(page, f"explorer-{name}-without-scripts")
    image = page.locator("noscript img, main > img").first
    assert len(image.get_attribute("alt")) > 60
    assert page.locator("#app").is_hidden()


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


def test_the_picture_has_the_librarys_numbers_at_each_feature(open_page):
    data = data_of("pictures")
    page = open_page("explorer/pictures.html")
    for number in range(len(data["images"])):
        set_value(page, "image", number)
        for length in range(len(data["lengths"])):
            set_value(page, "length", length)
            page.focus("#picture")
            page.keyboard.press("ArrowLeft")
            rows = page.evaluate("""() => { const image = DATA.images[$("image").value];
              const i = row * image.columns + column; const all = arrays(image);
              return [all.confident[i], all.before.logProb[i], all.before.percentile[i],
                DATA.classes[all.before.label[i]]]; }""")
            shown = page.locator("#steps tr").first.locator("td").all_inner_texts()
            assert float(shown[1]) == pytest.approx(rows[1], abs=0.006)
            assert shown[2:] == [str(rows[2]), rows[3]]
            assert ("does not move" in page.inner_text("#steps")) == (not rows[0])
    set_value(page, "map-kind", "label")
    assert "Predicted class" in page.inner_text("#key")
    assert page.wrong == []


def test_a_touch_chooses_a_feature(open_page):
    page = open_page("explorer/pictures.html", 390, touch=True)
    before = page.get_attribute("#picture", "aria-label")
    page.locator("#picture").tap(position={"x": 5, "y": 5})
    assert page.get_attribute("#picture", "aria-label") != before
    assert "row 1, column 1" in page.get_attribute("#picture", "aria-label")
