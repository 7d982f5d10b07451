"""The page of the zoo: tables of what was measured, and the bars that it meets or misses."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import zoo_detection as detection
import zoo_models as zoo
from zoo_images import FRAMES
from zoo_run import SECONDS, Run

MIN_SQNR_DB = 8.0
MIN_INT8_SHARE = 0.85
MIN_SPEEDUP_LOW = 0.97
MIN_CONVERTED_OF_TIMM = 0.95
MIN_SPEEDUPS = {"shufflenet_v2_x1_0": 2.0, "lraspp_mobilenet_v3_large": 1.5}

TITLES = {
    "classification": "torchvision: classification",
    "segmentation": "torchvision: segmentation",
    "detection": "torchvision: detection",
    "video": "torchvision: video",
    "quantization": "torchvision: eager-mode quantizable, as float models",
    "timm": "timm",
}
COLUMNS = (
    "model",
    "parameters (M)",
    "SQNR (dB)",
    "multiply-accumulates in int8",
    "as written",
    "boundaries",
    "float (ms)",
    "int8 (ms)",
    "speed-up",
    "file, int8 over float",
)
LONGEST = 5


def page(runs: Sequence[Run], command: str, of: int, large: Mapping[str, int]) -> str:
    """The whole page; `of` models were to be run, and `large` ones were left out."""
    lines = ["# The zoo", "", _header(runs, command)]
    if len(runs) < of:
        lines += ["", f"**{len(runs)} of {of} models done; the others are still to be run.**"]
    lines += ["", _how(runs), "", *_verdicts(runs)]
    for section, title in TITLES.items():
        if part := [r for r in runs if r.section == section]:
            lines += ["", f"## {title}", "", *_table(part)]
    if large:
        named = ", ".join(f"{name} ({n / 1e6:.1f})" for name, n in large.items())
        lines += ["", "## Left out", ""]
        lines += [
            f"Of torchvision's models, those of more than {zoo.MOST_PARAMETERS / 1e6:.0f} million "
            f"parameters: {named}. And optical flow, which takes pairs of images."
        ]
    return "\n".join(lines) + "\n"


def _header(runs: Sequence[Run], command: str) -> str:
    """When, with what and on what."""
    days = sorted({r.date for r in runs})
    when = "" if not days else f" on {' to '.join(dict.fromkeys((days[0], days[-1])))}"

    def found(form: str) -> str:
        """As most runs have it, and the others with how many they are."""
        (most, _), *others = Counter(form.format(**r.environment) for r in runs).most_common()
        return most + "".join(f" (for {n} models: {other})" for other, n in others)

    if not runs:
        return f"Written by `{command}`."
    libraries = "qconvert {qconvert}, torch {torch}, torchvision {torchvision}, timm {timm}"
    vnni = "VNNI" if all(r.environment["vnni"] for r in runs) else "not everywhere VNNI"
    return (
        f"Written by `{command}`{when}: {found(libraries + ', Python {python}')}; "
        f"{found('{cpu}, {cores} cores')}, {vnni}; 1 thread, batch size 1."
    )


def _how(runs: Sequence[Run]) -> str:
    """What was run, and what the columns mean."""
    sections = {r.section for r in runs}
    text = [
        "Architectures with random weights (batch norms with the statistics of the images), "
        "224 x 224 pixels (inception_v3: 299 x 299), 8 drawn images to calibrate with and 4 others "
        "to judge by.",
    ]
    if "timm" in sections:
        text.append("timm's models take the size that they were made for, 288 pixels at most.")
    if "video" in sections:
        text.append(
            f"Video: clips of {FRAMES} frames of 224 x 224 pixels (the residual networks: "
            "112 x 112), 4 to calibrate with and 2 to judge by."
        )
    if "detection" in sections:
        text.append(
            f"Detection: images of {detection.SIDE} x {detection.SIDE} pixels, where most would "
            "take 800 (SSD300: 300 x 300), 4 and 2 of them, score thresholds that let about "
            f"{detection.CANDIDATES} candidates of random weights pass, and at most "
            f"{detection.MOST_BOXES} boxes from the R-CNNs."
        )
    text += [
        "Speed, size and coverage are those of trained models; SQNR is not.",
        "As written: modules that run as they are in the model's own code.",
        "Float is the fastest of its six forms ([how](figures.md)), each measured for "
        f"{SECONDS:g} s or at least 11 rounds; in brackets: 95 % intervals.",
    ]
    return " ".join(text)


def _table(runs: Sequence[Run]) -> list[str]:
    """The results of a section."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join('---' for _ in COLUMNS)} |"]
    lines += [_row(r) for r in runs]
    if any(r.report and r.sqnr is None and r.parts_sqnr is not None for r in runs):
        lines += [
            "",
            "\\* of what the int8 parts hand to the rest, because the output is no tensor.",
        ]
    if len(done := [r for r in runs if r.report]) > 1:
        lines += ["", f"Geometric mean of {len(done)} speed-ups: {_mean(done):.2f}."]
    return lines


def _row(r: Run) -> str:
    """A line of a table of results."""
    first = f"| {r.shown} | {r.parameters / 1e6:.1f} |"
    if r.report is None:
        return f"{first} refused: {_cell(r.error or '')} |{' |' * (len(COLUMNS) - 3)}"
    float_ms, int8_ms = (
        t["median_s"]["value"] * 1e3 for t in (r.latency["baseline"], r.latency["models"]["int8"])
    )
    coverage = r.report["coverage"]
    return (
        f"{first} {_sqnr(r)} | {_share(r)} | {_count(r.report.get('kept'))} | "
        f"{coverage.get('boundaries', '')} | {float_ms:.2f} | {int8_ms:.2f} | "
        f"{_interval(r.speedup)} | {r.report['size']['ratio']:.3f} |"
    )


def _cell(text: str) -> str:
    """Text that does not end its cell."""
    return text.replace("|", "/")


def _count(kept: Sequence[object] | None) -> str:
    """How many, nothing if it is not known."""
    return "" if kept is None else str(len(kept))


def _sqnr(r: Run) -> str:
    """In dB, marked where it is not the output's."""
    if r.sqnr is not None:
        return f"{r.sqnr:.1f}"
    return "" if r.parts_sqnr is None else f"{r.parts_sqnr:.1f}\\*"


def _share(r: Run) -> str:
    """Of multiply-accumulates in int8, those with dynamic ranges apart."""
    if r.int8_share is None:
        return ""
    if r.dynamic_share:
        return f"{r.int8_share - r.dynamic_share:.1%} + {r.dynamic_share:.1%} dynamic"
    return f"{r.int8_share:.1%}"


def _interval(value: Mapping[str, float]) -> str:
    """A speed-up with its 95 % interval."""
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def progress(r: Run) -> str:
    """One line about a model that is done."""
    found = r.error
    if r.report is not None:
        found = f"{_interval(r.speedup)} times, {_sqnr(r) or 'no'} dB".replace("\\", "")
    return f"{r.name}: {found}; {r.total_s:.0f} s"


def _mean(runs: Sequence[Run]) -> float:
    """The geometric mean of the speed-ups."""
    return math.exp(statistics.fmean(math.log(r.speedup["value"]) for r in runs))


def _verdicts(runs: Sequence[Run]) -> list[str]:
    """A line for each bar, with every model that misses it."""
    done = [r for r in runs if r.report is not None]
    lines = _converted(runs)
    if not done:
        return lines
    lines.append(
        _bar(
            f"SQNR of at least {MIN_SQNR_DB:g} dB",
            [r for r in done if r.sqnr is not None],
            lambda r: r.sqnr or 0.0,
            MIN_SQNR_DB,
            "{:.1f}",
        )
    )
    lines += _coverage([r for r in done if r.convolutional and r.int8_share is not None])
    lines += _speed(done)
    if unsteady := [r.shown for r in done if r.latency["unsteady"]]:
        lines.append(
            "- Measured while the machine was busy (calls scatter by more than a quarter): "
            f"{', '.join(unsteady)}."
        )
    return [*lines, _times(runs)]


def _bar(
    bar: str, judged: Sequence[Run], found: Callable[[Run], float], least: float, form: str
) -> str:
    """How many meet a bar, and who misses it by how much."""
    missed = [f"{r.shown} ({form.format(found(r))})" for r in judged if found(r) < least]
    met = f"- {bar}: met by {len(judged) - len(missed)} of {len(judged)}"
    return met + ("." if not missed else f"; missed by {', '.join(missed)}.")


def _converted(runs: Sequence[Run]) -> list[str]:
    """How many of each library's were converted, and why each of the others was not."""
    lines = []
    for library, wanted, part in (
        ("torchvision", 1.0, [r for r in runs if r.section != "timm"]),
        ("timm", MIN_CONVERTED_OF_TIMM, [r for r in runs if r.section == "timm"]),
    ):
        if part:
            count = sum(r.report is not None for r in part)
            met = "met" if count >= wanted * len(part) else "missed"
            lines.append(
                f"- Converted, reloaded and measured of {library}'s: {count} of {len(part)} "
                f"(wanted: {'all' if wanted == 1 else f'{wanted:.0%}'}; {met})."
            )
    lines += [f"  - {r.shown} was refused: {r.error}" for r in runs if r.report is None]
    return lines


def _coverage(convolutional: Sequence[Run]) -> list[str]:
    """The bars of multiply-accumulates in int8."""
    if not convolutional:
        return []
    median = statistics.median(r.int8_share or 0.0 for r in convolutional)
    return [
        "- Median of the multiply-accumulates in int8 of convolutional networks (more than 90 % of "
        f"the float model's multiply-accumulates are in convolutions): {median:.1%} of "
        f"{len(convolutional)} (wanted: {MIN_INT8_SHARE:.0%}; "
        f"{'met' if median >= MIN_INT8_SHARE else 'missed'}).",
        _bar(
            f"At least {MIN_INT8_SHARE:.0%} in each of them",
            convolutional,
            lambda r: r.int8_share or 0.0,
            MIN_INT8_SHARE,
            "{:.1%}",
        ),
    ]


def _speed(done: Sequence[Run]) -> list[str]:
    """The bars of speed, and the mean."""
    lines = [
        _bar(
            f"Lower bound of the speed-up at least {MIN_SPEEDUP_LOW}",
            done,
            lambda r: r.speedup["low"],
            MIN_SPEEDUP_LOW,
            "{:.2f}",
        ),
        _bar("None slower than float", done, lambda r: r.speedup["value"], 1.0, "{:.3f}"),
    ]
    for name, least in MIN_SPEEDUPS.items():
        if judged := [r for r in done if r.name == name]:
            bar = f"{name} at least {least} times as fast"
            lines.append(_bar(bar, judged, lambda r: r.speedup["value"], least, "{:.2f}"))
    return [*lines, f"- Geometric mean of {len(done)} speed-ups: {_mean(done):.2f}."]


def _times(runs: Sequence[Run]) -> str:
    """How long it took."""
    slowest = sorted(runs, key=lambda r: r.total_s, reverse=True)[:LONGEST]
    named = ", ".join(f"{r.shown} ({r.total_s:.0f} s)" for r in slowest)
    return (
        f"- {sum(r.total_s for r in runs) / 60:.0f} minutes in all, half of the models in less "
        f"than {statistics.median(r.total_s for r in runs):.0f} s each; the longest: {named}."
    )
