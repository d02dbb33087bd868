"""Open sizes that kernels take as numbers: in an order that depends on nothing but their names."""

from __future__ import annotations

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.script import tirx as T  # noqa: N812

from graphopt.targets.lowering.size_order import numbers_in_order


@T.prim_func(s_tir=True)
def kernel(x: T.Buffer((8,), "int64"), w: T.int64, h: T.int64, y: T.Buffer((8,), "int64")):
    for i in range(8):
        with T.sblock("add"):
            vi = T.axis.spatial(8, i)
            y[vi] = x[vi] * w + h


def _module() -> tvm.IRModule:
    builder = relax.BlockBuilder()
    h, w = tirx.Var("h", "int64"), tirx.Var("w", "int64")
    x = relax.Var("x", relax.TensorType([8], "int64"))
    s = relax.Var("s", relax.TensorType([h, w], "int64"))
    with builder.function("main", [x, s]):
        variable = builder.add_func(kernel, "kernel")
        made = relax.call_tir(variable, [x, w, h], relax.TensorType([8], "int64"))
        builder.emit_func_output(builder.emit(made))
    return builder.get()


def _call(module: tvm.IRModule) -> tuple[list[str], list[str]]:
    calls = []

    def call(found) -> None:
        if getattr(found.args[0] if found.args else None, "name_hint", "") == "kernel":
            calls.append([str(getattr(one, "name", one)) for one in found.args[1]])

    tvm_ffi.structural_walk(module["main"], (tvm.ir.Call, call))
    return [str(param.name) for param in module["kernel"].params], calls[0]


def test_numbers_are_sorted_by_name_in_kernel_and_call():
    before = _module()
    assert _call(before) == (["x", "w", "h", "y"], ["x", "w", "h"])
    after = numbers_in_order(before)
    assert _call(after) == (["x", "h", "w", "y"], ["x", "h", "w"])
    assert numbers_in_order(after).same_as(after)
    machine = relax.VirtualMachine(relax.build(after, "llvm"), tvm.cpu())
    x, s = np.arange(8), np.zeros((3, 5), np.int64)
    y = machine["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(s)).numpy()
    np.testing.assert_array_equal(y, x * 5 + 3)
