"""A report with figures that are made up, each another."""

from __future__ import annotations

from qconvert.measurement.accuracy import Comparison, MetricFigures
from qconvert.measurement.environment import Environment
from qconvert.measurement.latency import Latency, Timing
from qconvert.measurement.statistics import Interval
from qconvert.qconfig import BudgetSection
from qconvert.quantization.audit.record import (
    Audit,
    Foreign,
    Growth,
    ImageRow,
    Spread,
    Stretching,
    Verdict,
)
from qconvert.quantization.plan import FewerBits, Plan, PlannedOperator
from qconvert.quantization.sensitivity.record import PlaceSensitivity
from qconvert.reports.analysis import Analysis
from qconvert.reports.record import (
    FloatOperator,
    Int8Share,
    Report,
    Size,
    check_budgets,
    verdict,
)


def interval(value: float, low: float | None = None, high: float | None = None) -> Interval:
    return Interval(value=value, low=low or value, high=high or value)


# 0.903 - 0.9 is 0.0030000000000000027.
ACCURACY = Comparison(
    images=12000,
    metrics=(
        MetricFigures(
            name="top1",
            higher_is_better=True,
            reference=interval(0.903, 0.8911, 0.9122),
            measured=interval(0.9, 0.8833, 0.9044),
            drop=interval(0.903 - 0.9, 0.001, 0.005),
        ),
        MetricFigures(
            name="top5",
            higher_is_better=True,
            reference=interval(0.9912, 0.9855, 0.9966),
            measured=interval(0.9877, 0.9788, 0.9899),
            drop=interval(0.0035, 0.0015, 0.0055),
        ),
    ),
    agreement=interval(0.97, 0.9611, 0.9722),
    cosine=interval(0.99123, 0.98111, 0.99444),
    lowest_cosine=0.87654,
    sqnr_db=interval(31.44, 30.11, 32.22),
)
UNLABELLED = ACCURACY.model_copy(update={"metrics": ()})
DENSE = UNLABELLED.model_copy(update={"agreement": None})
SIZE = Size(float_bytes=44_780_000, int8_bytes=11_195_000, ratio=0.25)
COVERAGE = Int8Share(
    int8_operators=21,
    float_operators=13,
    boundaries=6,
    conversions=0,
    dynamic_macs=0,
    int8_macs=1_234_500_000,
    macs=1_646_000_000,
    int8_macs_share=0.75,
    in_float=(FloatOperator(name="head|gate.act", kind="PReLU", reason="no int8 | PReLU"),),
)


def timing(name: str, milliseconds: float) -> Timing:
    """`milliseconds` as the median, half as much more at p90, and twice as much at p99."""
    return Timing(
        model=name,
        form="frozen, channels last" if name == "float" else "as saved",
        calls=1234,
        median_s=interval(milliseconds / 1e3),
        p90_s=milliseconds * 1.5e-3,
        p99_s=milliseconds * 2e-3,
        middle_half_s=(milliseconds / 1e3, milliseconds / 1e3),
        images_per_s=4e3 / milliseconds,
        percentiles_s=tuple(milliseconds * 1e-3 * (0.5 + i / 40) for i in range(101)),
    )


def latency(threads: int, milliseconds: float, unsteady: tuple[str, ...] = ()) -> Latency:
    return Latency(
        batch_size=4,
        threads=threads,
        shapes=((4, 3, 32, 32),),
        baseline=timing("float", 2.5 * milliseconds),
        models={"int8": timing("int8", milliseconds)},
        speedups={"int8": interval(2.5, 2.3111, 2.6222)},
        float_forms_s={f"form {i}": 0.1 for i in range(6)},
        failed_forms={},
        unsteady=unsteady,
    )


LATENCY = (latency(1, 8.24), latency(6, 1.312, ("int8",)))


def report(accuracy: Comparison = ACCURACY, **limits: float) -> Report:
    budgets = check_budgets(BudgetSection(**limits), accuracy, LATENCY[0], SIZE, COVERAGE)
    return Report(
        name="my_net",
        created="2026-01-02T03:04:05+00:00",
        environment=Environment(
            qconvert="0.1.0", torch="2.99.1", python="3.11.4", system="Linux x86_64",
            cpu="Some CPU @ 3 GHz", cores=16, vnni=False,
        ),
        verdict=verdict(budgets),
        budgets=budgets,
        accuracy=accuracy,
        latency=LATENCY,
        size=SIZE,
        coverage=COVERAGE,
        notes=("There are no labels.", "The machine was busy."),
        digests={"float.pt": "ab" * 32},
        qconfig={"version": 1, "data": {"calibration": "images", "evaluation": None}},
    )  # fmt: skip


def operator(name: str, kind: str, **changes: object) -> PlannedOperator:
    """One in int8, without any work."""
    return PlannedOperator(
        name=name, node=name, kind=kind, precision="int8", reason=None, lowering="classic",
        kernel="quantized::linear", with_sum=None, with_activation=None, activation=None,
        bounds=None, slope=None, value=name, inputs=("x",), float_output=False, macs=0,
        weight=None,
    ).model_copy(update=changes)  # fmt: skip


def plan() -> Plan:
    """Of three operators, and of code that is kept, which has a tenth of the work."""
    fewer = FewerBits(what="weights", neighbours=(0, 2), of=16, reason="8 bits overflow on avx2")
    return Plan(
        isa="portable",
        operators=(
            operator(
                "conv", "conv2d", macs=750, with_sum="add", with_activation="relu",
                activation="relu", kernel="onednn::qconv2d_pointwise", fewer_bits=fewer,
            ),
            operator(
                "gate<1>", "sigmoid", precision="float32", reason="no int8 sigmoid", kernel=None
            ),
            operator("fc", "linear", macs=150),
        ),
        tensors={},
        kept_macs=100,
    )  # fmt: skip


def audit() -> Audit:
    """Of four images that should be looked at."""
    spread = Spread(least=1, quarter=2, median=3, three_quarters=4, most=5)
    return Audit(
        images=40,
        tensors=7,
        verdicts=(Verdict(topic="foreign", fine=False, text="1 image is unlike the others"),),
        growth=Growth(images=(1, 2, 4), median=(0.5, 0.8, 1), lowest_tenth=(0.3, 0.6, 1),
                      last_doubling={"conv": 0.2}),
        stretching=(
            Stretching(image="wide.png", tensors={"fc": 3.0, "conv": 2.0, "add": 1.5}),
            Stretching(image="odd.png", tensors={"fc": 2.5}),
        ),
        stretched={"fc": 3.1},
        clipped={},
        distances_judged=True,
        foreign=(Foreign(image="odd.png", distance=9.5, limit=4.0),),
        duplicates=(("a.png", "b.png", "c.png"),),
        blank=("grey.png",),
        brightness=spread, contrast=spread, width=spread, height=spread,
        classes={},
        rows=tuple(
            ImageRow(image=name, width=32, height=32, brightness=0.4, contrast=0.2)
            for name in ("wide.png", "odd.png", "a.png", "b.png", "c.png", "grey.png")
        ),
    )  # fmt: skip


def analysis() -> Analysis:
    """Of the plan, with one place that counts."""
    place = PlaceSensitivity(
        depth=0, name="conv", kind="conv2d", precision="int8", part=None, macs=750, macs_share=0.75,
        sqnr_db=interval(33), alone_db=interval(31), weight_share=0.75,
        in_float_db=interval(32.5), gain_db=interval(2.5, 2, 3), rank_alone=1, rank_gain=1,
    )  # fmt: skip
    return Analysis(
        int8_db=interval(30, 29, 31), explained=1.0, places=(place,), name="my_net", images=32,
        of_images=100, calibration_images=False, measured_output="output", plan=plan().digest(),
        trials=(),
    )  # fmt: skip
