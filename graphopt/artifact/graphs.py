"""The graphs kept in an artifact: ONNX whose larger tensors lie in the artifact's own weight members.

``after.onnx`` shares the program's ``weights.bin`` wherever a tensor is bit for bit a weight of the program;
what is left goes to ``graphs.bin``. Both are plain ONNX external data: an unzipped `.gopt` is a valid model folder,
but for tensors of mostly zeros, whose length there is shorter than their shape says (see `zeros`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.artifact.container import Container
from graphopt.artifact.manifest import TensorSpec, dtype_of
from graphopt.artifact.store import GRAPH_WEIGHTS, Place, Store, view
from graphopt.errors import ArtifactError, LoweringError

INLINE_BELOW = 1024
"""Bytes under which a tensor stays in the ONNX file: shapes and axes that shape inference reads."""


def specs(values: list[ir.Value]) -> list[TensorSpec]:
    """The call's signature for a graph's inputs or outputs.

    Raises:
        LoweringError: one is not a tensor, or of a type that numpy arrays can't carry.
    """
    return [_spec(value) for value in values]


def _spec(value: ir.Value) -> TensorSpec:
    if value.dtype is None or value.name is None:
        raise LoweringError(f"{value.name or 'an unnamed input or output'} has no known type: infer shapes first.")
    try:
        dtype = dtype_of(value.dtype.numpy().name).name
    except (TypeError, ValueError) as error:
        raise LoweringError(f"{value.name} is of type {value.dtype}, which an artifact can't take or give.") from error
    shape = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def to_bytes(model: ir.Model, stores: Mapping[str, Store]) -> bytes:
    """The model as ONNX bytes, its larger initializers referring to `stores` (by member name).

    A tensor that no store holds yet is added to ``graphs.bin``. The model is as it was afterwards.
    """
    swapped: list[tuple[ir.Value, ir.TensorProtocol]] = []
    try:
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and tensor.nbytes >= INLINE_BELOW and tensor.dtype.bitwidth >= 8:
                    swapped.append((value, tensor))
                    value.const_value = _external(value, tensor, stores)
        return ir.to_proto(model).SerializeToString(deterministic=True)
    finally:
        for value, tensor in swapped:
            value.const_value = tensor


def _external(value: ir.Value, tensor: ir.TensorProtocol, stores: Mapping[str, Store]) -> ir.ExternalTensor:
    digest = hashlib.sha256(tensor.tobytes()).digest()
    found = ((name, store.find(digest)) for name, store in stores.items())
    location, place = next(((n, p) for n, p in found if p is not None), (GRAPH_WEIGHTS, None))
    if place is None:
        place = stores[GRAPH_WEIGHTS].add(tensor.tobytes, tensor.dtype.bitwidth // 8, digest)
    return ir.ExternalTensor(
        location,
        place.offset,
        tensor.nbytes if place.encoded is None else place.encoded,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=value.name or tensor.name or "",
    )


def read(container: Container, member: str) -> ir.Model:
    """The graph in `member`, its tensors read-only views of the mapped artifact.

    Raises:
        ArtifactError: there is no such member, or it refers to what is not there.
    """
    proto = onnx.ModelProto.FromString(bytes(container.read(member)))
    model = ir.from_proto(proto)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _mapped(container, member, value.const_value)
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
