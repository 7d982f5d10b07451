"""Images are mapped on all cores: in order, whatever the batch size, leaving torch as it was."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from qconvert.errors import ImageError
from qconvert.images.folder import ImageSet, read_folder
from qconvert.images.preprocess import load
from qconvert.images.stream import input_shape, map_images, one_thread
from qconvert.qconfig import Preprocess

COUNT = 23
PREPROCESS = Preprocess(resize=(16, 16), mean=(0.5,), std=(0.25,))


@pytest.fixture
def images(tmp_path, save_image) -> ImageSet:
    for i in range(COUNT):
        save_image(tmp_path / f"{i:02}.png", seed=i)
    return read_folder(tmp_path, "none", None)


@pytest.fixture(autouse=True)
def two_threads():
    """A number of threads that is not the one inside `map_images`."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 144, 10))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_results_are_in_order_and_independent_of_the_batch_size(images, batch_size):
    model = network()
    with one_thread(), torch.inference_mode():
        want = [model(load(path, PREPROCESS)) for path in images.files]
    got = list(map_images(model, images, PREPROCESS, batch_size=batch_size))
    assert len(got) == COUNT
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_order_holds_when_early_images_take_longer(images):
    first = load(images.files[0], PREPROCESS)
    others_done = threading.Semaphore(0)

    def mean(pixels: torch.Tensor) -> float:
        if torch.equal(pixels, first):
            others_done.acquire(timeout=1)
        else:
            others_done.release()
        return pixels.mean().item()

    got = list(map_images(mean, images, PREPROCESS, batch_size=1))
    assert got == [load(path, PREPROCESS).mean().item() for path in images.files]


def test_function_gets_single_images_on_one_thread_without_gradients(images):
    def seen(pixels):
        return (tuple(pixels.shape), torch.get_num_threads(), pixels.is_inference())

    got = set(map_images(seen, images, PREPROCESS, batch_size=4))
    assert got == {((1, 3, 16, 16), 1, True)}


def fail(_):
    raise ZeroDivisionError("the function's own error")


def test_error_of_the_function_is_raised(images):
    with pytest.raises(ZeroDivisionError, match="the function's own error"):
        list(map_images(fail, images, PREPROCESS, batch_size=2))


def test_damaged_image_is_named(images):
    images.files[9].write_bytes(b"no image")
    with pytest.raises(ImageError) as caught:
        list(map_images(torch.mean, images, PREPROCESS))
    assert caught.value.where == str(images.files[9])


def take_all(images):
    list(map_images(torch.mean, images, PREPROCESS))


def take_one(images):
    results = map_images(torch.mean, images, PREPROCESS, batch_size=1)
    next(results)
    results.close()


def take_until_error(images):
    with pytest.raises(ZeroDivisionError):
        list(map_images(fail, images, PREPROCESS))


@pytest.mark.parametrize("take", [take_all, take_one, take_until_error])
def test_number_of_threads_is_put_back(images, take):
    take(images)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_progress_grows_to_the_total(images, batch_size):
    seen = []
    done = map_images(
        torch.mean, images, PREPROCESS, batch_size=batch_size, progress=lambda *n: seen.append(n)
    )
    assert len(list(done)) == COUNT
    assert seen == sorted(set(seen))
    assert seen[0] == (0, COUNT)
    assert seen[-1] == (COUNT, COUNT)
    assert {total for _, total in seen} == {COUNT}


def folder_of(root: Path, save_image, *sizes: tuple[int, int]) -> ImageSet:
    for i, size in enumerate(sizes):
        save_image(root / f"{i}.png", size=size)
    return read_folder(root, "none", None)


@pytest.mark.parametrize(
    ("settings", "sizes", "shape"),
    [
        ({}, [(20, 30), (20, 30)], (1, 3, 30, 20)),
        ({"channels": 1}, [(20, 30)], (1, 1, 30, 20)),
        ({"crop": 8}, [(20, 30), (30, 20)], (1, 3, 8, 8)),
        ({"resize": (9, 12)}, [(20, 30), (30, 20)], (1, 3, 9, 12)),
        ({"resize": 10}, [(20, 30), (40, 60)], (1, 3, 15, 10)),
        ({"resize": 10}, [(20, 21), (40, 43)], (1, 3, 10, 10)),
    ],
    ids=["same", "grey", "crop", "resize to a size", "same shape", "same after rounding"],
)
def test_input_shape_is_that_of_every_image(tmp_path, save_image, settings, sizes, shape):
    images = folder_of(tmp_path, save_image, *sizes)
    preprocess = Preprocess(**settings)
    assert {tuple(load(path, preprocess).shape) for path in images.files} == {shape}
    assert input_shape(images, preprocess) == shape


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [({}, "30 x 20", "20 x 30"), ({"resize": 10}, "15 x 10", "10 x 15")],
)
def test_images_of_different_sizes_are_refused(tmp_path, save_image, settings, first, second):
    images = folder_of(tmp_path, save_image, (20, 30), (20, 30), (30, 20))
    with pytest.raises(ImageError) as caught:
        input_shape(images, Preprocess(**settings))
    assert caught.value.facts == [
        f"the inputs differ in size: {first} from 0.png, {second} from 2.png"
    ]
    assert "resize: [height, width]" in caught.value.fix


def test_image_with_too_many_pixels_is_named(tmp_path, save_image, claim_size):
    images = folder_of(tmp_path, save_image, (20, 30), (20, 30))
    claim_size(images.files[0], 20_000)
    with pytest.raises(ImageError, match="has more than 89,478,485 pixels") as caught:
        input_shape(images, Preprocess())
    assert caught.value.where == str(images.files[0])


def test_first_image_that_is_damaged_is_named(tmp_path, save_image):
    images = folder_of(tmp_path, save_image, (20, 30), (20, 30))
    images.files[0].write_bytes(b"no image")
    with pytest.raises(ImageError, match="is no image") as caught:
        input_shape(images, Preprocess())
    assert caught.value.where == str(images.files[0])
