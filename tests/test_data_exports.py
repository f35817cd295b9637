"""Exports that the packages of annotation tools wrote: tests/fixtures/exports/make.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddfp_lib.data.convert import convert
from ddfp_lib.data.polygons import annotation_files
from ddfp_lib.data.splits import read_names
from ddfp_lib.errors import UserError

EXPORTS = Path(__file__).parent / "fixtures" / "exports"
TRUE = {
    name: np.array(rows, np.uint8)
    for name, rows in json.loads((EXPORTS / "true.json").read_text()).items()
}


def read(root):
    return {
        path.stem: np.array(Image.open(path)) for path in (root / "SegmentationClass").glob("*.png")
    }


def same(found, true=TRUE):
    assert found.keys() == true.keys()
    for name, mask in true.items():
        assert (found[name] == mask).all(), name


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        ("voc_segmentation", {}),
        ("voc_segmentation/SegmentationClass", {}),
        ("camvid/trainannot", {}),
        ("kitti_segmentation/train/semantic_rgb", {"table": "kitti_segmentation/label_colors.txt"}),
        ("kitti_segmentation/train/semantic", {"classes": ["background", "cell", "rim"]}),
    ],
)
def test_masks_of_datumaro(tmp_path, folder, options):
    if "table" in options:
        options = {"table": EXPORTS / "datumaro" / options["table"]}
    done = convert(EXPORTS / "datumaro" / folder, tmp_path, **options)
    assert done.classes == ("background", "cell", "rim")
    same(read(tmp_path))


@pytest.mark.parametrize("kind", ["voc_segmentation/ImageSets/Segmentation", "camvid"])
def test_lists_of_datumaro_name_the_images(kind):
    assert set(read_names(EXPORTS / "datumaro" / kind / "train.txt")) == set(TRUE)


@pytest.mark.parametrize("author", ["address", "number", "nobody"])
def test_brush_labels_of_label_studio(tmp_path, author):
    done = convert(EXPORTS / "label_studio" / author, tmp_path)
    assert (done.kind, done.classes) == ("label-studio", ("background", "cell", "rim"))
    same(read(tmp_path), dict(zip(("task-1", "task-2"), TRUE.values(), strict=True)))


def studio_export(folder, *labels):
    """A task with a square for each label, 255 on 0."""
    folder.mkdir()
    for place, name in enumerate(labels):
        pixels = np.zeros((8, 16), np.uint8)
        pixels[2:6, 4 * place : 4 * place + 3] = 255
        Image.fromarray(pixels).save(folder / f"task-1-annotation-7-by-1-tag-{name}-0.png")
    return folder


def squares(folder, count=3):
    mask = read(folder)["task-1"]
    return [int(mask[3, 4 * place]) for place in range(count)], int(mask[0, 0])


@pytest.mark.fault("wrong labels", "labels named like the background, or with spaces around them")
def test_equal_labels_of_label_studio_are_one_class(tmp_path):
    folder = studio_export(tmp_path / "in", "Background", "cell", " cell")
    done = convert(folder, tmp_path / "out")
    assert done.classes == ("background", "cell")
    assert squares(tmp_path / "out") == ([0, 1, 1], 0)


@pytest.mark.fault("wrong labels", "--classes without the background, for an export of regions")
@pytest.mark.parametrize("names", [["cell", "rim"], ["thing", "background", "cell", "rim"]])
def test_the_first_class_is_that_of_unlabeled_pixels(tmp_path, names):
    pytest.importorskip("pycocotools")
    pytest.importorskip("labelme")
    folders = "label_studio/number", "datumaro/coco_instances", "labelme"
    for folder in folders:
        with pytest.raises(UserError, match="get the first class; put background first"):
            convert(EXPORTS / folder, tmp_path, classes=names)
    for place, folder in enumerate(folders):
        done = convert(EXPORTS / folder, tmp_path / str(place), classes=["ground", "rim", "cell"])
        assert done.classes == ("ground", "rim", "cell")
        assert min(done.pixels[:3]) > 0


def square(x, y):
    return [[x, y, x + 4, y, x + 4, y + 4, x, y + 4]]


def coco_file(path, change=lambda content: None):
    """Two images of 12 x 16 pixels; each has a square of category 7 and one of category 3."""
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 12, "width": 16} for n in (1, 2)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 10 * n + category, "image_id": n, "category_id": category, "bbox": [0, 0, 4, 4],
             "segmentation": square(category, 2)}
            for n in (1, 2) for category in (3, 7)
        ],
    }  # fmt: skip
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.fault("wrong labels", "a category or label that is defined twice")
def test_equal_categories_of_coco_are_one_class(tmp_path):
    pytest.importorskip("pycocotools")

    def again(content):
        content["categories"] += [{"id": 8, "name": " cat "}, {"id": 9, "name": "Background"}]
        content["annotations"][1]["category_id"] = 8
        content["annotations"][3]["category_id"] = 9

    done = convert(coco_file(tmp_path / "c.json", again), tmp_path / "out")
    assert done.classes == ("background", "cat", "dog")
    masks = read(tmp_path / "out")
    assert [int(masks["1"][4, x]) for x in (5, 9)] == [1, 1]
    assert [int(masks["2"][4, x]) for x in (5, 9)] == [1, 0]


def first_region(**values):
    return lambda content: content["annotations"][0].update(values)


def every_region(content, region):
    for entry in content["annotations"]:
        entry["segmentation"] = region(entry)


@pytest.mark.fault("wrong labels", "exports that cannot be converted")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (first_region(segmentation=[]), "annotation 13 has no outline and no run lengths"),
        (first_region(segmentation=[[5, 5, 9, 9]]), "annotation 13 has an outline that is not"),
        (first_region(segmentation=[1, 2, 3]), "annotation 13 has an outline that is not"),
        (first_region(segmentation="text"), "annotation 13 has run lengths of size None"),
        (
            first_region(segmentation={"counts": [0, 9, 183], "size": [16, 12]}),
            r"annotation 13 has run lengths of size \[16, 12\] .* its image \[12, 16\]",
        ),
        (lambda c: c["annotations"][0].pop("segmentation"), "annotation 13 has no outline"),
        (lambda c: [e.pop("segmentation") for e in c["annotations"]], "annotation 13 has no"),
        (lambda c: c["images"][1].pop("height"), r"image 2\.png has no height and width"),
        (lambda c: c["images"][1].update(width="16"), r"image 2\.png has no height and width"),
        (lambda c: c["categories"][0].update(name=5), "is not a COCO file"),
        (
            lambda c: every_region(c, lambda entry: [[0.1, 0.2, 0.3, 0.2, 0.3, 0.4]]),
            r"all 4 regions drew no pixel; the first is annotation 13 of 1\.png",
        ),
        (
            lambda c: [e.update(image_id=9) for e in c["annotations"]],
            "annotation 13, whose image 9 is not in the file",
        ),
    ],
)
def test_coco_regions_that_cannot_be_drawn_are_one_line(tmp_path, change, words):
    pytest.importorskip("pycocotools")
    with pytest.raises(UserError, match=rf"c\.json: .*{words}"):
        convert(coco_file(tmp_path / "c.json", change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("wrong labels", "regions outside of their image, or of unknown images")
@pytest.mark.parametrize(
    ("values", "which"),
    [
        ({"segmentation": square(100, 100)}, "annotation 13 of 1.png"),
        ({"segmentation": [[0.1, 0.2, 0.3, 0.2, 0.3, 0.4]]}, "annotation 13 of 1.png"),
        ({"image_id": 9}, "annotation 13, whose image 9 is not in the file"),
    ],
)
def test_regions_that_draw_no_pixel_are_noticed(tmp_path, values, which):
    pytest.importorskip("pycocotools")
    done = convert(coco_file(tmp_path / "c.json", first_region(**values)), tmp_path / "out")
    (notice,) = done.notices
    assert notice.startswith(f"1 regions drew no pixel; the first is {which}")
    assert [int(read(tmp_path / "out")["1"][4, x]) for x in (5, 9)] == [0, 2]


@pytest.mark.fault("wrong labels", "regions outside of their image, or of unknown images")
def test_shapes_of_labelme_that_draw_no_pixel_are_noticed(tmp_path):
    pytest.importorskip("labelme")
    there, far = [[[x, 2], [x + 4, 2], [x + 4, 6]] for x in (3, 300)]
    shapes = [
        {"label": label, "points": points, "shape_type": "polygon"}
        for label, points in (("cell", there), ("rim", far))
    ]
    write(tmp_path / "in" / "a.json", shapes=shapes, imageHeight=12, imageWidth=16)
    done = convert(tmp_path / "in", tmp_path / "out")
    assert done.notices[0].startswith("1 regions drew no pixel; the first is shape 2 (rim) of a.js")
    write(tmp_path / "in" / "a.json", shapes=shapes[1:], imageHeight=12, imageWidth=16)
    with pytest.raises(UserError, match=r"all 1 regions drew no pixel"):
        convert(tmp_path / "in", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_two_annotations_of_a_task_of_label_studio_are_refused(tmp_path):
    folder = shutil.copytree(EXPORTS / "label_studio" / "number", tmp_path / "in")
    first = next(folder.glob("task-1-*cell*"))
    shutil.copy(first, folder / "task-1-annotation-99-by-2-tag-cell-0.png")
    with pytest.raises(UserError, match="task-1 has the annotations 11 and 99"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["", "annotations", "annotations/instances_train.json"])
def test_run_lengths_of_datumaro_are_classes_not_crowds(tmp_path, source):
    """It marks each region that is a mask iscrowd, and here it numbers them anew in each image."""
    pytest.importorskip("pycocotools")
    done = convert(EXPORTS / "datumaro" / "coco_instances" / source, tmp_path)
    assert done.kind == "coco"
    assert done.notices == ("4 of 4 regions are marked iscrowd: drawn as their class",)
    same(read(tmp_path))


def test_a_region_with_a_hole_of_supervision_is_a_class(tmp_path):
    """It marks regions with a hole iscrowd; outlines run through the centers of its pixels."""
    pytest.importorskip("pycocotools")
    done = convert(EXPORTS / "supervision", tmp_path)
    assert done.classes == ("background", "cell", "rim")
    for name, mask in read(tmp_path).items():
        assert ((mask == 1) == (TRUE[name] == 1)).all()
        assert 0 < (mask == 2).sum() <= (TRUE[name] == 2).sum()
        assert (TRUE[name][mask == 2] == 2).all()


def test_regions_of_labelme_with_masks_of_its_ai_tools(tmp_path):
    pytest.importorskip("labelme")
    done = convert(EXPORTS / "labelme", tmp_path)
    assert done.classes == ("_background_", "cell", "rim")
    for name, mask in read(tmp_path).items():
        assert ((mask == 1) == (TRUE[name] == 1)).all()
        assert (mask[8:11, 11:15] == 2).all()


def write(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_only_regions_are_taken_for_coco(tmp_path):
    """Panoptic segments, captions and what other tools call annotations are something else."""
    common = {"images": [], "categories": []}
    write(tmp_path / "panoptic.json", **common, annotations=[{"segments_info": []}])
    write(tmp_path / "captions.json", images=[], annotations=[{"caption": "a cell"}])
    write(tmp_path / "sam.json", image={}, annotations=[{"segmentation": {}}])
    write(tmp_path / "datumaro.json", items=[])
    assert annotation_files(tmp_path) is None
    write(tmp_path / "regions.json", **common, annotations=[{"segmentation": []}])
    assert annotation_files(tmp_path) == ("coco", [tmp_path / "regions.json"])
    write(tmp_path / "val.json", **common, annotations=[])
    with pytest.raises(UserError, match=r"several COCO files \(regions.json, val.json\)"):
        annotation_files(tmp_path)


@pytest.mark.fault("wrong labels", "exports that cannot be converted")
@pytest.mark.parametrize(
    "content",
    [
        {"annotations": [{"segmentation": []}]},  # of no image
        {"annotations": [{"segmentation": [], "image_id": 1}]},
        {"annotations": [{"segmentation": [], "image_id": 1, "category_id": 9}]},
        {"annotations": ["text"]},
        {"images": [{"id": 1}]},
        {"categories": [{}]},
        {"images": [{"id": 1, "file_name": f"{n}.jpg", "height": 2, "width": 2} for n in "ab"]},
    ],
)
def test_damaged_coco_files_are_one_line(tmp_path, content):
    pytest.importorskip("pycocotools")
    write(tmp_path / "c.json", **{"images": [], "categories": [], "annotations": [], **content})
    with pytest.raises(UserError, match=r"c\.json"):
        convert(tmp_path / "c.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["export/annotations.xml"], "XML files are not read: export masks instead"),
        (["export/train/a.png"], "a.png is in a subfolder: give that"),
        (["export/a.json"], "no mask .* and no JSON file of COCO or LabelMe"),
    ],
)
def test_what_is_no_export_says_what_lies_there(tmp_path, files, words):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=words):
        convert(tmp_path / "export", tmp_path / "out")
