"""The page: whole, safe whatever is in it, and with every figure of the report."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from sample_report import (
    ACCURACY,
    DENSE,
    LATENCY,
    UNLABELLED,
    analysis,
    audit,
    interval,
    plan,
    report,
)

from qconvert.images.thumbnail import Thumbnail
from qconvert.measurement.accuracy import Comparison, Flip
from qconvert.measurement.confidence import Automation, Confidence
from qconvert.reports.blocks import Material
from qconvert.reports.html import to_html
from qconvert.reports.page import PICTURES_SHOWN
from qconvert.reports.record import KeptCode, Report
from qconvert.reports.tables import all_tables

# Elements of HTML that have no end tag.
VOID = {"meta", "img", "br", "hr", "link", "input"}
ATTACK = "<script>alert('x')</script>&amp;\"><img src=//evil.example onerror=alert(1)>"
CONFIDENCE = Confidence(
    required_accuracy=0.975,
    reference_calibration_error=interval(0.0123),
    calibration_error=interval(0.0234),
    reference=Automation(threshold=0.8111, rate=interval(0.7222), accuracy=0.9755),
    measured=Automation(threshold=None, rate=interval(0.0), accuracy=None),
    carried=Automation(threshold=0.8111, rate=interval(0.6999), accuracy=0.9766),
    drop=interval(0.7222),
    reference_curve=((0.1, 1.0), (1.0, 0.9)),
    curve=((0.1, 1.0), (1.0, 0.91)),
)


class Page(HTMLParser):
    """The elements of a page in order, its text, and whether each is closed where it must be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.pieces))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), tag
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"{tag} closes itself, which HTML does not know")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.pieces.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each such element."""
        return [attributes for name, attributes in self.elements if name == tag]


def flip(image: str, **changes: object) -> Flip:
    return Flip(
        image=image, label="cat", reference="cat", measured="cow",
        reference_confidence=0.98765, measured_confidence=0.54321,
    ).model_copy(update=changes)  # fmt: skip


def with_flips(*flips: Flip) -> Report:
    return report(ACCURACY.model_copy(update={"flipped": flips}))


def page(found: Report, pictures: dict[str, Thumbnail | str] | None = None) -> Page:
    return Page(to_html(Material(found, plan(), pictures or {})))


PICTURE = Thumbnail("image/png", b"\x89PNG pixels", 30, 20)


@pytest.mark.parametrize("accuracy", [ACCURACY, UNLABELLED, DENSE])
def test_page_is_whole_and_asks_for_nothing(accuracy: Comparison) -> None:
    """Every element is closed in its place, ids are there once, what is referred to is in the page
    and nothing is fetched."""
    full = accuracy.model_copy(update={"flipped": (flip("a.png"),), "confidence": CONFIDENCE})
    material = Material(
        report(full, min_speedup=3), plan(), {"a.png": PICTURE},
        audit=audit(), calibration_pictures={"odd.png": PICTURE}, analysis=analysis(),
    )  # fmt: skip
    text = to_html(material)
    found = Page(text)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in found.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert value is not None
                assert value.startswith("data:image/") or value.removeprefix("#") in ids
            if name == "aria-labelledby":
                assert value in ids
            for referred in re.findall(r"url\(([^)]*)\)", value or ""):
                assert referred.removeprefix("#") in ids
    # Namespaces included: there is no address at all.
    assert not re.search(r"https?:|//[a-z]|@import", text)
    assert {tag for tag, _ in found.elements}.isdisjoint({"link", "iframe", "object", "base"})


def test_nothing_but_the_pages_own_script_may_run() -> None:
    """By the policy, which has the digest of the script as a browser computes it."""
    import base64
    import hashlib

    text = to_html(Material(report(), plan()))
    (policy,) = (m["content"] for m in Page(text).all("meta") if m.get("http-equiv"))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in str(policy)
    assert str(policy).startswith("default-src 'none'; img-src data:;")


def test_hostile_names_are_text() -> None:
    hostile = flip(f"{ATTACK}/1.png", label=ATTACK, reference=ATTACK, measured=ATTACK + "2")
    found = with_flips(hostile)
    found = found.model_copy(
        update={
            "name": ATTACK,
            "notes": (ATTACK,),
            "qconfig": {"model": {"source": ATTACK}},
            "digests": {ATTACK: "00"},
            "kept": (KeptCode(name=ATTACK, reason=ATTACK),),
        }
    )
    shown = page(found, {hostile.image: PICTURE})
    assert len(shown.all("script")) == 1
    assert [image["alt"] for image in shown.all("img")] == [hostile.image]
    assert not any(name.startswith("on") for _, a in shown.elements for name in a)
    # The name, note, image, label, two answers, a setting, a file, a module and its reason.
    assert shown.text.count(ATTACK) >= 10


def test_marks_that_hide_or_turn_text_are_written_out() -> None:
    shown = page(with_flips(flip("a\u202egnp.exe\x1b[2J.png", measured="\u0643\u0644\u0628")))
    assert "a\\u202egnp.exe\\u001b[2J.png" in shown.text
    assert "\u0643\u0644\u0628" in shown.text


def test_figures_of_every_table_are_on_the_page() -> None:
    full = ACCURACY.model_copy(update={"confidence": CONFIDENCE})
    found = report(full, min_speedup=3, max_size_ratio=0.3)
    text = page(found).text
    for table in all_tables(found):
        for cell in {cell for row in table.rows for cell in row}:
            assert cell in text, table.title
        assert table.note in text
    for note in found.notes:
        assert note in text
    assert "Some CPU @ 3 GHz, 16 cores, no VNNI" in text


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [({}, "no budgets set"), ({"min_speedup": 2}, "all budgets met"),
     ({"min_speedup": 3, "max_size_ratio": 0.3}, "budgets missed")],
)  # fmt: skip
def test_verdict_comes_first_with_each_missed_budget(
    limits: dict[str, float], verdict: str
) -> None:
    head = page(report(**limits)).text.partition("times faster")[0]
    assert verdict in head
    assert ("min_speedup : 2.5, the budget is 3" in head) == (verdict == "budgets missed")
    assert "max_size_ratio" not in head


def test_budget_that_cannot_be_measured_is_named() -> None:
    shown = page(report(UNLABELLED, max_accuracy_drop=0.1)).text
    assert "max_accuracy_drop : not measurable, the budget is 0.1" in shown


def test_changed_answers_are_shown_with_both_answers_and_confidences() -> None:
    flips = (
        flip("a.png"),
        flip("b.png", label="cow", reference_confidence=None),
        flip("c.png", label="dog"),
        flip("d.png", measured=""),
    )
    shown = page(with_flips(*flips), {"a.png": PICTURE, "b.png": "cannot be read"})
    assert "4 of 12,000 images have another answer in int8" in shown.text
    assert "only float is right in 2, only int8 is right in 1, neither is right in 1" in shown.text
    assert "a.png label cat float cat sure 0.988 right int8 cow sure 0.543 wrong" in shown.text
    assert "cannot be read b.png label cow float cat wrong int8 cow sure 0.543 right" in shown.text
    assert "int8 (empty) sure 0.543 wrong" in shown.text
    (image,) = shown.all("img")
    assert image["src"] == PICTURE.uri
    assert (image["width"], image["height"], image["alt"]) == ("30", "20", "a.png")


def test_changed_answers_without_labels_are_neither_right_nor_wrong() -> None:
    unlabelled = UNLABELLED.model_copy(update={"flipped": (flip("a.png", label=None),)})
    shown = page(report(unlabelled))
    assert "1 of 12,000 images have another answer in int8." in shown.text
    assert "a.png float cat sure 0.988 int8 cow sure 0.543" in shown.text
    assert "label cat" not in shown.text


def test_of_very_many_changed_answers_the_rest_is_counted() -> None:
    flips = [flip(f"{i:04}.png") for i in range(PICTURES_SHOWN + 1234)]
    shown = page(with_flips(*flips)).text
    assert f"{PICTURES_SHOWN - 1:04}.png" in shown
    assert f"{PICTURES_SHOWN:04}.png" not in shown
    assert "and 1,234 more of which float was less sure, in report.json" in shown


def test_plan_has_a_line_for_each_operator() -> None:
    shown = page(report()).text
    assert "3 operators: 2 int8, 1 float. The plan is for CPUs of class portable." in shown
    assert "conv conv2d + add + relu int8 0.7500 onednn::qconv2d_pointwise" in shown
    assert "fewer bits: weights of 2 of 16 channels; 8 bits overflow on avx2" in shown
    assert "gate<1> sigmoid float no int8 sigmoid" in shown
    assert "fc linear int8 0.1500" in shown


def test_distribution_of_the_calls_is_drawn_and_told_in_words() -> None:
    shown = page(report())
    drawings = [svg["aria-label"] or "" for svg in shown.all("svg")]
    assert len(drawings) == len(LATENCY)
    said = "int8: half of the calls within 8.24 ms, 99 of 100 within 16.5 ms, the slowest 24.7 ms"
    assert said in drawings[0]


def test_drawings_have_the_colours_of_the_page() -> None:
    """Dark and light: a colour that stays as it was written would be unreadable in one of them."""
    full = report(ACCURACY.model_copy(update={"confidence": CONFIDENCE}))
    material = Material(full, plan(), audit=audit(), analysis=analysis())
    body = to_html(material).partition("<body>")[2]
    assert body.count("var(--float)") >= 3
    assert not re.search(r"#[0-9a-fA-F]{6}\b", body)


def test_audit_shows_verdicts_and_the_images_that_it_names() -> None:
    pictures = {"odd.png": PICTURE, "wide.png": "cannot be read"}
    shown = Page(to_html(Material(report(), plan(), audit=audit(), calibration_pictures=pictures)))
    assert "foreign LOOK 1 image is unlike the others" in shown.text
    assert "odd.png unlike the others: distance 9.5, limit 4.0 widens fc by 2.5x" in shown.text
    said = "cannot be read wide.png widens fc by 3.0x, conv by 2.0x and 1 more"
    assert said in shown.text
    assert "no picture grey.png of one colour" in shown.text
    assert "no picture a.png looks like b.png, c.png" in shown.text
    assert [image["alt"] for image in shown.all("img")] == ["odd.png"]
    assert any("how ranges grow" in str(svg["aria-label"]) for svg in shown.all("svg"))


def test_sensitivity_is_shown_of_this_plan_only() -> None:
    shown = Page(to_html(Material(report(), plan(), analysis=analysis()))).text
    assert "Everything in int8, simulated: 30.0 dB (29.0 to 31.0)." in shown
    assert "conv conv2d 33.0 31.0 +2.50 (+2.00 to +3.00) 75%" in shown
    other = analysis().model_copy(update={"plan": "another"})
    shown = Page(to_html(Material(report(), plan(), analysis=other))).text
    assert "analysis.json is of another plan" in shown
    assert "+2.50" not in shown


def test_sections_without_anything_in_them_are_left_out() -> None:
    titles = ("Budgets", "Confidence and automation", "Recovery", "Answers that changed",
              "Calibration images", "Sensitivity")  # fmt: skip
    shown = page(report(DENSE)).text
    assert not any(title in shown for title in titles)
    assert "cosine with float" in shown
