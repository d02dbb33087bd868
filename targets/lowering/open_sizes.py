"""Operators over tensors whose open sizes TVM can't prove equal: Relax gives no shape to their result then.

Convolutions and resizes make sizes such as ``2 * ((h + 31) // 32)`` and ``(h + 15) // 16``; whether they are equal is
known when the model runs.
"""

from __future__ import annotations

import functools
from typing import Any

import onnx_ir as ir
from tvm import relax, sym, te, tirx

ELEMENTWISE = frozenset(
    """
    Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or
    PRelu Pow Sub Sum Where Xor
    """.split()  # noqa: SIM905
)


def agreeing(builder: relax.BlockBuilder, node: ir.Node, inputs: list[Any]) -> list[Any]:
    """`inputs` of an elementwise operator or a Concat, changed so that TVM sees that their sizes fit together.

    Sizes of a Concat must be equal where it doesn't join, so they are made to be (checked when it runs). Elementwise, a
    size of 1 repeats, also where that turns out only when it runs.
    """
    shapes = [getattr(getattr(x, "ty", None), "shape", None) for x in inputs]
    sizes: list[list[Any]] = [list(shape.values) for shape in shapes if isinstance(shape, relax.ShapeExpr)]
    if len(inputs) < 2 or len(sizes) < len(inputs):
        return inputs
    if node.op_type == "Concat":
        return _equal(builder, inputs, sizes, node.attributes.get_int("axis", 0))
    return _repeated(builder, inputs, sizes) if node.op_type in ELEMENTWISE else inputs


def _same(a: Any, b: Any) -> bool:
    return bool(sym.Analyzer().can_prove_equal(a, b))


def _equal(builder: relax.BlockBuilder, inputs: list[Any], sizes: list[list[Any]], axis: int) -> list[Any]:
    rank = len(sizes[0])
    first = [_equal_size([own[k] for own in sizes]) for k in range(rank)]
    result: list[Any] = []
    for x, own in zip(inputs, sizes, strict=True):
        wanted: list[Any] = [own[k] if k == axis % rank else first[k] for k in range(rank)]
        fits = all(_same(a, b) for a, b in zip(own, wanted, strict=True))
        result.append(x if fits else builder.match_cast(x, relax.TensorType(wanted, x.ty.dtype)))
    return result


def _equal_size(sizes: list[Any]) -> Any:
    """What sizes that must be equal are: a number, an expression, or the maximum of bare variables.

    (`CanonicalizeBindings` takes a cast to a bare variable for its definition and drops the check.)
    """
    if all(_same(sizes[0], size) for size in sizes):
        return sizes[0]
    number = next((size for size in sizes if isinstance(size, int | tirx.IntImm)), None)
    expression = next((size for size in sizes if not isinstance(size, int | tirx.IntImm | tirx.Var)), None)
    if number is not None or expression is not None:
        return number if number is not None else expression
    return functools.reduce(tirx.max, sizes)


def _repeated(builder: relax.BlockBuilder, inputs: list[Any], sizes: list[list[Any]]) -> list[Any]:
    """Each input is repeated to the common shape where TVM can't tell whether it has it.

    Of sizes a and b the common one is ``b if a = 1 else a``. That of an input repeated to the others' is checked to be
    equal, so what ONNX refuses is refused.
    """
    rank = max(map(len, sizes))
    padded = [[1] * (rank - len(own)) + own for own in sizes]
    open_axes = [k for k in range(rank) if _undecided([own[k] for own in padded])]
    if not open_axes:
        return inputs
    common = [_common([own[k] for own in padded]) if k in open_axes else None for k in range(rank)]
    result: list[Any] = []
    for index, (x, own) in enumerate(zip(inputs, sizes, strict=True)):
        axes = [k for k in open_axes if k >= rank - len(own)]
        turned = padded[index:] + padded[:index]  # its own size decides last: then it is not what it is checked by
        others = {k: _common([row[k] for row in [*turned[1:], turned[0]]]) for k in axes}
        if not axes:
            result.append(x)
            continue
        skipped = rank - len(own)
        wanted = [others.get(k, own[k - skipped]) for k in range(skipped, rank)]
        repeated = builder.emit_te(_repeat, x, wanted, primfunc_name_hint="repeat")
        checked: list[Any] = [common[k] if k in axes else own[k - skipped] for k in range(skipped, rank)]
        result.append(builder.match_cast(repeated, relax.TensorType(checked, x.ty.dtype)))
    return result


def _undecided(sizes: list[Any]) -> bool:
    """Whether TVM can't tell what the sizes of one axis give together."""
    many = [size for size in sizes if not _same(size, 1)]
    return any(not _same(many[0], size) for size in many[1:])


def _common(sizes: list[Any]) -> Any:
    result = sizes[0]
    for size in sizes[1:]:
        result = tirx.Select(tirx.EQ(result, tirx.const(1, "int64")), size, result)
    return sym.Analyzer().simplify(result)


def _repeat(x: Any, wanted: list[Any]) -> Any:
    def element(*place: Any) -> Any:
        return x(*(tirx.min(at, size - 1) for at, size in zip(place, x.shape, strict=True)))

    return te.compute(wanted, element, name="repeat")
