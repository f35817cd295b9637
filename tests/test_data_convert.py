"""Exports of annotation tools become masks of class indices, or one line says why not."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from ddfp_lib.cli import app
from ddfp_lib.data.base import read_mask
from ddfp_lib.data.convert import convert
from ddfp_lib.data.voc import voc_palette
from ddfp_lib.errors import UserError
from tests.fixtures.png import save_few_bits

MASK = np.zeros((9, 12), np.uint8)
MASK[2:5, 3:9] = 1
MASK[6:8, 1:4] = 2
COLOURS = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], np.uint8)
LABELMAP = """\
# label:color_rgb:parts:actions
cell:250,50,83::
rim:51,221,255::
background:0,0,0::
"""


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def refused(call, *words):
    with pytest.raises(UserError) as error:
        call()
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def written(root, name="a", classes=3):
    return read_mask(root / "SegmentationClass" / f"{name}.png", classes).numpy()


@pytest.mark.parametrize("palette", [False, True])
def test_cvat_colours_become_classes(tmp_path, palette):
    """As CVAT writes it: the table beside the folder of the masks, background not first."""
    source, root = tmp_path / "export", tmp_path / "data"
    image = Image.fromarray(COLOURS[MASK])
    (source / "SegmentationClass").mkdir(parents=True)
    (image.quantize(8) if palette else image).save(source / "SegmentationClass" / "a.png")
    (source / "labelmap.txt").write_text(LABELMAP)
    done = convert(source, root)
    assert (done.kind, done.classes) == ("colours", ("background", "cell", "rim"))
    assert (root / "classes.txt").read_text() == "background\ncell\nrim\n"
    assert (written(root) == MASK).all()
    assert done.pixels == (*np.bincount(MASK.ravel()).tolist(), 0)


def test_a_table_in_csv_and_ignored_pixels(tmp_path):
    colours = np.vstack([COLOURS, [(255, 255, 255)]]).astype(np.uint8)
    mask = MASK.copy()
    mask[0] = 3
    save(tmp_path / "in" / "a.png", colours[mask])
    lines = ["name,r,g,b", "background,0,0,0", "cell,250,50,83", "rim,51,221,255"]
    (tmp_path / "t.csv").write_text("\n".join([*lines, "void,255,255,255"]))
    convert(tmp_path / "in", tmp_path / "data", table=tmp_path / "t.csv")
    mask[0] = 255
    assert (written(tmp_path / "data") == mask).all()


def test_roboflow_values_become_classes(tmp_path):
    save(tmp_path / "in" / "a_mask.png", MASK)
    save(tmp_path / "in" / "a.jpg", COLOURS[MASK])
    (tmp_path / "in" / "_classes.csv").write_text(
        "Pixel Value, Class\n0, background\n1, cell\n2, rim\n"
    )
    done = convert(tmp_path / "in", tmp_path / "data")
    assert (done.kind, done.classes) == ("values", ("background", "cell", "rim"))
    assert (written(tmp_path / "data") == MASK).all()


def test_masks_that_would_not_be_read_are_not_written(tmp_path):
    save(tmp_path / "in" / "a.png", MASK)
    (tmp_path / "data" / "SegmentationClassAug").mkdir(parents=True)
    refused(
        lambda: convert(tmp_path / "in", tmp_path / "data", classes=["a", "b", "c"]),
        "SegmentationClassAug: exists and would be read instead of",
        "--root",
    )
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["SegmentationClassAug"]


@pytest.mark.parametrize(
    "names", [["a", "cell", "cell"], ["a", "#cell", "c"], ["0 a", "2 b", "1 c"]]
)
def test_classes_that_cannot_be_read_back_are_not_written(tmp_path, names):
    save(tmp_path / "in" / "a.png", MASK)
    refused(lambda: convert(tmp_path / "in", tmp_path / "data", classes=names), names[1])
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_with_holes_and_a_void_of_any_number(tmp_path, dtype):
    """A table gives them other numbers: 0 is ignored here, 7 and 26 are classes, 254 is another."""
    stored = np.array([0, 7, 26, 254], dtype)
    mask = MASK.copy()
    mask[0] = 3
    save(tmp_path / "in" / "a.png", stored[mask])
    table = tmp_path / "values.csv"
    table.write_text("value,name\n0,void\n26,rim\n7,cell\n254,last\n")
    done = convert(tmp_path / "in", tmp_path / "data", table=table)
    assert (done.kind, done.classes) == ("values", ("rim", "cell", "last"))
    assert (written(tmp_path / "data") == np.array([255, 1, 0, 2])[mask]).all()
    table.write_text("0,void\n26,rim\n7,cell\n")
    refused(
        lambda: convert(tmp_path / "in", tmp_path / "other", table=table),
        "a.png: value 254, at row 0, column 0, is not a class (0, 26, 7)",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,cell\n0,rim\n", "0 is given two classes"),
        ("0,cell\n1,cell\n", "class 'cell' is in two lines"),
        ("0,cell\none,rim\n", "line 2: 'one,rim' is not value,name"),
        ("cell\n", "'cell' has no color"),
        ("cell:::\nrim:::\n", "'cell:::' has no color"),
        ("cell,1,2,3\nrim,1,2,300\n", "line 2: 'rim,1,2,300' is not name:r,g,b"),
        ("cell,1,2,3\nrim,1,2,3\n", "is given two classes"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, text, words):
    save(tmp_path / "in" / "a.png", MASK)
    (tmp_path / "t.csv").write_text(text)
    refused(
        lambda: convert(tmp_path / "in", tmp_path / "data", table=tmp_path / "t.csv"),
        "t.csv",
        words,
    )


@pytest.mark.parametrize("form", ["name:r,g,b:parts:actions", "name,r,g,b", "r g b name"])
def test_tables_of_colours_in_each_form(tmp_path, form):
    save(tmp_path / "in" / "a.png", COLOURS[MASK])
    table = tmp_path / "in" / ("labelmap.txt" if ":" in form else "label_colors.txt")
    lines = []
    for name, colour in zip(("background", "cell", "rim of it"), COLOURS.tolist(), strict=True):
        line = form.replace("name", name).replace(":parts:actions", "::")
        for letter, value in zip("rgb", colour, strict=True):
            line = re.sub(rf"\b{letter}\b", str(value), line)
        lines.append(line)
    table.write_text("\n".join(lines))
    assert convert(tmp_path / "in", tmp_path / "data").classes[2] == "rim of it"
    assert (written(tmp_path / "data") == MASK).all()


def test_one_bit_beside_eight_is_refused(tmp_path):
    """An optimizer stores 0 and 255 with 1 bit, and so are 0 and 1 stored."""
    save(tmp_path / "in" / "a.png", MASK)
    save(tmp_path / "in" / "b.png", MASK == 1)
    names = ["background", "cell", "rim"]
    refused(
        lambda: convert(tmp_path / "in", tmp_path / "data", classes=names),
        "b.png: has 1 bit a pixel, a.png has more",
    )
    (tmp_path / "in" / "a.png").unlink()
    convert(tmp_path / "in", tmp_path / "data", classes=names, kind="values")
    assert (written(tmp_path / "data", "b") == (MASK == 1)).all()


@pytest.mark.fault("wrong labels", "palettes that a PNG optimizer has renumbered")
@pytest.mark.parametrize("everywhere", [False, True])
def test_renumbered_palettes_are_converted_by_colour_alone(tmp_path, everywhere):
    colours = np.array(voc_palette(3), np.uint8)
    order = [2, 0, 1]
    for name in "ab":
        moved = everywhere or name == "b"
        image = Image.fromarray(np.argsort(order)[MASK].astype(np.uint8) if moved else MASK)
        image.putpalette(colours[order if moved else [0, 1, 2]].tobytes())
        (tmp_path / "in").mkdir(exist_ok=True)
        image.save(tmp_path / "in" / f"{name}.png", bits=8)
    names = ["background", "cell", "rim"]
    refused(
        lambda: convert(tmp_path / "in", tmp_path / "data", classes=names),
        "was the palette renumbered? Give" if everywhere else "a palette was renumbered; give",
        "the colors of the classes with --table, or --kind values if the values are right",
    )
    lines = [f"{n},{','.join(map(str, c))}" for n, c in zip(names, colours.tolist(), strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    convert(tmp_path / "in", tmp_path / "data", table=tmp_path / "t.csv")
    for name in "ab":
        assert (written(tmp_path / "data", name) == MASK).all()
    # the values are right, says the user
    convert(tmp_path / "in", tmp_path / "said", classes=names, kind="values")
    moved = np.argsort(order)[MASK]
    assert (written(tmp_path / "said", "a") == (moved if everywhere else MASK)).all()
    assert (written(tmp_path / "said", "b") == moved).all()


def test_a_black_and_white_palette_can_hold_0_and_1(tmp_path):
    """Its white looks like the renumbered 255 of a gray ramp; the user knows that it is not."""
    image = Image.fromarray((MASK == 1).astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "a.png", bits=8)
    names = ["background", "cell"]
    refused(
        lambda: convert(tmp_path / "in", tmp_path / "data", classes=names),
        "a.png: value 1 is shown as gray 255",
        "another value; give the colors",
        "--kind values",
    )
    convert(tmp_path / "in", tmp_path / "data", classes=names, kind="values")
    assert (written(tmp_path / "data", classes=2) == (MASK == 1)).all()


@pytest.mark.parametrize("form", ["gray", "one bit"])
def test_black_and_white_become_0_and_1(tmp_path, form):
    mask = MASK == 1
    save(tmp_path / "in" / "a.png", mask if form == "one bit" else mask.astype(np.uint8) * 255)
    done = convert(tmp_path / "in", tmp_path / "data", classes=["background", "cell"])
    assert done.kind == "binary"
    assert (written(tmp_path / "data", classes=2) == mask).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_of_few_bits_keeps_its_values(tmp_path, bits):
    """Pillow stretches them to 0..255: a 1 of 4 bits reads as 17, a 1 of 2 bits as 85."""
    (tmp_path / "in").mkdir()
    save_few_bits(Image.fromarray(MASK), tmp_path / "in" / "a.png", bits)
    assert set(np.unique(np.array(Image.open(tmp_path / "in" / "a.png")))) != {0, 1, 2}
    done = convert(tmp_path / "in", tmp_path / "data", classes=["background", "cell", "rim"])
    assert done.kind == "values"
    assert (written(tmp_path / "data") == MASK).all()


def test_sixteen_bits_become_eight(tmp_path):
    save(tmp_path / "in" / "a.png", MASK.astype(np.uint16))
    convert(tmp_path / "in", tmp_path / "data", classes=["background", "cell", "rim"])
    assert (written(tmp_path / "data") == MASK).all()


def test_label_studio_writes_a_file_for_each_label(tmp_path):
    for label, index in (("cell", 1), ("rim-2", 2)):
        name = f"task-7-annotation-3-by-1-tag-{label}-0.png"
        save(tmp_path / "in" / name, (index == MASK).astype(np.uint8) * 255)
    done = convert(tmp_path / "in", tmp_path / "data")
    assert done.classes == ("background", "cell", "rim-2")
    assert (written(tmp_path / "data", "task-7") == MASK).all()
    save(tmp_path / "in" / "task-7-annotation-3-by-1-tag-top-0.png", np.full_like(MASK, 255))
    refused(lambda: convert(tmp_path / "in", tmp_path / "other"), "overlaps")


@pytest.mark.fault("wrong labels", "exports that cannot be converted")
def test_what_cannot_be_converted_is_refused_and_nothing_is_left(tmp_path):
    source, root = tmp_path / "in", tmp_path / "data"
    refused(lambda: convert(source, root), "no such folder")
    source.mkdir()
    refused(lambda: convert(source, root), "holds no mask")
    save(source / "a.png", COLOURS[MASK])
    refused(lambda: convert(source, root), "a.png", "--table")
    smooth = COLOURS[MASK]
    smooth[4, 5] = (125, 25, 41)
    save(source / "b.png", smooth)
    (source / "labelmap.txt").write_text(LABELMAP)
    refused(lambda: convert(source, root), "b.png", "(125, 25, 41)", "row 4, column 5")
    (source / "b.png").unlink()
    save(source / "b.jpg", COLOURS[MASK])
    refused(lambda: convert(source, root), "b.jpg", "lossy")
    (source / "b.jpg").rename(source / "b.png")
    refused(lambda: convert(source, root), "b.png", "lossy")
    (source / "b.png").unlink()
    gray = tmp_path / "gray"
    gray.mkdir()
    image, names = Image.fromarray(100 * MASK), ["background", "cell", "rim"]
    table = tmp_path / "values.csv"
    table.write_text("\n".join(f"{value},{value}" for value in range(256) if value != 77))
    image.save(gray / "a.tif", compression="jpeg", quality=10)
    assert (np.array(Image.open(gray / "a.tif")) != np.array(image)).any()
    refused(lambda: convert(gray, root, table=table), "a.tif", "lossy compression (TIFF)")
    Image.fromarray(MASK).save(
        gray / "a.tif", save_all=True, append_images=[Image.fromarray(2 - MASK)]
    )
    refused(lambda: convert(gray, root, classes=names), "a.tif", "a mask of 2 pages")
    refused(lambda: convert(source, root, kind="cvat"), "--kind cvat")
    refused(lambda: convert(source, root, kind="coco"), "no JSON file of coco")
    assert not root.exists()
    convert(source, root)
    refused(lambda: convert(source, root), "already exists")
    (root / "SegmentationClass" / "a.png").unlink()
    (root / "classes.txt").write_text("background\nrim\ncell\n")
    refused(lambda: convert(source, root), "classes.txt", "other classes")
    assert not list((root / "SegmentationClass").iterdir())


def test_names_are_needed_and_values_have_to_fit(tmp_path):
    save(tmp_path / "in" / "a.png", MASK)
    refused(lambda: convert(tmp_path / "in", tmp_path / "data"), "--classes")
    refused(
        lambda: convert(tmp_path / "in", tmp_path / "data", classes=["background", "cell"]),
        "a.png",
        "value 2",
    )


def test_the_command_says_what_it_read(tmp_path, capsys):
    save(tmp_path / "in" / "a.png", (MASK == 1).astype(np.uint8) * 255)
    line = ["data", "convert", str(tmp_path / "in"), "--root", str(tmp_path / "data")]
    app([*line, "--classes", "background,cell"], standalone_mode=False)
    told = capsys.readouterr().out
    assert "1 masks, read as binary" in told
    assert "background, cell" in told


# Regions in JSON, drawn by the tools' own packages: pip install 'ddfp[convert]' -----------------


def test_json_needs_the_package_of_its_tool(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    monkeypatch.setitem(sys.modules, "labelme.utils", None)
    (tmp_path / "c.json").write_text('{"annotations": [], "images": [], "categories": []}')
    refused(lambda: convert(tmp_path / "c.json", tmp_path / "data"), "pycocotools", "ddfp[convert]")
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "a.json").write_text('{"shapes": []}')
    refused(lambda: convert(tmp_path / "lm", tmp_path / "data"), "labelme", "ddfp[convert]")
    (tmp_path / "lm" / "a.json").write_text("{")
    refused(lambda: convert(tmp_path / "lm", tmp_path / "data"), "a.json", "not a JSON")


def test_coco_regions_are_drawn(tmp_path):
    """Run lengths that pycocotools encodes come back; smaller regions are on top, crowds below."""
    rle = pytest.importorskip("pycocotools.mask")

    def entry(number, category, region, crowd=0):
        code = rle.encode(np.asfortranarray(region.astype(np.uint8)))
        code["counts"] = code["counts"].decode()
        return {
            "id": number, "image_id": 5, "category_id": category, "segmentation": code,
            "iscrowd": crowd, "area": int(region.sum()), "bbox": [0, 0, 1, 1],
        }  # fmt: skip

    crowd = np.zeros_like(MASK)
    crowd[4:6, 7:10] = 1
    large = (MASK == 1) | (MASK == 2)
    content = {
        "images": [{"id": 5, "file_name": "some/a.jpg", "height": 9, "width": 12}],
        "categories": [
            {"id": 0, "name": "things", "supercategory": "none"},  # Roboflow's, of no region
            {"id": 3, "name": "rim", "supercategory": "things"},
            {"id": 1, "name": "cell", "supercategory": "things"},
        ],
        "annotations": [entry(1, 3, MASK == 2), entry(2, 1, large), entry(3, 3, crowd, 1)],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    done = convert(tmp_path / "c.json", tmp_path / "data")
    assert (done.kind, done.classes) == ("coco", ("background", "cell", "rim"))
    assert done.tool.startswith("pycocotools ")
    expected = np.where((MASK == 0) & (crowd > 0), 2, MASK)
    assert (written(tmp_path / "data") == expected).all()


def test_labelme_regions_are_drawn(tmp_path):
    files = pytest.importorskip("labelme._label_file")
    shapes = [
        {"label": label, "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
        for label, points in (
            ("rim", [[3, 2], [8, 2], [8, 4], [3, 4]]),
            ("cell", [[1, 6], [3, 6], [3, 7], [1, 7]]),
            ("__ignore__", [[10, 7], [11, 7], [11, 8], [10, 8]]),
        )
    ]
    (tmp_path / "lm").mkdir()
    label_file = files.LabelFile()
    label_file.save(
        filename=str(tmp_path / "lm" / "a.json"),
        shapes=shapes,
        image_path="a.jpg",
        image_height=9,
        image_width=12,
    )
    done = convert(tmp_path / "lm", tmp_path / "data")
    assert (done.kind, done.classes) == ("labelme", ("_background_", "cell", "rim"))
    mask = written(tmp_path / "data")
    assert (mask[2:5, 3:9] == 2).all()
    assert (mask[6:8, 1:4] == 1).all()
    assert (mask[7:9, 10:12] == 255).all()
    assert (mask == 0).sum() == 9 * 12 - 18 - 6 - 4
