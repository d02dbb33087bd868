"""The kernels a plan has chosen: equal problems share one function."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from tvm import tirx

from graphopt.graph import add_constant, constant_array, fresh_name
from graphopt.packed import Steps, run
from graphopt.spill import spilled
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.plan.choice import Candidate, Choices, Problem
from graphopt.targets.llvm.plan.weights import packed_of
from graphopt.targets.lowering.support import EXTERNAL

PARALLEL_FROM = 1 << 18
"""Multiply-adds from which a second thread pays: handing over takes 2.3 us, in which a core does some 200,000."""

ELEMENT = 8
"""Multiply-adds that reading, changing and writing one element counts for."""


@dataclasses.dataclass
class Kernels:
    """The functions of a module by symbol, the constants made for them, and the choices between candidates."""

    graph: ir.Graph
    isa: Isa
    parallel: bool
    choices: Choices = dataclasses.field(default_factory=Choices)
    functions: dict[str, tirx.PrimFunc] = dataclasses.field(default_factory=dict[str, tirx.PrimFunc])
    _symbols: dict[Hashable, str] = dataclasses.field(default_factory=dict[Hashable, str])
    _constants: dict[Hashable, ir.Value] = dataclasses.field(default_factory=dict[Hashable, ir.Value])

    def symbol(self, problem: Hashable, base: str, make: Callable[[str], tirx.PrimFunc]) -> str:
        """The symbol of the kernel for `problem`; `make(symbol)` builds it the first time."""
        if problem not in self._symbols:
            symbol = f"{base}_{len(self._symbols)}"
            self._symbols[problem] = symbol
            self.functions[symbol] = make(symbol)
        return self._symbols[problem]

    def choose(self, what: Hashable, problem: Problem, bases: Mapping[str, str]) -> tuple[Candidate, str]:
        """The candidate for the problem `what`, and the symbol of its kernel.

        The symbol begins with what `bases` has for the algorithm, else with its name.
        """
        chosen = self.choices.choose(what, problem)
        how = chosen.candidate
        symbol = self.symbol(what, bases.get(how.algorithm, how.algorithm), lambda s: problem.make(how, s))
        self.choices.made[symbol] = chosen
        return how, symbol

    def threads(self, positions: Sequence[int | str], work: int) -> bool:
        """Whether to share out a kernel that does `work` multiply-adds at each of `positions`; open ones are many."""
        sizes = [size for size in positions if isinstance(size, int)]
        large = len(sizes) < len(positions) or math.prod(sizes) * work >= PARALLEL_FROM
        return self.parallel and large

    def constant(self, key: Hashable, hint: str, make: Callable[[], np.ndarray]) -> ir.Value:
        """A packed constant; equal keys share one."""
        if key not in self._constants:
            self._constants[key] = add_constant(self.graph, hint, spilled(make()))
        return self._constants[key]

    def packed(self, key: Hashable, hint: str, value: ir.Value, steps: Steps) -> ir.Value:
        """Likewise the float32 constant `value` after `steps`; the choices note what it is made of, if of few bits."""
        array = constant_array(value)
        assert array is not None
        made = self.constant(key, hint, lambda: run(array, steps))
        few = packed_of(value)
        if few is not None:
            self.choices.packed[str(made.name)] = few.then(steps)
        return made


def call(
    symbol: str,
    inputs: Sequence[ir.Value],
    shape: Sequence[int | ir.SymbolicDim],
    like: ir.Node,
    dtype: ir.DataType | None = None,
) -> ir.Node:
    """A node that calls the kernel `symbol`; its one output has `shape`, and `dtype` or that of `like`."""
    graph = like.graph
    assert isinstance(graph, ir.Graph)
    output = ir.val(
        fresh_name(graph, f"{like.outputs[0].name}_kernel"), dtype or like.outputs[0].dtype, ir.Shape(shape)
    )
    return ir.node(
        EXTERNAL[1],
        inputs,
        {"symbol": symbol},
        domain=EXTERNAL[0],
        outputs=[output],
        name=fresh_name(graph, f"{like.name}_kernel"),
    )
