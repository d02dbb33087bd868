"""Weights of few bits: MatMulNBits as ONNX's blocked DequantizeLinear, and zero points that weights can do without."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.lowering.nodes import constant, put, take_place
from graphopt.targets.lowering.qlinear import MICROSOFT, operand, standard_domain

STORED = {4: np.dtype(ml_dtypes.uint4), 8: np.dtype(np.uint8)}
SIGNED = {
    np.dtype(unsigned): np.dtype(signed)
    for bits in ((np.uint8, np.int8), (ml_dtypes.uint4, ml_dtypes.int4))
    for unsigned, signed in (bits, (bits[1], bits[1]))
}
LIMITS = {np.dtype(np.int8): (-128, 127), np.dtype(ml_dtypes.int4): (-8, 7)}


def expand_nbits(model: ir.Model) -> bool:
    """Rewrite every MatMulNBits of 4 or 8 bits in place; says whether there was one.

    ``MatMulNBits(x, b, s, z) = MatMul(x, DequantizeLinear(w, s, z, axis=0, block_size=block))`` with ``w`` [K, N] the
    integers of ``b`` [N, blocks, bytes], lower bits first, and ``z`` the middle of the range where none is given.
    """
    changed = False
    for node in list(model.graph):
        if (node.domain, node.op_type) == (MICROSOFT, "MatMulNBits"):
            result = _product(node)
            if result is not None:
                take_place(node, result)
                model.graph.remove(node, safe=True)
                changed = True
    return changed


def _product(node: ir.Node) -> ir.Value | None:
    k, n = node.attributes.get_int("K", 0), node.attributes.get_int("N", 0)
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 0)
    b, scales, zeros = constant_array(node.inputs[1]), constant_array(node.inputs[2]), operand(node, 3)
    if b is None or scales is None or scales.dtype != np.float32 or bits not in STORED or operand(node, 4) is not None:
        return None  # `g_idx` orders the inner dimension otherwise
    blocks = -(-k // block)
    packed = None if zeros is None else constant_array(zeros)
    if zeros is not None and (packed is None or packed.dtype != np.uint8):
        return None
    integers = _unpack(b.reshape(n, -1), bits)[:, :k]
    middle = np.full((n, blocks), 1 << (bits - 1), np.uint8)
    zero = middle if packed is None else _unpack(packed.reshape(n, -1), bits)[:, :blocks]
    stored = STORED[bits]
    weight = put(
        node,
        "DequantizeLinear",
        [
            constant(node, "weight", np.ascontiguousarray(integers.T).astype(stored)),
            constant(node, "scale", np.ascontiguousarray(scales.reshape(n, blocks).T)),
            constant(node, "zero", np.ascontiguousarray(zero.T).astype(stored)),
        ],
        {"axis": 0, "block_size": block},
        domain=standard_domain(node),
        dtype=ir.DataType.FLOAT,
    )
    weight.shape = ir.Shape([k, n])
    y = put(node, "MatMul", [node.inputs[0], weight], dtype=ir.DataType.FLOAT, like=node.outputs[0])
    bias = operand(node, 5)
    return y if bias is None else put(node, "Add", [y, bias], dtype=ir.DataType.FLOAT, like=y)


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The integers of each row of bytes."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def drop_zero_points(model: ir.Model) -> None:
    """Re-express constants that are dequantized with zero points, as signed ones without, where all of them fit.

    That is exact. uint8 weights around 128 become int8, uint4 ones around 8 int4.
    """
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear" or node.domain not in ("", "graphopt") or len(node.inputs) < 3:
            continue
        w, z = constant_array(node.inputs[0]), constant_array(node.inputs[2])
        if w is None or z is None or node.graph is None:
            continue
        signed = SIGNED.get(w.dtype)
        if signed is None:
            continue
        low, high = LIMITS[signed]
        centred = w.astype(np.int16) - along(z.astype(np.int16), w.ndim, node, w.shape)
        if centred.size and low <= centred.min() and centred.max() <= high:
            attributes = {k: v.value for k, v in node.attributes.items()}
            same = signed == w.dtype and not z.any()
            weights = node.inputs[0] if same else constant(node, "centred", centred.astype(signed))
            inputs = [weights, node.inputs[1]]
            y = node.outputs[0]
            take_place(node, put(node, node.op_type, inputs, attributes, domain=node.domain, dtype=y.dtype, like=y))
            model.graph.remove(node, safe=True)


def along(parameter: np.ndarray, rank: int, node: ir.Node, shape: tuple[int, ...]) -> np.ndarray:
    """A scale or zero point of the (de)quantizer `node` as an array that broadcasts against its data of `shape`."""
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    if block:
        return np.repeat(parameter, block, axis=axis)[tuple(map(slice, shape))]
    if parameter.size == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if a == axis % rank else 1 for a in range(rank)])
