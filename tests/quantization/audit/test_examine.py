"""The record of the audit."""

from __future__ import annotations

from qconvert.quantization.audit.examine import Named, examine
from qconvert.quantization.audit.facts import ImageFacts, SetFacts
from qconvert.quantization.distribution import Glimpse


def audit_of(images: list[ImageFacts], paths: list[str]):
    facts = SetFacts()
    for image in images:
        facts.add(image)
    return examine(facts, Named(paths, [(8, 8)] * len(paths), {"t": "layer"}, None))


def test_tensors_that_not_every_image_has_are_left_out() -> None:
    """A model may go another way for another image."""
    glimpse = Glimpse(-1.0, 2.0, 0.5, 1.0)
    images = [ImageFacts({"t": glimpse, "u": glimpse}), ImageFacts({"t": glimpse})]
    audit = audit_of(images, ["a.png", "b.png"])
    assert audit.tensors == 1
    assert audit.growth is not None
    assert audit.growth.last_doubling == {"layer": 0}


def test_model_without_a_tensor_that_every_image_has_is_audited() -> None:
    images = [ImageFacts() for _ in range(50)]
    audit = audit_of(images, [f"{i}.png" for i in range(50)])
    assert audit.growth is None
    assert audit.foreign == audit.stretching == ()
    assert "number" not in {verdict.topic for verdict in audit.verdicts}


def test_tensor_that_is_computed_twice_for_an_image_has_the_range_of_both() -> None:
    image = ImageFacts()
    image.see("t", Glimpse(-1.0, 2.0, 0.5, 1.0))
    image.see("t", Glimpse(-3.0, 1.0, -0.5, 2.0))
    assert image.tensors["t"] == Glimpse(-3.0, 2.0, 0.0, 1.5)


def test_folders_count_where_there_are_several() -> None:
    images = [ImageFacts() for _ in range(3)]
    assert audit_of(images, ["a/1.png", "a/2.png", "b/1.png"]).classes == {"a": 2, "b": 1}
    assert audit_of(images, ["a/1.png", "a/2.png", "1.png"]).classes == {}
    assert audit_of(images, ["a/1.png", "a/2.png", "a/3.png"]).classes == {}
