"""The PP-OCR trio: which way up a line is, where the lines of a page are, and what a line says.

Input `x` of each: float32 (N, 3, H, W), ``grey / 127.5 - 1`` repeated over the three planes. A line is 48 rows
high, squeezed to the fixed width where it is longer and padded by zeros where it is shorter, as PP-OCR does.
Feeds hold one picture each, so that they also fit an artifact compiled for one fixed shape.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from graphopt.data import Batches
from graphopt.errors import DataError
from graphopt.models.base import Array, Evaluation, Feeds, ReferenceModel, Split, accuracy
from graphopt.models.fetch import fetch_member
from graphopt.models.images import planes, resize
from graphopt.models.text_boxes import boxes_of, hmean, pages
from graphopt.models.text_lines import HEIGHT, lines

_ANGLE_WIDTH, _READ_WIDTH = 192, 320
_SCORES, _CHARACTERS, _MAP = "save_infer_model/scale_0.tmp_1", "softmax_11.tmp_0", "sigmoid_0.tmp_0"


def _fetch(member: str, sha256: str) -> Path:
    return fetch_member("rapidocr-onnxruntime", "1.4.4", f"rapidocr_onnxruntime/models/{member}", sha256)


def prepare_line(image: Array, width: int) -> Array:
    """A grey line (48, W) uint8 as the models' input (1, 3, 48, width) float32."""
    used = min(image.shape[1], width)
    x = np.zeros((1, 3, HEIGHT, width), np.float32)
    x[0, :, :, :used] = planes(resize(image, HEIGHT, used))
    return x


# Which way up: lines of poor resolution (9 to 28 rows), every second one turned by 180 degrees.


def _angles(split: Split, n: int) -> Iterator[Feeds]:
    for index, (image, _) in enumerate(lines(split, n, widest=1024, rows=(9, 28))):
        yield {"x": prepare_line(image[::-1, ::-1] if index % 2 else image, _ANGLE_WIDTH)}


def _evaluate_angles(split: Split = "evaluation", n: int = 1000) -> Evaluation:
    labels = np.arange(n) % 2
    return Evaluation("accuracy", n, lambda: _angles(split, n), lambda outputs: accuracy(outputs, _SCORES, labels))


# What it says: lines that fit 320 columns.


def _texts(split: Split, n: int) -> Iterator[tuple[Array, str]]:
    return lines(split, n, widest=_READ_WIDTH, rows=(20, HEIGHT))


def _reading(split: Split, n: int) -> Iterator[Feeds]:
    for image, _ in _texts(split, n):
        yield {"x": prepare_line(image, _READ_WIDTH)}


@functools.cache
def characters() -> list[str]:
    """The recogniser's classes: the CTC blank, the characters its file's metadata lists, and the space."""
    import onnx

    listed = {entry.key: entry.value for entry in onnx.load(TEXT_RECOGNISER.path()).metadata_props}
    return ["", *listed["character"].splitlines(), " "]


def ctc_decode(scores: Array, alphabet: list[str]) -> str:
    """The best path's text in `scores` (T, classes): repeats merged, then class 0, the blank, dropped.

    Graves et al., Connectionist Temporal Classification (2006), best path decoding.
    """
    path = scores.argmax(axis=-1)
    kept = path[np.append(True, path[1:] != path[:-1])]
    return "".join(alphabet[index] for index in kept if index)


def _evaluate_reading(split: Split = "evaluation", n: int = 400) -> Evaluation:
    truth = [text for _, text in _texts(split, n)]

    def score(outputs: Iterable[Feeds]) -> float:
        read = [ctc_decode(row, characters()) for batch in outputs for row in batch[_CHARACTERS]]
        if len(read) != n:
            raise DataError(f"{len(read)} lines were read and {n} are labelled: run the whole set.")
        return sum(text == true for text, true in zip(read, truth, strict=True)) / n

    return Evaluation("exact_match", n, lambda: _reading(split, n), score)


# Where the lines are: whole pages.


def _pages(split: Split, n: int) -> Iterator[Feeds]:
    for image, _ in pages(split, n):
        yield {"x": planes(image)[None]}


def _evaluate_pages() -> Evaluation:
    n = 40

    def score(outputs: Iterable[Feeds]) -> float:
        maps = [row[0] for batch in outputs for row in batch[_MAP]]
        if len(maps) != n:
            raise DataError(f"{len(maps)} pages were searched and {n} are labelled: run the whole set.")
        truth = [boxes for _, boxes in pages("evaluation", n)]
        return hmean((boxes_of(found), true) for found, true in zip(maps, truth, strict=True))

    return Evaluation("hmean", n, lambda: _pages("evaluation", n), score)


def _example(feeds: Iterator[Feeds]) -> Feeds:
    return {"x": np.concatenate([feed["x"] for feed in feeds])}


_LICENCE = "Apache-2.0"
_SOURCE = "PyPI rapidocr-onnxruntime 1.4.4 (PaddleOCR's weights)"

ANGLE_CLASSIFIER = ReferenceModel(
    name="angle-classifier",
    summary="PP-OCR text angle classifier: is a line upright or turned by 180 degrees",
    licence=_LICENCE,
    source=_SOURCE,
    path=lambda: _fetch(
        "ch_ppocr_mobile_v2.0_cls_infer.onnx", "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c"
    ),
    example=lambda batch: _example(_angles("calibration", batch)),
    calibration=lambda: Batches(lambda: _angles("calibration", 64)),
    evaluation=_evaluate_angles,
    baseline=0.947,
    unlabelled=lambda n: Batches(lambda: _angles("calibration", n)),
    selection=lambda: _evaluate_angles("selection"),
)

TEXT_DETECTOR = ReferenceModel(
    name="ocr-detector",
    summary="PP-OCRv4 text detector (differentiable binarization): where a page's lines are",
    licence=_LICENCE,
    source=_SOURCE,
    path=lambda: _fetch(
        "ch_PP-OCRv4_det_infer.onnx", "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9"
    ),
    example=lambda batch: _example(_pages("calibration", batch)),
    calibration=lambda: Batches(lambda: _pages("calibration", 8)),
    evaluation=_evaluate_pages,
    baseline=0.9527,
)

TEXT_RECOGNISER = ReferenceModel(
    name="ocr-recogniser",
    summary="PP-OCRv4 text recogniser (convolutions, attention, CTC): what a line says",
    licence=_LICENCE,
    source=_SOURCE,
    path=lambda: _fetch(
        "ch_PP-OCRv4_rec_infer.onnx", "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b"
    ),
    example=lambda batch: _example(_reading("calibration", batch)),
    calibration=lambda: Batches(lambda: _reading("calibration", 32)),
    evaluation=_evaluate_reading,
    baseline=0.8375,
    unlabelled=lambda n: Batches(lambda: _reading("calibration", n)),
    selection=lambda: _evaluate_reading("selection", 200),
)
