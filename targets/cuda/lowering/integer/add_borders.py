"""What is added to a convolution's sums near the border of its image, read from a small table by place.

A tap outside the image counts as the input's zero point, and is left out of the sums; so what is added to these depends
on which taps are inside: on how many positions of the window lie before the image and how many behind, along each axis.
The table is read as the sums leave the kernel, also for images of open size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx

from graphopt.errors import LoweringError
from graphopt.targets.lowering import Lowered

ELEMENTWISE = "graphopt.elementwise"
"""Marks a function that may be fused behind a product; of itself TVM takes the table's indices for too wild."""
RESIZE = "relax.image.resize2d"


def add_borders(lowered: Lowered) -> Lowered:
    """Each addition of a spread table, as `targets.lowering.int8` writes it, by a kernel's own arithmetic.

    Raises:
        LoweringError: a layout has come between a convolution and its table.
    """
    main: Any = lowered.module["main"]
    values = {binding.var: binding.value for block in main.body.blocks for binding in block.bindings}
    if not any(_name(value) == RESIZE for value in values.values()):
        return lowered
    names = dict(zip(main.params[len(lowered.inputs) :], lowered.weights, strict=True))
    mutator: Any = _Adder(lowered.module)
    mutator.values, mutator.names, mutator.tables = values, names, {}
    body = mutator.visit_expr(main.body)
    params = [mutator.tables.get(parameter, parameter) for parameter in main.params]
    function = relax.Function(params, body, main.ret_ty, is_pure=main.is_pure, attrs=main.attrs)
    module = mutator.builder_.get()
    functions = {**dict(module.functions_items()), module.get_global_var("main"): function}
    turned = {names[old] for old in mutator.tables}
    arrays = {
        name: np.ascontiguousarray(array[0].transpose(1, 2, 0)) if name in turned else array
        for name, array in lowered.weights.items()
    }
    return dataclasses.replace(lowered, module=tvm.IRModule(functions), weights=arrays)


@relax.expr_functor.mutator
class _Adder(relax.PyExprMutator):
    """`values`: of variables. `names`: of weights. `tables`: weight -> the variable of [rows, columns, channels]."""

    values: Mapping[Any, Any]
    names: Mapping[Any, str]
    tables: dict[Any, Any]

    def visit_call_(self, op: Any) -> Any:
        if _name(op) != "relax.add":
            return self.visit_expr_post_order(op)
        sums: Any = op.args[0]
        conv: Any = self.values.get(sums)
        spread: Any = self.values.get(op.args[1])
        while _name(spread) == "relax.permute_dims":
            spread = self.values.get(spread.args[0])
        if _name(spread) != RESIZE or str(spread.args[0].ty.dtype) != "int32":  # an image resized, of the model's own
            return self.visit_expr_post_order(op)
        table = spread.args[0]
        if _name(conv) != "relax.nn.conv2d" or table not in self.names:
            raise LoweringError("a convolution of int8 lost its border between layouts; compile the model for llvm.")
        if table not in self.tables:
            _, channels, rows, columns = table.ty.shape
            self.tables[table] = relax.Var(str(table.name), relax.TensorType([rows, columns, channels], "int32"))
        weights, said = conv.args[1].ty.shape, conv.attrs
        layout = str(said.data_layout)

        def add(acc: Any, table: Any, image: Any) -> Any:  # the image for its size, which may be open
            def element(*at: Any) -> Any:
                rows, columns = (
                    _place(
                        at[layout.index(axis)],
                        image.shape[layout.index(axis)],
                        int(weights[str(said.kernel_layout).index(axis)]),
                        int(said.strides[k]),
                        int(said.dilation[k]),
                        (int(said.padding[k]), int(said.padding[k + 2])),
                    )
                    for k, axis in enumerate("HW")
                )
                return acc(*at) + table[rows, columns, at[layout.index("C")]]

            return te.compute(acc.shape, element, name="border")

        arguments = self.visit_expr(sums), self.tables[table], self.visit_expr(conv.args[0])
        return self.builder_.call_te(add, *arguments, primfunc_name_hint="border", primfunc_attrs={ELEMENTWISE: 1})


def as_elementwise(module: tvm.IRModule, _: Any) -> tvm.IRModule:
    """Functions marked so get the pattern that TVM's fusion goes by; the body of a pass."""
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and function.attrs and ELEMENTWISE in function.attrs:
            module[variable] = function.with_attr("op_pattern", 0)
    return module


def _place(at: Any, size: Any, kernel: int, stride: int, dilation: int, pads: tuple[int, int]) -> Any:
    """Which row or column of the table the output `at` of an axis reads; `borders.border_table` has them so ordered."""
    before, after = pads
    start, none = at * stride - before, tirx.const(0, "int64")
    low: Any = tirx.max(0 - start, none)
    high: Any = tirx.min(tirx.max(start + (kernel - 1) * dilation + 1 - size, none), tirx.const(after, "int64"))
    return low * (after + 1) + high


def _name(value: Any) -> str:
    return str(getattr(getattr(value, "op", None), "name", ""))
