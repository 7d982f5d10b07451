"""Parts of a page that a program writes, between markers of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def replace(page: Path, name: str, lines: Sequence[str]) -> None:
    """Puts lines between `<!-- name -->` and `<!-- /name -->`, in the place of what is there."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = page.read_text(encoding="utf-8")
    before, after = text[: text.index(start)], text[text.index(end) + len(end) :]
    page.write_text("\n".join([before + start, *lines, end]) + after, encoding="utf-8")
