"""Calibration statistics as a file, sealed with the digest of the model they belong to."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.atomic import atomic_write
from graphopt.errors import DataError
from graphopt.graph.digest import digest
from graphopt.passes.quant.observers import BINS, Statistics

FORMAT = 1
_NUMBERS = ("low", "high", "average_low", "average_high", "width")


def save_statistics(path: str | Path, model: ir.Model, statistics: Mapping[ir.Value, Statistics]) -> None:
    """Write statistics of `model`'s values to a JSON file: extremes as numbers, histograms packed."""
    values = {str(value.name): _packed(seen) for value, seen in statistics.items()}
    content = {"format": FORMAT, "model": digest(model), "values": values}
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_statistics(path: str | Path, model: ir.Model) -> dict[str, Statistics]:
    """The statistics by value name.

    Raises:
        DataError: no such file, not one of ours, or gathered on another model than `model`.
    """
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"the statistics {path} are of format {content['format']}; this version reads {FORMAT}.")
        stale = content["model"] != digest(model)
        values = {name: _unpacked(packed) for name, packed in content["values"].items()}
    except FileNotFoundError:
        raise DataError(f"there are no statistics at {path}: make them with graphopt calibrate.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise DataError(f"{path} is not a statistics file of graphopt calibrate: {error}.") from error
    if stale:
        raise DataError(
            f"the statistics {path} belong to another model, or to this one before other passes: run graphopt "
            "calibrate again on this model with this pipeline."
        )
    return values


def _packed(seen: Statistics) -> dict[str, Any]:
    counts = base64.b64encode(zlib.compress(seen.counts.astype("<i8").tobytes(), 9)).decode()
    return {name: getattr(seen, name) for name in _NUMBERS} | {"counts": counts}


def _unpacked(packed: Mapping[str, Any]) -> Statistics:
    seen = Statistics()
    for name in _NUMBERS:
        setattr(seen, name, float(packed[name]))
    seen.counts = np.frombuffer(zlib.decompress(base64.b64decode(packed["counts"])), "<i8").astype(np.int64)
    if seen.counts.shape != (BINS,):
        raise ValueError(f"a histogram has {seen.counts.size} bins instead of {BINS}")
    return seen
