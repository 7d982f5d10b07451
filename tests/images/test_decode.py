"""Every format becomes the pixels that `docs/images.md` says, and what cannot be read is named."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from qconvert.errors import BadImageError
from qconvert.images.decode import decode, is_rotated, size_of

SUFFIXES = ["png", "jpg", "bmp", "webp", "tif"]
# 1000 is neither a multiple of 257 (a value of 8 bits) nor above 8 bits in the upper byte alone.
DEEP = np.array([[0, 257, 1000], [32768, 65534, 65535]], np.uint16)


READERS = [lambda path: decode(path, 3), lambda path: size_of(path, "apply")]


def pixels(path: Path, channels: int) -> list:
    """The values of each pixel, in rows: integers of 8 bits, or floats."""
    image = decode(path, channels)
    if isinstance(image, Tensor):
        assert image.dtype == torch.float32
        return image.permute(1, 2, 0).tolist()
    assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    return np.array(image).reshape(image.height, image.width, channels).tolist()


def shares(values: np.ndarray, full_scale: int) -> list:
    """What floats of these integers are, as 32 bits hold them: (height, width, 1)."""
    return (values.astype(np.float32) / np.float32(full_scale))[..., None].tolist()


def pages(path: Path, *images: Image.Image, **settings) -> Path:
    images[0].save(path, save_all=True, append_images=images[1:], **settings)
    return path


def refusal(path: Path, channels: int) -> str:
    with pytest.raises(BadImageError) as caught:
        decode(path, channels)
    assert caught.value.where == str(path)
    (fact,) = caught.value.facts
    return fact


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_modes_of_8_bits_are_converted_as_pillow_does(tmp_path, save_image, mode, channels):
    path = save_image(tmp_path / "image.tif", mode=mode)
    have = decode(path, channels)
    with Image.open(path) as original:
        assert original.mode == mode
        assert have.tobytes() == original.convert(have.mode).tobytes()
    assert have.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]


@pytest.mark.parametrize("suffix", [*SUFFIXES, "ppm", "tiff", "JPEG"])
def test_every_format_is_read(tmp_path, save_image, suffix):
    path = save_image(tmp_path / f"image.{suffix}", size=(10, 7))
    assert (decode(path, 3).size, decode(path, 3).mode) == ((10, 7), "RGB")
    assert decode(path, 1).mode == "L"
    assert size_of(path, "ignore") == (10, 7)


def test_palette_is_its_colours_with_and_without_transparency(tmp_path):
    """Pillow's direct way warns of the transparency; nothing is blended."""
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 200, 100, 0])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "transparent.png", transparency=bytes([0, 128, 255]))
    colours = [[10, 20, 30], [40, 50, 60], [200, 100, 0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("plain.png", "transparent.png"):
            assert pixels(tmp_path / name, 3) == [colours]
            assert pixels(tmp_path / name, 1) == [[[18], [48], [118]]]
        assert pixels(tmp_path / "transparent.png", 4) == [
            [[*c, alpha] for c, alpha in zip(colours, (0, 128, 255), strict=True)]
        ]
    assert pixels(tmp_path / "plain.png", 4) == [[[*c, 255] for c in colours]]


def test_alpha_is_dropped_and_not_blended(tmp_path):
    Image.new("RGBA", (1, 1), (100, 50, 20, 7)).save(tmp_path / "rgba.png")
    assert pixels(tmp_path / "rgba.png", 3) == [[[100, 50, 20]]]
    Image.new("LA", (1, 1), (100, 7)).save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png", 1) == [[[100]]]
    assert pixels(tmp_path / "la.png", 3) == [[[100, 100, 100]]]


def test_one_bit_is_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert pixels(tmp_path / "bits.png", 1) == [[[255], [0]]]
    assert pixels(tmp_path / "bits.png", 3) == [[[255] * 3, [0] * 3]]


def save_pgm(path: Path) -> None:
    path.write_bytes(b"P5\n3 2\n65535\n" + DEEP.astype(">u2").tobytes())


def save_big_endian(path: Path) -> None:
    Image.frombytes("I;16B", (3, 2), DEEP.astype(">u2").tobytes()).save(path)


DEEP_FILES = {
    "deep.png": lambda path: Image.fromarray(DEEP).save(path),
    "deep.tif": lambda path: Image.fromarray(DEEP).save(path),
    "big.tif": save_big_endian,
    "deep.pgm": save_pgm,
    "deep.npy": lambda path: np.save(path, DEEP),
    "big.npy": lambda path: np.save(path, DEEP.astype(">u2")),
}


@pytest.mark.parametrize("name", DEEP_FILES)
def test_16_bits_are_shares_of_full_scale(tmp_path, name):
    DEEP_FILES[name](tmp_path / name)
    assert pixels(tmp_path / name, 1) == shares(DEEP, 65535)
    assert size_of(tmp_path / name, "ignore") == (3, 2)


@pytest.mark.parametrize(("channels", "alpha"), [(2, 1), (3, 0), (4, 1)])
def test_16_bit_grey_is_repeated_and_opaque(tmp_path, channels, alpha):
    Image.fromarray(DEEP).save(tmp_path / "deep.png")
    grey = shares(DEEP, 65535)
    assert pixels(tmp_path / "deep.png", channels) == [
        [value * (channels - alpha) + [1.0] * alpha for value in row] for row in grey
    ]


def test_float_tiff_is_as_it_is(tmp_path):
    Image.fromarray(np.array([[0.5, -3, 1e6]], np.float32)).save(tmp_path / "depth.tif")
    assert pixels(tmp_path / "depth.tif", 1) == [[[0.5], [-3], [1e6]]]


def test_32_bit_integers_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 100000]], np.int32)).save(tmp_path / "labels.tif")
    fact = "has integers of 32 bits, whose full scale nobody knows"
    assert refusal(tmp_path / "labels.tif", 1) == fact


def test_mode_that_pillow_does_not_convert_is_refused(tmp_path):
    Image.new("LAB", (1, 1), (100, 50, 20)).save(tmp_path / "lab.tif")
    assert decode(tmp_path / "lab.tif", 3).mode == "RGB"
    fact = "has pixels in mode LAB, which Pillow does not turn into L"
    assert refusal(tmp_path / "lab.tif", 1) == fact


@pytest.mark.parametrize("count", [2, 3, 5])
def test_grey_pages_of_a_tiff_are_channels(tmp_path, count):
    grey = [Image.new("L", (4, 2), 51 * i) for i in range(count)]
    path = pages(tmp_path / "pages.tif", *grey)
    values = np.arange(count, dtype=np.float32) * 51 / np.float32(255)
    assert pixels(path, count) == [[values.tolist()] * 4] * 2


def test_pages_of_16_bits_are_channels(tmp_path):
    path = pages(tmp_path / "deep.tif", Image.fromarray(DEEP), Image.fromarray(DEEP[::-1].copy()))
    both = np.stack([DEEP, DEEP[::-1]], -1)
    assert pixels(path, 2) == (both.astype(np.float32) / np.float32(65535)).tolist()


def test_of_more_pages_than_channels_the_first_is_read(tmp_path):
    path = pages(tmp_path / "a.tif", *(Image.new("L", (4, 2), 10 + i) for i in range(5)))
    assert pixels(path, 3) == [[[10, 10, 10]] * 4] * 2
    colours = [Image.new("RGB", (1, 1), (i, 2, 3)) for i in range(3)]
    assert pixels(pages(tmp_path / "b.tif", *colours), 3) == [[[0, 2, 3]]]


@pytest.mark.parametrize(
    ("second", "fact"),
    [
        (Image.new("L", (3, 2)), "has pages that are not alike: page 2 is L of 3 x 2"),
        (Image.new("RGB", (4, 2)), "has pages that are not alike: page 2 is RGB of 4 x 2"),
    ],
    ids=["size", "mode"],
)
def test_pages_that_differ_are_refused(tmp_path, second, fact):
    assert refusal(pages(tmp_path / "a.tif", Image.new("L", (4, 2)), second), 2) == fact


def test_other_number_of_pages_is_refused(tmp_path):
    path = pages(tmp_path / "a.tif", *[Image.new("L", (4, 2))] * 4)
    assert refusal(path, 6) == "has 4 page(s) of L, which are not 6 channels"


@pytest.mark.parametrize(
    ("dtype", "full_scale"),
    [("uint8", 255), ("uint16", 65535), ("float32", 1), ("float64", 1), ("float16", 1)],
)
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_arrays_are_read_as_their_type_says(tmp_path, dtype, full_scale, channels):
    values = np.arange(2 * 5 * channels).reshape(2, 5, channels).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    want = values.astype(np.float32) / np.float32(full_scale)
    assert pixels(tmp_path / "a.npy", channels) == want.tolist()
    assert size_of(tmp_path / "a.npy", "apply") == (5, 2)


def test_array_in_another_order_of_memory_is_the_same(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", np.asfortranarray(values))
    assert pixels(tmp_path / "a.npy", 4) == values.tolist()


@pytest.mark.parametrize(
    ("array", "fact"),
    [
        (np.zeros((4, 5, 3), np.uint8), "shape [4, 5, 3] of uint8; wanted is [height, width, 2]"),
        (np.zeros((4, 5), np.uint8), "shape [4, 5] of uint8; wanted is [height, width, 2]"),
        (np.zeros((1, 2, 4, 5), np.uint8), "[1, 2, 4, 5] of uint8; wanted is [height, width, 2]"),
        (np.zeros((0, 5, 2), np.uint8), "shape [0, 5, 2] of uint8; wanted is [height, width, 2]"),
        (np.zeros((4, 5, 2), np.int16), "shape [4, 5, 2] of int16; its full scale is not known"),
        (np.zeros((4, 5, 2), bool), "shape [4, 5, 2] of bool; its full scale is not known"),
    ],
    ids=["channels", "grey", "4 axes", "empty", "int16", "bool"],
)
def test_array_of_another_shape_or_type_is_refused(tmp_path, array, fact):
    np.save(tmp_path / "a.npy", array)
    assert refusal(tmp_path / "a.npy", 2).endswith(fact)


def save_objects(path: Path) -> None:
    np.save(path, np.array([{}], object))


def save_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros((2, 2)))


def save_lying_header(path: Path) -> None:
    """24 bytes that claim to be a million by a million values."""
    np.save(path, np.zeros((2, 2), np.uint8))
    path.write_bytes(path.read_bytes().replace(b"(2, 2), }" + b" " * 12, b"(1000000, 1000000), }"))


@pytest.mark.parametrize(
    ("save", "fact"),
    [
        (save_objects, "is no image, or a damaged one"),
        (save_archive, "is an archive of arrays"),
        (save_lying_header, "is no image, or a damaged one"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'"), "is no image, or a d"),
        (lambda path: path.write_text("1, 2, 3"), "is no image, or a damaged one"),
        (lambda path: path.write_bytes(b""), "is no image, or a damaged one"),
    ],
    ids=["objects", "archive", "lying header", "cut header", "text", "empty"],
)
def test_file_that_is_no_array_is_named(tmp_path, save, fact):
    path = tmp_path / "a.npy"
    save(path)
    assert refusal(path, 1).startswith(fact)
    with pytest.raises(BadImageError) as caught:
        size_of(path, "ignore")
    assert caught.value.where == str(path)


def rotated(path: Path, mark: int) -> Path:
    """Red, green and blue beside each other above black, with this rotation mark."""
    image = Image.new("RGB", (3, 2))
    for x, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        image.putpixel((x, 0), colour)
    marks = Image.Exif()
    marks[0x0112] = mark
    image.save(path, exif=marks, **({"lossless": True} if path.suffix == ".webp" else {}))
    return path


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
@pytest.mark.parametrize(
    ("mark", "rows"),
    [
        (1, ["RGB", "..."]),
        (3, ["...", "BGR"]),
        (4, ["...", "RGB"]),
        (6, [".R", ".G", ".B"]),
        (8, ["B.", "G.", "R."]),
    ],
)
def test_rotation_mark_is_ignored_unless_it_is_to_be_applied(tmp_path, suffix, mark, rows):
    """But for TIFF: Pillow, and with it ImageFolder, always applies it."""
    path = rotated(tmp_path / f"a.{suffix}", mark)
    names = {(255, 0, 0): "R", (0, 255, 0): "G", (0, 0, 255): "B", (0, 0, 0): "."}

    def seen(exif: str) -> list[str]:
        array = np.array(decode(path, 3, exif))
        return ["".join(names[tuple(pixel)] for pixel in row.tolist()) for row in array]

    ignored = rows if suffix == "tif" else ["RGB", "..."]
    assert seen("ignore") == ignored
    assert seen("apply") == rows
    assert size_of(path, "ignore") == (len(ignored[0]), len(ignored))
    assert size_of(path, "apply") == (len(rows[0]), len(rows))
    assert is_rotated(path) == (rows != ignored)


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_rotation_mark_of_a_tiff_turns_every_page_once(tmp_path, exif):
    marks = Image.Exif()
    marks[0x0112] = 3
    grey = Image.fromarray(np.array([[255, 0]], np.uint8))
    path = pages(tmp_path / "a.tif", grey, grey, exif=marks)
    assert decode(path, 2, exif).tolist() == [[[0, 1]]] * 2


def test_image_without_marks_is_not_rotated(tmp_path, save_image):
    assert not is_rotated(save_image(tmp_path / "a.png"))
    (tmp_path / "b.png").write_text("no image")
    assert not is_rotated(tmp_path / "b.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_image_is_named(tmp_path, save_image, suffix):
    path = save_image(tmp_path / f"image.{suffix}", size=(40, 40))
    whole = path.read_bytes()
    for length in (0, 3, 20, len(whole) // 2, len(whole) * 3 // 4):
        path.write_bytes(whole[:length])
        assert refusal(path, 3) == "is no image, or a damaged one"


def test_damage_that_pillow_stumbles_over_is_named(tmp_path, save_image):
    """Its TIFF reader raises a TypeError where the tag of the width is lost."""
    path = save_image(tmp_path / "image.tif")
    content = path.read_bytes()
    width = content.index(b"\x00\x01\x04\x00\x01\x00\x00\x00\x18\x00\x00\x00")
    path.write_bytes(content[:width] + b"\xee\xee" + content[width + 2 :])
    assert refusal(path, 3) == "is no image, or a damaged one"


@pytest.mark.parametrize("read", READERS)
def test_text_and_lost_files_are_named_with_the_reason(tmp_path, read):
    (tmp_path / "notes.png").write_text("this is no image\n")
    for name, fact in {
        "notes.png": "is no image, or a damaged one",
        "lost.png": "cannot be read: No such file or directory",
        "lost.npy": "cannot be read: No such file or directory",
    }.items():
        with pytest.raises(BadImageError) as caught:
            read(tmp_path / name)
        assert caught.value.facts == [fact]
        assert caught.value.where == str(tmp_path / name)
        assert "on_bad_image: skip" in caught.value.fix


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000])
@pytest.mark.parametrize("read", READERS)
def test_image_with_too_many_pixels_is_refused(tmp_path, save_image, claim_size, side, read):
    path = claim_size(save_image(tmp_path / "bomb.png"), side)
    with pytest.raises(BadImageError) as caught:
        read(path)
    assert caught.value.facts == ["has more than 89,478,485 pixels"]
    assert caught.value.where == str(path)
    assert caught.value.fix == "shrink or remove the file"
