"""Pages of text with known line boxes, boxes out of a text detector's probability map, and how well they agree.

A box is (left, top, right, bottom) in pixels, float32, right and bottom exclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import networkx as nx
import numpy as np

from graphopt.models.base import Array, Split
from graphopt.models.images import blur, resize
from graphopt.models.text_lines import SEEDS, coverage, words

SIDE = 640


def pages(split: Split, n: int) -> Iterator[tuple[Array, Array]]:
    """The first `n` pages of `split`: a picture (640, 640) uint8 and its lines' boxes (lines, 4)."""
    rng = np.random.default_rng(SEEDS[split])
    for _ in range(n):
        yield page(rng, words(split))


def page(rng: np.random.Generator, source: list[str]) -> tuple[Array, Array]:
    """Lines of `source` at random sizes, indents and gaps, one below the other; noise; as in `pages`."""
    ink = np.zeros((SIDE, SIDE), np.float32)
    boxes: list[tuple[int, int, int, int]] = []
    top = int(rng.integers(10, 60))
    while (height := int(rng.integers(18, 44))) + top + 8 < SIDE:
        start = int(rng.integers(len(source) - 8))
        line = coverage(" ".join(source[start : start + int(rng.integers(1, 8))]), int(rng.integers(6)))
        line = resize(line, height, round(line.shape[1] * height / line.shape[0]))[:, : SIDE - 16]
        left = int(rng.integers(8, SIDE - line.shape[1] - 7))
        ink[top : top + height, left : left + line.shape[1]] = line
        rows, columns = np.nonzero(line > 0.3)
        boxes.append((left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1))
        top += height + int(rng.integers(4, 60))
    paper, pen = rng.uniform(170, 255), rng.uniform(0, 110)
    noisy = paper + (pen - paper) * blur(ink, int(rng.integers(0, 2)))
    noisy += rng.normal(0, rng.uniform(2, 14), ink.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8), np.array(boxes, np.float32)


def boxes_of(probability: Array, threshold: float = 0.3, sure: float = 0.5, unclip: float = 1.6) -> Array:
    """The upright boxes (n, 4) in a map (H, W) of text probability, shrunk text kernels grown back.

    Liao et al., Real-time Scene Text Detection with Differentiable Binarization (2020), for horizontal lines:
    connected regions above `threshold` whose box has a mean of at least `sure`, each side moved outwards by
    ``unclip * area / perimeter``. The defaults are those that PP-OCR serves with.
    """
    found: list[Array] = []
    for left, top, right, bottom in components(probability > threshold):
        width, height = right - left, bottom - top
        if min(width, height) < 3 or probability[top:bottom, left:right].mean() < sure:
            continue
        grow = unclip * width * height / (2 * (width + height))
        found.append(np.array([left - grow, top - grow, right + grow, bottom + grow], np.float32))
    limits = np.array([probability.shape[1], probability.shape[0]] * 2, np.float32)
    return np.clip(np.array(found, np.float32).reshape(-1, 4), 0, limits)


def components(mask: Array) -> list[tuple[int, int, int, int]]:
    """The boxes of the 8-connected regions of `mask` (H, W) bool, by joining runs of neighbouring rows."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    by_row = [np.flatnonzero(rows == row) for row in range(mask.shape[0])]
    touching = nx.Graph()
    touching.add_nodes_from(range(len(rows)))
    for above, below in pairwise(by_row):
        for run in below:
            reached = above[(starts[above] <= stops[run]) & (stops[above] >= starts[run])]
            touching.add_edges_from((int(run), int(other)) for other in reached)
    regions = [np.array(sorted(region)) for region in nx.connected_components(touching)]
    return [(int(starts[r].min()), int(rows[r].min()), int(stops[r].max()), int(rows[r].max()) + 1) for r in regions]


def overlap(found: Array, true: Array) -> Array:
    """Intersection over union of every box of `found` (n, 4) with every one of `true` (m, 4): (n, m)."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (found, true)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None, :] - shared, 1e-9)


def hmean(pairs: Iterable[tuple[Array, Array]]) -> float:
    """Harmonic mean of precision and recall over pages of (found, true) boxes: ``2 TP / (found + true)``.

    A found box is true where its intersection over union with a box not yet taken is above 0.5 (ICDAR 2015).
    """
    hits = total = 0
    for found, true in pairs:
        total += len(found) + len(true)
        scores = overlap(found, true)
        while scores.size and scores.max() > 0.5:
            i, j = np.unravel_index(scores.argmax(), scores.shape)
            scores[i, :], scores[:, j] = 0, 0
            hits += 1
    return 2 * hits / total if total else 0.0
