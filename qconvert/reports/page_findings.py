"""The sections of report.html that show what other commands found: the audit of `calibrate`, and
the analysis of `analyze`."""

from __future__ import annotations

from collections.abc import Mapping

from qconvert.images.thumbnail import Thumbnail
from qconvert.quantization.audit.record import Audit
from qconvert.reports.analysis import Analysis, analysis_lines, analysis_table
from qconvert.reports.blocks import Block, Card, Drawing, Gallery, Material, Section, Text
from qconvert.reports.plots import analysis_svg, audit_svg
from qconvert.reports.tables import audit_table

# Pictures of calibration images that the audit names.
NAMED_SHOWN = 48
# Tensors that a card names of those that an image stretches.
_TENSORS = 2


def audit(material: Material) -> Section | None:
    """What the calibration images are worth, and those that should be looked at."""
    found = material.audit
    if found is None:
        return None
    blocks: list[Block] = [audit_table(found)]
    if found.rows:
        blocks.append(Drawing(audit_svg(found), _audit_in_words(found)))
    remarks = named_images(found)
    if remarks:
        blocks.append(Text("Images that should be looked at:"))
        blocks.append(_gallery(remarks, material.calibration_pictures))
    return Section("audit", "Calibration images", tuple(blocks))


def named_images(found: Audit) -> dict[str, list[str]]:
    """The images that the audit names, with what it says of each; the foreign first."""
    remarks: dict[str, list[str]] = {}
    for image in found.foreign:
        words = f"unlike the others: distance {image.distance:.1f}, limit {image.limit:.1f}"
        remarks.setdefault(image.image, []).append(words)
    for stretching in found.stretching:
        factors = sorted(stretching.tensors.items(), key=lambda item: -item[1])
        words = ", ".join(f"{name} by {factor:.1f}x" for name, factor in factors[:_TENSORS])
        left = len(factors) - _TENSORS
        words += f" and {left} more" if left > 0 else ""
        remarks.setdefault(stretching.image, []).append(f"widens {words}")
    for blank in found.blank:
        remarks.setdefault(blank, []).append("of one colour")
    for group in found.duplicates:
        remarks.setdefault(group[0], []).append(f"looks like {', '.join(group[1:])}")
    return remarks


def _gallery(remarks: Mapping[str, list[str]], pictures: Mapping[str, Thumbnail | str]) -> Gallery:
    cards = tuple(
        Card(image, pictures.get(image, "no picture"), remarks=tuple(said))
        for image, said in list(remarks.items())[:NAMED_SHOWN]
    )
    left = len(remarks) - len(cards)
    return Gallery(cards, f"and {left:,} more, in calibration.json" if left else "")


def _audit_in_words(found: Audit) -> str:
    said = []
    if found.growth is not None:
        said.append("how ranges grow with the number of images")
    if found.brightness is not None:
        said.append("brightness and contrast of the images")
    said.append("their size, where it differs; images that are named below are marked")
    return f"Calibration on {found.images:,} images: {', '.join(said)}."


def sensitivity(material: Material) -> Section | None:
    """What int8 costs at each operator, if `analyze` has looked at this plan."""
    found = material.analysis
    if found is None:
        return None
    if found.plan != material.plan.digest():
        words = "analysis.json is of another plan: run `qconvert analyze`, then `benchmark` again."
        return Section("sensitivity", "Sensitivity", (Text(words),))
    table = analysis_table(found)
    lines = [Text(_sentence(line)) for line in analysis_lines(found)]
    drawing = Drawing(analysis_svg(found), _analysis_in_words(found))
    return Section("sensitivity", "Sensitivity", (*lines, drawing, table))


def _sentence(line: str) -> str:
    return f"{line[:1].upper()}{line[1:]}."


def _analysis_in_words(found: Analysis) -> str:
    words = (
        f"Along the {len(found.places)} places that int8 rounds: the SQNR of each result with "
        "everything in int8, and of the measured output with that place alone in int8; bars: what "
        "the output gains with the place alone in float."
    )
    if found.worst:
        words += f" {found.worst[0].name} alone costs most."
    return words
