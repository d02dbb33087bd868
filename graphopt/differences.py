"""In what two nodes differ that are the same node before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.graph.cost import constant
from graphopt.graph.defaults import own_attributes

Array = np.ndarray[Any, Any]
Images = Mapping[ir.Node, list[ir.Node]]
CHUNK = 1 << 22
"""Elements of a weight that are compared at once."""


@dataclasses.dataclass(frozen=True)
class WeightChange:
    """Constant `input` of `node` has other values in `differ` of `size` places.

    `relative`: ``|after - before| / |before|`` in the Euclidean norm, None where before is all zeros; `largest`: the
    largest absolute difference. Both None for what is not numbers, and where only one is finite.
    """

    node: str
    input: int
    size: int
    differ: int
    relative: float | None
    largest: float | None

    def __str__(self) -> str:
        how = "" if self.relative is None else f", by {self.relative:.3g} of their norm"
        most = "" if self.largest is None else f", at most {self.largest:.3g}"
        return f"constant {self.input} has other values in {self.differ} of {self.size} places{how}{most}"


def retyped(old: ir.Node, new: ir.Node) -> list[str]:
    """Outputs of another type or shape."""
    return [
        f"output {_type(was)} -> {_type(now)}"
        for was, now in zip(old.outputs, new.outputs, strict=False)
        if _known_apart(was.dtype, now.dtype) or _known_apart(was.shape, now.shape)
    ]


def _known_apart(was: object, now: object) -> bool:
    return was is not None and now is not None and str(was) != str(now)


def weight_changes(old: ir.Node, new: ir.Node) -> list[WeightChange]:
    """Constants of the same shape and type with other values."""
    found: list[WeightChange] = []
    for index, (a, b) in enumerate(zip(old.inputs, new.inputs, strict=False)):
        was, now = constant_array(a), constant_array(b)
        if was is not None and now is not None and was.shape == now.shape and was.dtype == now.dtype:
            change = _compare(new.name or "<unnamed>", index, was, now)
            if change is not None:
                found.append(change)
    return found


def _compare(node: str, index: int, was: Array, now: Array) -> WeightChange | None:
    if was is now:
        return None
    differ, squares, norm, largest = 0, 0.0, 0.0, 0.0
    numbers = was.dtype.kind in "fiubV" and was.dtype.names is None
    left, right = was.reshape(-1), now.reshape(-1)
    for start in range(0, was.size, CHUNK):
        a, b = left[start : start + CHUNK], right[start : start + CHUNK]
        unequal = a != b
        if numbers and was.dtype.kind == "f":
            unequal &= ~(np.isnan(a) & np.isnan(b))
        count = int(np.count_nonzero(unequal))
        differ += count
        if not numbers:
            continue
        x = a.astype(np.float64)
        norm += float(np.nansum(np.square(x)))
        if count:
            gap = np.abs(b.astype(np.float64) - x)[unequal]
            squares += float(np.square(gap).sum())
            largest = max(largest, float(gap.max()))
    if not differ:
        return None
    relative = float(np.sqrt(squares / norm)) if numbers and norm and np.isfinite(squares) else None
    return WeightChange(node, index, was.size, differ, relative, largest if numbers and np.isfinite(squares) else None)


def differences(old: ir.Node, new: ir.Node, images: Images) -> Iterator[str]:
    """Operator, attributes, where inputs come from, shapes of constants; not values of constants and types."""
    if (old.domain or "ai.onnx", old.op_type) != (new.domain or "ai.onnx", new.op_type):
        yield f"operator {_operator(old, new)} -> {_operator(new, old)}"
    had, has = own_attributes(old), own_attributes(new)
    for name in sorted({*had, *has}):
        was, now = _attribute(had.get(name)), _attribute(has.get(name))
        if not _same(was, now):
            yield f"attribute {name} {_short(was)} -> {_short(now)}"
    quantized: dict[str, list[str]] = {}
    for index in range(max(len(old.inputs), len(new.inputs))):
        was, now = _get(old, index), _get(new, index)
        if _is_quantized(was) != _is_quantized(now):
            quantized.setdefault("quantized" if _is_quantized(now) else "no longer quantized", []).append(str(index))
        else:
            yield from _input_difference(index, was, now, images)
    for how, indices in quantized.items():
        yield f"input {', '.join(indices)} {how}"


def _operator(node: ir.Node, other: ir.Node) -> str:
    """With its domain where the name alone is the other's too."""
    return f"{node.domain or 'ai.onnx'}::{node.op_type}" if node.op_type == other.op_type else node.op_type


def _input_difference(index: int, old: ir.Value | None, new: ir.Value | None, images: Images) -> Iterator[str]:
    was, now = (None if value is None else constant(value) for value in (old, new))
    if was is not None and now is not None:
        if was.shape != now.shape or was.dtype != now.dtype:
            yield f"constant {index} {_of(was)} -> {_of(now)}"
        return
    if (was is None) != (now is None) or (old is None) != (new is None):
        yield f"input {index} from {_from(old)} -> {_from(new)}"
        return
    if old is None or new is None:
        return
    producer, source = old.producer(), new.producer()
    if producer is None and source is None:
        return
    if producer is None or source is None or source not in images.get(producer, ()):
        yield f"input {index} from {_from(old)} -> {_from(new)}"


def _of(tensor: ir.TensorProtocol) -> str:
    return f"{tensor.dtype.numpy()}{list(tensor.shape.numpy())}"


def _is_quantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _get(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _from(value: ir.Value | None) -> str:
    if value is None:
        return "nothing"
    producer = value.producer()
    return str(value.name) if producer is None else producer.name or "<unnamed>"


def _attribute(attribute: ir.Attr | None) -> Any:
    if attribute is None or attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return None  # the nodes of subgraphs are compared one by one
    return attribute.as_tensor().numpy() if attribute.type == ir.AttributeType.TENSOR else attribute.value


def _same(was: Any, now: Any) -> bool:
    if isinstance(was, np.ndarray) or isinstance(now, np.ndarray):
        return was is not None and now is not None and np.array_equal(was, now, equal_nan=was.dtype.kind == "f")
    return was == now


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size > 4:
        return f"{value.dtype}{list(value.shape)}"
    return "none" if value is None else str(list(value) if isinstance(value, tuple) else value)


def _type(value: ir.Value) -> str:
    dims = "?" if value.shape is None else ",".join(str(d) for d in value.shape)
    return f"{'?' if value.dtype is None else value.dtype.name.lower()}[{dims}]"
