"""YOLOX detector: where the characters of a picture stand, as ddddocr uses it on picture puzzles.

Ge et al., YOLOX: Exceeding YOLO Series in 2021. Input `images`: float32 (1, 3, 416, 416), BGR in 0..255. Output
`output`: float32 (1, 3549, 6): for each cell of the grids of stride 8, 16 and 32 the box's centre and logarithm of
its size, in strides from the cell, the probability that something is there, and that it is of the one class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from graphopt.data import Batches
from graphopt.errors import DataError
from graphopt.models.base import Array, Evaluation, Feeds, ReferenceModel, Split
from graphopt.models.fetch import fetch_member
from graphopt.models.images import blur, resize
from graphopt.models.text_boxes import hmean, overlap
from graphopt.models.text_lines import SEEDS, coverage

SIDE = 416
STRIDES = (8, 16, 32)
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZabdefghkmnpqrtuy2345678"


def puzzle(rng: np.random.Generator) -> tuple[Array, Array]:
    """A picture (416, 416, 3) uint8 of 3 to 7 coloured letters on a mottled ground, and their boxes (letters, 4).

    A box leaves a margin of a tenth of the letter's height around the ink, as such puzzles are labelled.
    """
    ground = np.stack([resize(rng.integers(150, 256, (4, 4)), SIDE, SIDE) for _ in range(3)], axis=-1)
    boxes: list[Array] = []
    wanted = int(rng.integers(3, 8))
    while len(boxes) < wanted:
        height = int(rng.integers(50, 110))
        glyph = coverage(LETTERS[int(rng.integers(len(LETTERS)))], int(rng.integers(6)))
        glyph = resize(glyph, height, round(glyph.shape[1] * height / glyph.shape[0]))
        rows, columns = np.nonzero(glyph > 0.3)
        top, left = (int(rng.integers(4, SIDE - size - 4)) for size in glyph.shape)
        ink = [left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1]
        box = np.array(ink) + np.array([-1, -1, 1, 1]) * 0.1 * (rows.max() + 1 - rows.min())
        if boxes and overlap(box[None], np.array(boxes)).max() > 0:
            continue
        boxes.append(box)
        mask = np.zeros((SIDE, SIDE), np.float32)
        mask[top : top + glyph.shape[0], left : left + glyph.shape[1]] = glyph
        pen = rng.uniform(0, 110, 3)
        ground += (pen - ground) * blur(mask, int(rng.integers(0, 2)))[..., None]
    ground += rng.normal(0, rng.uniform(2, 12), ground.shape)
    return np.clip(np.round(ground), 0, 255).astype(np.uint8), np.array(boxes, np.float32)


def puzzles(split: Split, n: int) -> Iterator[tuple[Array, Array]]:
    """The first `n` puzzles of `split`, the same ones each time."""
    rng = np.random.default_rng(SEEDS[split])
    for _ in range(n):
        yield puzzle(rng)


def cells() -> tuple[Array, Array]:
    """Of each of the 3,549 cells its corner (3549, 2) in strides, and its stride (3549, 1)."""
    grids = [np.indices((SIDE // s, SIDE // s))[::-1].reshape(2, -1).T for s in STRIDES]
    return np.concatenate(grids), np.concatenate([np.full((len(g), 1), s) for g, s in zip(grids, STRIDES, strict=True)])


def boxes_of(output: Array, sure: float = 0.1, shared: float = 0.45) -> Array:
    """The boxes (n, 4) in one picture's `output` (3549, 6), by greedy non-maximum suppression.

    Kept, best first: boxes of probability above `sure` that share at most `shared` (intersection over union) with
    one kept before. The defaults are ddddocr's.
    """
    corner, stride = cells()
    centre, size = (output[:, :2] + corner) * stride, np.exp(output[:, 2:4]) * stride
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    score = output[:, 4] * output[:, 5]
    kept: list[int] = []
    for index in np.argsort(-score, kind="stable")[: int((score > sure).sum())]:
        if not kept or overlap(boxes[[index]], boxes[kept]).max() <= shared:
            kept.append(int(index))
    return boxes[kept]


def _feeds(split: Split, n: int) -> Iterator[Feeds]:
    for image, _ in puzzles(split, n):
        yield {"images": image.transpose(2, 0, 1)[None].astype(np.float32)}


def _evaluation() -> Evaluation:
    n = 40

    def score(outputs: Iterable[Feeds]) -> float:
        found = [boxes_of(row) for batch in outputs for row in batch["output"]]
        if len(found) != n:
            raise DataError(f"{len(found)} pictures were searched and {n} are labelled: run the whole set.")
        truth = [boxes for _, boxes in puzzles("evaluation", n)]
        return hmean(zip(found, truth, strict=True))

    return Evaluation("hmean", n, lambda: _feeds("evaluation", n), score)


YOLOX = ReferenceModel(
    name="yolox",
    summary="YOLOX detector of characters in picture puzzles: 83 convolutions, SiLU; its batch is 1",
    licence="MIT",
    source="PyPI ddddocr 1.6.1",
    path=lambda: fetch_member(
        "ddddocr",
        "1.6.1",
        "ddddocr/common_det.onnx",
        "6faa8ea85a8c1a634e5050c4a138fca10f30194e0d7abbe9ade1fcd423af6ed6",
    ),
    example=lambda batch: next(_feeds("calibration", 1)),
    calibration=lambda: Batches(lambda: _feeds("calibration", 16)),
    evaluation=_evaluation,
    baseline=0.6376,
)
