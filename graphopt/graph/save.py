"""Writing a model: atomic, with external data beside it when protobuf's 2 GiB would not do."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.atomic import atomic_write

if TYPE_CHECKING:
    from google.protobuf.message import Message

EXTERNAL_ABOVE = 1 << 29
"""Weight bytes above which they go to `NAME.onnx.data` beside the model."""
HEAVY = 1 << 16
"""Bytes from which a tensor is written from where it lies."""
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
            _write(model, file)
    return path


def _write(model: ir.Model, file: BinaryIO) -> None:
    """`model` serialised, each initializer by itself: protobuf would copy them whenever its buffer has to grow.

    The parts of a message may come in any order, and its fields in several pieces.
    """
    light, heavy = _lightened(model)
    proto = ir.to_proto(light)
    graph = proto.graph
    tensor_tag, data_tag = _tag(graph, "initializer"), _tag(onnx.TensorProto(), "raw_data")
    pieces: list[bytes | ir.TensorProtocol] = []
    for tensor in graph.initializer:
        data = heavy.get(tensor.name)
        if data is None:
            head, body = tensor.SerializeToString(), b""
        else:
            tensor = onnx.TensorProto(name=tensor.name, data_type=data.dtype.value, dims=data.shape.numpy())
            head, body = tensor.SerializeToString() + data_tag + _varint(data.nbytes), data
        pieces += [tensor_tag + _varint(len(head) + _size(body)) + head, body]
    del graph.initializer[:]
    pieces.append(graph.SerializeToString())
    graph_tag = _tag(proto, "graph")
    proto.ClearField("graph")
    file.write(proto.SerializeToString() + graph_tag + _varint(sum(map(_size, pieces))))
    for piece in pieces:
        file.write(piece if isinstance(piece, bytes) else piece.tobytes())


def _size(piece: bytes | ir.TensorProtocol) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.nbytes


def _lightened(model: ir.Model) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    """A copy of `model` whose large initializers are empty, and what they were; itself where there are none."""
    known = {name: value.const_value for name, value in model.graph.initializers.items()}
    heavy = {name: tensor for name, tensor in known.items() if tensor is not None and _is_heavy(tensor)}
    if not heavy:
        return model, {}
    copy = model.clone()
    for name in heavy:
        copy.graph.initializers[name].const_value = ir.tensor(np.zeros(0, np.uint8))
    return copy, heavy


def _is_heavy(tensor: ir.TensorProtocol) -> bool:
    if isinstance(tensor, ir.ExternalTensor) or tensor.dtype == ir.DataType.STRING:
        return False
    return tensor.nbytes >= HEAVY and not tensor.doc_string and not tensor.metadata_props


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
