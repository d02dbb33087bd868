"""What a kernel has to do, read from its loops: bytes it must move, and the blocks and threads it is launched with.

Symbolic dimensions count as 1, as in `graphopt.graph.cost`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir.stmt import SBlock
from tvm.sym import Analyzer


@dataclasses.dataclass(frozen=True)
class Launch:
    """`blocks` in the grid and `threads` in a block."""

    blocks: int
    threads: int


def moved_bytes(function: Any) -> int:
    """Bytes of the parameters that the PrimFunc `function`, not yet scheduled, must read or write at least once.

    Of each, the lesser of its size and what the iterations touch: a Gather does not read the whole table.
    """
    buffers = _buffers(function)
    touched = [0] * len(buffers)

    def block(found: Any) -> None:
        points = math.prod(_value(axis.dom.extent) for axis in found.iter_vars)
        for region in (*found.reads, *found.writes):
            for index, buffer in enumerate(buffers):
                if buffer.same_as(region.source):
                    touched[index] += points * math.prod(_value(side.extent) for side in region.region)

    tvm_ffi.structural_walk(function.body, (SBlock, block))
    sizes = [tvm.DataType(str(buffer.dtype)).itemsize for buffer in buffers]
    return sum(
        min(_elements(buffer), count) * each for buffer, count, each in zip(buffers, touched, sizes, strict=True)
    )


def product_type(function: Any) -> str:
    """Type of the products of a PrimFunc not yet scheduled, in words of `gpus.toml`; "float16" is all of 16 bits."""
    sizes: list[int] = []

    def block(found: Any) -> None:
        if found.init is not None:
            sizes.append(tvm.DataType(str(found.reads[0].source.dtype)).bits)

    tvm_ffi.structural_walk(function.body, (SBlock, block))
    return "int8" if min(sizes, default=16) == 8 else "float16"


def output_elements(function: Any) -> int:
    """Elements of a PrimFunc's last parameter, which it writes."""
    return _elements(_buffers(function)[-1])


def launches(function: Any) -> list[Launch]:
    """Of the kernels that the scheduled PrimFunc `function` becomes, in order: one for each nest of loops."""
    body = function.body.block.body
    return [_launch(nest) for nest in (body.seq if isinstance(body, tirx.SeqStmt) else [body])]


def _launch(nest: Any) -> Launch:
    extents: dict[str, int] = {}

    def loop(found: Any) -> None:
        if found.kind == tirx.ForKind.THREAD_BINDING:
            extents[str(found.thread_binding.thread_tag)] = _value(found.extent)

    tvm_ffi.structural_walk(nest, (tirx.For, loop))
    of = {kind: math.prod(n for tag, n in extents.items() if tag.startswith(kind)) for kind in ("block", "thread")}
    return Launch(of["block"], of["thread"])


def _buffers(function: Any) -> list[Any]:
    return [parameter for parameter in function.params if not isinstance(parameter.ty, tvm.ir.PrimType)]


def _elements(buffer: Any) -> int:
    return math.prod(_value(dim) for dim in buffer.shape)


def _value(expression: Any) -> int:
    """Its value where every variable is 1."""
    if isinstance(expression, int | tirx.IntImm):
        return int(expression)
    ones = tvm_ffi.structural_map(expression, (tirx.Var, _one))
    simple: Any = Analyzer().simplify(ones)
    return int(simple)


def _one(variable: tirx.Var) -> tirx.IntImm:
    return tirx.IntImm(str(variable.ty.dtype), 1)  # pyright: ignore[reportAttributeAccessIssue]
