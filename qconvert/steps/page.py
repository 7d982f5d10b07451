"""report.html: what the page needs beside the report is read from the output folder and from the
images."""

from __future__ import annotations

from collections.abc import Iterable

from qconvert.errors import BadImageError
from qconvert.images.folder import ImageSet
from qconvert.images.thumbnail import Thumbnail, thumbnail
from qconvert.measurement.accuracy import image_name
from qconvert.quantization.plan import Plan
from qconvert.reports.blocks import Material
from qconvert.reports.html import to_html
from qconvert.reports.page import PICTURES_SHOWN
from qconvert.reports.page_findings import NAMED_SHOWN, named_images
from qconvert.reports.record import Report
from qconvert.steps.analyze import recorded_analysis
from qconvert.steps.auditing import recorded_audit
from qconvert.steps.convert import PLAN
from qconvert.steps.session import Session
from qconvert.workspace import write_atomically

HTML = "report.html"


def write_page(session: Session, report: Report) -> None:
    """Writes the report as a page, with the plan, pictures of images, and what `calibrate` and
    `analyze` found."""
    workspace = session.workspace
    with session.voice.busy("writing the page"):
        audit = recorded_audit(session)
        changed = (flip.image for flip in report.accuracy.flipped[:PICTURES_SHOWN])
        named = [] if audit is None else list(named_images(audit))[:NAMED_SHOWN]
        material = Material(
            report=report,
            plan=Plan.model_validate_json(workspace.path(PLAN).read_bytes()),
            pictures=_pictures(session, session.evaluation_images, changed),
            audit=audit,
            calibration_pictures=_pictures(session, session.calibration_images, named),
            analysis=recorded_analysis(session),
        )
        page = to_html(material)
    # What is no text, in the name of a class, is written out.
    write_atomically(workspace.path(HTML), page.encode("utf-8", "backslashreplace"))


def _pictures(
    session: Session, images: ImageSet, names: Iterable[str]
) -> dict[str, Thumbnail | str]:
    """Of these images, as the model is given them: turned as the camera was, or not."""
    exif = session.preprocess.exif if session.config.data.transform is None else "ignore"
    files = {image_name(images.root, path): path for path in images.files}
    found: dict[str, Thumbnail | str] = {}
    for name in names:
        try:
            found[name] = thumbnail(files[name], exif)
        except BadImageError as error:
            found[name] = "; ".join(error.facts)
    return found
