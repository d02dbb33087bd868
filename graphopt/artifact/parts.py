"""A program made of several parts: compiled libraries and onnxruntime's sessions, run in order on named values.

Between parts nothing is copied: a library's results are seen by numpy through DLPack, onnxruntime reads arrays where
they lie, and a library reads onnxruntime's results in place where they are aligned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.artifact.runtime import Session, check_threads
from graphopt.errors import ArtifactError, ModelError

if TYPE_CHECKING:
    from graphopt.artifact.manifest import PartSpec
    from graphopt.artifact.reading import Artifact

Array = np.ndarray[Any, Any]


class Parts:
    """The parts of an artifact, loaded. Not for concurrent calls: the caller holds a lock."""

    def __init__(self, artifact: Artifact, parts: Sequence[PartSpec], entry: str, threads: int | None) -> None:
        """Load each part, libraries by their function `entry`; nothing is loaded before the artifact was verified.

        Raises:
            ArtifactError: a part can't be loaded, or onnxruntime is missing.
            UsageError: `threads` can't be had.
        """
        self.threads = check_threads(threads)
        self._names = [spec.name for spec in artifact.inputs], [spec.name for spec in artifact.outputs]
        weights = artifact.tensors
        self._parts = [(spec, open_part(artifact, spec, entry, weights, self.threads)) for spec in parts]
        self._last = self._last_uses()
        self._around: Callable[..., None] | None = None

    def _last_uses(self) -> list[list[str]]:
        """For each part, the values that nothing reads after it."""
        kept, dead = set(self._names[1]), list[list[str]]()
        for spec, _ in reversed(self._parts):
            fresh = [name for name in dict.fromkeys([*spec.inputs, *spec.outputs]) if name not in kept]
            dead.append(fresh)
            kept.update(fresh)
        return dead[::-1]

    def instrument(self, around: Callable[..., None] | None) -> None:
        """As `Session.instrument`; kernels of part k are called ``k/kernel``, onnxruntime's parts ``k/onnxruntime``."""
        self._around = around
        for index, (_, session) in enumerate(self._parts):
            if isinstance(session, Session):
                session.instrument(None if around is None else prefixed(around, str(index)))

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Run once; arrays in the results are the caller's own.

        Raises:
            DataError, ModelError: a part refused its inputs, or failed on them.
        """
        values = dict(zip(self._names[0], inputs, strict=True))
        for index, ((spec, session), dead) in enumerate(zip(self._parts, self._last, strict=True)):
            given = [values[name] for name in spec.inputs]
            if isinstance(session, Session):
                results = session.between(given)
            else:
                self._tell(index, True)
                results = list(session.run(dict(zip(spec.inputs, given, strict=True))).values())
                self._tell(index, False, *results)
            values.update(zip(spec.outputs, results, strict=True))
            for name in dead:
                del values[name]
        return [_own(values[name], inputs) for name in self._names[1]]

    def _tell(self, index: int, before: bool, *results: Any) -> None:
        if self._around is not None:
            self._around(None, f"{index}/onnxruntime", before, None, *results)


def open_part(artifact: Artifact, spec: PartSpec, entry: str, weights: Mapping[str, Array], threads: int) -> Any:
    """The session of a part; see `Parts`."""
    arrays = [weights[name] for name in spec.weights]
    data = artifact.member(spec.member)
    if spec.runs == "library":
        session = Session(data, artifact.manifest.device, entry, threads)
        session.set_weights(arrays)
        return session
    try:
        from graphopt import ort

        names = [name.partition("/")[2] for name in spec.weights]
        return ort.Session(bytes(data), threads=threads, weights=dict(zip(names, arrays, strict=True)))
    except ImportError as error:
        raise ArtifactError(f"parts of {artifact.name} need onnxruntime: pip install onnxruntime.") from error
    except ModelError as error:
        raise ArtifactError(f"{artifact.name}: {error}") from error


def prefixed(around: Callable[..., None], name_of: str) -> Callable[..., None]:
    """`around` with the names of kernels after that of what they are in."""

    def told(function: Any, name: str, *rest: Any) -> None:
        around(function, name if name.startswith("vm.") else f"{name_of}/{name}", *rest)

    return told


def _own(value: Any, inputs: Sequence[Any]) -> Any:
    """A copy where an array's memory is not its own, or is the caller's input."""
    if isinstance(value, np.ndarray) and (not value.flags.owndata or any(value is given for given in inputs)):
        return value.copy()
    return value
