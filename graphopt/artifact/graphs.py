"""The graphs kept in an artifact: ONNX whose larger tensors lie in the artifact's own weight members.

They share the program's ``weights.bin`` wherever a tensor is bit for bit a weight of the program. Other weights are
left out (`graphopt.graph.absent`), or go to ``graphs.bin`` where the artifact keeps its source: both are plain ONNX
external data then, and an unzipped `.gopt` is a valid model folder, but for tensors of mostly zeros, whose length there
is shorter than their shape says (see `zeros`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.artifact.container import Container
from graphopt.artifact.manifest import Kind, TensorSpec, dtype_of
from graphopt.artifact.store import GRAPH_WEIGHTS, Place, Store, view
from graphopt.errors import ArtifactError, LoweringError
from graphopt.graph.absent import is_absent, leave_out, put, tensors

INLINE_BELOW = 1024
"""Bytes under which a tensor stays in the ONNX file: shapes and axes that shape inference reads."""
KEPT_BELOW = 128
"""Bytes under which a tensor stays there too when the weights are left out."""
_INDICES = {
    *(ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32, ir.DataType.UINT32, ir.DataType.INT64),
    *(ir.DataType.UINT64, ir.DataType.BOOL),
}
"""Types whose tensors say what a graph does rather than what it has learnt, unless they are dequantized."""


def specs(values: list[ir.Value]) -> list[TensorSpec]:
    """The call's signature for a graph's inputs or outputs.

    Raises:
        LoweringError: one is of a type that numpy arrays can't carry.
    """
    return [_spec(value) for value in values]


def _spec(value: ir.Value) -> TensorSpec:
    if value.dtype is None or value.name is None:
        raise LoweringError(f"{value.name or 'an unnamed input or output'} has no known type: infer shapes first.")
    try:
        dtype = "str" if value.dtype == ir.DataType.STRING else value.dtype.numpy().name
        dtype_of(dtype)
    except (TypeError, ValueError) as error:
        raise LoweringError(f"{value.name} is of type {value.dtype}, which an artifact can't take or give.") from error
    shape = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    return TensorSpec(name=value.name, dtype=dtype, shape=shape, kind=_kind(value.type))


def _kind(kind: ir.TypeProtocol | None) -> Kind:
    if isinstance(kind, ir.OptionalType):
        return "optional sequence" if isinstance(kind.elem_type, ir.SequenceType) else "optional"
    return "sequence" if isinstance(kind, ir.SequenceType) else "tensor"


def to_bytes(model: ir.Model, stores: Mapping[str, Store], keep_source: bool) -> bytes:
    """The model as ONNX bytes, its larger initializers referring to `stores` (by member name).

    A tensor that no store holds yet is added to ``graphs.bin`` where the source is kept or the tensor is no weight,
    else left out. The model is as it was afterwards.
    """
    swapped: list[tuple[ir.Value, ir.TensorProtocol]] = []
    try:
        for value, tensor in tensors(model):
            if tensor.nbytes < (INLINE_BELOW if keep_source else KEPT_BELOW) or tensor.dtype == ir.DataType.STRING:
                continue
            placed = _placed(value, tensor, stores, keep_source)
            if placed is not None:
                swapped.append((value, tensor))
                put(value, placed)
        return ir.to_proto(model).SerializeToString(deterministic=True)
    finally:
        for value, tensor in swapped:
            put(value, tensor)


def _placed(
    value: ir.Value, tensor: ir.TensorProtocol, stores: Mapping[str, Store], keep_source: bool
) -> ir.ExternalTensor | None:
    """Where the tensor's bytes will lie; None: in the ONNX file."""
    whole_bytes = tensor.dtype.bitwidth >= 8
    digest = hashlib.sha256(tensor.tobytes()).digest() if whole_bytes else b""
    found = ((name, store.find(digest)) for name, store in stores.items())
    location, place = next(((n, p) for n, p in found if p is not None), (GRAPH_WEIGHTS, None))
    if place is None and not keep_source and _is_weight(value, tensor):
        return leave_out(tensor, tensor.name or value.name or "")
    if not whole_bytes or tensor.nbytes < INLINE_BELOW:
        return None
    if place is None:
        place = stores[GRAPH_WEIGHTS].add(tensor.tobytes, tensor.dtype.bitwidth // 8, digest)
    return ir.ExternalTensor(
        location,
        place.offset,
        tensor.nbytes if place.encoded is None else place.encoded,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or value.name or "",
    )


def _is_weight(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype not in _INDICES or all(node.op_type == "DequantizeLinear" for node in value.consumers())


def read(container: Container, member: str) -> ir.Model:
    """The graph in `member`, its tensors read-only views of the mapped artifact; of those left out, only what they are.

    Raises:
        ArtifactError: there is no such member, or it refers to what is not there.
    """
    proto = onnx.ModelProto.FromString(bytes(container.read(member)))
    model = ir.from_proto(proto)
    for value, tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor) and not is_absent(tensor):
            put(value, _mapped(container, member, tensor))
    return model


def _mapped(container: Container, member: str, tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    data, dtype = container.read(str(tensor.location)), tensor.dtype.numpy()
    encoded = None if tensor.length in (None, tensor.nbytes) else tensor.length
    try:
        array = view(data, Place(tensor.offset or 0, encoded), np.dtype(dtype), list(tensor.shape.numpy()))
    except ValueError as error:
        raise ArtifactError(f"{container.name}: {tensor.name} of {member}: {error}.") from error
    array.flags.writeable = False
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)
