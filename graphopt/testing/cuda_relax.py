"""One kernel, written as a Relax expression: compiled for a GPU with the static checks, and run in the emulation."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm_ffi
from tvm import relax, tirx

from graphopt.targets.cuda.account.work import launches
from graphopt.targets.cuda.arch import tvm_target
from graphopt.targets.cuda.checks import check
from graphopt.targets.cuda.kernels import build, schedule, to_loops
from graphopt.targets.cuda.machine_code.bfloat16 import with_shared_loads
from graphopt.targets.cuda.machine_code.link import cuda_source
from graphopt.testing.cuda_emulation import run_kernel

Array = np.ndarray[Any, Any]
Make = Callable[..., Any]


def compile_relax(make: Make, arrays: Sequence[Array], arch: str = "sm_80") -> tuple[str, Any, str]:
    """CUDA C, scheduled function and rule of the one kernel that ``make(builder, *variables)`` becomes.

    Raises:
        LoweringError: it can't be scheduled, or the static checks find a fault.
    """
    builder = relax.BlockBuilder()
    given: Any = [relax.Var(f"x{i}", relax.TensorType([*a.shape], str(a.dtype))) for i, a in enumerate(arrays)]  # pyright: ignore[reportArgumentType]
    with builder.function("main", given):
        with builder.dataflow():
            result = builder.emit_output(make(builder, *given))
        builder.emit_func_output(result)
    target = tvm_target(arch)
    with target:
        module, origins = to_loops(builder.get(), {})
        module, rules = schedule(module, target, origins)
        (name,) = rules
        check({name: module[name]}, target, origins, arch)
        executable, _ = build(module, target, {name: launches(module[name])}, graphs=False)
        return with_shared_loads(cuda_source(executable)), module[name], rules[name]


def emulate_relax(
    make: Make, arrays: Sequence[Array], arch: str = "sm_80", edit: Callable[[str], str] = str
) -> tuple[Array, str]:
    """The result of that kernel on the emulated device, with all its checks, and the rule that scheduled it.

    `edit` gets the CUDA C and gives what is run in its place.
    """
    source, function, rule = compile_relax(make, arrays, arch)
    name, parameters = re.findall(r"void __launch_bounds__\(\d+\) (\w+)\(([^()]*)\) \{", source)[0]
    names = [text.split()[-1].removesuffix("_ptr") for text in parameters.split(",")]
    result = function.params[-1]
    empty = np.zeros([int(size) for size in result.shape], _dtype(str(result.dtype)))
    arguments = [arrays[int(name[1:])] if re.fullmatch(r"x\d", name) else empty for name in names]
    grid, block = _launch(function)
    left = run_kernel(edit(source), name, grid, block, arguments)
    return left[next(index for index, argument in enumerate(arguments) if argument is empty)], rule


def _dtype(name: str) -> Any:
    import ml_dtypes

    return ml_dtypes.bfloat16 if name == "bfloat16" else name


def _launch(function: Any) -> list[Any]:
    """Grid and block of a scheduled function of fixed sizes."""
    extents: dict[str, int] = {}

    def loop(found: Any) -> None:
        if found.thread_binding is not None:
            extents[str(found.thread_binding.thread_tag)] = int(found.extent)

    tvm_ffi.structural_walk(function.body, (tirx.For, loop))
    return [tuple(extents.get(f"{kind}Idx.{axis}", 1) for axis in "xyz") for kind in ("block", "thread")]
