"""How far training has come: by epochs or by the clock, whichever is nearer to the end."""

from __future__ import annotations

from math import cos, pi


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
    """Of the learning rate: a half cosine (Loshchilov and Hutter 2017, arXiv:1608.03983).

    >>> share(0.0), share(0.5), round(share(1.0), 9)
    (1.0, 0.5000000000000001, 0.0)
    """
    return 0.5 * (1.0 + cos(pi * progress))
