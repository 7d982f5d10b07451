"""What a method of recovery did."""

from __future__ import annotations

from typing import Literal, get_args

from qconvert.records import Record

Method = Literal["equalization", "two_terms", "rounding", "bias_correction"]
METHODS: tuple[Method, ...] = get_args(Method)
# Those that change the layers of a plan, in the order in which they are tried.
CORRECTING: tuple[Method, ...] = ("rounding", "bias_correction")


class Trial(Record):
    """What a method did: SQNR (dB) of the simulated model's outputs on images that the method did
    not see, before and after, and the seconds that it took; `note` is what else is to be told."""

    method: Method
    kept: bool
    before_db: float
    after_db: float
    seconds: float
    note: str = ""

    @property
    def line(self) -> str:
        """In words."""
        verdict = "kept" if self.kept else "not kept"
        verdict += f" ({self.note})" if self.note else ""
        return (
            f"{self.method}: {self.before_db:.1f} to {self.after_db:.1f} dB on images that it did "
            f"not see, {self.seconds:.0f} s: {verdict}"
        )
