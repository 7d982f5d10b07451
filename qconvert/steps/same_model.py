"""Whether other ranks have built the same model from the same files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from qconvert.errors import RankDiffersError
from qconvert.ranks.team import First
from qconvert.steps.session import Session
from qconvert.workspace import digest

# What a rank's share depends on, by the name that a message gives it.
Facts = dict[str, str]
_SHOWN = 12


def model_facts(session: Session) -> Facts:
    """What the model's share depends on that is built from these."""
    fused = session.fused
    return {
        "the code of the model": code_digest(session.float_model.code),
        "the fused model's weights": short(weights_digest(session)),
        "the fused model's operators": short(
            digest([str(fused.graph.code), fused.folded, fused.paired])
        ),
    }


def weights_digest(session: Session) -> str:
    """SHA-256 (hex) of the weights of the fused model."""
    digests = hashlib.sha256()
    for name, value in sorted(session.fused.graph.state_dict().items()):
        digests.update(name.encode())
        if isinstance(value, Tensor) and not value.is_quantized:
            digests.update(value.contiguous().numpy().tobytes())
        else:  # what the user has quantized, and its parameters
            digests.update(repr(value).encode())
    return digests.hexdigest()


def code_digest(files: Mapping[str, str]) -> str:
    """A short digest of a user's files, whose paths (the keys) may be others elsewhere."""
    return short(digest(sorted(files.values())))


def check_model(session: Session, others: First) -> None:
    """Compares this rank's model with that of each other rank.

    Raises RankDiffersError.
    """
    found = differences(model_facts(session), {r: others.take(r) for r in others.others})
    if found:
        fix = None
        if session.config.model.checkpoint is None:
            fix = "give the weights as `model.checkpoint`: the source may draw others each time"
        raise RankDiffersError(found, fix=fix)


def differences(own: Facts, found: Mapping[int, Facts]) -> list[str]:
    """What differs from rank 0's `own`, on which ranks; a line for each."""
    return [
        f"rank {rank}: {name} {'differ' if _several(name) else 'differs'}: "
        f"{theirs.get(name, 'none')} there, {own.get(name, 'none')} on rank 0"
        for rank, theirs in found.items()
        for name in dict.fromkeys((*own, *theirs))
        if theirs.get(name) != own.get(name)
    ]


def _several(name: str) -> bool:
    return name.startswith("the images") or name.endswith(("weights", "operators"))


def short(found: str | None) -> str:
    """The first characters of a digest: enough to tell two."""
    return (found or "none")[:_SHOWN]
