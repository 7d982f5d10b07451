"""Whether all ranks work on the same thing, asked before they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from qconvert.errors import QConvertError, RankDiffersError
from qconvert.images.folder import ImageSet
from qconvert.measurement.environment import here
from qconvert.models.checkpoint_file import checkpoint_digest
from qconvert.qconfig_file import with_relative_paths
from qconvert.ranks.team import First
from qconvert.steps.judging import what_judges
from qconvert.steps.same_model import Facts, code_digest, differences, short
from qconvert.steps.session import Session
from qconvert.workspace import digest

# Which may differ: see `check_facts`.
_CPU = "CPU"
# What only rank 0 reads.
_RANK_0_ALONE = ("output", "budgets", "tune")


def facts(session: Session) -> Facts:
    """What a rank's share depends on, by the name that a message gives it."""
    machine = here()
    found = {_CPU: machine.cpu}
    found |= {f"the version of {name}": version for name, version in session.versions.items()}
    found["the kind of CPU"] = (
        f"{torch.backends.cpu.get_cpu_capability()}, {'' if machine.vnni else 'no '}VNNI"
    )
    # Relative: a copy of everything may lie elsewhere.
    tree = with_relative_paths(session.config, session.config_path.resolve().parent)
    tree = {key: value for key, value in tree.items() if key not in _RANK_0_ALONE}
    found |= {f"{key} of the qconfig": value for key, value in _flat(tree)}
    if session.config.model.checkpoint is not None:
        found["the checkpoint"] = short(checkpoint_digest(session.config.model.checkpoint))
    found["the images of data.calibration"] = _summary(session.listed_for_calibration)
    found["the images, or their labels, of data.evaluation"] = _summary(
        session.listed_for_evaluation
    )
    reading = session.reading
    found["the preprocessing"] = short(digest(reading.get("preprocess")))
    found["the code of data.transform"] = code_digest(reading.get("code", {}))
    found["the code of metrics and decoder"] = code_digest(what_judges(session)["code"])
    return found


def check_facts(session: Session, others: First) -> None:
    """Compares this rank's `facts` with those that each other rank sends first of all.

    Raises RankDiffersError that names every rank and what differs. Another CPU of the same kind is
    said only: it runs the same kernels, whose sums may differ in the last digits.
    """
    own = facts(session)
    answers: dict[int, Facts | QConvertError] = {r: others.take(r) for r in others.others}
    found = {rank: answer for rank, answer in answers.items() if isinstance(answer, dict)}
    lines = [
        line
        for rank, answer in answers.items()
        if isinstance(answer, QConvertError)
        for line in _missing(rank, answer)
    ]
    cpus = {own.pop(_CPU), *(theirs.pop(_CPU, own.get(_CPU, "")) for theirs in found.values())}
    lines += differences(own, found)
    if lines:
        raise RankDiffersError(lines)
    if len(cpus) > 1:
        session.voice.say(
            f"ranks: the CPUs differ ({', '.join(sorted(cpus))}): figures may differ in the last "
            "digits from those of one machine"
        )
    session.voice.say(
        f"ranks: {others.place.world} processes share the images; this one writes the files"
    )


def _missing(rank: int, error: QConvertError) -> list[str]:
    """What keeps a rank from having any facts: it lacks a file that is here."""
    place = f"{error.where}: " if error.where else ""
    return [f"rank {rank}: {place}{fact}" for fact in error.facts]


def _summary(images: ImageSet) -> str:
    return f"{len(images)} files, {short(images.digest)}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
