"""Own converters to Relax, for operators that TVM's importer lacks or writes so that nothing fuses with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx, topi

from graphopt.graph import constant_array
from graphopt.targets.lowering.support import IN_RANGE, NOT_ZERO

Builder = relax.BlockBuilder
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _bit_cast(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    """The same bits, read as another type of the same width."""
    to = ir.DataType(node.attributes.get_int("to", 1)).numpy().name

    def reinterpret(x: Any) -> Any:
        def element(*index: Any) -> Any:
            return tirx.reinterpret(to, x(*index))

        return te.compute(x.shape, element, name="bit_cast")

    return builder.emit_te(reinterpret, inputs[0])


def _clip(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    """Between constants by Relax's own operators, which layouts and fusion go through; None for other bounds."""
    bounds = [constant_array(value) for value in node.inputs[1:]]
    known = [bound for value, bound in zip(node.inputs[1:], bounds, strict=True) if value is not None]
    if node.inputs[0] is None or node.inputs[0].dtype not in FLOATS or not all(map(_is_number, known)):
        return None
    result = inputs[0]
    for bound, op in zip(bounds, (relax.op.maximum, relax.op.minimum), strict=False):
        if bound is not None:
            result = builder.normalize(op(result, relax.const(bound.reshape(()))))
    return result


def _is_number(bound: Any) -> bool:
    return bound is not None and bound.size == 1 and not np.isnan(bound).any()


def _cumulated_product(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    axis = constant_array(node.inputs[1])
    if axis is None:
        raise ValueError("its axis is not known at compile time")
    along = int(axis.reshape(-1)[0]) % len(inputs[0].ty.shape)
    backwards = node.attributes.get_int("reverse", 0)
    x = relax.op.flip(inputs[0], along) if backwards else inputs[0]
    exclusive = bool(node.attributes.get_int("exclusive", 0))
    y = relax.op.cumprod(builder.normalize(x), along, exclusive=exclusive)
    return relax.op.flip(builder.normalize(y), along) if backwards else y


def _reverse_sequence(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    time, batch = node.attributes.get_int("time_axis", 0), node.attributes.get_int("batch_axis", 1)
    return builder.emit_te(topi.reverse_sequence, inputs[0], inputs[1], seq_axis=time, batch_axis=batch)


def _col2im(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    """Each element of the image is the sum of all elements of columns that were taken from it."""
    image, block = (constant_array(value) for value in node.inputs[1:3])
    if image is None or block is None:
        raise ValueError("its sizes are not known at compile time")
    sizes, kernel = [int(k) for k in image], [int(k) for k in block]
    rank = len(sizes)
    dilations = list(node.attributes.get_ints("dilations", [1] * rank))
    strides = list(node.attributes.get_ints("strides", [1] * rank))
    pads = list(node.attributes.get_ints("pads", [0] * (2 * rank)))
    blocks = [
        (sizes[k] + pads[k] + pads[rank + k] - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1
        for k in range(rank)
    ]

    def gathered(x: Any) -> Any:
        taps = _product(kernel)
        reduce: list[Any] = [te.reduce_axis((0, size), f"k{k}") for k, size in enumerate(kernel)]

        def element(n: Any, c: Any, *place: Any) -> Any:
            inside, block_index, tap = tirx.const(True, "bool"), tirx.const(0, "int64"), tirx.const(0, "int64")
            for k in range(rank):
                at = place[k] + pads[k] - reduce[k] * dilations[k]
                step = tirx.floordiv(at, strides[k])
                inside = tirx.all(inside, at >= 0, tirx.floormod(at, strides[k]) == 0, step < blocks[k])
                block_index = block_index * blocks[k] + tirx.max(tirx.min(step, blocks[k] - 1), 0)
                tap = tap * kernel[k] + reduce[k]
            value = x(n, c * taps + tap, block_index)
            return te.sum(tirx.if_then_else(inside, value, tirx.const(0, x.dtype)), axis=reduce)

        channels = int(x.shape[1]) // taps
        return te.compute([x.shape[0], channels, *sizes], element, name="col2im")

    return builder.emit_te(gathered, inputs[0])


def _sum(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    """One addition after the other: TVM's importer stacks the operands into one tensor first."""
    total = inputs[0]
    for operand in inputs[1:]:
        total = builder.normalize(relax.op.add(total, operand))
    return total


def _arg(reduce: Callable[..., Any]) -> Callable[[Builder, ir.Node, Sequence[Any]], Any]:
    """TVM gives -1 where nothing is beyond what it begins with: the type's least number, which may be all there is."""

    def convert(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
        shape, last = inputs[0].ty.shape, node.attributes.get_int("select_last_index", 0)
        axis = node.attributes.get_int("axis", 0) % len(shape)
        if last and not isinstance(shape[axis], tirx.IntImm):
            return None
        data = builder.normalize(relax.op.flip(inputs[0], axis)) if last else inputs[0]
        found = builder.normalize(reduce(data, axis, bool(node.attributes.get_int("keepdims", 1))))
        first = builder.normalize(relax.op.maximum(found, relax.const(0, "int64")))
        return relax.op.subtract(relax.const(int(shape[axis]) - 1, "int64"), first) if last else first

    return convert


def _product(numbers: Sequence[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def _into_range(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    """Indices beyond what they index become the nearest that is within (a length stays what it is)."""
    sizes, axes = node.attributes.get_ints("sizes", ()), node.attributes.get_ints("axes", ())
    whole = node.attributes.get_string("kind") == "length"
    open_ = [inputs[1].ty.shape[axis] for axis in axes] if len(inputs) > 1 else []
    extents = [open_[k] if size < 0 else tirx.const(size, "int64") for k, size in enumerate(sizes)]

    def limited(x: Any) -> Any:
        def element(*place: Any) -> Any:
            index, size = tirx.Cast("int64", x(*place)), extents[0]
            for k, extent in enumerate(extents[1:], 1):
                size = tirx.Select(place[-1] == k, extent, size)
            if not whole:
                index, size = tirx.Select(index < 0, index + size, index), size - 1
            return tirx.Cast(x.dtype, tirx.Max(tirx.Min(index, size), tirx.const(0, "int64")))

        return te.compute(x.shape, element, name="in_range")

    return builder.emit_te(limited, inputs[0])


def _gather(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    """Of indices that have been checked, and so are not negative any more; None leaves others to the importer."""
    data, indices = inputs
    if constant_array(node.inputs[1]) is not None or isinstance(data, relax.ShapeExpr):
        return None
    return relax.op.take(data, indices, node.attributes.get_int("axis", 0), mode="clip")


def _not_zero(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    """1 where it is zero."""

    def changed(x: Any) -> Any:
        zero, one = (tirx.const(k, x.dtype) for k in (0, 1))

        def element(*place: Any) -> Any:
            return tirx.Select(x(*place) == zero, one, x(*place))

        return te.compute(x.shape, element, name="not_zero")

    return builder.emit_te(changed, inputs[0])


GUARDS = {IN_RANGE: _into_range, NOT_ZERO: _not_zero}
"""What the checks are where a target has no kernels that refuse the run."""
CONVERTERS: dict[str, Callable[[Builder, ir.Node, Sequence[Any]], Any]] = {
    "ArgMax": _arg(relax.op.argmax),
    "ArgMin": _arg(relax.op.argmin),
    "BitCast": _bit_cast,
    "Clip": _clip,
    "Col2Im": _col2im,
    "Gather": _gather,
    "CumProd": _cumulated_product,
    "ReverseSequence": _reverse_sequence,
    "Sum": _sum,
}
