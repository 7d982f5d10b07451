"""The audit: from what was kept of each image to the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qconvert.quantization.audit.facts import SetFacts
from qconvert.quantization.audit.foreign import Distances, distances
from qconvert.quantization.audit.pictures import Scale, blank, duplicates, light
from qconvert.quantization.audit.ranges import growth, ranges_of, stretching
from qconvert.quantization.audit.record import (
    Audit,
    Foreign,
    Growth,
    ImageRow,
    Spread,
    Stretching,
)
from qconvert.quantization.audit.verdicts import verdicts

# An image that widens a range by less is not recorded.
_WIDENS = 1.25
# Tensors that are named for one image, and of all.
_TENSORS = 20
# Digits after the point: no more than is the same on CPUs of one kind, whose sums may differ.
_DIGITS = 4


@dataclass(frozen=True)
class Named:
    """What the facts are of: images by their path below the folder, with width and height of the
    files; the operators' names by the names of values; and what pixels are (None: unknown)."""

    images: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    operators: Mapping[str, str]
    scale: Scale | None


@dataclass(frozen=True)
class Found:
    """How far images are from the others, where that can be told, and which are negatives."""

    distances: Distances | None
    negatives: Sequence[int] = ()

    @property
    def foreign(self) -> list[int]:
        """The images beyond their limit, the farthest first; then negatives that are not."""
        far = [] if self.distances is None else self.distances.far
        return list(dict.fromkeys([*far, *self.negatives]))


def examine(facts: SetFacts, named: Named, found: Found | None = None) -> Audit:
    """Everything that the facts tell, and the verdicts; `found` are the foreign images, if they
    were looked for already."""
    tensors = facts.tensors
    names = [named.operators.get(name, name) for name in tensors]
    low, high = ranges_of(tensors, len(facts))
    factors, together = stretching(low, high)
    found = found or Found(distances(facts))
    far, of_all = found.foreign, found.distances
    apart = set(far) | set(np.flatnonzero((factors > 1).any(1)).tolist())
    rest = [i for i in range(len(facts)) if i not in apart]
    pictures = facts.pictures
    scale = named.scale or Scale()
    light_of = None if pictures is None else light(pictures, scale)
    rows = _rows(named, light_of)
    audit = Audit(
        images=len(facts),
        tensors=len(names),
        verdicts=(),
        growth=_growth(low[rest], high[rest], names),
        stretching=_stretching(factors, names, named.images),
        stretched=_largest(dict(zip(names, together, strict=True)), _WIDENS),
        clipped=_largest({named.operators.get(n, n): s for n, s in facts.clipped.items()}, 0.0),
        distances_judged=of_all is not None,
        foreign=() if of_all is None else tuple(
            Foreign(image=named.images[i], distance=_rounded(of_all.values[i]),
                    limit=_rounded(of_all.limits[i]), negative=i in found.negatives)
            for i in far
        ),
        duplicates=() if pictures is None else tuple(
            tuple(named.images[i] for i in group) for group in duplicates(pictures)
        ),
        blank=() if light_of is None else tuple(
            named.images[i] for i in blank(*light_of, named.scale is not None)
        ),
        brightness=None if light_of is None else _spread(light_of[0]),
        contrast=None if light_of is None else _spread(light_of[1]),
        width=_spread([row.width for row in rows]),
        height=_spread([row.height for row in rows]),
        classes=_classes(named.images),
        rows=rows,
    )  # fmt: skip
    return audit.model_copy(update={"verdicts": verdicts(audit)})


def _growth(low: np.ndarray, high: np.ndarray, names: Sequence[str]) -> Growth | None:
    if len(low) < 2 or not names:
        return None
    numbers, shares = growth(low, high)
    last = dict(zip(names, 1 / np.maximum(shares[-2], 1e-9) - 1, strict=True))
    return Growth(
        images=tuple(numbers),
        median=tuple(_rounded(np.median(row)) for row in shares),
        lowest_tenth=tuple(_rounded(np.quantile(row, 0.1)) for row in shares),
        last_doubling={
            name: _rounded(grown) for name, grown in sorted(last.items(), key=lambda x: -x[1])
        },
    )


def _stretching(
    factors: np.ndarray, names: Sequence[str], images: Sequence[str]
) -> tuple[Stretching, ...]:
    order = np.argsort(-factors.max(1, initial=1.0), kind="stable")
    found = []
    for i in order:
        wide = _largest(dict(zip(names, factors[i], strict=True)), _WIDENS)
        if wide:
            found.append(Stretching(image=images[i], tensors=wide))
    return tuple(found)


def _largest(values: Mapping[str, float], above: float) -> dict[str, float]:
    """The entries above a value, the largest first."""
    entries = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    return {name: _rounded(value) for name, value in entries[:_TENSORS] if value > above}


def _rows(named: Named, light_of: tuple[np.ndarray, np.ndarray] | None) -> tuple[ImageRow, ...]:
    return tuple(
        ImageRow(
            image=image,
            width=size[0],
            height=size[1],
            brightness=None if light_of is None else _rounded(light_of[0][i]),
            contrast=None if light_of is None else _rounded(light_of[1][i]),
        )
        for i, (image, size) in enumerate(zip(named.images, named.sizes, strict=True))
    )


def _spread(values: np.ndarray | Sequence[float]) -> Spread:
    least, quarter, median, three, most = (
        _rounded(value) for value in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))
    )
    return Spread(least=least, quarter=quarter, median=median, three_quarters=three, most=most)


def _classes(images: Sequence[str]) -> dict[str, int]:
    """Images by the first folder of their path; empty where one is in none, or all in one."""
    folders = [image.partition("/") for image in images]
    found: dict[str, int] = {}
    for folder, slash, _ in folders:
        if not slash:
            return {}
        found[folder] = found.get(folder, 0) + 1
    return found if len(found) > 1 else {}


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS)
