"""From a target's program to a `.gopt` file, or to something to call at once."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from pydantic_core import to_jsonable_python

from graphopt.artifact import manifest
from graphopt.artifact.container import Digest, content, pack
from graphopt.artifact.executable import Executable
from graphopt.artifact.host import instruction_sets, machine_of
from graphopt.artifact.manifest import (
    DirectSpec,
    Manifest,
    MemberSpec,
    PackedSpec,
    PartSpec,
    StoredSpec,
    TensorSpec,
    VariantSpec,
    WeightSpec,
)
from graphopt.artifact.reading import FILES, LIBRARY, REPORT
from graphopt.artifact.store import GRAPH_WEIGHTS, WEIGHTS, Store
from graphopt.atomic import atomic_write
from graphopt.packed import to_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.base import Direct, Part, Program, Variant
    from graphopt.packed import Packed


def write(
    path: str | Path,
    program: Program,
    *,
    target: str,
    before: ir.Model,
    after: ir.Model,
    report: Mapping[str, Any],
    keep_source: bool = False,
) -> Path:
    """Write the artifact to `path`, whole or not at all; returns the path.

    `target` is the target's spec text, `before` and `after` the graphs around the passes (the signature is
    `after`'s), `report` what the passes said; the target's own report is added to it as ``"target"``.
    The graphs are kept without the weights that the program doesn't hold, unless `keep_source`.

    Raises:
        UsageError: `path` can't be written.
        LoweringError: an input or output is of a type that an artifact can't carry.
    """
    with atomic_write(path) as scratch, open(scratch, "w+b") as file:
        _write(file, program, target, before, after, report, keep_source)
    return Path(path)


def assemble(
    program: Program,
    *,
    target: str,
    before: ir.Model,
    after: ir.Model,
    report: Mapping[str, Any],
    keep_source: bool = False,
    threads: int | None = None,
) -> Executable:
    """The same artifact, in an unnamed temporary file, loaded: its `save` gives what `write` would have written."""
    with tempfile.TemporaryFile(prefix="graphopt-") as file:
        _write(file, program, target, before, after, report, keep_source)
        return Executable(file, f"<{after.graph.name or 'model'}>", threads)


def _write(
    file: BinaryIO,
    program: Program,
    target: str,
    before: ir.Model,
    after: ir.Model,
    report: Mapping[str, Any],
    keep_source: bool,
) -> None:
    from graphopt.artifact import graphs
    from graphopt.graph import declared_dims

    stores = {WEIGHTS: Store(), GRAPH_WEIGHTS: Store()}
    weights = {name: _weight(name, array, program.packed, stores[WEIGHTS]) for name, array in program.weights.items()}
    parts = [_part(part, f"parts/{index:03d}") for index, part in enumerate(program.parts)]
    extra = {
        f"{k}:{name}": _weight(name, array, variant.packed, stores[WEIGHTS])
        for k, variant in enumerate(program.variants)
        for name, array in variant.weights.items()
    }
    variants = [_variant(variant, k) for k, variant in enumerate(program.variants)]
    own = [*zip(parts, program.parts, strict=True)]
    for spec, variant in zip(variants, program.variants, strict=True):
        own += zip(spec.parts, variant.parts, strict=True)
    members = {
        **({} if parts else {LIBRARY: content(program.library)}),
        REPORT: content(_report(report, program)),
        "after.onnx": content(graphs.to_bytes(after, stores, keep_source)),
        "before.onnx": content(graphs.to_bytes(before, stores, keep_source)),
        **{name: store.content() for name, store in stores.items()},
        **{spec.member: content(part.data) for spec, part in own},
        **{FILES + name: content(data) for name, data in program.files.items()},
    }
    described = Manifest(
        format=manifest.FORMAT,
        versions=manifest.installed(),
        target=target,
        device=program.device,
        system=sys.platform,
        machine=machine_of(program.library or next((p.data for _, p in own if p.runs == "library"), b"")),
        cpu_features=instruction_sets(program.cpu_features),
        entry=program.entry,
        inputs=_ordered(graphs.specs(list(after.graph.inputs)), program.inputs),
        outputs=_ordered(graphs.specs(list(after.graph.outputs)), program.outputs),
        weights=weights,
        members={},
        parts=parts,
        dims={name: str(sizes) for name, sizes in sorted(declared_dims(after).items())},
        variants=variants,
        extra=extra,
        direct=_direct(program.direct),
    )

    def with_digests(digests: Mapping[str, Digest]) -> bytes:
        listed = {name: MemberSpec(sha256=d.sha256, nbytes=d.nbytes) for name, d in digests.items()}
        return manifest.to_json(described.model_copy(update={"members": listed}))

    pack(file, members, with_digests)


def _part(part: Part, member: str, weights: str = "") -> PartSpec:
    return PartSpec(
        runs=part.runs,
        member=f"{member}{'.so' if part.runs == 'library' else '.onnx'}",
        inputs=part.inputs,
        outputs=part.outputs,
        weights=[weights + name for name in part.weights],
        direct=_direct(part.direct),
    )


def _direct(direct: Direct | None) -> DirectSpec | None:
    return None if direct is None else DirectSpec(**dataclasses.asdict(direct))


def _variant(variant: Variant, index: int) -> VariantSpec:
    """Its weights are called after the variant: an ONNX part's are found by what follows the first slash."""
    parts = [_part(part, f"variants/{index:03d}/{k:03d}", f"{index}:") for k, part in enumerate(variant.parts)]
    return VariantSpec(sizes=variant.sizes, entry=variant.entry, parts=parts)


def _weight(name: str, array: np.ndarray[Any, Any], packed: Mapping[str, Packed], store: Store) -> WeightSpec:
    few = packed.get(name)
    if few is None:
        return _stored(array, store)
    q, scale, zero = (_stored(part, store) for part in (few.q, few.scale, few.zero))
    return PackedSpec(
        shape=list(array.shape), q=q, scale=scale, zero=zero, axis=few.axis, block=few.block, steps=few.steps
    )


def _stored(array: np.ndarray[Any, Any], store: Store) -> StoredSpec:
    place = store.add(partial(to_bytes, array), array.itemsize)
    return StoredSpec(dtype=array.dtype.name, shape=list(array.shape), offset=place.offset, encoded=place.encoded)


def _ordered(specs: list[TensorSpec], names: list[str]) -> list[TensorSpec]:
    """`specs` in the order the program's entry takes or returns them."""
    by_name = {spec.name: spec for spec in specs}
    if set(by_name) != set(names):
        raise ValueError(f"the target compiled {sorted(names)} where the graph has {sorted(by_name)}")
    return [by_name[name] for name in names]


def _report(report: Mapping[str, Any], program: Program) -> bytes:
    plain = to_jsonable_python({**report, "target": program.report}, fallback=_plain)
    return json.dumps(plain, indent=1).encode()


def _plain(item: Any) -> Any:
    return item.tolist() if hasattr(item, "tolist") else str(item)  # numpy's scalars and arrays
