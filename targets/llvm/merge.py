"""Runs of kernel calls become one function each, with the memory between the kernels planned.

The virtual machine spends about a microsecond on each kernel call, each tensor it allocates and each it drops: more
than many a kernel takes. Here every run of consecutive calls in ``main`` is replaced by one call of a host function,
which calls the kernels one after the other, on places in one workspace that the virtual machine gives it::

    y, workspace = run_0(x, w0, w1, w2)         run_0:  conv_0(x, w0, &workspace[0])
                                                        conv_1(&workspace[0], w1, &workspace[8192])
                                                        dense_2(&workspace[8192], w2, y)

A reshape inside a run costs nothing: another view of the same bytes. What is neither (control flow, shapes that depend
on data) stays between the runs as it was. The function as it was is kept as `BY_KERNEL`, for a profiler: what is called
there one by one are the same kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812  # TVM calls it so everywhere

from graphopt.targets.llvm import memory

BY_KERNEL = "main_by_kernel"
CALLS = ("relax.call_tir", "relax.call_dps_packed")


def merge_calls(module: tvm.IRModule) -> tuple[tvm.IRModule, list[int | str]]:
    """Merge the runs of ``main``, which must have no dataflow blocks.

    Returns the module, and the bytes of each run's workspace: a text such as ``12288 * N`` where a dimension is open.
    """
    name = module.get_global_var("main")
    main: Any = module[name]
    result = relax.BlockBuilder(tvm.IRModule(dict(module.functions_items()), attrs=module.attrs))  # pyright: ignore
    users = _users(main)
    kernels = {variable.name_hint for variable in module.get_global_vars()}
    sizes: list[int | str] = []
    blocks: list[relax.BindingBlock] = []
    for block in main.body.blocks:
        bindings: list[Any] = []
        for run in _runs(block.bindings, kernels):
            if sum(_is_call(binding) for binding in run) < 2:
                bindings.extend(run)
                continue
            merged = _Run(f"run_{len(sizes)}", run, users)
            bindings.extend(merged.replaced(result))
            sizes.append(memory.text(merged.layout.total))
        blocks.append(relax.BindingBlock(bindings))
    body = relax.SeqExpr(blocks, main.body.body)
    result.add_func(main.with_attr("global_symbol", BY_KERNEL), BY_KERNEL)
    result.update_func(name, relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs))
    return result.get(), sizes


def _runs(bindings: Sequence[Any], kernels: set[str]) -> Iterator[list[Any]]:
    """The bindings in order: in longest runs of those that can be merged, and those that can't one by one."""
    run: list[Any] = []
    for binding in bindings:
        if _can_merge(binding, kernels):
            run.append(binding)
            continue
        if run:
            yield run
        yield [binding]
        run = []
    if run:
        yield run


def _can_merge(binding: Any, kernels: set[str]) -> bool:
    """A call of a kernel of this module or a reshape, from tensors of known shapes to one of known shape."""
    value = binding.value if isinstance(binding, relax.VarBinding) else None
    if not isinstance(value, relax.Call) or not _is_tensor(binding.var):
        return False
    if value.op == tvm.ir.Op.get("relax.reshape"):
        return _is_tensor(value.args[0])
    own = _is_call(binding) and _symbol(value.args[0]) in kernels
    return own and all(_is_tensor(a) or isinstance(a.ty, tvm.ir.PrimType) for a in _operands(binding))


def _is_call(binding: Any) -> bool:
    value = binding.value
    return isinstance(value, relax.Call) and any(value.op == tvm.ir.Op.get(name) for name in CALLS)


def _operands(binding: Any) -> list[Any]:
    """What a kernel call reads, in order: tensors and numbers."""
    return list(binding.value.args[1].fields)


def _is_tensor(expression: Any) -> bool:
    kind = expression.ty
    return isinstance(kind, relax.TensorType) and isinstance(kind.shape, relax.ShapeExpr)


def _users(main: Any) -> dict[Any, set[Any]]:
    """The variables bound by what reads a variable; None for the function's result."""
    users: dict[Any, set[Any]] = {}
    for block in main.body.blocks:
        for binding in block.bindings:
            for var in relax.analysis.free_vars(binding.value):
                users.setdefault(var, set()).add(binding.var)
    for var in relax.analysis.free_vars(main.body.body):
        users.setdefault(var, set()).add(None)
    return users


class _Run:
    """One run: what goes in, what comes out, and where everything else lies."""

    def __init__(self, name: str, bindings: Sequence[Any], users: dict[Any, set[Any]]) -> None:
        self.name, self.bindings = name, bindings
        self.calls = [binding for binding in bindings if _is_call(binding)]
        inside = {binding.var for binding in bindings}
        self.root: dict[Any, Any] = {}
        """Each value -> the value, input or result of a call, whose bytes it shares."""
        self.inputs: list[Any] = []
        for binding in bindings:
            operands = _operands(binding) if _is_call(binding) else [binding.value.args[0]]
            for operand in filter(_is_tensor, operands):
                if operand not in self.root:
                    self.inputs.append(operand)
                    self.root[operand] = operand
            self.root[binding.var] = binding.var if _is_call(binding) else self.root[binding.value.args[0]]
        leaving = [b.var for b in bindings if users.get(b.var, set()) - inside]
        made = {binding.var for binding in self.calls}
        self.outputs = list(dict.fromkeys(self.root[var] for var in leaving if self.root[var] in made))
        self.views = [var for var in leaving if self.root[var] is not var]
        self.layout = memory.plan(self._spans())

    def _spans(self) -> dict[Any, memory.Span]:
        last: dict[Any, int] = {}
        for step, binding in enumerate(self.calls):
            for operand in filter(_is_tensor, _operands(binding)):
                last[self.root[operand]] = step
        return {
            b.var: memory.Span(memory.size_of(b.var.ty.shape.values, _itemsize(b.var)), step, last.get(b.var, step))
            for step, b in enumerate(self.calls)
            if b.var not in self.outputs
        }

    def replaced(self, builder: relax.BlockBuilder) -> list[Any]:
        """Add the run's function to the module of `builder`; returns the bindings that take the place of the run's."""
        symbols = self._symbols()
        function = builder.add_func(self._function(symbols), self.name)
        types = [var.ty for var in self.outputs]
        if self.layout.offsets:
            types.append(relax.TensorType([self.layout.total], "uint8"))
        call = relax.call_tir(function, relax.Tuple([*self.inputs, *symbols]), out_ty=types)
        if len(types) == 1:
            bound = [relax.VarBinding(self.outputs[0], call)]
        else:
            results = relax.Var(self.name, relax.TupleType(types))
            bound = [relax.VarBinding(results, call)]
            bound += [relax.VarBinding(v, relax.TupleGetItem(results, i)) for i, v in enumerate(self.outputs)]
        return bound + [relax.VarBinding(v, relax.op.reshape(self.root[v], v.ty.shape)) for v in self.views]

    def _symbols(self) -> list[Any]:
        """Symbolic dimensions used in the run that are no dimension of an input."""
        given = {dim for value in [*self.inputs, *self.outputs] for dim in value.ty.shape.values if _is_var(dim)}
        used: dict[Any, None] = {}
        for binding in self.bindings:
            expressions = list(binding.var.ty.shape.values)
            if _is_call(binding):
                expressions += [a for a in _operands(binding) if not _is_tensor(a)]
            for expression in expressions:
                used.update(dict.fromkeys(tirx.analysis.undefined_vars(expression)))
        return [symbol for symbol in used if symbol not in given]

    def _function(self, symbols: Sequence[Any]) -> tirx.PrimFunc:
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_name(self.name)
                T.func_attr({"global_symbol": self.name, "tirx.is_scheduled": True})
                data = {v: _argument(f"i{i}", v).data for i, v in enumerate(self.inputs)}
                for symbol in symbols:
                    T.arg(symbol.name, symbol)
                data |= {v: _argument(f"o{i}", v).data for i, v in enumerate(self.outputs)}
                if self.layout.offsets:
                    workspace = T.arg("workspace", T.buffer([self.layout.total], "uint8"))
                    for var, offset in self.layout.offsets.items():
                        data[var] = tirx.address_of(workspace[offset])
                for binding in self.calls:
                    operands = [*_operands(binding), binding.var]
                    tensors = [_tensor(v, data[self.root[v]]) if v in self.root else v for v in operands]
                    T.evaluate(T.call_cpacked(_symbol(binding.value.args[0]), *tensors))
            made: Any = builder.get()
        return made


def _symbol(callee: Any) -> str:
    return callee.name_hint if isinstance(callee, tvm.ir.GlobalVar) else callee.global_symbol


def _is_var(expression: Any) -> bool:
    return isinstance(expression, tirx.Var)


def _itemsize(value: Any) -> int:
    return tvm.DataType(str(value.ty.dtype)).itemsize


def _argument(name: str, value: Any) -> Any:
    return T.arg(name, T.buffer(list(value.ty.shape.values), str(value.ty.dtype)))


def _tensor(value: Any, data: Any) -> Any:
    """A DLTensor on the stack, of the type of `value`, at the address `data`."""
    dims = list(value.ty.shape.values)
    shape = tirx.call_intrin("handle", "tirx.tvm_stack_make_shape", *dims)
    zero = tirx.const(0, str(value.ty.dtype))
    return tirx.tvm_stack_make_array(data, shape, tirx.const(0, "int32"), len(dims), zero, tirx.IntImm("int64", 0))
