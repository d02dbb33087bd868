"""Magika v3.3: what type a file has, from its first and last 1,024 bytes.

Fratantonio et al., Magika: AI-Powered Content-Type Detection (2024). Input `bytes`: int32 (N, 2048), values 0..255
and 256 for padding. Output `target_label`: float32 (N, 214), one probability for each type.
"""

from __future__ import annotations

import base64
import csv
import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np

from graphopt.data import Batches
from graphopt.models.base import Array, Evaluation, Feeds, ReferenceModel, Split, accuracy, batches
from graphopt.models.fetch import fetch_member, fetch_members

HALF, BLOCK, PADDING = 1024, 4096, 256
PER_TYPE = 24
LABELS = {
    "cmake": "cmake",
    "cs": "cs",
    "css": "css",
    "h": "cpp",
    "js": "javascript",
    "json": "json",
    "md": "markdown",
    "png": "png",
    "po": "po",
    "ps1": "powershell",
    "psm1": "powershell",
    "py": "python",
    "rst": "rst",
    "sh": "shell",
    "sty": "latex",
    "ts": "typescript",
    "xml": "xml",
    "yml": "yaml",
}
"""The types of files by what their authors named them; templates and plain text are left out as ambiguous."""

_RECORDS = {  # whose files are read: the RECORD of each wheel is pinned here, and lists the sha256 of every file
    ("ansible-core", "2.19.14"): "edba2e188cd088027815d2b3d4fdb68bd7f50354c32b84686e47378721e63699",
    ("sphinx", "9.0.4"): "eccb3441974a71c2da4404d56b0fb22178f3c6ef9d02c0abac01ad2d3f91f1d1",
    ("bokeh", "3.9.2"): "d54f6d06127b008300e35e0a78ad864265f5beb467365c08def81742be849ff6",
    ("pybind11", "3.1.0"): "64739f73ade0745fbb0b6bf23e895f3a283c1aaeee5501df6760ec426f553264",
}
_MEMBER = "magika/models/standard_v3_3/"


def features(content: bytes) -> Array:
    """A file's bytes as a row of the model's input, (2048,) int32.

    Of the first and of the last 4,096 bytes, blanks at the outer end stripped, the outermost 1,024; shorter ones
    are padded on the inner side.
    """
    row = np.full(2 * HALF, PADDING, np.int32)
    first = content[:BLOCK].lstrip()[:HALF]
    last = content[-BLOCK:].rstrip()[-HALF:]
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[len(row) - len(last) :] = np.frombuffer(last, np.uint8)
    return row


def split_of(sha256: str) -> Split:
    """Which set the file of this hash belongs to: one in four is for calibration. No content is in both."""
    return "calibration" if int(sha256[0], 16) < 4 else "evaluation"


def choose(record: str, split: Split) -> dict[str, str]:
    """Members of a wheel and their sha256, out of its RECORD's text: files of a known type and 200 bytes or more.

    At most 24 of a suffix, those of the least hashes, so that Python and TypeScript don't drown the rest.
    """
    found: dict[str, str] = {}
    for member, digest, size in csv.reader(record.splitlines()):
        if size and int(size) >= 200 and PurePosixPath(member).suffix[1:] in LABELS:
            sha256 = base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "=").hex()
            if split_of(sha256) == split:
                found[member] = sha256
    taken: Counter[str] = Counter()
    chosen: dict[str, str] = {}
    for member in sorted(found, key=lambda name: (found[name], name)):
        suffix = PurePosixPath(member).suffix
        if taken[suffix] < PER_TYPE and found[member] not in chosen.values():
            taken[suffix] += 1
            chosen[member] = found[member]
    return chosen


@cache
def files(split: Split) -> tuple[Array, list[str]]:
    """The files of `split` as the model's input (n, 2048) int32, and their types' labels; raises `FetchError`."""
    rows: list[Array] = []
    labels: list[str] = []
    for (package, version), pinned in _RECORDS.items():
        folder = f"{package.replace('-', '_')}-{version}.dist-info"
        record = fetch_member(package, version, f"{folder}/RECORD", pinned).read_text()
        for path in fetch_members(package, version, choose(record, split)):
            rows.append(features(path.read_bytes()))
            labels.append(LABELS[path.suffix[1:]])
    return np.stack(rows), labels


def _evaluation() -> Evaluation:
    return _labelled(*files("evaluation"))


def _selection() -> Evaluation:
    rows, names = files("calibration")
    return _labelled(rows[1::2], names[1::2])


def _labelled(rows: Array, names: list[str]) -> Evaluation:
    config = json.loads(_fetch("config.min.json", _CONFIG).read_text())
    labels = np.array([config["target_labels_space"].index(name) for name in names])
    return Evaluation(
        "accuracy",
        len(labels),
        lambda: batches("bytes", rows, 1),
        lambda outputs: accuracy(outputs, "target_label", labels),
    )


def _calibration() -> Iterator[Feeds]:
    return batches("bytes", files("calibration")[0][::4], 1)


def _example(batch: int) -> Feeds:
    text = Path(__file__).read_bytes()
    return {"bytes": np.stack([features(text[16 * index :]) for index in range(batch)])}


def _fetch(member: str, sha256: str) -> Path:
    return fetch_member("magika", "1.0.3", _MEMBER + member, sha256)


_CONFIG = "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db"

MAGIKA = ReferenceModel(
    name="magika",
    summary="Magika v3.3: a file's type from its bytes (one-hot, 1-D convolution, layer normalisation by hand)",
    licence="Apache-2.0",
    source="PyPI magika 1.0.3; labelled files from PyPI ansible-core, sphinx, bokeh and pybind11",
    path=lambda: _fetch("model.onnx", "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c"),
    example=_example,
    calibration=lambda: Batches(_calibration),
    evaluation=_evaluation,
    baseline=0.9351,
    unlabelled=lambda n: Batches(lambda: batches("bytes", files("calibration")[0][::2][:n], 16), divisible=True),
    selection=_selection,
)
