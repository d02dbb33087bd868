"""From an optimised model to a folder with a static library, its header and an example."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm

from graphopt.artifact.container import ALIGNMENT
from graphopt.artifact.graphs import specs
from graphopt.artifact.host import instruction_sets
from graphopt.artifact.manifest import TensorSpec
from graphopt.errors import HostError, LoweringError, UsageError
from graphopt.targets.llvm.cpu import Cpu, machine_triple
from graphopt.targets.llvm.link import WAY_OUT
from graphopt.targets.llvm.pipeline import compiling, merge_module, without_aliases
from graphopt.targets.llvm.single import Program, single_program
from graphopt.targets.llvm.static import source

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.targets.llvm.target import Llvm

FLAGS = ["-O2", "-fPIC", "-std=c11"]


def export(model: ir.Model, target: Llvm, folder: Path, name: str) -> dict[str, Any]:
    """Write ``libNAME.a``, ``NAME.h`` and ``main.c`` into `folder`, which is made. One thread computes.

    Returns what was written: the CPU, bytes, and the command that builds the example.

    Raises:
        LoweringError: the model needs TVM's runtime, or has open dimensions.
        HostError: there is no compiler for its CPU.
        UsageError: `name` is no C identifier, or the folder can't be made.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(
            f"the name {name!r} becomes part of C names: give one of a-z, 0-9 and _, such as --name model."
        )
    cpu, lowered, kernels, _ = target.lower(model)
    compiler = c_compiler(cpu.triple)
    with compiling(cpu):
        merged = merge_module(lowered, kernels, cpu, parallel=False)
    program = single_program(merged.module, lowered)
    inputs, outputs = _ordered(model.graph.inputs, lowered.inputs), _ordered(model.graph.outputs, lowered.outputs)
    workspace = sum(int(np.prod(a.shape)) for a in program.arguments if a.place.kind == "workspace")
    features = instruction_sets(cpu.features)
    texts = {
        f"{name}.h": source.header(
            name, inputs, outputs,
            cpu=cpu.mcpu, triple=cpu.triple, features=", ".join(features) or "nothing", workspace=workspace,
        ),
        "main.c": source.example(name),
    }  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"can't make the folder {folder}: {error.strerror or error}.") from error
    with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch:
        here = Path(scratch)
        offsets = _write_weights(program, here / "weights.bin")
        (here / f"{name}.h").write_text(texts[f"{name}.h"])
        (here / "glue.c").write_text(source.glue(name, program, offsets, outputs, len(inputs)))
        (here / "weights.s").write_text(source.weights("weights.bin"))
        with compiling(cpu):
            _machine_code(program, cpu, here / "kernels.o")
        _archive(compiler, here, name)
        for file, text in texts.items():
            (folder / file).write_text(text)
        shutil.copyfile(here / "model.a", folder / f"lib{name}.a")
    return {
        "cpu": cpu.mcpu,
        "triple": cpu.triple,
        "cpu_features": features,
        "library": str(folder / f"lib{name}.a"),
        "bytes": (folder / f"lib{name}.a").stat().st_size,
        "workspace_bytes": workspace,
        "build": f"{Path(compiler).name} -O2 main.c -L. -l{name} -lm -o example",
    }


def c_compiler(triple: str) -> str:
    """The C compiler for `triple`: the machine's own, or a cross compiler named after it.

    Raises:
        HostError: there is none.
    """
    found = shutil.which("gcc") or shutil.which("cc") if triple == machine_triple() else shutil.which(f"{triple}-gcc")
    if found is None:
        raise HostError(f"No C compiler for {triple} was found: {WAY_OUT}; for another architecture, its cross gcc.")
    return found


def _ordered(values: Sequence[ir.Value], names: Sequence[str]) -> list[TensorSpec]:
    by_name = {spec.name: spec for spec in specs(list(values))}
    return [by_name[name] for name in names]


def _write_weights(program: Program, path: Path) -> list[int]:
    """All weights one after the other, each aligned; their offsets."""
    offsets: list[int] = []
    with path.open("wb") as file:
        for array in program.weights:
            file.write(bytes(-file.tell() % ALIGNMENT))
            offsets.append(file.tell())
            file.write(np.ascontiguousarray(array).tobytes())
    return offsets


def _machine_code(program: Program, cpu: Cpu, path: Path) -> None:
    functions = {symbol: function.with_attr("global_symbol", symbol) for symbol, function in program.functions.items()}
    module = without_aliases(tvm.IRModule(functions))
    compiled: Any = tvm.compile(module, cpu.tvm_target())
    compiled.mod.write_to_file(str(path), "o")


def _archive(compiler: str, folder: Path, name: str) -> None:
    """One object in which only the model's function has a global name, so that several models fit in a program."""
    tools = compiler.removesuffix("gcc").removesuffix("cc")
    for command in (
        [compiler, *FLAGS, "-c", "glue.c", "-o", "glue.o"],
        [compiler, "-c", "weights.s", "-o", "weights.o"],
        [compiler, "-r", "-nostdlib", "glue.o", "kernels.o", "weights.o", "-o", "all.o"],
        [f"{tools}objcopy", "--strip-debug", f"--keep-global-symbol={name}_run", "all.o", f"{name}.o"],
        [f"{tools}ar", "rcsD", "model.a", f"{name}.o"],
    ):
        _run(command, folder)
    left = [line.split()[-1] for line in _run([f"{tools}nm", "-u", f"{name}.o"], folder).splitlines()]
    if foreign := [symbol for symbol in left if "tvm" in symbol.lower()]:
        raise LoweringError(
            f"The model can't become a static library: its kernels call {', '.join(foreign)} of TVM's runtime. "
            "Compile an artifact instead, and run it with graphopt."
        )


def _run(command: list[str], folder: Path) -> str:
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise HostError(f"{command[0]} was not found: {WAY_OUT}.") from error
    except subprocess.CalledProcessError as error:
        raise HostError(f"{command[0]} failed: {' '.join(error.stderr.split())[-300:]}") from error
