"""Writing a model: atomic, with external data beside it when protobuf's 2 GiB would not do."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import ModelError

EXTERNAL_ABOVE = 1 << 30
"""Weight bytes above which they go to `NAME.onnx.data` beside the model."""


def save(model: ir.Model, path: str | Path) -> Path:
    """Write `model` to `path` (and, when large, its weights to ``path + ".data"``); returns the path.

    The file appears complete or not at all: it is written beside its place and renamed.

    Raises:
        ModelError: the folder does not exist or can't be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ModelError(f"can't write {path}: the folder {path.parent} does not exist.")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            scratch = Path(folder) / path.name
            large = weight_bytes(model) > EXTERNAL_ABOVE
            ir.save(model, scratch, format="protobuf", external_data=f"{path.name}.data" if large else None)
            if large:
                os.replace(f"{scratch}.data", f"{path}.data")
            os.replace(scratch, path)
    except OSError as error:
        raise ModelError(f"can't write {path}: {error.strerror or error}.") from error
    return path


def to_bytes(model: ir.Model) -> bytes:
    """The model as protobuf bytes, deterministic for equal models."""
    return ir.to_proto(model).SerializeToString(deterministic=True)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, each once."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
