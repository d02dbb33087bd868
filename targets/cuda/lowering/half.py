"""Products of 16-bit floats are summed in float32, as tensor cores do, and rounded once at the end."""

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
    """Each matrix product and convolution that gives a 16-bit float becomes one that gives float32, then a cast.

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
        if not _is_summed_in_16_bits(call):
            return call
        product: Any = self.builder_.emit(summed_in_float32(call, call.args), name_hint=f"{self.binding}_float32")
        self.products[str(product.name)] = self.binding
        return relax.op.astype(product, str(call.ty.dtype))


def _is_summed_in_16_bits(call: Any) -> bool:
    name = getattr(call.op, "name", "")
    return (name in CONVOLUTIONS or name == "relax.matmul") and str(call.ty.dtype) in ("float16", "bfloat16")


def summed_in_float32(call: Any, operands: list[Any]) -> Any:
    """The matrix product or convolution that `call` is, of `operands`, with a result of float32."""
    name = call.op.name
    if name == "relax.matmul":
        return relax.op.matmul(*operands, out_dtype="float32")
    said = call.attrs
    more = {"output_padding": list(said.output_padding)} if name.endswith("transpose") else {}
    return CONVOLUTIONS[name](
        *operands,
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
