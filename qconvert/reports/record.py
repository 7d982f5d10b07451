"""What a benchmark found, as one record; every format is made from it (`docs/report.md`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from qconvert.measurement.accuracy import Comparison
from qconvert.measurement.environment import Environment
from qconvert.measurement.latency import Latency
from qconvert.qconfig import BudgetSection
from qconvert.quantization.audit.record import Audit
from qconvert.quantization.recovery.trial import Trial
from qconvert.quantization.training.history import Training
from qconvert.records import Record


class Size(Record):
    """Files on disk, in bytes; `ratio` is int8 over float."""

    float_bytes: int
    int8_bytes: int
    ratio: float


class FloatOperator(Record):
    """An operator that stays in float, and why."""

    name: str
    kind: str
    reason: str


class KeptCode(Record):
    """A module whose own code stays as it is written, in float, and why."""

    name: str
    reason: str


class Int8Share(Record):
    """What the file computes in int8, counted as it runs; multiply-accumulates of one image."""

    int8_operators: int
    float_operators: int
    boundaries: int
    conversions: int
    int8_macs: int
    dynamic_macs: int
    macs: int
    int8_macs_share: float
    in_float: tuple[FloatOperator, ...]


class GivenUp(Record):
    """A layer that gave up bits so that its sums do not overflow on CPUs without VNNI: of what
    (`extent`), and why."""

    name: str
    extent: str
    reason: str


class OnClass(Record):
    """The file on a class of CPUs, in processes that are limited to it."""

    isa: str
    accuracy: Comparison
    latency: Latency


class Budget(Record):
    """One limit of the qconfig beside what was measured. None was not measurable: not met."""

    name: str
    limit: float
    found: float | None
    met: bool


class Report(Record):
    """Everything that a benchmark found. Times are seconds, sizes bytes, shares fractions.

    Of a model that torch.fx does not trace whole, `kept` are the modules whose code stays as it is
    written, and `parts_sqnr_db` is the SQNR of what the converted parts return, each on the inputs
    that it has in the float model. `fewer_bits` are the layers that gave up bits for CPUs without
    VNNI, `verified_isa` the SQNR in dB on each class of CPUs as the file was made, `recovery` what
    each method of recovery did, `finetune` how the model was trained in int8 (None: it was not),
    `classes` what was measured on the classes that were asked for, and `audit` what the calibration
    images are worth.
    """

    version: Literal[2] = 2
    name: str
    created: str
    environment: Environment
    verdict: Literal["all budgets met", "budgets missed", "no budgets set"]
    budgets: tuple[Budget, ...]
    accuracy: Comparison
    latency: tuple[Latency, ...]
    size: Size
    coverage: Int8Share
    kept: tuple[KeptCode, ...] = ()
    parts_sqnr_db: float | None = None
    fewer_bits: tuple[GivenUp, ...] = ()
    verified_isa: dict[str, float | None] = Field(default_factory=dict)
    recovery: tuple[Trial, ...] = ()
    finetune: Training | None = None
    classes: tuple[OnClass, ...] = ()
    audit: Audit | None = None
    notes: tuple[str, ...]
    digests: dict[str, str]
    qconfig: dict[str, Any]


def check_budgets(
    limits: BudgetSection,
    accuracy: Comparison,
    latency: Latency,
    size: Size,
    coverage: Int8Share,
) -> tuple[Budget, ...]:
    """Judges the budgets that are set; `latency` is the first batch size and thread count."""
    found = {
        **accuracy_found(accuracy),
        "min_speedup": latency.speedups["int8"].value,
        "max_size_ratio": size.ratio,
        "min_int8_macs": coverage.int8_macs_share,
    }
    return judged(limits, found)


def accuracy_found(accuracy: Comparison) -> dict[str, float | None]:
    """What the budgets of accuracy are compared with, by their names."""
    return {
        "max_accuracy_drop": accuracy.accuracy_drop,
        "max_automation_drop": accuracy.confidence.drop.value if accuracy.confidence else None,
        "min_agreement": accuracy.agreement.value if accuracy.agreement else None,
        "min_cosine": accuracy.cosine.value if accuracy.cosine else None,
    }


def judged(limits: BudgetSection, found: Mapping[str, float | None]) -> tuple[Budget, ...]:
    """The budgets that are set beside what was found for each."""
    return tuple(
        Budget(name=name, limit=limit, found=found[name], met=_met(name, limit, found[name]))
        for name, limit in limits
        if limit is not None
    )


def verdict(
    budgets: tuple[Budget, ...],
) -> Literal["all budgets met", "budgets missed", "no budgets set"]:
    """The budgets in words."""
    if not budgets:
        return "no budgets set"
    return "all budgets met" if all(b.met for b in budgets) else "budgets missed"


def _met(name: str, limit: float, found: float | None) -> bool:
    if found is None:
        return False
    # A drop of 0.003 computed from 2000 images is 0.0030000000000000027.
    return found <= limit + 1e-9 if name.startswith("max_") else found >= limit - 1e-9
