"""Products of float16 are summed in float32, as tensor cores do, and rounded to float16 once at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax

from graphopt.targets.lowering.origins import Origin

CONVOLUTIONS: Mapping[str, Any] = {
    f"relax.nn.{name}": getattr(relax.op.nn, name)
    for name in ("conv1d", "conv2d", "conv3d", "conv1d_transpose", "conv2d_transpose")
}


def sum_in_float32(module: tvm.IRModule, sources: Mapping[str, Origin]) -> tuple[tvm.IRModule, dict[str, Origin]]:
    """Each matrix product and convolution of float16 becomes one that gives float32, then a cast to float16.

    Also gives `sources` with the arithmetic at the product, and none at the cast that took its name.
    """
    origins = dict(sources)
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            mutator: Any = _Sums(module)
            mutator.products = {}
            mutator.builder_.update_func(variable, mutator.visit_expr(function))
            module = mutator.builder_.get()
            for product, name in mutator.products.items():
                if name in sources:
                    origins[product] = sources[name]
                    origins[name] = dataclasses.replace(sources[name], macs_per_element=0.0)
    return module, origins


@relax.expr_functor.mutator
class _Sums(relax.PyExprMutator):
    """`products`: name of the variable of a product in float32 -> that of the binding it was taken from."""

    products: dict[str, str]
    binding = ""

    def visit_var_binding_(self, binding: Any) -> None:
        self.binding = str(binding.var.name)
        super().visit_var_binding_(binding)

    def visit_call_(self, op: Any) -> Any:
        call: Any = self.visit_expr_post_order(op)
        wide = _summed_in_float32(call)
        if wide is None:
            return call
        product: Any = self.builder_.emit(wide, name_hint=f"{self.binding}_float32")
        self.products[str(product.name)] = self.binding
        return relax.op.astype(product, "float16")


def _summed_in_float32(call: Any) -> Any:
    """The product that `call` is, with a result of float32; None for what is no product of float16."""
    name = getattr(call.op, "name", "")
    if name not in CONVOLUTIONS and name != "relax.matmul":
        return None
    if any(str(argument.ty.dtype) != "float16" for argument in call.args):
        return None
    if name == "relax.matmul":
        return relax.op.matmul(*call.args, out_dtype="float32")
    said = call.attrs
    more = {"output_padding": list(said.output_padding)} if name.endswith("transpose") else {}
    return CONVOLUTIONS[name](
        *call.args,
        strides=list(said.strides),
        padding=list(said.padding),
        dilation=list(said.dilation),
        groups=int(said.groups),
        data_layout=str(said.data_layout),
        kernel_layout=str(said.kernel_layout),
        out_layout=str(said.out_layout),
        out_dtype="float32",
        **more,
    )
