"""Labelled pictures of text lines, composed at load from the glyphs in `glyphs.npz` (see draw_glyphs.py).

A line is words from one of two texts, in one of six fonts, ink on paper of random grey, at a random resolution,
blurred and with noise, like a scan of middling quality. Evaluation lines quote the Apache License 2.0 and
calibration and selection lines quote CC0 1.0, from generators of different seeds, so no line is in two of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from graphopt.models.base import Array, Split
from graphopt.models.images import blur, resize

HEIGHT = 48
SEEDS: dict[Split, int] = {"evaluation": 20260101, "calibration": 20270202, "selection": 20280303}


@functools.cache
def _frozen() -> dict[str, Array]:
    with np.load(Path(__file__).with_name("glyphs.npz")) as file:
        return {name: file[name] for name in file.files}


def words(split: Split) -> list[str]:
    """The text that lines of `split` quote, word by word in reading order."""
    return [word.decode("ascii") for word in _frozen()["evaluation" if split == "evaluation" else "calibration"]]


def coverage(text: str, font: int) -> Array:
    """Printable ASCII `text` set in font 0..5: ink coverage (48, W) float32 in 0..1, 6 pixels clear at both ends."""
    ink, advance = _frozen()["ink"], _frozen()["advance"]
    codes = [ord(character) - 32 for character in text]
    line = np.zeros((HEIGHT, sum(int(advance[font, code]) for code in codes) + ink.shape[-1]), np.uint8)
    left = 0
    for code in codes:
        span = line[:, left : left + ink.shape[-1]]
        np.maximum(span, ink[font, code], out=span)
        left += int(advance[font, code])
    return line[:, : left + 12].astype(np.float32) / 255


def line(rng: np.random.Generator, source: list[str], widest: int, rows: tuple[int, int]) -> tuple[Array, str]:
    """One picture (48, W) uint8 of up to five consecutive words of `source`, and its text; W at most `widest`.

    `rows`: the least and the most rows of pixels that the scan gave the line's height.
    """
    start = int(rng.integers(len(source) - 5))
    quoted = source[start : start + int(rng.integers(2, 6))]
    font = int(rng.integers(len(_frozen()["fonts"])))
    while (ink := coverage(" ".join(quoted), font)).shape[1] > widest and len(quoted) > 1:
        quoted.pop()
    scanned = int(rng.integers(rows[0], rows[1] + 1))
    width = min(ink.shape[1], widest)
    ink = resize(ink, scanned, max(8, round(width * scanned / HEIGHT)))
    ink = blur(ink, int(rng.integers(0, 2)))
    paper, pen = rng.uniform(170, 255), rng.uniform(0, 110)
    noisy = paper + (pen - paper) * ink + rng.normal(0, rng.uniform(2, 14), ink.shape)
    image = np.clip(np.round(resize(noisy, HEIGHT, width)), 0, 255).astype(np.uint8)
    return image, " ".join(quoted)


def lines(split: Split, n: int, widest: int, rows: tuple[int, int]) -> Iterator[tuple[Array, str]]:
    """The first `n` lines of `split` so made, the same ones each time: see `line`."""
    rng = np.random.default_rng(SEEDS[split])
    source = words(split)
    for _ in range(n):
        yield line(rng, source, widest, rows)
