"""An image becomes the model's input as torchvision's own transforms make it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from qconvert.errors import BadImageError, TransformError
from qconvert.images.preprocess import Preprocessed, Transformed, size_after
from qconvert.qconfig import Preprocess


def load(path: Path, steps: Preprocess) -> torch.Tensor:
    """The one input that `data.preprocess` makes."""
    (pixels,) = Preprocessed(steps)(path)
    return pixels


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def by_torchvision(path: Path, settings: Preprocess) -> torch.Tensor:
    steps = []
    if settings.resize is not None:
        steps.append(transforms.Resize(settings.resize, InterpolationMode(settings.interpolation)))
    if settings.crop is not None:
        steps.append(transforms.CenterCrop(settings.crop))
    steps.append(transforms.ToTensor())
    steps.append(transforms.Normalize(settings.mean, settings.std))
    with Image.open(path) as image:
        return transforms.Compose(steps)(image.convert("L" if settings.channels == 1 else "RGB"))


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "RGB"])
@pytest.mark.parametrize(
    "settings",
    [
        {"resize": 19},
        {"resize": (20, 31), "interpolation": "bicubic"},
        {"resize": (40, 11), "interpolation": "nearest"},
        {"crop": 15},
        {"crop": (13, 60)},
        {"resize": 32, "crop": (28, 24), "mean": (0.1307,), "std": (0.3081,)},
    ],
    ids=str,
)
def test_input_is_exactly_that_of_torchvision(tmp_path, save_image, settings, channels):
    path = save_image(tmp_path / "image.png", size=(37, 26))
    preprocess = Preprocess(channels=channels, **settings)
    got, want = load(path, preprocess), by_torchvision(path, preprocess)
    assert got.shape == (1, *want.shape)
    assert got.shape[1] == channels
    assert got.dtype == torch.float32
    assert torch.equal(got[0], want)
    assert Preprocessed(preprocess).size(path) == tuple(want.shape[1:])


def test_imagenet_preprocessing_is_exact(tmp_path, save_image):
    path = save_image(tmp_path / "image.jpg", size=(300, 260))
    preprocess = Preprocess(resize=256, crop=224, **IMAGENET)
    assert torch.equal(load(path, preprocess)[0], by_torchvision(path, preprocess))


def test_all_256_grey_values_are_exact(tmp_path):
    path = tmp_path / "ramp.png"
    Image.frombytes("L", (16, 16), bytes(range(256))).save(path)
    preprocess = Preprocess(channels=1)
    assert torch.equal(load(path, preprocess)[0], by_torchvision(path, preprocess))


@pytest.mark.parametrize("name", ["mean", "std"])
def test_values_for_another_number_of_channels_are_refused(name):
    with pytest.raises(ValidationError, match=f"{name} has 3 values for 1 channels"):
        Preprocess(channels=1, **{name: IMAGENET[name]})


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_deep_images_are_resized_as_those_of_8_bits(tmp_path, save_image, interpolation):
    """The same picture with 16 bits a value: the same input, to within the rounding of 8 bits."""
    with Image.open(save_image(tmp_path / "grey.png", (37, 26), mode="L")) as image:
        deep = np.array(image, np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    steps = Preprocess(
        channels=1, resize=(20, 31), crop=18, interpolation=interpolation, mean=(0.5,), std=(0.25,)
    )
    want, have = load(tmp_path / "grey.png", steps), load(tmp_path / "deep.png", steps)
    assert want.shape == have.shape == (1, 1, 18, 18)
    # Bilinear and bicubic weights are rounded for 8 bits, and the results.
    assert float((want - have).abs().max()) <= (0 if interpolation == "nearest" else 1 / 255 / 0.25)


def test_every_channel_of_an_array_has_its_mean_and_deviation(tmp_path):
    values = np.arange(5 * 4 * 5, dtype=np.float32).reshape(4, 5, 5)
    np.save(tmp_path / "spectrum.npy", values)
    steps = Preprocess(channels=5, mean=(0, 1, 2, 3, 4), std=(1, 2, 4, 8, 16))
    have = load(tmp_path / "spectrum.npy", steps)
    want = (values - np.arange(5)) / 2.0 ** np.arange(5)
    assert have[0].permute(1, 2, 0).tolist() == want.tolist()


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_rotation_mark_is_applied_before_the_crop(tmp_path, save_image, exif):
    path = save_image(tmp_path / "turned.jpg", (24, 16))
    marks = Image.Exif()
    marks[0x0112] = 6
    with Image.open(path) as image:
        image.save(path, exif=marks, quality="keep")
    steps = Preprocess(exif=exif, crop=(20, 12))
    assert Preprocessed(steps).size(path) == (20, 12)
    with Image.open(path) as image:
        if exif == "apply":
            image = image.transpose(Image.Transpose.ROTATE_270)
        cropped = transforms.CenterCrop((20, 12))(image.convert("RGB"))
        want = transforms.functional.to_tensor(cropped)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (steps.mean, steps.std))
    assert torch.equal(load(path, steps)[0], (want - mean) / std)


@pytest.mark.parametrize(
    ("size", "settings", "expected"),
    [
        ((640, 480), {}, (480, 640)),
        ((640, 480), {"resize": 240}, (240, 320)),
        ((480, 640), {"resize": 240}, (320, 240)),
        # torchvision cuts the longer side down to whole pixels.
        ((500, 333), {"resize": 256}, (256, 384)),
        ((640, 480), {"resize": (10, 20)}, (10, 20)),
        ((640, 480), {"crop": 7}, (7, 7)),
        ((640, 480), {"resize": 240, "crop": (3, 4)}, (3, 4)),
    ],
)
def test_size_after_the_steps(size, settings, expected):
    assert size_after(size, Preprocess(**settings)) == expected


def test_transform_gets_an_rgb_image_that_knows_its_file(tmp_path, save_image):
    seen = []

    def transform(image):
        seen.append((image.mode, image.size, image.filename))
        return transforms.functional.to_tensor(image)

    path = save_image(tmp_path / "grey.png", (5, 4), mode="L")
    (pixels,) = Transformed(transform)(path)
    assert seen == [("RGB", (5, 4), str(path))]
    assert pixels.shape == (1, 3, 4, 5)
    assert torch.equal(pixels[0], by_torchvision(path, Preprocess(mean=(0,), std=(1,))))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_transform_gets_deep_images_as_they_are(tmp_path, dtype):
    values = np.array([[0, 257, 65535, 300]], dtype)
    Image.fromarray(values).save(tmp_path / "deep.tif")
    read = Transformed(lambda image: torch.from_numpy(np.array(image, np.float32)))
    assert read(tmp_path / "deep.tif")[0].tolist() == [values.tolist()]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_are_those_that_are_normalized_otherwise(tmp_path, save_image, channels):
    path = save_image(tmp_path / "image.png", size=(37, 26))
    settings = Preprocess(channels=channels, resize=19, crop=(20, 15), interpolation="bicubic")
    (pixels,) = Preprocessed(settings, as_pixels=True)(path)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (1, channels, 20, 15))
    assert torch.equal(pixels.float() / 255, load(path, settings))


def test_every_8_bit_value_of_an_array_is_a_pixel_and_more_bits_are_refused(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.save(tmp_path / "whole.npy", values)
    read = Preprocessed(Preprocess(channels=1), as_pixels=True)
    assert torch.equal(read(tmp_path / "whole.npy")[0][0, 0], torch.from_numpy(values))
    for name, wrong in (("deep", values * np.uint16(255)), ("beyond", values / np.float32(200))):
        np.save(tmp_path / f"{name}.npy", wrong)
        with pytest.raises(BadImageError, match="more than 8 bits a channel") as caught:
            read(tmp_path / f"{name}.npy")
        assert caught.value.where == str(tmp_path / f"{name}.npy")


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (torch.zeros(3, 4, 5), r"\[3, 4, 5\] of float32"),
        (torch.zeros(1, 4, 5, dtype=torch.uint8), r"\[1, 4, 5\] of uint8"),
        (torch.zeros(4, 5, dtype=torch.uint8), r"\[4, 5\] of uint8"),
        ((torch.zeros(3, 4, 5).byte(), torch.zeros(2)), r"\[3, 4, 5\] of uint8, \[2\] of float32"),
    ],
    ids=["float", "grey", "no channels", "two inputs"],
)
def test_transform_must_return_the_pixels_of_one_image(tmp_path, save_image, returned, said):
    path = save_image(tmp_path / "a.png")
    with pytest.raises(TransformError, match=f"returned {said} for a.png; `data.input: uint8`"):
        Transformed(lambda image: returned, pixel_channels=3)(path)
    (pixels,) = Transformed(transforms.PILToTensor(), pixel_channels=3)(path)
    assert (pixels.dtype, pixels.shape[:2]) == (torch.uint8, (1, 3))


def test_transform_gets_all_pages_and_all_channels(tmp_path, save_image):
    pages = [Image.new("L", (3, 2), value) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    np.save(tmp_path / "five.npy", np.full((2, 3, 5), 255, np.uint8))

    def pages_of(image):
        values = []
        for page in range(image.n_frames):
            image.seek(page)
            values.append(np.array(image))
        return torch.from_numpy(np.stack(values))

    assert Transformed(pages_of)(tmp_path / "pages.tif")[0][0, :, 0, 0].tolist() == [10, 20, 30]
    assert torch.equal(Transformed(lambda x: x)(tmp_path / "five.npy")[0], torch.ones(1, 5, 2, 3))


@pytest.mark.parametrize("kind", [tuple, list])
def test_transform_may_give_several_inputs(tmp_path, save_image, kind):
    both = Transformed(lambda image: kind([torch.ones(2, 3), torch.tensor(image.size)]))
    assert [x.tolist() for x in both(save_image(tmp_path / "a.png", (5, 4)))] == [
        [[[1, 1, 1], [1, 1, 1]]],
        [[5, 4]],
    ]


@pytest.mark.parametrize(
    ("result", "fact"),
    [
        (None, "returned NoneType for a.png"),
        (3.5, "returned float for a.png"),
        (np.zeros((3, 4, 4)), "returned ndarray for a.png"),
        ((torch.zeros(1), "label", 3), "returned str, int for a.png"),
        ({"x": torch.zeros(1)}, "returned dict for a.png"),
        ((), "returned nothing for a.png"),
    ],
    ids=["none", "float", "array", "label", "dict", "nothing"],
)
def test_transform_that_gives_no_tensors_is_refused(tmp_path, save_image, result, fact):
    with pytest.raises(TransformError) as caught:
        Transformed(lambda image: result)(save_image(tmp_path / "a.png"))
    assert caught.value.facts == [fact]
    assert caught.value.where == "data.transform"


def test_error_in_the_transform_names_image_and_line(tmp_path, save_image):
    def transform(image):
        return image.no_such_method()

    line = transform.__code__.co_firstlineno + 1
    with pytest.raises(TransformError) as caught:
        Transformed(transform)(save_image(tmp_path / "a.png"))
    assert caught.value.facts == [
        "a.png: calling it raised AttributeError: 'Image' object has no attribute "
        f"'no_such_method' ({__file__}:{line}: return image.no_such_method())"
    ]


def test_transform_of_a_damaged_image_is_not_called(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(BadImageError, match=r"a\.png: is no image, or a damaged one"):
        Transformed(lambda image: 1 / 0)(tmp_path / "a.png")
