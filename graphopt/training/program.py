"""One step of training as a compiled program: loss and gradients, differentiated by TVM from the model itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import tvm
from tvm import relax
from tvm.relax import transform
from tvm.relax.training.utils import AppendLoss

from graphopt.errors import LoweringError
from graphopt.graph import bind_dims
from graphopt.targets.llvm.cpu import resolve
from graphopt.targets.llvm.pipeline import compiling, to_virtual_machine
from graphopt.targets.llvm.schedule import schedule_module
from graphopt.targets.lowering import Lowered, lower
from graphopt.training import gradients, losses
from graphopt.training.spell import spell
from graphopt.training.stream import LABELS
from graphopt.training.window import Array

assert gradients  # registers them

TEACHER = "teacher:"
"""Before the name of an output: what the teacher gave for it."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """``L = task * L_task(output, labels) + weight * sum_i |f_teacher_i(x) - f_student_i(x)|``.

    `outputs`: the outputs compared with the teacher's, by `distance`; `temperature` softens those of kl.
    `labelled`: the output compared with the labels, None without labels; `labels`: classes or values.
    """

    outputs: tuple[str, ...]
    distance: losses.Distance = "l2"
    temperature: float = 1.0
    weight: float = 1.0
    labelled: str | None = None
    labels: losses.Task = "classes"
    task: float = 1.0


class Program:
    """Loss and gradients of a model for feeds of one shape.

    `inputs`, `targets`: names in the order of the arguments; `trained`: names of the weights, in that of the gradients.
    """

    def __init__(
        self, model: ir.Model, trained: Sequence[str], objective: Objective, feeds: Mapping[str, Array]
    ) -> None:
        """Raises `LoweringError` naming what has no gradient or can't be lowered."""
        model = _open(model, trained, feeds)
        forms: dict[str, losses.Form] = {str(value.name): losses.form(value) for value in model.graph.outputs}
        lowered = lower(model, spell)
        self.inputs = [name for name in lowered.inputs if name not in set(trained)]
        self.trained = [name for name in lowered.inputs if name in set(trained)]
        self._constants = [tvm.runtime.tensor(array) for array in lowered.weights.values()]
        module, self.targets = _with_loss(lowered, objective, forms)
        try:
            module = transform.DecomposeOpsForInference()(module)
            given = dict(zip(lowered.inputs, module["main_loss"].params, strict=False))
            step = transform.Gradient("main_loss", [given[name] for name in self.trained])(module)
        except Exception as error:
            reason = " ".join(str(error).split())[-200:]
            raise LoweringError(f"The model can't be trained: TVM can't differentiate it ({reason}).") from error
        functions = {"step": step["main_loss_adjoint"], "loss": step["main_loss"]}
        built = _compile({name: body.with_attr("global_symbol", name) for name, body in functions.items()})
        device: Any = tvm.cpu()
        self._machine = relax.VirtualMachine(built, device)
        self._order = lowered.inputs

    def step(self, weights: Mapping[str, Any], feeds: Mapping[str, Array]) -> tuple[float, list[Array]]:
        """The loss of one batch, and its gradients in the order of `trained`.

        `weights`: TVM tensors by name. `feeds`: the values of `inputs` and `targets`.
        """
        loss, parts = self._machine["step"](*self._arguments(weights, feeds))
        return float(loss.numpy()), [np.from_dlpack(part) for part in parts]

    def loss(self, weights: Mapping[str, Any], feeds: Mapping[str, Array]) -> float:
        """The loss of one batch."""
        return float(self._machine["loss"](*self._arguments(weights, feeds)).numpy())

    def _arguments(self, weights: Mapping[str, Any], feeds: Mapping[str, Array]) -> list[Any]:
        tensors = [weights[name] if name in weights else _tensor(feeds[name]) for name in self._order]
        return [*tensors, *self._constants, *(_tensor(feeds[name]) for name in self.targets)]


def _tensor(array: Array) -> Any:
    return tvm.runtime.tensor(np.ascontiguousarray(array))


def _open(model: ir.Model, trained: Sequence[str], feeds: Mapping[str, Array]) -> ir.Model:
    """A copy whose inputs have the sizes of `feeds`, and whose weights `trained` are inputs as well."""
    model = model.clone()
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        shape = feeds[str(value.name)].shape
        sizes |= {str(dim): n for dim, n in zip(value.shape or (), shape, strict=True) if not isinstance(dim, int)}
    bind_dims(model, sizes)
    for name in trained:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    return model


def _with_loss(
    lowered: Lowered, objective: Objective, forms: Mapping[str, losses.Form]
) -> tuple[tvm.IRModule, list[str]]:
    """The module with a function ``main_loss``, and the names of the values it takes after those of ``main``."""
    function = lowered.module["main"]
    ret: Any = function.ret_ty
    types: list[Any] = list(getattr(ret, "fields", [ret]))
    results = [relax.Var(f"output_{i}", type_) for i, type_ in enumerate(types)]
    by_name = dict(zip(lowered.outputs, results, strict=True))
    targets: dict[str, relax.Var] = {}
    builder = relax.BlockBuilder()
    for name in objective.outputs if objective.weight else ():
        targets[TEACHER + name] = relax.Var(f"teacher_{len(targets)}", by_name[name].ty)
    if objective.labelled is not None:
        targets[LABELS] = relax.Var("labels", by_name[objective.labelled].ty)
    with builder.function("loss", [*results, *targets.values()]):
        with builder.dataflow():
            total: Any = None
            for name in objective.outputs if objective.weight else ():
                part = losses.distance(
                    objective.distance, by_name[name], targets[TEACHER + name], forms[name], objective.temperature
                )
                total = _sum(total, part, objective.weight)
            if objective.labelled is not None:
                output = by_name[objective.labelled]
                part = losses.task(output, targets[LABELS], forms[objective.labelled], objective.labels)
                total = _sum(total, part, objective.task)
            result = builder.emit_output(total)
        builder.emit_func_output(result)
    loss = builder.get()["loss"]
    module = AppendLoss("main", loss, num_backbone_outputs=len(results))(lowered.module)
    return module, list(targets)


def _sum(total: Any, part: Any, weight: float) -> Any:
    scaled = relax.op.multiply(part, relax.const(weight, "float32"))
    return scaled if total is None else relax.op.add(total, scaled)


def _compile(functions: Mapping[str, relax.Function]) -> Any:
    """Operators become loops, fused, scheduled and compiled for this machine; calls of packed functions stay."""
    cpu = resolve("native")
    to_kernels = tvm.transform.Sequential(
        [
            transform.CanonicalizeBindings(),
            transform.DeadCodeElimination(),
            transform.LegalizeOps(),
            transform.AnnotateTIROpPattern(),
            transform.FoldConstant(),
            transform.FuseOps(),
            transform.FuseTIR(),
            transform.DeadCodeElimination(),
        ]
    )
    with compiling(cpu):
        scheduled, _ = schedule_module(to_kernels(tvm.IRModule(functions)), cpu, parallel=False)
        views = tvm.transform.Sequential([transform.RewriteDataflowReshape(), transform.ToNonDataflow()])
        return relax.build(views(scheduled), cpu.tvm_target(), relax_pipeline=to_virtual_machine())
