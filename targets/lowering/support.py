"""What TVM 0.27's ONNX importer can import, and what it would import wrongly.

The importer looks an operator up by its bare name, ignores its domain, and ignores some attributes and outputs.
Each rule below is a case found by running ONNX's own backend tests through it; a rule gives the reason.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt.errors import LoweringError
from graphopt.graph import provenance

# Converters named after operators of onnxruntime's domain; the same names in ONNX's own domain mean other operators.
MICROSOFT = frozenset(
    {
        "Attention",
        "BiasGelu",
        "EmbedLayerNormalization",
        "FastGelu",
        "Gelu",
        "MatMulInteger16",
        "SkipLayerNormalization",
    }
)
BOTH_DOMAINS = frozenset({"Gelu"})
# A node a target puts in: it calls the packed function named by its attribute `symbol` with inputs and output, whose
# symbolic dimensions are those of its first input.
EXTERNAL = ("graphopt", "CallPacked")
IN_RANGE, NOT_ZERO = ("graphopt", "InRange"), ("graphopt", "NotZero")
"""Checks; see `guards`."""
CONV, MATMUL, BORDER, NARROW = (("graphopt", name) for name in ("Conv32", "MatMul32", "AddBorder", "Narrow"))
"""Of 8-bit integers; see `int8`."""
OWN = frozenset({"BitCast", "Col2Im", "CumProd", "ReverseSequence"})
"""What `converters` has."""
DTYPES = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.BOOL,
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
    }
)


def has_converter(domain: str, op_type: str) -> bool:
    """Whether the importer has a converter that means this operator."""
    from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map  # pyright: ignore[reportPrivateUsage]

    if domain == EXTERNAL[0]:
        return (domain, op_type) in (EXTERNAL, IN_RANGE, NOT_ZERO, CONV, MATMUL, BORDER, NARROW)
    if domain == "com.microsoft":
        return op_type in MICROSOFT
    if domain != "" or (op_type in MICROSOFT and op_type not in BOTH_DOMAINS):
        return False
    return op_type in {"If", "Constant", *OWN} or op_type in _get_convert_map()


def refuse_other_values(model: ir.Model) -> None:
    """Raise one `LoweringError` that names every node that has to do with anything but tensors of numbers."""
    reasons: dict[str, list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        what = next(filter(None, map(_other, [*node.inputs, *node.outputs])), None)
        if what:
            reasons.setdefault(f"{node.op_type} ({what})", []).append(node)
    if reasons:
        raise refusal(reasons, model)


def _other(value: ir.Value | None) -> str | None:
    if value is None or not value.name:
        return None
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return f"of type {type(value.type).__name__.removesuffix('Type').lower()}"
    return "of text" if value.dtype == ir.DataType.STRING else None


def refuse_unsupported(model: ir.Model) -> None:
    """Raise one `LoweringError` that names every operator and node the importer can't be trusted with."""
    reasons: dict[str, list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        reason = _refusal(node)
        if reason:
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            reasons.setdefault(f"{operator} ({reason})", []).append(node)
    if reasons:
        raise refusal(reasons, model)


def refusal(reasons: dict[str, list[ir.Node]], model: ir.Model) -> LoweringError:
    """The error for nodes that can't be lowered. It names their sources too, unless those of one are not known."""
    blamed = {name: what for what, nodes in reasons.items() for node in nodes for name in provenance.sources(node)}
    known = all(provenance.sources(node) for nodes in reasons.values() for node in nodes)
    names = {what: [node.name or "<unnamed>" for node in nodes] for what, nodes in reasons.items()}
    return LoweringError(explain(names, model), blamed if known else {})


def explain(reasons: dict[str, list[str]], model: ir.Model) -> str:
    """The message for what can't be lowered: `reasons` maps an operator with its reason to its nodes."""
    listed = "; ".join(f"{what} at {_abridge(nodes)}" for what, nodes in sorted(reasons.items()))
    shapes = [value.shape for value in model.graph.inputs if value.shape is not None]
    free = sorted({str(dim.value) for shape in shapes for dim in shape if isinstance(dim, ir.SymbolicDim)})
    way_out = f"Giving the open dimensions ({', '.join(free)}) sizes may be enough; otherwise r" if free else "R"
    return (
        f"The model can't be lowered through TVM because of {len(reasons)} kind(s) of operator: {listed}. "
        f"{way_out}eplace them by operators that ONNX defines and TVM converts, for instance with a pass of your "
        "own, or run the optimised ONNX model in onnxruntime."
    )


def _abridge(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def refused(node: ir.Node) -> bool:
    """Whether a rule bars this node of the importer's."""
    rule = RULES.get(node.op_type) if node.domain == "" else None
    return rule is not None and rule(node) is not None


def _refusal(node: ir.Node) -> str | None:
    if not has_converter(node.domain, node.op_type):
        return "no converter"
    for value in [*node.inputs, *node.outputs]:
        if value is not None and value.dtype is not None and value.dtype not in DTYPES:
            return f"data type {value.dtype}"
    rule = RULES.get(node.op_type)
    return rule(node) if rule else None


def _attribute(node: ir.Node, name: str, default: object) -> object:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def _refuse_outputs(node: ir.Node) -> str | None:
    """Only the first output is computed."""
    used = [output.name for output in node.outputs[1:] if output.uses() or output.is_graph_output()]
    return f"its output {', '.join(map(str, used))} is used" if used else None


def _refuse_attribute(name: str, default: object) -> Callable[[ir.Node], str | None]:
    def rule(node: ir.Node) -> str | None:
        value = _attribute(node, name, default)
        return None if value == default else f"{name}={value}"

    return rule


def _refuse_mod(node: ir.Node) -> str | None:
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    return "of floats" if dtype is None or dtype.is_floating_point() else None


def _refuse_type(node: ir.Node) -> str | None:
    """The importer mixes in constants of float32."""
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    return None if dtype == ir.DataType.FLOAT else f"of {dtype}"


def _refuse_dropout(node: ir.Node) -> str | None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None and (training.const_value is None or bool(training.const_value.numpy())):
        return "training mode"
    return _refuse_outputs(node)


def _refuse_batch_norm(node: ir.Node) -> str | None:
    return _refuse_attribute("training_mode", 0)(node) or _refuse_outputs(node)


def _refuse_is_inf(node: ir.Node) -> str | None:
    return _refuse_attribute("detect_negative", 1)(node) or _refuse_attribute("detect_positive", 1)(node)


def _refuse_shift(node: ir.Node) -> str | None:
    shift, data = node.inputs[1], node.inputs[0]
    if shift is None or data is None or shift.const_value is None or data.dtype is None:
        return "by an amount not known at compile time"
    if data.dtype.is_signed():
        return "of signed integers"
    bits = 8 * data.dtype.itemsize
    return "by its whole width or more" if np.any(shift.const_value.numpy() >= bits) else None


def _refuse_empty(node: ir.Node) -> str | None:
    data = node.inputs[0]
    empty = data is not None and data.shape is not None and any(dim == 0 for dim in data.shape)
    return "of an empty tensor" if empty else None


def _refuse_rms(node: ir.Node) -> str | None:
    scale = node.inputs[1]
    one = scale is not None and scale.shape is not None and len(scale.shape) == 1
    return None if one else "over several axes"


def _refuse_resize(node: ir.Node) -> str | None:
    from graphopt.targets.lowering.decompose.resize import delicate

    return delicate(node)


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
RULES: dict[str, Callable[[ir.Node], str | None]] = {
    "BatchNormalization": _refuse_batch_norm,
    "BitShift": _refuse_shift,
    **dict.fromkeys(("Compress", "NonZero", "Unique"), lambda _node: "nonzero and unique need TVM's Python when run"),
    "ConvTranspose": _refuse_attribute("output_shape", None),
    "Dropout": _refuse_dropout,
    **dict.fromkeys(("Elu", "Selu", "ThresholdedRelu"), _refuse_type),
    "IsInf": _refuse_is_inf,
    "LayerNormalization": _refuse_outputs,
    "Mod": _refuse_mod,
    "NonMaxSuppression": lambda _node: "with several batches or classes TVM selects no box",
    "RMSNormalization": _refuse_rms,
    "Resize": _refuse_resize,
    **dict.fromkeys(("MaxRoiPool", "RoiAlign"), lambda _node: "boxes that are not finite read foreign memory"),
    "SpaceToDepth": _refuse_attribute("mode", "DCR"),
    **{f"Reduce{name}": _refuse_empty for name in _REDUCTIONS},
}
