"""A drawing that was made as a file becomes a part of a page, in the page's colours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree as ET

from markupsafe import Markup

# How small and how large a drawing may be shown, in pixels a point: letters of 10 points are read
# from about 7.5 pixels on, and a phone has room for 350.
_LEAST, _MOST = 0.75, 1.5
# Of the elements that matplotlib writes, those that draw nothing; its style would be the page's.
_SILENT = frozenset({"metadata", "style"})


def inline_svg(svg: bytes, label: str, prefix: str, colours: Mapping[str, str]) -> Markup:
    """The drawing as an element of HTML: `label` says what it shows to who cannot see it, `prefix`
    keeps its ids apart from those of other drawings, `colours` (as `#rrggbb`) are replaced by the
    page's. It fits its place, unless its letters would be too small to read."""
    root = ET.fromstring(svg)
    width, height = (root.attrib.pop(side).removesuffix("pt") for side in ("width", "height"))
    root.attrib.setdefault("viewBox", f"0 0 {width} {height}")
    root.attrib.pop("version", None)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg.decode()))
    _strip(root, used, prefix, colours)
    least, most = (round(float(width) * scale) for scale in (_LEAST, _MOST))
    root.set("style", f"min-width: {least}px; max-width: {most}px")
    root.set("role", "img")
    root.set("aria-label", label)
    return Markup(ET.tostring(root, "unicode", short_empty_elements=False))


def _strip(element: ET.Element, used: set[str], prefix: str, colours: Mapping[str, str]) -> None:
    """HTML knows SVG's names without their address; ids that nobody refers to go."""
    element.tag = _local(element.tag)
    for name, value in list(element.attrib.items()):
        del element.attrib[name]
        if name == "id" and value not in used:
            continue
        if name == "id":
            value = prefix + value
        elif _local(name) == "href":
            value = f"#{prefix}{value.removeprefix('#')}"
        value = value.replace("url(#", f"url(#{prefix}")
        for old, new in colours.items():
            value = value.replace(old, new)
        element.set(_local(name), value)
    for child in list(element):
        if _local(child.tag) in _SILENT:
            element.remove(child)
        else:
            _strip(child, used, prefix, colours)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
