"""CamVid and the VOC layout."""

import pytest
import torch
from PIL import Image

from ddfp_lib.data.camvid import CamVid
from ddfp_lib.data.cityscapes import Cityscapes
from ddfp_lib.data.digits import DigitScenes, DigitScenesConfig
from ddfp_lib.data.splits import read_names, read_split
from ddfp_lib.data.voc import Voc, read_classes, voc_palette, write_voc
from ddfp_lib.errors import UserError
from tests.fixtures.trees import InMemory, make_camvid, make_cityscapes, make_voc


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_camvid_reads_the_segnet_layout(tmp_path, suffix):
    data = CamVid(make_camvid(tmp_path, {"train": 3, "val": 2}, suffix=suffix), "train")
    assert len(data) == 3
    assert data.names == sorted(data.names)
    assert len(data.classes) == len(data.palette) == 11
    assert data.image(1).shape == (3, 36, 48)
    values = set(data.mask(1).unique().tolist())
    assert values <= {*range(11), 255}
    assert (data.mask(1)[0] == 255).all()  # the fixture's border is void, 11 in the file


def test_camvid_half_size(tmp_path):
    data = CamVid(make_camvid(tmp_path, {"test": 1}), "test", size=(18, 24))
    full = CamVid(tmp_path, "test")
    assert data.image(0).shape == (3, 18, 24)
    assert set(data.mask(0).unique().tolist()) <= set(full.mask(0).unique().tolist())
    # antialiased: half size is close to the mean of 2 x 2 pixels, sampling would not be
    mean = torch.nn.functional.avg_pool2d(full.image(0).float(), 2)
    assert (data.image(0) - mean).abs().mean() < 0.5 * (
        full.image(0)[:, ::2, ::2] - mean
    ).abs().mean()


def test_camvid_refuses_what_is_not_there(tmp_path):
    make_camvid(tmp_path, {"train": 1, "val": 0})
    with pytest.raises(UserError, match=r"subset 'trainval'.*train, val, test"):
        CamVid(tmp_path, "trainval")
    with pytest.raises(UserError, match=r"test: no such folder"):
        CamVid(tmp_path, "test")
    with pytest.raises(UserError, match=r"val: holds no"):
        CamVid(tmp_path, "val")


def test_voc_reads_odd_sizes_in_the_order_of_the_list(tmp_path):
    data = Voc(make_voc(tmp_path, {"train": ["b", "a"], "val": ["c"]}), "train")
    assert data.names == ["b", "a"]
    assert len(data.classes) == 21
    for index in range(2):
        assert data.image(index).shape[1:] == data.mask(index).shape
        assert 255 in data.mask(index)


def test_voc_prefers_the_augmented_masks(tmp_path):
    make_voc(tmp_path, {"train": ["a"]})
    make_voc(tmp_path, {"train": ["a"]}, masks="SegmentationClassAug")
    aug = tmp_path / "SegmentationClassAug" / "a.png"
    mask = Image.open(aug)
    mask.paste(20, (0, 0, *mask.size))
    mask.save(aug)
    assert (Voc(tmp_path, "train").mask(0) == 20).all()
    assert not (Voc(tmp_path, "train", masks="SegmentationClass").mask(0) == 20).all()


def test_own_data_of_two_lists_and_masks_for_the_labeled_only(tmp_path):
    lists = {"all": ["a", "b", "c"], "labeled": ["b"], "unlabeled": ["a", "c"]}
    classes = ["ground", "my thing"]
    make_voc(tmp_path, lists, classes=classes, without_mask=["a", "c"])
    folder = tmp_path / "ImageSets" / "Segmentation"
    data = Voc(tmp_path, folder / "all.txt")
    labeled, unlabeled = read_split(data, folder / "labeled.txt", folder / "unlabeled.txt")
    assert data.classes == ("ground", "my thing")
    assert (labeled, unlabeled) == ([1], [0, 2])
    assert data.mask(1).max() == 255
    with pytest.raises(UserError, match=r"a\.png: no such file"):
        data.mask(0)


def test_voc_names_a_listed_image_that_is_not_there(tmp_path):
    make_voc(tmp_path, {"train": ["a"]})
    (tmp_path / "list.txt").write_text("a\nzebra\n")
    with pytest.raises(UserError, match=r"list\.txt: there is no image 'zebra'"):
        Voc(tmp_path, tmp_path / "list.txt")
    with pytest.raises(
        UserError,
        match=r"test\.txt: there is no such list; the lists there: train; set data\.test=val",
    ):
        Voc(tmp_path, "test")


def test_a_missing_folder_of_lists_is_named(tmp_path):
    make_voc(tmp_path, {"train": ["a"]})
    folder = tmp_path / "ImageSets" / "Segmentation"
    folder.rename(folder.with_name("Main"))
    with pytest.raises(UserError, match=r"ImageSets/Segmentation: this folder is missing"):
        Voc(tmp_path, "train")


def test_voc_palette_is_the_known_one():
    assert voc_palette(256)[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert voc_palette(256)[15] == (192, 128, 128)  # person
    assert voc_palette(256)[255] == (224, 224, 192)  # void
    assert len(set(voc_palette(256))) == 256


def test_written_scenes_come_back_bit_equal(tmp_path):
    config = DigitScenesConfig(train=5, val=3)
    written = {subset: DigitScenes(config, subset) for subset in ("train", "val")}
    write_voc(written, tmp_path)
    for subset, scenes in written.items():
        read = Voc(tmp_path, subset)
        assert read.names == scenes.names
        assert read.classes == scenes.classes
        for index in range(len(scenes)):
            assert torch.equal(read.image(index), scenes.image(index))
            assert torch.equal(read.mask(index), scenes.mask(index))


def test_written_masks_show_the_colours_of_the_data_set(tmp_path):
    data = InMemory([torch.tensor([[0, 4, 255]], dtype=torch.uint8)])
    write_voc({"train": data}, tmp_path)
    with Image.open(tmp_path / "SegmentationClass" / "image0.png") as mask:
        shown = [mask.convert("RGB").getpixel((x, 0)) for x in range(3)]
    assert shown == [data.palette[0], data.palette[4], (224, 224, 192)]


def test_voc_trains_on_the_augmented_list_where_there_is_one(tmp_path):
    make_voc(tmp_path, {"train": ["a"], "train_aug": ["a", "b"], "val": ["c"]})
    assert Voc(tmp_path, "train").names == ["a", "b"]
    assert Voc(tmp_path, tmp_path / "ImageSets" / "Segmentation" / "train.txt").names == ["a"]


@pytest.mark.parametrize("masks", ["SegmentationClass", "SegmentationClassAug"])
@pytest.mark.parametrize(
    "line",
    [
        "NAME",
        "NAME.jpg NAME.png",
        "/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png",
        "JPEGImages/NAME.jpg SegmentationClass/NAME.png",
        "VOCdevkit/VOC2012/JPEGImages/NAME.jpg VOCdevkit/VOC2012/SegmentationClass/NAME.png",
        r"D:\voc\JPEGImages\NAME.jpg D:\voc\SegmentationClass\NAME.png",
        '"JPEGImages/NAME.png" "ROOT/linked/NAME.png"',
    ],
)
def test_published_lists_name_the_files_that_are_read(tmp_path, masks, line):
    make_voc(tmp_path, {"train": ["2007_000032"]}, masks=masks)
    (tmp_path / "linked").symlink_to(tmp_path / masks)
    line = line.replace("NAME", "2007_000032").replace("ROOT", str(tmp_path))
    (tmp_path / "l.txt").write_text(line + "\n")
    data = Voc(tmp_path, tmp_path / "l.txt")
    assert data.names == ["2007_000032"]
    assert read_split(data, tmp_path / "l.txt") == ([0], [])


def test_published_lists_of_street_scenes_name_the_files_that_are_read(tmp_path):
    camvid = CamVid(make_camvid(tmp_path / "c", {"train": 1}), "train")
    name = camvid.names[0]
    pair = f"/SegNet/CamVid/train/{name}.png /SegNet/CamVid/trainannot/{name}.png"
    (tmp_path / "c.txt").write_text(pair)
    assert read_names(tmp_path / "c.txt", camvid) == [name]
    city = Cityscapes(make_cityscapes(tmp_path / "s", {"train": 1}), "train")
    for kind in ("labelIds", "labelTrainIds"):
        pair = (
            "leftImg8bit/train/train0/train0_000000_leftImg8bit.png "
            f"gtFine/train/train0/train0_000000_gtFine_{kind}.png"
        )
        (tmp_path / "s.txt").write_text(pair)
        assert read_names(tmp_path / "s.txt", city) == city.names
    (tmp_path / "s.txt").write_text(pair.replace("gtFine", "gtCoarse"))
    with pytest.raises(UserError, match=r"s\.txt, line 1: names gtCoarse"):
        read_names(tmp_path / "s.txt", city)


@pytest.mark.fault("wrong labels", "a list that names files that `ddfp` would not read")
@pytest.mark.parametrize(
    ("line", "named", "read"),
    [
        ("JPEGImages/b.jpg Masks/b.png", "Masks/b.png", "SegmentationClass/b.png"),
        ("b.jpg\tmy masks/b.png", "my masks/b.png", "SegmentationClass/b.png"),
        ("JPEGImages/b.jpg SegmentationClass/a.png", "SegmentationClass/a.png", "b.png"),
        ("JPEGImages/b.jpg SegmentationClass/b.tif", "SegmentationClass/b.tif", "b.png"),
        ("images/b.jpg", "images/b.jpg", "JPEGImages/b.jpg"),
        ("JPEGImages/more/b.jpg", "JPEGImages/more/b.jpg", "JPEGImages/b.jpg"),
        ("other/JPEGImages/b.jpg", "other/JPEGImages/b.jpg", "JPEGImages/b.jpg"),
        (
            "b.jpg other/SegmentationClass/b.png",
            "other/SegmentationClass/b.png",
            "SegmentationClass/b.png",
        ),
        ("ROOT/other/JPEGImages/b.jpg", "other/JPEGImages/b.jpg", "JPEGImages/b.jpg"),
        ("JPEGImages/b.jpg,Masks/b.png", "JPEGImages/b.jpg,Masks/b.png", "JPEGImages/b.jpg"),
    ],
)
def test_a_list_that_names_other_files_is_refused(tmp_path, line, named, read):
    make_voc(tmp_path, {"train": ["a", "b"]})
    data = Voc(tmp_path, "train")
    make_voc(tmp_path / "other", {"train": ["b"]})
    (tmp_path / "l.txt").write_text("a\n" + line.replace("ROOT", str(tmp_path)))
    for call in (
        lambda: Voc(tmp_path, tmp_path / "l.txt"),
        lambda: read_split(data, tmp_path / "l.txt"),
    ):
        with pytest.raises(UserError) as error:
            call()
        for word in ("l.txt, line 2", named, f"{read} would be read"):
            assert word in str(error.value)


@pytest.mark.fault("wrong labels", "a table of an annotation tool as classes.txt")
@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (["0 background", "2 dog", "1 cat"], 2),
        (["1: background", "3: dog", "2: cat"], 2),
        (["7,cat", "8,dog"], 1),
        (["64 128 64 Animal", "192 0 128 Archway"], 1),
        (["Pixel Value, Class", "0, background", "1, cat"], 1),
        (["value,name", "0,background", "1,cat"], 1),
        (["background", "# animals", "cat"], 2),
        (["# label:color_rgb:parts:actions", "background:0,0,0::", "cat:250,50,83::"], 1),
    ],
)
def test_tables_are_no_lists_of_classes(tmp_path, lines, line):
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=rf"classes\.txt, line {line}: .*--table") as error:
        read_classes(tmp_path / "classes.txt")
    assert repr(lines[line - 1]) in str(error.value)


@pytest.mark.parametrize(
    "lines",
    [
        ["0 background", "1 cat", "2 dog"],
        ["1: ground", "2: cat"],
        ["ground", "2 wheels", "4 wheels"],
        ["30", "50", "80"],
        ["2d scan", "3d scan"],
    ],
)
def test_classes_with_numbers_are_names(tmp_path, lines):
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    assert read_classes(tmp_path / "classes.txt") == lines
