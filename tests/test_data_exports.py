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
