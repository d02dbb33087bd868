"""Plots as inline SVG: colours are the page's CSS classes, so that they follow light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from graphopt.report.html import add, tag

WIDTH = 720.0


class Mark(NamedTuple):
    """A point of a scatter plot; `item` is what a click shows."""

    x: float
    y: float
    label: str
    item: int | None = None


def bar(share: float, *, width: int = 120, kind: str = "bar") -> Element:
    """A horizontal bar for a cell of a table; `share` of its width."""
    filled = max(0.0, min(1.0, share)) * width
    found = _svg(width, 10, "", class_="cell")
    add(
        found,
        tag("rect", x=0, y=1, width=width, height=8, rx=2, class_="track"),
        tag("rect", x=0, y=1, width=f"{filled:.1f}", height=8, rx=2, class_=kind),
    )
    return found


def steps(titles: Sequence[str], lines: Sequence[tuple[str, Sequence[float | None]]]) -> Element:
    """Quantities relative to their first value, after each of `titles`; the axis begins at 0."""
    height, left, bottom, top = 220.0, 46.0, 40.0, 14.0
    most = max([1.0, *(v for _, values in lines for v in values if v is not None)]) * 1.08
    found = _svg(WIDTH, height, "What is left after each pass, relative to the model that was given")

    def at(index: int, value: float) -> tuple[float, float]:
        across = (WIDTH - left - 110) / max(1, len(titles) - 1)
        return left + index * across, top + (height - top - bottom) * (1 - value / most)

    for value in (0.0, 0.5, 1.0):
        _, y = at(0, value)
        add(
            found,
            tag("line", x1=left, x2=WIDTH - 100, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"),
            tag("text", f"{100 * value:.0f} %", x=left - 6, y=f"{y + 4:.1f}", class_="axis", text_anchor="end"),
        )
    for index, title in enumerate(titles):
        x, _ = at(index, 0)
        anchor = "start" if index == 0 else "middle"
        text = title if len(title) <= 22 else f"{title[:21]}…"
        add(
            found,
            tag("text", text, x=f"{x:.1f}", y=height - (22 if index % 2 else 8), class_="axis", text_anchor=anchor),
        )
    labels: list[float] = []
    for number, (name, values) in enumerate(lines):
        points = [at(i, v) for i, v in enumerate(values) if v is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        add(found, tag("polyline", points=path, class_=f"line s{number}"))
        for x, y in points:
            add(found, tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, class_=f"dot s{number}"))
        if points:
            y = points[-1][1]
            while any(abs(y - other) < 13 for other in labels):
                y += 3
            labels.append(y)
            add(found, tag("text", name, x=f"{points[-1][0] + 8:.1f}", y=f"{y + 4:.1f}", class_=f"label s{number}"))
    return _plot(found)


def scatter(
    marks: Sequence[Mark],
    *,
    title: str,
    x: str,
    y: str,
    log: bool = False,
    roofs: Sequence[tuple[str, float]] = (),
    ceiling: float | None = None,
    path: bool = False,
) -> Element:
    """Points with names; with `log`, both axes are logarithmic.

    `roofs`: (name, slope) of lines through the origin that bend at `ceiling`: a roofline. `path` joins the points.
    """
    height, left, bottom, top, right = 300.0, 60.0, 42.0, 16.0, 130.0
    found = _svg(WIDTH, height, title)
    across, up = _Axis([m.x for m in marks], log), _Axis([*(m.y for m in marks), *([ceiling] if ceiling else [])], log)

    def at(px: float, py: float) -> tuple[float, float]:
        return left + across(px) * (WIDTH - left - right), height - bottom - up(py) * (height - bottom - top)

    for value in across.ticks:
        px, _ = at(value, up.low)
        add(found, tag("line", x1=f"{px:.1f}", x2=f"{px:.1f}", y1=top, y2=height - bottom, class_="grid"))
        add(
            found,
            tag("text", f"{value:.3g}", x=f"{px:.1f}", y=height - bottom + 14, class_="axis", text_anchor="middle"),
        )
    for value in up.ticks:
        _, py = at(across.low, value)
        add(found, tag("line", x1=left, x2=WIDTH - right, y1=f"{py:.1f}", y2=f"{py:.1f}", class_="grid"))
        add(found, tag("text", f"{value:.4g}", x=left - 6, y=f"{py + 4:.1f}", class_="axis", text_anchor="end"))
    add(found, tag("text", x, x=(WIDTH - right + left) / 2, y=height - 6, class_="axis", text_anchor="middle"))
    add(found, tag("text", y, x=6, y=11, class_="axis"))
    for number, (name, slope) in enumerate(roofs):
        ends = [v for v in (across.low, across.high, (ceiling or 0) / slope) if across.low <= v <= across.high]
        line = [at(v, max(up.low, min(slope * v, ceiling or slope * v))) for v in sorted(ends)]
        add(found, tag("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in line), class_=f"line s{number}"))
        add(found, tag("text", name, x=WIDTH - right + 6, y=top + 12 + 14 * number, class_=f"label s{number}"))
    spots = [at(m.x, m.y) for m in marks]
    if path:
        add(found, tag("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in spots), class_="line path"))
    taken: list[tuple[float, float]] = []
    for mark, (px, py) in zip(marks, spots, strict=True):
        dot = tag(
            "circle", tag("title", mark.label), cx=f"{px:.1f}", cy=f"{py:.1f}", r=5, class_="mark", data_item=mark.item
        )
        add(found, dot)
        if len(marks) <= 24:
            ly = py - 7
            while any(abs(ly - oy) < 12 and abs(px - ox) < 110 for ox, oy in taken) and ly < py + 30:
                ly += 12
            if ly >= py + 30:
                continue  # too crowded here: the name shows under the pointer, and in the table
            taken.append((px, ly))
            add(found, tag("text", mark.label[-28:], x=f"{px + 7:.1f}", y=f"{ly:.1f}", class_="label"))
    return _plot(found)


def gantt(
    rows: Sequence[str], bars: Sequence[tuple[int, float, float, str, int | None]], *, title: str, end: float
) -> Element:
    """Bars ``(row, start, length, label, item)`` from 0 to `end` on lanes called `rows`."""
    lane, left = 22.0, 92.0
    height = lane * len(rows) + 24
    found = _svg(WIDTH, height, title)
    for index, name in enumerate(rows):
        y = index * lane
        add(
            found,
            tag("text", name, x=left - 8, y=y + 15, class_="axis", text_anchor="end"),
            tag("line", x1=left, x2=WIDTH, y1=y + lane, y2=y + lane, class_="grid"),
        )
    scale = (WIDTH - left - 4) / (end or 1.0)
    for row, start, length, label, item in bars:
        shape = tag(
            "rect", tag("title", label), x=f"{left + start * scale:.2f}", y=row * lane + 3,
            width=f"{max(0.6, length * scale):.2f}", height=lane - 6, class_=f"lane s{row % 6}", data_item=item,
        )  # fmt: skip
        add(found, shape)
        if row == 0 and length * scale > 6.5 * len(label):
            add(found, tag("text", label, x=f"{left + start * scale + 4:.1f}", y=row * lane + 15, class_="inside"))
    for part in range(5):
        x = left + scale * end * part / 4
        anchor = "end" if part == 4 else "middle" if part else "start"
        add(found, tag("text", f"{end * part / 4:,.0f}", x=f"{x:.1f}", y=height - 6, class_="axis", text_anchor=anchor))
    return _plot(found)


def _plot(svg: Element) -> Element:
    """In a box that scrolls sideways on narrow screens."""
    return tag("div", svg, class_="plot")


def _svg(width: float, height: float, title: str, **attributes: object) -> Element:
    found = tag("svg", viewBox=f"0 0 {width:g} {height:g}", width=f"{width:g}", height=f"{height:g}", **attributes)
    if title:
        found.set("role", "img")
        found.set("aria-label", title)
    else:
        found.set("aria-hidden", "true")
    return found


class _Axis:
    """From a quantity to 0..1, with a margin and round ticks."""

    def __init__(self, values: Sequence[float], log: bool) -> None:
        known = [v for v in values if v > 0 or not log] or [1.0]
        self.log = log
        low, high = min(known), max(known)
        if log:
            self.low, self.high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high * 1.01))
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            self.ticks = [10.0**e for e in range(first, last + 1, max(1, (last - first) // 6))]
        else:
            margin = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
            self.low, self.high = low - margin, high + margin
            step = 10.0 ** math.floor(math.log10(self.high - self.low))
            step = next(s for s in (step / 5, step / 2, step, step * 2) if (self.high - self.low) / s <= 6)
            self.ticks = [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]

    def __call__(self, value: float) -> float:
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            return (math.log10(max(value, self.low)) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)
