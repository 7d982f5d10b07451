"""How a model was trained."""

from __future__ import annotations

from typing import Literal

from qconvert.records import Record

Teacher = Literal["float", "labels", "both"]


class HeldOut(Record):
    """A model in int8, simulated, on images that it was not trained with, beside float: SQNR of the
    outputs in dB, share of equal answers, and with labels the share of right ones and the mean
    cross-entropy (natural logarithm). None where there is no such thing."""

    images: int
    sqnr_db: float
    agreement: float | None = None
    top1: float | None = None
    cross_entropy: float | None = None

    def rank(self, teacher: Teacher) -> tuple[float, ...]:
        """What is larger for a better model."""
        if teacher == "float" or self.top1 is None or self.cross_entropy is None:
            return (self.sqnr_db,)
        if teacher == "labels":
            return self.top1, -self.cross_entropy
        return self.top1, self.sqnr_db

    @property
    def words(self) -> str:
        """For people.

        >>> HeldOut(images=8, sqnr_db=20.25, agreement=0.875).words
        '20.2 dB, 87.5 % as float'
        """
        found = [f"{self.sqnr_db:.1f} dB"]
        if self.agreement is not None:
            found.append(f"{self.agreement:.1%} as float".replace("%", " %"))
        if self.top1 is not None:
            found.append(f"{self.top1:.1%} right".replace("%", " %"))
        return ", ".join(found)


class Epoch(Record):
    """One pass over the images: `loss` is the mean over them, None before the first."""

    epoch: int
    loss: float | None
    held_out: HeldOut
    seconds: float


class Training(Record):
    """Images and epochs that a model was trained with, from where (`before`) to where (`after`) on
    held-out images; the best epoch is 0 where none was better than the start: then nothing is
    kept. `ended` says what ended it."""

    teacher: Teacher
    images: int
    epochs: int
    best_epoch: int
    before: HeldOut
    after: HeldOut
    ended: Literal["epochs", "minutes", "patience", "diverged"]
    device: str
    processes: int
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether any epoch was better than the start."""
        return self.best_epoch > 0

    @property
    def line(self) -> str:
        """In words."""
        by = {"float": "the float model, without labels", "labels": "labels",
              "both": "labels and the float model"}[self.teacher]  # fmt: skip
        verdict = f"epoch {self.best_epoch} is kept" if self.kept else "nothing is kept"
        return (
            f"{self.epochs} epochs of {self.images} images, taught by {by}, {self.seconds:.0f} s; "
            f"{self.after.images} held-out images: {self.before.words}; then {self.after.words}: "
            f"{verdict}"
        )
