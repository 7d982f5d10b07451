"""What the audit of the calibration images found, as it is written and read back."""

from __future__ import annotations

from typing import Literal

from qconvert.records import Record

# Goes up when a field changes its meaning, or what is found by it.
VERSION: Literal[2] = 2


class Verdict(Record):
    """One finding in words; not `fine` is what a user should look at."""

    topic: Literal["number", "stretching", "held out", "foreign", "duplicates", "blank", "classes"]
    fine: bool
    text: str


class Growth(Record):
    """How wide ranges are with so many of the images, as a share of what they are with all: the
    mean over all choices of images, of the tensor in the middle and of the one below which a tenth
    of the tensors are. `last_doubling`: by what share each tensor's range widened as the number of
    images doubled for the last time, those that widened most first.

    Images that are foreign or that stretch ranges are not among them.
    """

    images: tuple[int, ...]
    median: tuple[float, ...]
    lowest_tenth: tuple[float, ...]
    last_doubling: dict[str, float]


class Stretching(Record):
    """An image that widens the ranges of `tensors` by these factors, beside the images that stretch
    none; the most stretched first."""

    image: str
    tensors: dict[str, float]


class Foreign(Record):
    """An image that is unlike the others: `distance` from them, beside `limit`, beyond which images
    are named; a `negative` is nearer when it is inverted, and is named whatever its distance."""

    image: str
    distance: float
    limit: float
    negative: bool = False


class Spread(Record):
    """Of a figure over the images."""

    least: float
    quarter: float
    median: float
    three_quarters: float
    most: float


class ImageRow(Record):
    """One image: width and height of the file in pixels; brightness and contrast (mean and standard
    deviation of its input) in shares of white, or as the user's transform gives them. None where
    the input is no picture."""

    image: str
    width: int
    height: int
    brightness: float | None
    contrast: float | None


class Audit(Record):
    """What the calibration images are worth. Images are named by their path below the folder,
    tensors by the operator that makes them.

    `stretched`: by which factor all stretching images together widen tensors. `clipped`: of each
    fourth image the share of a tensor's values that lie outside the range of all others, the
    largest first; tensors of which nothing is are left out. `distances_judged`: whether
    there are enough images to tell foreign ones. `duplicates`: groups of images that look the same.
    `blank`: images of one colour. `classes`: images by their folder. `rows`: each image; not in
    reports.
    """

    version: Literal[2] = VERSION
    images: int
    tensors: int
    verdicts: tuple[Verdict, ...]
    growth: Growth | None
    stretching: tuple[Stretching, ...]
    stretched: dict[str, float]
    clipped: dict[str, float]
    distances_judged: bool
    foreign: tuple[Foreign, ...]
    duplicates: tuple[tuple[str, ...], ...]
    blank: tuple[str, ...]
    brightness: Spread | None
    contrast: Spread | None
    width: Spread
    height: Spread
    classes: dict[str, int]
    rows: tuple[ImageRow, ...] = ()
