"""What is tried of the methods that correct layers, and when they end."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import networks

from qconvert.qconfig import RecoverySection
from qconvert.quantization.recovery.recover import recover


@contextmanager
def no_bar(title: str) -> Any:
    yield lambda done, of: None


def test_rounding_ends_with_its_time(converted: Any) -> None:
    """What was not come to stays; it is told."""
    result = converted(networks.plain)
    images = result.inputs(12)
    everything = result.fused, result.fused, result.plan, images[:8], images[8:]
    section = RecoverySection(rounding="on", bias_correction="off")
    found, (trial,) = recover(*everything, section, no_bar)
    assert found
    assert trial.note == ""
    section = section.model_copy(update={"minutes": 1e-9})
    found, (trial,) = recover(*everything, section, no_bar)
    assert found == {}
    assert trial.note == "out of time after 0 layers"
    assert trial.before_db == trial.after_db
