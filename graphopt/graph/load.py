"""The door: every model enters through here, checked and in one normal form.

Normal form: valid ONNX; every node named, names unique; initializers are constants, not overridable inputs;
opset at least `MIN_OPSET`; shapes inferred; nodes in topological order; every node its own provenance.
External data is read when it is used (see `graphopt.graph.external`), and may only lie in the model's own folder.
"""

from __future__ import annotations

import contextlib
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.errors import ModelError
from graphopt.graph import isolated, onnx_library
from graphopt.graph.check import check, check_depth, check_traps
from graphopt.graph.external import map_external
from graphopt.graph.provenance import mark_sources
from graphopt.graph.rules import check_rules, graphs
from graphopt.graph.shapes import infer_shapes
from graphopt.graph.skeleton import first_cause, skeleton_proto

if TYPE_CHECKING:
    import onnx

MIN_OPSET = onnx_library.OPSET
"""Per-channel DequantizeLinear, and inputs instead of attributes for Squeeze and ReduceSum, begin here."""
MIN_IR_VERSION = 8
LARGEST = 1 << 31
"""Bytes of a protobuf message."""
SKETCHED = 4000
"""Values up to which `sketch` takes the time to infer shapes that the file lacks."""


def load(path: str | Path) -> ir.Model:
    """Read an ONNX file and bring it into normal form.

    Raises:
        ModelError: no such file, not ONNX, truncated, invalid, or external data outside the model's folder.
    """
    path = Path(path)
    proto = _read(path)
    model = _to_ir(proto, str(path), isolated.call)
    map_external(model, path)
    normalise(model, isolated.call)
    check_traps(model)
    return model


def sketch(path: str | Path) -> ir.Model:
    """Read an ONNX file only to look at it: quicker than `load`, and also what is not valid ONNX.

    Named, ordered and mapped as by `load`, but not checked, and shapes are inferred only where the file has few, they
    can be, and there are at most `SKETCHED` values.

    Raises:
        ModelError: no such file, not ONNX, truncated, cyclic, or external data outside the model's folder.
    """
    path = Path(path)
    model = _to_ir(_read(path), str(path))
    map_external(model, path)
    _initializers_to_constants(model)
    _name_open_dims(model)
    _sort(model)
    common.NameFixPass()(model)
    check_depth(model.graph)
    mark_sources(model)
    known = [value.dtype is not None for node in model.graph for value in node.outputs]
    if 2 * sum(known) < len(known) <= SKETCHED:
        with contextlib.suppress(ModelError):
            infer_shapes(model)
    return model


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """The model of a proto in memory, in normal form. External data must have been loaded into it.

    Raises:
        ModelError: as `load` does.
    """
    return normalise(_to_ir(proto, "the model"))


def normalise(model: ir.Model, call: Callable[[bytes, bytes], bytes] | None = None) -> ir.Model:
    """Bring `model` into normal form; works on it in place where it can, and returns it. `call`: as for `check`.

    Raises:
        ModelError: the graph is invalid, cyclic, or its shapes contradict each other.
    """
    _initializers_to_constants(model)
    _name_open_dims(model)
    _sort(model)
    common.NameFixPass()(model)
    skeleton = skeleton_proto(model)
    check(model, skeleton, call)
    mark_sources(model)
    infer_shapes(model, skeleton, call)
    return model


def _read(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise ModelError(f"there is no file {path}.")
    if not path.is_file():
        raise ModelError(f"{path} is not a file.")
    import onnx
    from google.protobuf.message import DecodeError

    if path.stat().st_size >= LARGEST:
        raise ModelError(f"{path} has 2 GiB or more, which no ONNX file can: large weights lie in files beside it.")
    try:
        return onnx.load(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, UnicodeDecodeError) as error:
        if zipfile.is_zipfile(path):
            said = "is a zip archive, as artifacts (.gopt) and .npz files are, and this needs an ONNX model."
            raise ModelError(f"{path} {said}") from error
        raise ModelError(f"{path} is not an ONNX model, or it is cut short: {str(error).rstrip('.')}.") from error
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}.") from error


def _to_ir(proto: onnx.ModelProto, who: str, call: Callable[[bytes, bytes], bytes] | None = None) -> ir.Model:
    """`proto` in the IR, its opset raised where needed; `who` names it in errors."""
    if not proto.HasField("graph") or not proto.opset_import or proto.ir_version < 1:
        raise ModelError(f"{who} is not an ONNX model: it has no graph, opset or IR version.")
    check_rules(proto)
    proto = _raise_opset(proto, call)
    logger = logging.getLogger("onnx_ir.serde")
    logger.addFilter(_nothing)  # it warns of what `check` refuses
    try:
        return ir.from_proto(proto)
    except (ValueError, KeyError, TypeError, NotImplementedError, ir.serde.SerdeError) as error:
        raise ModelError(f"{who} is not a valid ONNX graph: {first_cause(error)}") from error
    finally:
        logger.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False


def _raise_opset(proto: onnx.ModelProto, call: Callable[[bytes, bytes], bytes] | None) -> onnx.ModelProto:
    """Convert an ai.onnx opset below `MIN_OPSET` up to it; models of other domains alone are left as they are."""
    import onnx

    version = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), MIN_OPSET)
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise ModelError(f"the model is of opset {version}, and the installed onnx knows opsets up to {newest}.")
    if version >= MIN_OPSET:
        return proto
    if version < 9 and any(node.op_type == "Scan" for graph in graphs(proto.graph) for node in graph.node):
        raise ModelError(
            f"the model is of opset {version}, whose Scan has a batch axis that later ones lack, and onnx's converter "
            "makes another operator of it. Export it again with opset 9 or newer."
        )
    try:
        return onnx.ModelProto.FromString((call or onnx_library.call)(onnx_library.CONVERT, proto.SerializeToString()))
    except ValueError as error:
        raise ModelError(
            f"the model is of opset {version} and can't be raised to {MIN_OPSET}, which graphopt needs: "
            f"{' '.join(str(error).split())[:300]} Export it again with opset {MIN_OPSET} or newer."
        ) from error


def _initializers_to_constants(model: ir.Model) -> None:
    for graph in model.graphs():
        if any(v.is_initializer() for v in graph.inputs):
            graph.inputs[:] = [v for v in graph.inputs if not v.is_initializer()]
    model.ir_version = max(model.ir_version, MIN_IR_VERSION)


def _name_open_dims(model: ir.Model) -> None:
    """Each open dimension of an input gets a name of its own, ``<input>_<axis>``, so that it can be bound.

    Exporters write an unknown size as -1, as "?" (for several unequal sizes), or not at all. Negative sizes
    elsewhere become unknown, and are inferred.
    """
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([f"{value.name}_{k}" if _is_open(d) else d for k, d in enumerate(value.shape)])
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.shape is not None and any(map(_is_open, value.shape)):
                value.shape = ir.Shape([None if _is_open(d) else d for d in value.shape])


def _is_open(dim: int | ir.SymbolicDim) -> bool:
    return dim < 0 if isinstance(dim, int) else dim.value in (None, "", "?")


def _sort(model: ir.Model) -> None:
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelError(
            f"the graph has a cycle: its nodes can't be put in an order in which each comes after its inputs ({error})."
        ) from error
