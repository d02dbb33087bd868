"""Read and move the bias of a weighted node, quantized or float, its own or that of the Add behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, constant_array, used_once
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.quant.arithmetic import quantize_bias
from graphopt.passes.quant.insert import quantize_bias_of
from graphopt.passes.quant.original import KEY, Original, held, original

Array = np.ndarray[Any, Any]


def channel_axis(node: ir.Node) -> int:
    """Axis of a weighted node's output that counts the channels a bias adds to."""
    return 1 if node.op_type in ("Conv", "ConvTranspose") else -1


def shift_bias(graph: ir.Graph, node: ir.Node, shift: Array) -> tuple[Array, bool] | str:
    """Add `shift` [channels] to the bias of `node`. Returns what was added after rounding and whether the node
    adds it itself (else the Add behind it does); or why there is no place for it.
    """
    if node.op_type == "MatMul":
        return _shift_add(graph, node, shift)
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "alpha or beta is not 1"
    before, known = _bias(node, shift)
    if before is None or before.shape != shift.shape:
        return "its bias is computed at run time, or is not one number per channel"
    after = (before.astype(np.float64) + shift).astype(np.float32)
    scale = _integer_scale(node, len(shift))
    if scale is not None:
        q = quantize_bias(after, scale)
        if q is None:
            return "the corrected bias would clip int32"
        after = q.astype(np.float32) * scale
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    if scale is None:
        after = after.astype(_dtype(node.outputs[0], after))
    node.replace_input_with(2, add_constant(graph, f"{node.name}_bias", after))
    if scale is None:
        node.inputs[2].meta[KEY] = known  # pyright: ignore[reportOptionalMemberAccess]
    else:
        quantize_bias_of(graph, node, after, scale)
        node.inputs[2].producer().meta[KEY] = known  # pyright: ignore[reportOptionalMemberAccess]
    return after - before, True


def _dtype(value: ir.Value, like: Array) -> np.dtype[Any]:
    return like.dtype if value.dtype is None else value.dtype.numpy()


def _bias(node: ir.Node, like: Array) -> tuple[Array | None, Original]:
    """The bias in force and the float one; zeros where there is none."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(like.shape, np.float32), held(np.zeros(like.shape, np.float32))
    producer = value.producer()
    if producer is not None and is_onnx(producer, "DequantizeLinear"):
        q, scale = constant_array(producer.inputs[0]), constant_array(producer.inputs[1])
        known = original(producer)
        if q is None or scale is None or known is None:
            return None, held(like)
        return q.astype(np.float32) * scale, known
    array = constant_array(value)
    return array, value.meta.get(KEY, held(like if array is None else array))


def _integer_scale(node: ir.Node, channels: int) -> Array | None:
    """``s_x * s_w`` per channel, where both data and weight are dequantized; None where the bias is float."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is not None and constant_array(value) is not None:
        return None
    product = np.ones(channels, np.float32)
    for operand in node.inputs[:2]:
        producer = None if operand is None else operand.producer()
        if producer is None or not is_onnx(producer, "DequantizeLinear"):
            return None
        scale = constant_array(producer.inputs[1])
        if scale is None or scale.size not in (1, channels):
            return None
        product = product * scale.reshape(-1)
    return product.astype(np.float32)


def _shift_add(graph: ir.Graph, node: ir.Node, shift: Array) -> tuple[Array, bool] | str:
    (output,) = node.outputs
    readers = [reader for reader, _ in output.uses()]
    if not used_once(output) or not is_onnx(readers[0], "Add"):
        return "a MatMul has no bias, and no Add alone reads it"
    add = readers[0]
    index = 1 if add.inputs[0] is output else 0
    bias = add.inputs[index]
    array = constant_array(bias)
    if bias is None or array is None or array.shape != shift.shape:
        return "a MatMul has no bias, and the Add behind it is not one number per channel"
    after = (array.astype(np.float64) + shift).astype(array.dtype)
    add.replace_input_with(index, add_constant(graph, f"{bias.name}_corrected", after))
    add.inputs[index].meta[KEY] = bias.meta.get(KEY, held(array))  # pyright: ignore[reportOptionalMemberAccess]
    return after - array, False
