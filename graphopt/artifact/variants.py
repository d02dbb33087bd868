"""Programs for some sizes of open dimensions beside the one for all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from graphopt.artifact.parts import Parts, open_part
from graphopt.artifact.runtime import Session, check_threads

if TYPE_CHECKING:
    from graphopt.artifact.manifest import VariantSpec
    from graphopt.artifact.reading import Artifact

Variants = list[tuple[dict[str, int], "Session | Parts"]]


def open_variants(artifact: Artifact, threads: int | None) -> Variants:
    """The variants of `artifact`, loaded, each with its sizes.

    Raises:
        ArtifactError: one can't be loaded.
    """
    return [(variant.sizes, _open(artifact, variant, threads)) for variant in artifact.manifest.variants]


def _open(artifact: Artifact, variant: VariantSpec, threads: int | None) -> Session | Parts:
    """A session where one library does it all and takes the inputs as they are given, else its parts."""
    signature = [spec.name for spec in artifact.inputs], [spec.name for spec in artifact.outputs]
    only = variant.parts[0]
    if len(variant.parts) == 1 and only.runs == "library" and (only.inputs, only.outputs) == signature:
        return open_part(artifact, only, variant.entry, artifact.tensors, check_threads(threads))
    return Parts(artifact, variant.parts, variant.entry, threads)


def chosen(variants: Variants, sizes: Mapping[str, int], general: Session | Parts) -> Session | Parts:
    """The first of `variants` made for `sizes`, else `general`."""
    return next((program for fixed, program in variants if fixed.items() <= sizes.items()), general)
