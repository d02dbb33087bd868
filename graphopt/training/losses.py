"""The losses, as Relax expressions of an output and what it should be.

A model's last Softmax or Sigmoid matters to the losses that compare distributions: `form` says what the values are.
"""

from __future__ import annotations

from typing import Any, Literal

import onnx_ir as ir
from tvm import relax
from tvm.relax import op

Distance = Literal["l1", "l2", "cosine", "kl"]
Task = Literal["classes", "values"]
Form = Literal["logits", "softmax", "sigmoid"]
TINY = 1e-7


def form(output: ir.Value) -> Form:
    """What the values of a model's output are, by the operator that makes them."""
    node = output.producer()
    while node is not None and node.op_type in ("Identity", "Reshape", "Squeeze", "Flatten", "Unsqueeze"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    kinds: dict[str, Form] = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
    return "logits" if node is None else kinds.get(node.op_type, "logits")


def distance(kind: Distance, student: Any, teacher: Any, values: Form, temperature: float) -> relax.Expr:
    """How far the student's output is from the teacher's, a mean over the batch.

    l1: ``mean |t - s|``. l2: ``mean (t - s)^2``. cosine: ``1 - <t, s> / (|t| |s|)`` of each sample.
    kl: ``KL(t || s)`` along the last axis, of ``softmax(logits / T)``, times T^2 (Hinton et al. 2015); values behind
    a Softmax or a Sigmoid are taken as the probabilities that they are, and T does not apply.
    """
    if kind == "l1":
        return op.mean(op.abs(op.subtract(teacher, student)))
    if kind == "l2":
        difference = op.subtract(teacher, student)
        return op.mean(op.multiply(difference, difference))
    if kind == "cosine":
        return _cosine(student, teacher)
    if values == "sigmoid":
        rest = [op.subtract(_number(1.0), x) for x in (teacher, student)]
        return op.mean(op.add(_relative(teacher, student), _relative(rest[0], rest[1])))
    if values == "softmax":
        return op.mean(op.sum(_relative(teacher, student), axis=[-1]))
    soft, log_soft, log_student = (
        make(op.multiply(x, _number(1 / temperature)), axis=-1)
        for make, x in ((op.nn.softmax, teacher), (op.nn.log_softmax, teacher), (op.nn.log_softmax, student))
    )
    divergence = op.sum(op.multiply(soft, op.subtract(log_soft, log_student)), axis=[-1])
    return op.multiply(op.mean(divergence), _number(temperature**2))


def task(output: Any, labels: Any, values: Form, which: Task) -> relax.Expr:
    """How far an output is from the labels: cross entropy for classes, the mean square else.

    `labels` of classes are one-hot, along the last axis. Behind a Sigmoid values are compared by binary cross entropy.
    """
    if which == "values":
        return distance("kl" if values == "sigmoid" else "l2", output, labels, values, 1.0)
    if values == "softmax":
        return op.negative(op.mean(op.sum(op.multiply(labels, _log(output)), axis=[-1])))
    if values == "sigmoid":
        return distance("kl", output, labels, values, 1.0)
    return op.negative(op.mean(op.sum(op.multiply(labels, op.nn.log_softmax(output, axis=-1)), axis=[-1])))


def _cosine(student: Any, teacher: Any) -> relax.Expr:
    axes = list(range(1, len(student.ty.shape)))
    both, *own = (op.sum(op.multiply(a, b), axis=axes) for a, b in ((student, teacher), (student,) * 2, (teacher,) * 2))
    size = op.sqrt(op.add(op.multiply(*own), _number(TINY)))
    return op.subtract(_number(1.0), op.mean(op.divide(both, size)))


def _relative(p: Any, q: Any) -> relax.Expr:
    """``p log(p / q)``, which is 0 for p = 0."""
    return op.multiply(p, op.subtract(_log(p), _log(q)))


def _log(x: Any) -> relax.Expr:
    return op.log(op.add(x, _number(TINY)))


def _number(value: float) -> relax.Expr:
    return relax.const(value, "float32")
