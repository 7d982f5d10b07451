"""The findings of the audit in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qconvert.quantization.audit.ranges import STRETCHING
from qconvert.quantization.audit.record import Audit, Verdict

# What twice as many images may add to the range in the middle (0.4 dB), and to nine of ten (2 dB).
_GROWS, _NINTH_GROWS = 0.05, 0.25
_TENTH = 0.1
# Fewer images than this are few, whatever their ranges do.
_FEWEST = 16
# A tensor that clips more of an image's values than this has too narrow a range.
_CLIPS = 1e-3
# Images that a line names; the record has all.
_NAMED = 5
# A class that has so many times fewer images than another is rare.
_RARE = 4


def verdicts(audit: Audit) -> tuple[Verdict, ...]:
    """All that can be said, in reading order; `audit` lacks only this."""
    found = (_number(audit), _stretching(audit), _held_out(audit), _foreign(audit),
             _duplicates(audit), _blank(audit), _classes(audit.classes))  # fmt: skip
    return tuple(verdict for verdict in found if verdict is not None)


def _number(audit: Audit) -> Verdict | None:
    if not audit.tensors:  # none that every image has
        return None
    images = _count(audit.images, "image")
    if audit.growth is None:
        return Verdict(topic="number", fine=False, text=f"too few: {images}; take some hundreds")
    grown = sorted(audit.growth.last_doubling.values())
    most = grown[min(len(grown) - 1, int((1 - _TENTH) * len(grown)))]
    expected = (
        f"twice as many would widen the range in the middle by about {_middle(grown):.1%} and one "
        f"tensor in ten by {most:.1%} or more"
    )
    enough = _middle(grown) < _GROWS and most < _NINTH_GROWS
    fine = enough and audit.images >= _FEWEST
    words = "enough" if fine else "too few"
    return Verdict(topic="number", fine=fine, text=f"{words}: {images}: {expected}")


def _stretching(audit: Audit) -> Verdict:
    wide = {name: factor for name, factor in audit.stretched.items() if factor > STRETCHING}
    if not audit.stretching or not wide:
        text = f"no few images widen a tensor by more than {STRETCHING:g}x"
        return Verdict(topic="stretching", fine=True, text=text)
    name, factor = max(wide.items(), key=lambda item: item[1])
    images = len(audit.stretching)
    text = (
        f"{'this image widens' if images == 1 else f'these {images} images widen'} "
        f"{_count(len(wide), 'tensor')} by more than {STRETCHING:g}x (the most, {name}, by "
        f"{factor:.1f}x): {_names(found.image for found in audit.stretching)}"
    )
    return Verdict(topic="stretching", fine=False, text=text)


def _held_out(audit: Audit) -> Verdict | None:
    if audit.growth is None:
        return None
    clipping = {name: share for name, share in audit.clipped.items() if share > _CLIPS}
    fine = len(clipping) <= _TENTH * audit.tensors
    text = (
        f"{len(clipping)} of {audit.tensors} tensors would clip more than {_CLIPS:.1%} of their "
        "values in each fourth image, if the others alone had set the ranges"
    )
    if clipping:
        name, share = max(clipping.items(), key=lambda item: item[1])
        text += f" (the most, {name}, {share:.1%})"
    text = f"{'wide enough' if fine else 'too narrow'}: {text}"
    return Verdict(topic="held out", fine=fine, text=text)


def _foreign(audit: Audit) -> Verdict:
    if not audit.distances_judged:
        text = f"{_count(audit.images, 'image')} are too few to tell which of them are foreign"
        return Verdict(topic="foreign", fine=True, text=text)
    if not audit.foreign:
        return Verdict(topic="foreign", fine=True, text="no image is unlike the others")
    images = len(audit.foreign)
    these = "this image is" if images == 1 else f"these {images} images are"
    text = f"{these} unlike the others: {_names(found.image for found in audit.foreign)}"
    negatives = [found.image for found in audit.foreign if found.negative]
    if negatives:
        text += f"; inverted, as usual as others: {_names(negatives)}"
    return Verdict(topic="foreign", fine=False, text=text)


def _duplicates(audit: Audit) -> Verdict:
    groups = audit.duplicates
    if not groups:
        return Verdict(topic="duplicates", fine=True, text="no two images look the same")
    more = sum(len(group) - 1 for group in groups)
    shown = "; ".join(" = ".join(group[:3]) for group in groups[:2])
    text = f"{_count(more, 'image')} of {audit.images} look the same as another: {shown}"
    return Verdict(
        topic="duplicates", fine=more <= _TENTH * audit.images,
        text=text + (", …" if len(groups) > 2 else ""),
    )  # fmt: skip


def _blank(audit: Audit) -> Verdict | None:
    if not audit.blank:
        return None
    text = f"{_count(len(audit.blank), 'image')} of one colour: {_names(audit.blank)}"
    return Verdict(topic="blank", fine=False, text=text)


def _classes(classes: Mapping[str, int]) -> Verdict | None:
    if not classes:
        return None
    fewest, most = (choose(classes, key=lambda name: classes[name]) for choose in (min, max))
    fine = classes[most] <= _RARE * classes[fewest]
    text = f"{len(classes)} folders of {classes[fewest]} to {classes[most]} images"
    if not fine:
        text += f": few of {fewest}, many of {most}"
    return Verdict(topic="classes", fine=fine, text=text)


def _middle(ordered: Sequence[float]) -> float:
    return ordered[len(ordered) // 2]


def _names(images: Iterable[str]) -> str:
    every = list(images)
    shown = ", ".join(every[:_NAMED])
    left = len(every) - _NAMED
    return shown if left <= 0 else f"{shown} and {left} more in calibration.json"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
