"""The page on pictures in a browser: its table, map and summary are the exported data."""

import re

import numpy as np
import pytest
from conftest import data_of, pixels, set_value

from ddfp_lib.explorer.encoding import unpacked

DIRECTIONS = {"descent": "descent", "random": "random step", "adversarial": "adversarial step"}


def table(page):
    return [row.locator("td").all_inner_texts() for row in page.locator("#steps tr").all()]


def row_of(title, part, feature, classes):
    """Return what the table must say of a feature, from the exported data."""
    log_prob = unpacked(part["log_prob"], "f4")[feature]
    percentile, label = (unpacked(part[key], "u1")[feature] for key in ("percentile", "label"))
    return [title, f"{log_prob:.2f}", str(percentile), classes[label]]


def assert_table(page, data, image, feature, eps):
    """Compare all rows with the exported data: unperturbed, three steps, the true class."""
    rows = table(page)
    expected = [row_of("unperturbed", image, feature, data["classes"])]
    for name, title in DIRECTIONS.items():
        part = image["after"][f"{name} {eps:g}"]
        if unpacked(image["confident"], "u1")[feature]:
            expected.append(row_of(f"after the {title}", part, feature, data["classes"]))
        else:
            expected.append([f"after the {title}", "does not move", "", "not confident"])
    for shown, right in zip(rows[:4], expected, strict=True):
        if re.match(r"-?\d", right[1]):  # a rounded half may go either way
            assert float(shown[1]) == pytest.approx(float(right[1]), abs=0.0101)
            assert shown[::2] == right[::2] and shown[3] == right[3]
        else:
            assert shown == right
    assert len(rows) == (4 if image["truth"] is None else 5)


def test_all_rows_of_the_table_are_the_exported_data(open_page):
    data = data_of("pictures")
    page = open_page("explorer/pictures.html")
    moving = 0
    for number, image in enumerate(data["images"]):
        set_value(page, "image", number)
        confident = np.flatnonzero(unpacked(image["confident"], "u1"))
        still = np.flatnonzero(unpacked(image["confident"], "u1") == 0)
        for length, eps in enumerate(data["lengths"]):
            set_value(page, "length", length)
            some = [each[(7 * length) % len(each)] for each in (confident, still) if len(each)]
            for feature in map(int, some):
                row, column = divmod(feature, image["columns"])
                page.evaluate("([r, c]) => { row = r; column = c; draw(); }", [row, column])
                assert_table(page, data, image, feature, eps)
                moving += feature in confident
    assert moving >= len(data["lengths"])
    assert page.wrong == []


def test_hovering_shows_the_feature_below_the_pointer(open_page):
    data = data_of("pictures")
    image, eps = data["images"][0], data["lengths"][len(data["lengths"]) // 2]
    page = open_page("explorer/pictures.html")
    for canvas, (row, column) in (("#picture", (1, 2)), ("#map", (image["rows"] - 2, 3))):
        box = page.locator(canvas).bounding_box()
        page.mouse.move(
            box["x"] + (column + 0.5) / image["columns"] * box["width"],
            box["y"] + (row + 0.5) / image["rows"] * box["height"],
        )
        label = page.get_attribute("#picture", "aria-label")
        assert label == (
            f"{image['name']}; feature in row {row + 1}, column {column + 1} is chosen."
        )
        assert_table(page, data, image, row * image["columns"] + column, eps)


def test_the_direction_changes_the_map_and_its_summary(open_page):
    data = data_of("pictures")
    image, eps = data["images"][0], data["lengths"][-1]
    page = open_page("explorer/pictures.html")
    set_value(page, "length", len(data["lengths"]) - 1)
    confident = unpacked(image["confident"], "u1") > 0

    def middle(part):
        values = np.sort(unpacked(part["percentile"], "u1")[confident])
        return values[(len(values) - 1) // 2]

    seen = []
    for name, title in DIRECTIONS.items():
        page.select_option("#direction", name)
        after = image["after"][f"{name} {eps:g}"]
        same = unpacked(after["label"], "u1") == unpacked(image["label"], "u1")
        summary = page.inner_text("#summary")
        assert f"All {confident.sum()} confident features" in summary
        assert (
            f"median percentile {middle(image)} before and {middle(after)} after the {title}; "
            in summary
        )
        assert f"{100 * same[confident].mean():.1f} % keep" in summary
        assert title in page.inner_text("#key")
        assert page.locator("#steps tr.now td").first.inner_text() == f"after the {title}"
        seen.append(pixels(page, "map"))
    assert all((one != seen[0]).any() for one in seen[1:])
    assert page.wrong == []


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
