"""How much the outputs would change without a weight, to first order: from TVM's gradients, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from graphopt.data import Feeds
from graphopt.errors import UsageError
from graphopt.oracle import Session
from graphopt.training.program import TEACHER, Objective, Program
from graphopt.training.weights import trainable
from graphopt.training.window import Array

DRAWS = 64
"""Random directions in the space of the outputs that are tried."""


def effects(model: ir.Model, batches: Iterable[Feeds], seed: int) -> Iterator[dict[str, Array]]:
    """``w * (J^T r)`` for each weight by name, for random directions r of the outputs; J is their Jacobian.

    A set of weights that is taken out changes the outputs f by ``J_s w_s`` to first order (Molchanov et al. 2019).
    Over r of unit variance, ``E (sum_s w_s (J^T r)_s)^2 = |J_s w_s|^2``: sum what is yielded over the set, square,
    and take the mean over what is yielded. Outputs are scaled to unit variance. Batches of other shapes than the first
    are left out.

    Raises:
        LoweringError: an operator has no gradient.
        UsageError: there is no output of floats or no weight.
    """
    model = model.clone()
    names = trainable(model)
    outputs = tuple(str(value.name) for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT)
    if not names or not outputs:
        raise UsageError("the criterion taylor needs a model with float32 weights and outputs.")
    import tvm

    kept = list(batches)
    shapes = {name: array.shape for name, array in kept[0].items()}
    kept = [feeds for feeds in kept if {name: array.shape for name, array in feeds.items()} == shapes]
    session, generator = Session(model, outputs, optimised=True), np.random.default_rng(seed)
    weights = {name: np.array(model.graph.initializers[name].const_value.numpy()) for name in names}  # pyright: ignore[reportOptionalMemberAccess]
    tensors = {name: tvm.runtime.tensor(array) for name, array in weights.items()}
    program: Program | None = None
    for draw in range(DRAWS):
        feeds = kept[draw % len(kept)]
        targets = {}
        for name, value in session.run(feeds).items():
            spread = max(float(value.std()), 1e-6)
            direction = generator.standard_normal(value.shape) / spread * value.size
            targets[TEACHER + name] = (value + direction).astype(np.float32)
        if program is None:
            program = Program(model, names, Objective(outputs, "l2"), {**feeds, **targets})
        _, gradients = program.step(tensors, {**feeds, **targets})
        yield {name: weights[name] * g for name, g in zip(program.trained, gradients, strict=True)}
