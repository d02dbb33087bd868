"""Writing a model: atomic, with external data beside it when protobuf's 2 GiB would not do."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from graphopt.atomic import atomic_write

EXTERNAL_ABOVE = 1 << 30
"""Weight bytes above which they go to `NAME.onnx.data` beside the model."""


def save(model: ir.Model, path: str | Path) -> Path:
    """Write `model` to `path` (and, when large, its weights to ``path + ".data"``); returns the path.

    The file appears complete or not at all, and so does the data file.

    Raises:
        UsageError: the folder does not exist or can't be written.
    """
    path = Path(path)
    external = f"{path.name}.data" if weight_bytes(model) > EXTERNAL_ABOVE else None
    with atomic_write(path) as scratch:
        ir.save(model, scratch, format="protobuf", external_data=external)
    return path


def to_bytes(model: ir.Model) -> bytes:
    """The model as protobuf bytes, deterministic for equal models."""
    return ir.to_proto(model).SerializeToString(deterministic=True)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, each once."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
