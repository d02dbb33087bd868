"""Constant right operands of int8 laid out along the sums, as [columns, k]: what tensor cores load fastest."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from graphopt.targets.lowering import Lowered


def along_sums(lowered: Lowered) -> Lowered:
    """int8 weights of matrix products transposed, and read through `permute_dims`; not those of single rows."""
    main: Any = lowered.module["main"]
    calls = [binding.value for block in main.body.blocks for binding in block.bindings]
    weights = dict(zip(main.params[len(lowered.inputs) :], lowered.weights, strict=True))
    uses = [argument for call in calls for argument in getattr(call, "args", ())]
    found = [call.args[1] for call in calls if _is_product(call) and call.args[1] in weights]
    turned = {old: _turned(old) for old in found if sum(use.same_as(old) for use in uses) == 1}
    if not turned:
        return lowered
    mutator: Any = _Turn(lowered.module)
    mutator.turned = turned
    params = [turned.get(parameter, parameter) for parameter in main.params]
    function = relax.Function(
        params, mutator.visit_expr(main.body), main.ret_ty, is_pure=main.is_pure, attrs=main.attrs
    )
    functions = {**dict(lowered.module.functions_items()), lowered.module.get_global_var("main"): function}
    names = {weights[old] for old in turned}
    arrays = {name: np.ascontiguousarray(a.T) if name in names else a for name, a in lowered.weights.items()}
    return dataclasses.replace(lowered, module=tvm.IRModule(functions), weights=arrays)


def _is_product(call: Any) -> bool:
    if getattr(getattr(call, "op", None), "name", "") != "relax.matmul" or str(call.args[1].ty.dtype) != "int8":
        return False
    rows = call.args[0].ty.shape[-2]
    return len(call.args[1].ty.shape) == 2 and not (isinstance(rows, tirx.IntImm) and int(rows) == 1)


def _turned(old: Any) -> Any:
    return relax.Var(str(old.name), relax.TensorType(list(reversed(old.ty.shape)), "int8"))


@relax.expr_functor.mutator
class _Turn(relax.PyExprMutator):
    """`turned`: weight -> the variable that takes its place."""

    turned: dict[Any, Any]

    def visit_call_(self, op: Any) -> Any:
        call: Any = self.visit_expr_post_order(op)
        if not _is_product(call) or call.args[1] not in self.turned:
            return call
        right = self.builder_.emit(relax.op.permute_dims(self.turned[call.args[1]], [1, 0]))
        return relax.op.matmul(call.args[0], right, out_dtype="int32")
