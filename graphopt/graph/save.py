"""Writing a model: atomic, with external data beside it when protobuf's 2 GiB would not do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.atomic import atomic_write

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

EXTERNAL_ABOVE = 1 << 29
"""Weight bytes above which they go to `NAME.onnx.data` beside the model."""
INLINE_BELOW = 1024
"""Bytes under which a tensor stays in the model: shapes and axes that shape inference reads."""
ALIGNMENT = 4096
"""Tensors start at multiples of a page, so that they can be mapped each by itself."""


def save(model: ir.Model, path: str | Path) -> Path:
    """Write `model` to `path` (and, when large, its weights to ``path + ".data"``); returns the path.

    The file appears complete or not at all, and so does the data file, which comes first. Either may be the one
    that the model was read from.

    Raises:
        UsageError: the folder does not exist or can't be written.
    """
    path = Path(path)
    with contextlib.ExitStack() as files:  # left in reverse: the data file is in place when the model appears
        scratch = files.enter_context(atomic_write(path))
        if weight_bytes(model) > EXTERNAL_ABOVE:
            data = path.resolve().with_name(f"{path.resolve().name}.data")
            model = _put_outside(model, files.enter_context(atomic_write(data)), data.name)
        with scratch.open("wb") as file:
            file.writelines(_pieces(ir.to_proto(model)))
    return path


def _pieces(proto: onnx.ModelProto) -> Iterator[bytes]:
    """`proto` serialised, each initializer by itself: protobuf's own buffer is copied whenever it has to grow.

    The parts of a message may come in any order, and the fields of one field of it in several pieces. Empties `proto`.
    """
    graph = proto.graph
    tensors = [tensor.SerializeToString() for tensor in graph.initializer]
    tensor_tag = _tag(graph, "initializer")
    del graph.initializer[:]
    fields = [graph.SerializeToString()]
    for tensor in tensors:
        fields += [tensor_tag, _varint(len(tensor)), tensor]
    graph_tag = _tag(proto, "graph")
    proto.ClearField("graph")
    yield proto.SerializeToString()
    yield graph_tag + _varint(sum(map(len, fields)))
    yield from fields


def _tag(message: Message, field: str) -> bytes:
    """What stands before a message's field that is a message itself: its number, and that its length follows."""
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | 2)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have the highest bit set."""
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def to_bytes(model: ir.Model) -> bytes:
    """The model as protobuf bytes, deterministic for equal models."""
    return ir.to_proto(model).SerializeToString(deterministic=True)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, each once."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _put_outside(model: ir.Model, file: Path, location: str) -> ir.Model:
    """A copy of `model` whose larger initializers refer to `location`; their bytes are written to `file`."""
    copy = model.clone()
    with file.open("wb") as data:
        for graph in copy.graphs():
            for name, value in graph.initializers.items():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < INLINE_BELOW:
                    continue
                offset = -(-data.tell() // ALIGNMENT) * ALIGNMENT
                data.seek(offset)
                data.write(tensor.tobytes())
                shape = ir.Shape(tensor.shape.numpy())
                value.const_value = ir.ExternalTensor(
                    location, offset, tensor.nbytes, tensor.dtype, shape=shape, name=name
                )
    return copy
