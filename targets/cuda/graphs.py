"""CUDA graphs: kernels whose every address is the same at each call are launched together, as one graph.

TVM's RewriteCUDAGraph finds runs of such kernels and has the virtual machine capture each at its first call. What
makes an address the same: it is a weight's, or within memory that the plan gives out once. A kernel that reads an
input of the model or writes an output touches the caller's memory, and stays a launch of its own.

A kernel with an intermediate in global memory would take that from TVM's pool for the calling thread, which may
free it while a graph still has its address. So these intermediates become results of the kernel, and are planned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.relax import transform

from graphopt.targets.cuda.account.work import Launch

BY_KERNEL = "main_by_kernel"
_CAPTURE = "vm.builtin.cuda_graph.run_or_capture"


@dataclasses.dataclass(frozen=True)
class Graphs:
    """`graphs` with `kernels` of the `of` kernels that a call of the model launches; `left_out`: why there are none."""

    graphs: int
    kernels: int
    of: int
    left_out: str = ""


def captured(module: tvm.IRModule) -> tuple[tvm.IRModule, str]:
    """``main``, whose memory is planned, with its graphs, and as it was beside it (for what looks at each kernel).

    Also gives why there are none: the text is empty where there are some.
    """
    sizes = open_sizes(module)
    if sizes:
        return module, f"open sizes: {', '.join(sizes)} (--dim NAME=SIZE closes one)"
    with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
        made = transform.RewriteCUDAGraph()(module)
    calls = _calls(made)[1]
    if not calls:
        return module, "every kernel reads an input, writes an output, or has sizes that depend on values"
    strange = {name for name in calls if not _is_kernel_alone(made, name)}
    if strange:
        return module, f"{', '.join(sorted(strange))} can't be captured"
    main: Any = module["main"]
    made[BY_KERNEL] = main.with_attr("global_symbol", BY_KERNEL)
    return made, ""


def count(module: tvm.IRModule, launched: Mapping[str, Sequence[Launch]], left_out: str) -> Graphs:
    """What `captured` made; `launched`: the kernels of each function."""
    plain, inside = _calls(module)
    kernels = sum(len(launched.get(name, (1,))) for name in inside)
    graphs = sum(_CAPTURE in str(value) for value in _values(module["main"]))
    return Graphs(graphs, kernels, kernels + sum(len(launched.get(name, (1,))) for name in plain), left_out)


def open_sizes(module: tvm.IRModule) -> list[str]:
    """The dimensions of ``main``'s inputs that are no numbers, in order."""
    main: Any = module["main"]
    shapes = [parameter.ty.shape for parameter in main.params[: int(main.attrs["num_input"])]]
    return list(dict.fromkeys(str(dim) for shape in shapes for dim in shape or () if not isinstance(dim, tirx.IntImm)))


def _calls(module: tvm.IRModule) -> tuple[list[str], list[str]]:
    """Names of what is called for each kernel or extern function: by ``main`` itself, and within graphs."""
    main, graphs = list[str](), list[str]()
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function) and variable.name_hint != BY_KERNEL:
            called = [name for value in _values(function) if (name := _called(value))]
            (main if variable.name_hint == "main" else graphs).extend(called)
    return main, graphs


def _values(function: Any) -> list[Any]:
    return [binding.value for block in function.body.blocks for binding in block.bindings]


def _called(value: Any) -> str:
    """The kernel or the extern function that a binding calls; empty for TVM's own operators."""
    op = value.op if isinstance(value, relax.Call) else None
    if isinstance(op, tvm.ir.GlobalVar):
        return op.name_hint
    return str(op.global_symbol) if isinstance(op, relax.ExternFunc) else ""


def _is_kernel_alone(module: tvm.IRModule, name: str) -> bool:
    """Whether `name` is a kernel that takes no memory of its own: an extern function's work may not be on the GPU."""
    function: Any = next((one for variable, one in module.functions_items() if variable.name_hint == name), None)
    if not isinstance(function, tirx.PrimFunc):
        return False
    own: list[Any] = []

    def block(found: Any) -> None:
        own.extend(found.alloc_buffers)

    def allocation(found: Any) -> None:
        own.append(found.buffer)

    body: Any = function
    tvm_ffi.structural_walk(body.body, [(s_tir.SBlock, block), (tirx.AllocBuffer, allocation)])
    return not any(map(_in_global_memory, own))


def with_planned_workspaces(module: tvm.IRModule) -> tvm.IRModule:
    """Intermediates of known size that kernels of ``main`` keep in global memory become further results of them."""
    found = {v: _without_workspace(f) for v, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}
    wider = {variable: made for variable, made in found.items() if made is not None}
    if not wider:
        return module
    others = {variable: function for variable, function in module.functions_items() if variable not in wider}
    mutator: Any = _Widen(tvm.IRModule(others, attrs=module.attrs))  # pyright: ignore[reportAttributeAccessIssue]
    builder = mutator.builder_
    mutator.wider = {v: (builder.add_func(function, v.name_hint), kept) for v, (function, kept) in wider.items()}
    main = module.get_global_var("main")
    builder.update_func(main, mutator.visit_expr(module[main]))
    return builder.get()


def _without_workspace(function: Any) -> tuple[Any, list[Any]] | None:
    """The scheduled PrimFunc with its global intermediates as its last parameters, and these; None if it has none."""
    root = function.body.block
    lifted = [buffer for buffer in root.alloc_buffers if _in_global_memory(buffer) and _is_static(buffer.shape)]
    if not lifted:
        return None
    kept = [buffer for buffer in root.alloc_buffers if not any(buffer.same_as(one) for one in lifted)]
    block = s_tir.SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, root.body, root.init, kept, root.match_buffers,
        root.annotations,
    )  # fmt: skip
    body = s_tir.SBlockRealize(function.body.iter_values, function.body.predicate, block)
    return tirx.PrimFunc([*function.params, *lifted], body, function.ret_type, function.attrs), lifted


def _in_global_memory(buffer: Any) -> bool:
    return str(buffer.scope()) in ("", "global")


def _is_static(shape: Any) -> bool:
    return all(isinstance(dim, tirx.IntImm) for dim in shape)


@relax.expr_functor.mutator
class _Widen(relax.PyExprMutator):
    """Calls of kernels that got further results. `wider`: by kernel, what it is now, and the buffers that these are."""

    wider: Mapping[Any, tuple[Any, list[Any]]]

    def visit_call_(self, op: Any) -> Any:
        call: Any = self.visit_expr_post_order(op)
        kernel = call.args[0] if getattr(call.op, "name", "") == "relax.call_tir" else None
        if kernel not in self.wider:
            return call
        function, buffers = self.wider[kernel]
        result: Any = call.ty_args[0]
        several = not isinstance(result, relax.TensorType)
        before = list(result.fields) if several else [result]
        more = [relax.TensorType(buffer.shape, str(buffer.dtype)) for buffer in buffers]
        made: Any = self.builder_.emit(relax.op.call_tir(function, call.args[1], [*before, *more], *call.args[2:]))
        return relax.Tuple([made[i] for i in range(len(before))]) if several else made[0]
