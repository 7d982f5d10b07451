"""Masks and texts as labels: which image has which, and that no value is changed on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qconvert.errors import LabelError
from qconvert.images.folder import ImageSet, read_folder
from qconvert.images.labels import from_csv, read_alphabet
from qconvert.images.masks import IGNORED, from_masks, read_mask
from qconvert.images.preprocess import Preprocessed, Transformed
from qconvert.qconfig import Preprocess

CLASSES = np.uint8([[0, 1, 2], [3, 2, 255]])


def save(path: Path, pixels: np.ndarray = CLASSES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def folders(root: Path, images: Sequence[str], masks: Sequence[str]) -> tuple[Path, Path]:
    """A folder of images beside one of masks."""
    for name in images:
        save(root / "images" / name)
    for name in masks:
        save(root / "masks" / name)
    return root / "images", root / "masks"


def named(found: ImageSet, masks: Path) -> list[tuple[str, str]]:
    """Images with their masks, as paths below the folder of each."""
    return [
        (image.relative_to(found.root).as_posix(), mask.relative_to(masks).as_posix())
        for image, mask in zip(found.files, found.labels, strict=True)
    ]


# ---- pairs


def test_masks_are_named_as_their_images(tmp_path: Path) -> None:
    """In folders of any depth; endings may differ, and the same name may be in two folders."""
    images, masks = folders(
        tmp_path,
        ["a.jpg", "left/a.png", "left/right/a.bmp", "left/b.v2.jpg"],
        ["left/right/a.png", "left/a.tif", "left/b.v2.png", "a.png"],
    )
    found = read_folder(images, masks, None)
    assert named(found, masks) == [
        ("a.jpg", "a.png"),
        ("left/a.png", "left/a.tif"),
        ("left/b.v2.jpg", "left/b.v2.png"),
        ("left/right/a.bmp", "left/right/a.png"),
    ]
    assert (found.classes, found.notes) == (None, ())


def test_images_without_a_mask_are_left_out_with_a_note(tmp_path: Path) -> None:
    """A mask of this name in another folder is not theirs; masks without an image are nothing."""
    images, masks = folders(
        tmp_path, ["a.png", "b.png", "left/c.png"], ["b.png", "c.png", "left/a.png", "z.png"]
    )
    found = read_folder(images, masks, None)
    assert named(found, masks) == [("b.png", "b.png")]
    assert found.notes == ("2 of 3 images have no mask in masks and are left out",)


def test_no_pair_at_all_is_an_error(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, ["a.png"], ["a_mask.png", "left/a.png"])
    with pytest.raises(LabelError, match="has a mask here") as error:
        read_folder(images, masks, None)
    assert error.value.where == str(masks)
    assert "a/b.png" in (error.value.fix or "")


def test_two_masks_of_one_image_are_an_error(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, ["left/a.jpg"], ["left/a.png", "left/a.tif"])
    with pytest.raises(LabelError, match="are masks of one image") as error:
        read_folder(images, masks, None)
    assert {"a.png", "a.tif"} <= set(error.value.facts[0].split())
    assert error.value.where == str(masks)


def test_two_images_may_have_one_mask(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, ["a.jpg", "a.png"], ["a.png"])
    assert named(read_folder(images, masks, None), masks) == [
        ("a.jpg", "a.png"),
        ("a.png", "a.png"),
    ]


def test_names_of_classes_are_read(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, ["a.jpg"], ["a.png"])
    names = tmp_path / "classes.txt"
    names.write_text("road\nsky\n")
    found = from_masks(images, [images / "a.jpg"], masks, [masks / "a.png"], names)
    assert found.classes == ("road", "sky")
    assert (found.files, found.labels) == ((images / "a.jpg",), (masks / "a.png",))


def test_other_pixels_of_a_mask_are_another_data_set(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, ["a.jpg", "b.jpg"], ["a.png", "b.png"])
    before = read_folder(images, masks, None)
    assert read_folder(images, masks, None).digest == before.digest
    save(masks / "b.png", CLASSES[::-1])
    assert read_folder(images, masks, None).digest != before.digest


# ---- pixels


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_grey_values_are_classes(tmp_path: Path, ending: str) -> None:
    mask = read_mask(save(tmp_path / f"a.{ending}"))
    assert mask.tolist() == CLASSES.tolist()
    assert mask.dtype == torch.int64


def test_index_of_a_palette_is_the_class_and_not_its_colour(tmp_path: Path) -> None:
    """Pascal VOC's masks; the colours' grey values would be others."""
    image = Image.fromarray(CLASSES)
    image.putpalette([c for i in range(256) for c in (255 - i, i, 77)])
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.mode == "P"
    assert read_mask(tmp_path / "a.png").tolist() == CLASSES.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_palettes_are_read(tmp_path: Path, bits: int) -> None:
    """Several pixels in one byte."""
    pixels = np.arange(15, dtype=np.uint8).reshape(3, 5) % 2**bits
    image = Image.fromarray(pixels)
    image.putpalette([c for i in range(2**bits) for c in (255 - i, i, 77)])
    image.save(tmp_path / "a.png", bits=bits)
    assert read_mask(tmp_path / "a.png").tolist() == pixels.tolist()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_classes_beyond_a_byte_are_read(tmp_path: Path, dtype: type) -> None:
    pixels = np.array([[0, 1, 256], [700, 255, 32000]], dtype)
    assert read_mask(save(tmp_path / "a.tif", pixels)).tolist() == pixels.tolist()


def test_black_and_white_are_two_classes(tmp_path: Path) -> None:
    pixels = np.array([[False, True, True], [True, False, False]])
    assert read_mask(save(tmp_path / "a.png", pixels)).tolist() == [[0, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_picture_in_colours_is_an_error(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(CLASSES).convert(mode).save(path)
    with pytest.raises(LabelError) as error:
        read_mask(path)
    assert error.value.facts == [f"is a picture of mode {mode}, not one of classes"]
    assert error.value.where == str(path)
    assert "one channel" in (error.value.fix or "")


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut off"])
def test_mask_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8))
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    with pytest.raises(LabelError, match="cannot be read") as error:
        read_mask(path)
    assert error.value.where == str(path)


# ---- preprocessing


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width), np.uint8)


@pytest.mark.parametrize(
    "steps",
    [
        {},
        {"resize": 11},
        {"resize": 50},
        {"resize": (9, 40)},
        {"resize": (64, 5)},
        {"crop": 7},
        {"crop": (5, 12)},
        {"resize": 31, "crop": (20, 25)},
        {"resize": 16, "crop": 15},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(17, 27), (31, 19)], ids=str)
def test_mask_goes_where_its_image_goes(tmp_path: Path, steps: dict, size: tuple[int, int]) -> None:
    """An image whose pixels are its mask. Of odd sizes: no centre of a new pixel lies between two
    old ones, where Pillow and torch round differently."""
    path = save(tmp_path / "a.png", noise(*size))
    read = Preprocessed(Preprocess(channels=1, interpolation="nearest", std=(1 / 255,), **steps))
    (image,) = read(path)
    mask = read.mask(path)
    assert mask.dtype == torch.int64
    assert mask.tolist() == image[0, 0].round().long().tolist()
    assert tuple(mask.shape) == read.size(path)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_classes_are_never_mixed(tmp_path: Path, interpolation: str) -> None:
    """Whatever the image's interpolation: there is nothing between 3 and 200."""
    pixels = np.where(noise(20, 20) < 128, 3, 200).astype(np.uint8)
    read = Preprocessed(Preprocess(resize=(33, 13), interpolation=interpolation))
    found = read.mask(save(tmp_path / "a.png", pixels))
    assert found.shape == (33, 13)
    assert set(found.unique().tolist()) == {3, 200}


def test_beside_a_mask_that_is_smaller_than_the_crop_is_no_class(tmp_path: Path) -> None:
    """The image has zeros there, which is a class; in the middle nothing changes."""
    path = save(tmp_path / "a.png", np.uint8([[0, 1], [2, 255]]))
    found = Preprocessed(Preprocess(crop=(4, 2))).mask(path)
    assert found.tolist() == [[IGNORED] * 2, [0, 1], [2, 255], [IGNORED] * 2]
    narrow = Preprocessed(Preprocess(crop=(2, 4))).mask(path)
    assert narrow.tolist() == [[IGNORED, 0, 1, IGNORED], [IGNORED, 2, 255, IGNORED]]


def test_crop_larger_one_way_and_smaller_the_other(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.arange(20, dtype=np.uint8).reshape(4, 5))
    found = Preprocessed(Preprocess(crop=(2, 7))).mask(path)
    assert found.tolist() == [
        [IGNORED, 5, 6, 7, 8, 9, IGNORED],
        [IGNORED, 10, 11, 12, 13, 14, IGNORED],
    ]


def test_large_classes_survive_the_resize(tmp_path: Path) -> None:
    pixels = np.array([[0, 700], [65534, 256]], np.uint16)
    found = Preprocessed(Preprocess(resize=(4, 4))).mask(save(tmp_path / "a.png", pixels))
    assert found.tolist() == pixels.repeat(2, 0).repeat(2, 1).tolist()


def test_users_transform_leaves_a_mask_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    assert Transformed(lambda image: torch.zeros(3, 1, 1)).mask(path).tolist() == CLASSES.tolist()


# ---- texts


def texts(root: Path, rows: str, alphabet: Path | None = None):
    """The labels of a.png and b.png as texts."""
    files = [save(root / "images" / name) for name in ("a.png", "b.png")]
    table = root / "texts.csv"
    table.write_text("file,label\n" + rows, encoding="utf-8")
    return from_csv(root / "images", files, table, alphabet, texts=True)


def test_texts_are_as_they_stand(tmp_path: Path) -> None:
    """Numbers keep their zeros; capitals, letters of other languages and spaces inside stay."""
    found = texts(tmp_path, "a.png,007\nb.png,Ä b  C\n")
    assert found.labels == ("007", "Ä b  C")
    assert (found.classes, found.notes) == (None, ())


def test_texts_may_be_quoted(tmp_path: Path) -> None:
    found = texts(tmp_path, 'a.png,"1,5"\nb.png,"say ""A"""\n')
    assert found.labels == ("1,5", 'say "A"')


def test_same_digits_as_classes_are_indexes(tmp_path: Path) -> None:
    """Only where texts are not asked for."""
    assert texts(tmp_path, "a.png,007\nb.png,7\n").labels == ("007", "7")
    files = [tmp_path / "images" / name for name in ("a.png", "b.png")]
    found = from_csv(tmp_path / "images", files, tmp_path / "texts.csv", None)
    assert found.labels == (7, 7)


def test_texts_need_not_be_among_the_characters(tmp_path: Path) -> None:
    """The file names characters, not texts; images without a text are left out."""
    alphabet = tmp_path / "alphabet.txt"
    alphabet.write_text("A\nB\n \n")
    found = texts(tmp_path, "b.png,AB BA\n", alphabet)
    assert (found.labels, found.classes) == (("AB BA",), ("A", "B", " "))
    assert found.notes == ("1 of 2 images have no row in texts.csv and are left out",)


def test_folder_with_texts_reads_them(tmp_path: Path) -> None:
    texts(tmp_path, "a.png,007\nb.png,7\n")
    alphabet = tmp_path / "alphabet.txt"
    alphabet.write_text("0\n \n7\n")
    images = tmp_path / "images"
    found = read_folder(images, tmp_path / "texts.csv", alphabet, "texts")
    assert (found.labels, found.classes) == (("007", "7"), ("0", " ", "7"))
    silent = read_folder(images, "none", alphabet, "texts")
    assert (silent.labels, silent.classes) == (None, ("0", " ", "7"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("alphabet.txt", "A\n \n0\nß\n"),
        ("alphabet.txt", "A\r\n \r\n0\r\nß"),
        ("alphabet.txt", "\ufeffA \n\n \n\n 0\nß\n\n"),
        ("alphabet.json", json.dumps(["A", " ", "0", "ß"])),
        ("alphabet.json", json.dumps({" ": 1, "ß": 3, "A": 0, "0": 2})),
    ],
    ids=["lines", "Windows", "spaces and empty lines", "list", "character: index"],
)
def test_alphabet_keeps_its_space(tmp_path: Path, name: str, content: str) -> None:
    """In the order of the file; a line with nothing at all is none."""
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert read_alphabet(path) == ("A", " ", "0", "ß")


def test_characters_that_are_named_twice_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "alphabet.txt"
    path.write_text("A\n \nB\n \n")
    with pytest.raises(LabelError, match="twice"):
        read_alphabet(path)
