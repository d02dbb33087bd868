"""Rows of quantized tables, such as embeddings: taken first and dequantized then, and stored as few bytes as they have.

::

    Gather(DequantizeLinear(q, s, z), rows) = (Gather(q, rows) - Gather(z, rows)) * Gather(s, rows)

Two columns of 4 bits share a byte: the first half of a row is in the lower ones, the second in the upper ones.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import constant_array
from graphopt.targets.lowering.nodes import constant, put, take_place
from graphopt.targets.lowering.qlinear import operand

F, I32 = ir.DataType.FLOAT, ir.DataType.INT32
WIDER = {np.dtype(ml_dtypes.int4): np.dtype(np.int8), np.dtype(ml_dtypes.uint4): np.dtype(np.uint8)}
FOUR = (np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4))


def gather_before_dequantizing(model: ir.Model) -> bool:
    """Rewrite every Gather of rows of a dequantized constant matrix in place; says whether there was one."""
    changed = False
    for node in list(model.graph):
        if node.domain != "" or node.op_type != "Gather" or node.inputs[0] is None:
            continue
        source = node.inputs[0].producer()
        if source is None or source.op_type != "DequantizeLinear" or source.domain not in ("", "graphopt"):
            continue
        if node.attributes.get_int("axis", 0) == 0 and (real := _rows(node, source)) is not None:
            take_place(node, real)
            model.graph.remove(node, safe=True)
            changed = True
    common.RemoveUnusedNodesPass()(model)
    return changed


def _rows(node: ir.Node, source: ir.Node) -> ir.Value | None:
    rows = node.inputs[1]
    zeros = operand(source, 2)
    q, scale = (constant_array(v) for v in source.inputs[:2])
    zero = None if zeros is None else constant_array(zeros)
    if rows is None or rows.shape is None or q is None or scale is None or q.ndim != 2 or q.dtype.itemsize > 1:
        return None
    if q.dtype.kind not in "iu" and q.dtype not in FOUR:
        return None
    if (zeros is not None and zero is None) or (zero is not None and zero.shape != scale.shape):
        return None
    width, rank = q.shape[1], len(rows.shape)
    axis, block = source.attributes.get_int("axis", 1) % 2, source.attributes.get_int("block_size", 0)
    if block and (axis == 0 or width % block):
        return None
    groups = width // block if block else 1
    four = q.dtype in FOUR and width % 2 == 0
    stored = _pack(q) if four else q.astype(WIDER.get(q.dtype, q.dtype))
    offset = 8 if four and q.dtype == FOUR[0] else 0

    def taken(array: np.ndarray, hint: str) -> ir.Value:
        """The rows of `array`, each in `groups` parts, as float32."""
        table = constant(node, hint, array)
        found = put(node, "Gather", [table, rows], {"axis": 0}, dtype=table.dtype)
        found = _halves(node, found, rank) if hint == "table" and four else found
        return found if found.dtype == F else put(node, "Cast", [found], {"to": int(F)}, dtype=F)

    def shaped(value: ir.Value, sizes: list[int]) -> ir.Value:
        target = constant(node, "shape", np.array([*[0] * rank, *sizes], np.int64))
        return put(node, "Reshape", [value, target], dtype=F)

    def parameter(array: np.ndarray, hint: str) -> ir.Value:
        """A scale or zero point for each row, column, group or all."""
        if array.size == 1 or (not block and axis == 1):
            return constant(node, hint, array.astype(np.float32).reshape(array.shape if array.size > 1 else ()))
        return shaped(taken(array.reshape(len(q), -1), hint), [groups, 1])

    real = shaped(taken(stored, "table"), [groups, width // groups])
    if zero is not None or offset:
        middle = np.array(offset) if zero is None else zero.astype(np.int16) + offset
        small = np.uint8 if middle.min() >= 0 else np.int16
        real = put(node, "Sub", [real, parameter(middle.astype(small), "middle")], dtype=F)
    real = put(node, "Mul", [real, parameter(scale, "step")], dtype=F)
    return shaped(real, [width])


def _pack(q: np.ndarray) -> np.ndarray:
    """[rows, width] of 4 bits -> uint8 [rows, width / 2]; signed ones raised by 8."""
    raised = q.astype(np.int16) + (8 if q.dtype == FOUR[0] else 0)
    half = q.shape[1] // 2
    return (raised[:, :half] | raised[:, half:] << 4).astype(np.uint8)


def _halves(node: ir.Node, packed: ir.Value, rank: int) -> ir.Value:
    """The lower halves of all bytes, then the upper ones, as float32."""
    sixteen = constant(node, "sixteen", np.array(16, np.int32))
    wide = put(node, "Cast", [packed], {"to": int(I32)}, dtype=I32)
    upper = put(node, "Div", [wide, sixteen], dtype=I32)
    lower = put(node, "Sub", [wide, put(node, "Mul", [upper, sixteen], dtype=I32)], dtype=I32)
    return put(node, "Concat", [lower, upper], {"axis": rank}, dtype=I32)
