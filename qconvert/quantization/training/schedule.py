"""How far training has come: by epochs or by the clock, whichever is nearer to the end."""

from __future__ import annotations

from math import cos, pi

# The share of the schedule in which the rate rises.
_RISE = 0.05


def ahead(progress: float, done: int, epochs: int, spent_s: float, budget_s: float | None) -> float:
    """How far the schedule is after the next epoch, from 0 to 1, when it is at `progress` after
    `done` epochs in `spent_s`. Where the clock has no say, it is exactly a share of the epochs.

    >>> ahead(0.25, 1, 4, 10.0, None)
    0.5
    >>> ahead(0.25, 1, 4, 10.0, 20.0)  # one more fits in
    1.0
    """
    if budget_s is not None and done:
        fits = max(1, int((budget_s - spent_s) * done / max(spent_s, 1e-9)))
        if done + fits < epochs:
            return progress + (1.0 - progress) / fits
    left = epochs - done
    whole = abs(progress * epochs - done) < 1e-6
    return (done + 1) / epochs if whole else progress + (1.0 - progress) / left


def share(progress: float) -> float:
    """Of the learning rate: a half cosine (Loshchilov and Hutter 2017, arXiv:1608.03983), after a
    short rise, for Adam's first steps are of full size whatever they are worth.

    >>> [round(share(progress), 6) for progress in (0.0, 0.05, 0.5, 1.0)]
    [0.0, 0.993844, 0.5, 0.0]
    """
    return min(1.0, progress / _RISE) * 0.5 * (1.0 + cos(pi * progress))
