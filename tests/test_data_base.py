import numpy as np
import pytest
import torch
from PIL import Image

from ddfp_lib.data import open_dataset
from ddfp_lib.data.base import files_by_stem, read_image, read_mask, resize_mask
from ddfp_lib.data.convert import convert
from ddfp_lib.errors import UserError
from tests.fixtures.trees import make_camvid, make_voc


def save(path, pixels, **kwargs):
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path, **kwargs)
    return path


def test_gray_image_becomes_rgb(tmp_path):
    path = save(tmp_path / "a.png", [[0, 7, 255]])
    assert read_image(path).tolist() == [[[0, 7, 255]]] * 3


def test_a_turned_picture_is_read_as_stored_or_upright(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: turn it clockwise to see it
    path = save(tmp_path / "a.png", [[1, 2, 3]], exif=turned)
    assert read_image(path)[0].tolist() == [[1, 2, 3]]
    assert read_image(path, upright=True)[0].tolist() == [[1], [2], [3]]


def test_palette_mask_is_read_as_indices_not_colours(tmp_path):
    mask = Image.fromarray(np.array([[0, 1, 2, 255]], dtype=np.uint8))
    mask.putpalette([9, 9, 9, 128, 0, 0] * 128)
    mask.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", classes=3).tolist() == [[0, 1, 2, 255]]


def test_void_is_read_as_ignored(tmp_path):
    path = save(tmp_path / "m.png", [[0, 11, 10]])
    assert read_mask(path, classes=11, void=11).tolist() == [[0, 255, 10]]


def refuses(call, *words):
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


def test_missing_files_are_named(tmp_path):
    refuses(lambda: read_image(tmp_path / "no.jpg"), "no.jpg", "no such file")
    refuses(lambda: read_mask(tmp_path / "no.png", 2), "no.png", "no such file")
    refuses(lambda: files_by_stem(tmp_path / "none"), "none", "no such folder")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("keep", [0, 12, 0.5])
def test_broken_files_are_refused(tmp_path, suffix, keep):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    path = save(tmp_path / f"a{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    refuses(lambda: read_image(path), path, "not a whole image")


def test_text_under_an_image_name_is_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("<html>404</html>")
    refuses(lambda: read_image(path), path, "not a whole image")


@pytest.mark.fault(
    "hostile file",
    "small files that decode to huge images (9,500 x 9,500 and 13,500 x 13,500 pixels)",
)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("side", "words"), [(9500, "9500 x 9500"), (13500, "more pixels than twice")]
)
def test_image_bomb_is_refused(tmp_path, side, words):
    """Undecoded, in one line: without Pillow's warning at the first size and its own words."""
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    assert path.stat().st_size < 100_000
    refuses(lambda: read_image(path), path, words, "limit", "tiles")
    refuses(lambda: read_mask(path, 2), path, words)


def test_sixteen_bit_image_is_refused(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 60000]], dtype=np.uint16)).save(path)
    refuses(lambda: read_image(path), path, "8 bits")


def test_colour_mask_is_refused(tmp_path):
    path = save(tmp_path / "m.png", np.zeros((2, 2, 3)))
    refuses(lambda: read_mask(path, 2), path, "RGB", "palette")


def test_mask_of_another_size_is_refused(tmp_path):
    path = save(tmp_path / "m.png", np.zeros((2, 3)))
    refuses(lambda: read_mask(path, 2, size=(3, 2)), path, "2 x 3", "3 x 2")


def test_value_outside_the_classes_is_refused(tmp_path):
    path = save(tmp_path / "m.png", [[0, 1, 7, 255]])
    refuses(lambda: read_mask(path, 2), path, "value 7", "0..1")


def test_resized_mask_takes_the_centre_of_what_it_replaces():
    mask = torch.arange(81, dtype=torch.uint8).reshape(9, 9)
    assert torch.equal(resize_mask(mask, (3, 3)), mask[1::3, 1::3])


def test_open_dataset_names_what_it_knows(tmp_path):
    refuses(lambda: open_dataset("ade", "train"), "'ade'", "digits, camvid, voc")
    refuses(lambda: open_dataset("voc", "train"), "'voc'", "root")
    refuses(lambda: open_dataset("digits", "trian"), "'trian'", "train, val, test")


def test_open_dataset_opens_folders(tmp_path):
    camvid = open_dataset("camvid", "val", root=make_camvid(tmp_path / "c", {"val": 1}))
    voc = open_dataset("voc", "val", root=make_voc(tmp_path / "v", {"val": ["a"]}), size=(20, 30))
    assert (camvid.name, len(camvid)) == ("camvid", 1)
    assert voc.image(0).shape == (3, 20, 30)
    assert voc.mask(0).shape == (20, 30)


@pytest.mark.fault("wrong labels", "masks that Pillow turns when it reads them")
@pytest.mark.parametrize("value", [3, 6])
def test_a_mask_that_would_be_turned_is_refused(tmp_path, value):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "a.tif", tiffinfo={0x0112: 1})
    assert read_mask(folder / "a.tif", 6).tolist() == pixels.tolist()
    convert(folder, tmp_path / "upright", classes=list("abcdef"))
    Image.fromarray(pixels).save(folder / "a.tif", tiffinfo={0x0112: value})
    for call in (
        lambda: read_mask(folder / "a.tif", 6),
        lambda: convert(folder, tmp_path / "out", classes=list("abcdef")),
    ):
        with pytest.raises(UserError, match=r"a\.tif: a mask that is stored turned"):
            call()
    assert not (tmp_path / "out").exists()


def test_masks_of_floating_point_numbers_are_refused(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(np.ones((4, 5), np.float32)).save(folder / "a.tif")
    for call in (
        lambda: read_mask(folder / "a.tif", 2),
        lambda: convert(folder, tmp_path / "out", classes=["a", "b"]),
    ):
        with pytest.raises(UserError, match="holds floating-point numbers; save whole numbers"):
            call()
