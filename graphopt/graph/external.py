"""Weights in files beside the model: read from there whenever they are looked at, and held by nobody in between.

A pass over a model larger than the memory so costs the memory of the weights it has in hand. The file is kept open:
what is read stays what was loaded, also when another file takes its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError

Array = np.ndarray[Any, Any]

HELD_BELOW = 4096
"""Tensors of fewer bytes are read at once and held: a mapping would cost a page as well."""


def map_external(model: ir.Model, path: Path) -> None:
    """Let every external tensor of the model that was read from `path` read its bytes from its file when asked.

    Raises:
        ModelError: a file outside the model's folder (a link too, but one into the folder that the model's own link
            leads to, as caches have it), missing, or too short.
    """
    folders = {path.resolve().parent, path.parent.resolve()}
    files: dict[Path, BinaryIO] = {}
    for name, tensor, replace in _external(model):
        if "\0" in str(tensor.location):
            raise ModelError(f"the weights of {name!r} lie in a file whose name has a NUL: refused.")
        data = (path.parent / tensor.location).resolve()
        if not folders & set(data.parents):
            raise ModelError(
                f"the weights of {name!r} lie outside the model's folder, at {tensor.location!r}: refused."
            )
        if data.is_file() and data.stat().st_nlink > 1:
            raise ModelError(
                f"the weights of {name!r}, at {tensor.location!r}, are a hard link, maybe of a file elsewhere: "
                "refused. Copy the file."
            )
        if not data.is_file():
            raise ModelError(f"the weights of {name!r} are missing: {path} needs {tensor.location!r} beside it.")
        if (tensor.offset or 0) + max(tensor.length or 0, tensor.nbytes) > data.stat().st_size:
            raise ModelError(f"the weights of {name!r} are cut short: {tensor.location!r} ends before them.")
        if data not in files:
            files[data] = data.open("rb")
        read = partial(_read, files[data], tensor)
        if tensor.nbytes < HELD_BELOW:
            replace(read())
        else:
            replace(ir.LazyTensor(read, tensor.dtype, shape=tensor.shape, name=tensor.name))


def _read(file: BinaryIO, tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """The tensor as a view of the file's pages, or a copy of them where it is small."""
    if tensor.nbytes < HELD_BELOW:
        file.seek(tensor.offset or 0)
        pages = np.frombuffer(file.read(tensor.nbytes), np.uint8)
    else:
        pages = np.memmap(file, np.uint8, "r", tensor.offset or 0, (tensor.nbytes,))
    if tensor.dtype.bitwidth < 8:
        return ir.PackedTensor(pages, tensor.dtype, shape=tensor.shape, name=tensor.name)
    array = pages.view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
    return ir.Tensor(array, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)


def _external(model: ir.Model) -> Iterator[tuple[str, ir.ExternalTensor, Callable[[ir.TensorProtocol], None]]]:
    """Initializers and attributes that lie outside: a name, the tensor, and how to put another in its place."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield name, value.const_value, partial(setattr, value, "const_value")
        for node in graph:
            for key, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    yield str(node.outputs[0].name), attribute.value, partial(_set_tensor, node, key)


def _set_tensor(node: ir.Node, key: str, tensor: ir.TensorProtocol) -> None:
    node.attributes[key] = ir.AttrTensor(key, tensor)
