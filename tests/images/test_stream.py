"""Images are mapped on all cores: in order, whatever the batch size, leaving torch as it was."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from qconvert.errors import BadImageError, ModelInputError
from qconvert.images.folder import ImageSet, read_folder
from qconvert.images.preprocess import Inputs, Preprocessed, Transformed
from qconvert.images.stream import map_images, one_thread, sizes, unreadable
from qconvert.qconfig import Preprocess

COUNT = 23
READ = Preprocessed(Preprocess(resize=(16, 16), mean=(0.5,), std=(0.25,)))


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


def mean(inputs: Inputs) -> float:
    return inputs[0].mean().item()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 144, 10))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_results_are_in_order_and_independent_of_the_batch_size(images, batch_size):
    model = network()
    with one_thread(), torch.inference_mode():
        want = [model(*READ(path)) for path in images.files]
    got = list(map_images(lambda inputs: model(*inputs), images, READ, batch_size=batch_size))
    assert len(got) == COUNT
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_order_holds_when_early_images_take_longer(images):
    (first,) = READ(images.files[0])
    others_done = threading.Semaphore(0)

    def mean_of(inputs: Inputs) -> float:
        (pixels,) = inputs
        if torch.equal(pixels, first):
            others_done.acquire(timeout=1)
        else:
            others_done.release()
        return mean(inputs)

    got = list(map_images(mean_of, images, READ, batch_size=1))
    assert got == [mean(READ(path)) for path in images.files]


def test_function_gets_single_images_on_one_thread_without_gradients(images):
    def seen(inputs):
        (pixels,) = inputs
        return (tuple(pixels.shape), torch.get_num_threads(), pixels.is_inference())

    got = set(map_images(seen, images, READ, batch_size=4))
    assert got == {((1, 3, 16, 16), 1, True)}


def fail(_):
    raise ZeroDivisionError("the function's own error")


def test_error_of_the_function_is_raised(images):
    with pytest.raises(ZeroDivisionError, match="the function's own error"):
        list(map_images(fail, images, READ, batch_size=2))


def refuse(inputs: Inputs) -> None:
    raise RuntimeError("expected 1 channel, got 3")


def test_image_that_torch_refuses_is_named_with_its_shape(images):
    with pytest.raises(ModelInputError) as caught:
        list(map_images(refuse, images, READ, batch_size=2))
    assert caught.value.where == str(images.files[0])
    assert caught.value.facts == [
        "the model fails on this image, whose input is [1, 3, 16, 16]: expected 1 channel, got 3"
    ]


def test_several_inputs_reach_the_function(images):
    def both(image):
        pixels = torch.tensor(image.getpixel((0, 0)))
        return pixels, pixels.float()[None]

    seen = list(map_images(lambda x: [v.tolist() for v in x], images, Transformed(both)))
    for path, (integers, floats) in zip(images.files, seen, strict=True):
        with Image.open(path) as image:
            pixel = list(image.getpixel((0, 0)))
        assert (integers, floats) == ([pixel], [[pixel]])


def test_damaged_image_is_named(images):
    images.files[9].write_bytes(b"no image")
    with pytest.raises(BadImageError) as caught:
        list(map_images(mean, images, READ))
    assert caught.value.where == str(images.files[9])
    assert caught.value.facts == ["is no image, or a damaged one"]


@pytest.fixture
def broken(images, claim_size) -> ImageSet:
    """Damaged: the last, the third, and one whose header claims too much."""
    images.files[22].write_bytes(b"no image")
    images.files[3].write_bytes(images.files[3].read_bytes()[:200])
    claim_size(images.files[7], 20_000)
    return images


FACTS = {
    3: "is no image, or a damaged one",
    7: "has more than 89,478,485 pixels",
    22: "is no image, or a damaged one",
}


def test_all_damaged_images_are_in_one_error(broken):
    with pytest.raises(BadImageError) as caught:
        list(map_images(mean, broken, READ, batch_size=2))
    assert caught.value.facts == [f"{broken.files[i]}: {fact}" for i, fact in FACTS.items()]
    assert caught.value.where is None
    assert "on_bad_image: skip" in caught.value.fix


def test_message_of_damaged_images_is_cut_after_twenty(images):
    for path in images.files:
        path.write_bytes(b"no image")
    with pytest.raises(BadImageError) as caught:
        list(map_images(mean, images, READ))
    assert len(caught.value.facts) == 23
    assert "and 3 more, which --json lists" in caught.value.message


def test_unreadable_images_are_found_with_the_reason_of_each(broken):
    wrong = unreadable(broken, READ)
    assert {path: error.facts for path, error in wrong.items()} == {
        broken.files[i]: [fact] for i, fact in FACTS.items()
    }
    left = broken.without(wrong)
    assert len(left) == len(list(map_images(mean, left, READ))) == COUNT - 3


def take_all(images):
    list(map_images(mean, images, READ))


def take_one(images):
    results = map_images(mean, images, READ, batch_size=1)
    next(results)
    results.close()


def take_until_error(images):
    with pytest.raises(ZeroDivisionError):
        list(map_images(fail, images, READ))


@pytest.mark.parametrize("take", [take_all, take_one, take_until_error])
def test_number_of_threads_is_put_back(images, take):
    take(images)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_progress_grows_to_the_total(images, batch_size):
    seen = []
    done = map_images(mean, images, READ, batch_size=batch_size, progress=lambda *n: seen.append(n))
    assert len(list(done)) == COUNT
    assert seen == sorted(set(seen))
    assert seen[0] == (0, COUNT)
    assert seen[-1] == (COUNT, COUNT)
    assert {total for _, total in seen} == {COUNT}


def folder_of(root: Path, save_image, *sizes: tuple[int, int]) -> ImageSet:
    for i, size in enumerate(sizes):
        save_image(root / f"{i}.png", size=size)
    return read_folder(root, "none", None)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"channels": 1},
        {"crop": 8},
        {"crop": (9, 70)},
        {"resize": (9, 12)},
        {"resize": 10},
        {"resize": 33},
        {"resize": 10, "crop": (10, 7)},
    ],
    ids=str,
)
def test_sizes_from_the_headers_are_those_of_the_inputs(
    tmp_path, save_image, settings, interpolation
):
    images = folder_of(tmp_path, save_image, (20, 30), (30, 20), (40, 60), (21, 20), (7, 64))
    read = Preprocessed(Preprocess(interpolation=interpolation, **settings))
    found = sizes(images, read)
    assert sorted(path for paths in found.values() for path in paths) == list(images.files)
    for size, paths in found.items():
        assert {tuple(read(path)[0].shape[2:]) for path in paths} == {size}


def test_sizes_list_the_images_of_each(tmp_path, save_image):
    images = folder_of(tmp_path, save_image, (20, 30), (30, 20), (40, 60))
    a, b, c = images.files
    assert sizes(images, Preprocessed(Preprocess())) == {
        (30, 20): [a],
        (20, 30): [b],
        (60, 40): [c],
    }
    assert sizes(images, Preprocessed(Preprocess(resize=10))) == {(15, 10): [a, c], (10, 15): [b]}


def test_sizes_with_a_transform_are_not_known(images):
    assert sizes(images, Transformed(torch.zeros)) == {}


def test_wrong_header_names_all_images_that_cannot_be_read(broken):
    with pytest.raises(BadImageError) as caught:
        sizes(broken, READ)
    assert caught.value.facts == [f"{broken.files[i]}: {fact}" for i, fact in FACTS.items()]
