"""HTML and SVG as element trees: whatever a model's author wrote becomes text, never markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

Child = Element | str | None
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def tag(name: str, *children: Child, **attributes: object) -> Element:
    """An element; ``class_`` is ``class``, ``data_item`` is ``data-item``; None leaves an attribute or child out."""
    found = {k.rstrip("_").replace("_", "-"): clean(str(v)) for k, v in attributes.items() if v is not None}
    element = Element(name, found)
    add(element, *children)
    return element


def add(element: Element, *children: Child) -> None:
    """Append elements and texts."""
    for child in children:
        if isinstance(child, str):
            if len(element):
                element[-1].tail = (element[-1].tail or "") + clean(child)
            else:
                element.text = (element.text or "") + clean(child)
        elif child is not None:
            element.append(child)


def clean(text: str) -> str:
    """`text` with characters that no document may hold shown as a question mark in a box."""
    return _FORBIDDEN.sub("\ufffd", text)


def render(element: Element) -> str:
    """The element as HTML; texts and attributes are escaped."""
    return tostring(element, encoding="unicode", method="html")


def table(columns: Sequence[str], rows: Iterable[Sequence[Child]], *, numbers: int = 1, caption: str = "") -> Element:
    """A table in a box that scrolls sideways; columns from `numbers` on are numbers, to the right."""
    found = tag("table")
    if caption:
        add(found, tag("caption", caption))
    head = SubElement(SubElement(found, "thead"), "tr")
    for index, column in enumerate(columns):
        add(head, tag("th", column, scope="col", class_="number" if index >= numbers else None))
    body = SubElement(found, "tbody")
    for row in rows:
        line = SubElement(body, "tr")
        for index, cell in enumerate(row):
            add(line, tag("td", cell, class_="number" if index >= numbers else None))
    return tag("div", found, class_="scroll", tabindex=0, role="region", aria_label=caption or columns[0])


def jump(name: str, item: int | None, **attributes: object) -> Element:
    """A node's name, as a button that shows it in the graph where `item` is known."""
    if item is None:
        return tag("code", name, **attributes)
    return tag("button", name, type="button", class_="jump", data_item=item, **attributes)


# ---- numbers --------------------------------------------------------------------------------------------


def count(number: float) -> str:
    """1234567 as ``1.23M``."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:.3g}{unit}"
    return f"{number:.0f}"


def size(nbytes: float) -> str:
    """Bytes as ``1.2 MB`` (powers of 1000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(nbytes) >= scale:
            return f"{nbytes / scale:.3g} {unit}"
    return f"{nbytes:.0f} B"


def milliseconds(ms: float) -> str:
    """A duration in the unit that fits."""
    return f"{ms * 1e3:.3g} µs" if ms < 1 else f"{ms:.3g} ms" if ms < 1e3 else f"{ms / 1e3:.3g} s"


def percent(share: float) -> str:
    """0.0123 as ``1.2 %``; below a thousandth in scientific notation."""
    if share and abs(share) < 1e-3:
        return f"{100 * share:.1e} %"
    return f"{100 * share:.1f} %"
