"""A compiled model to call: what `graphopt.load` and `graphopt.compile` give.

Nothing here imports onnx or onnxruntime, nor TVM's compiler; only `Artifact.graph` needs onnx.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from graphopt.artifact.checks import Signature
from graphopt.artifact.direct import Direct
from graphopt.artifact.host import check_host
from graphopt.artifact.manifest import dtype_of
from graphopt.artifact.parts import Parts, prefixed
from graphopt.artifact.reading import Artifact, open_file
from graphopt.artifact.runtime import Session
from graphopt.artifact.tensors import meant
from graphopt.artifact.variants import chosen, open_variants
from graphopt.errors import ArtifactError
from graphopt.sizes import parse

Array = np.ndarray[Any, Any]

# Targets whose libraries call back into graphopt: the module whose `register()` makes that possible. A fixed
# table: a module named by a file would be code taken from data.
_RUNTIMES = {"npu": "graphopt.targets.npu.runtime"}
_EXPORTS = ("metal", "opencl", "rocm", "webgpu")


def load(path: str | Path, threads: int | None = None) -> Executable:
    """Open a `.gopt` file to run it, after verifying every byte of it.

    The digest tells damage, not malice: an artifact holds machine code, so load only those you trust.
    `threads` bounds the CPU threads of a call (default: every core this process may use).

    Raises:
        ArtifactError: no such file, damaged, of an unknown version, or made for another machine.
        UsageError: `threads` is not between 1 and the number that can be had.
    """
    with open_file(path) as file:
        return Executable(file, str(path), threads)


class Executable(Artifact):
    """A compiled model. Call `run` with named arrays, or the object itself with arrays in the order of `inputs`.

    Safe to call from several threads (calls take turns). The weights are used where they lie in the mapped file.
    """

    def __init__(self, file: BinaryIO, name: str, threads: int | None = None) -> None:
        """Verify `file` and load its library and weights; see `load`."""
        super().__init__(file, name)
        check_host(self.manifest, name)
        target = self.manifest.target.partition("{")[0]
        if target in _EXPORTS:
            raise ArtifactError(
                f"{name} is a source-level export for {target}, which graphopt does not run: its kernels are "
                f"{', '.join(self.files)} in the artifact (graphopt.artifact.read(path).read_file(name))."
            )
        runtime = _RUNTIMES.get(target)
        if runtime is not None:
            importlib.import_module(runtime).register()
        self._session: Session | Parts | None
        if self.manifest.parts:
            self._session = Parts(self, self.manifest.parts, self.manifest.entry, threads)
        else:
            self._session = Session(self.library, self.manifest.device, self.manifest.entry, threads)
            self._session.set_weights(list(self.weights.values()))
        self._variants = open_variants(self, threads)
        self._direct = self._quick = self._directly()
        declared = {name: parse(name, text) for name, text in self.manifest.dims.items()}
        dims = {name: sizes for name, sizes in declared.items() if not isinstance(sizes, int)}
        self._signature = Signature(self.inputs, dims)
        self._results = [(spec.name, dtype_of(spec.dtype)) for spec in self.outputs]
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Run the model once on named arrays; the arrays returned are the caller's own.

        Where the model has sequences, they are lists of arrays, and an empty optional is None.

        Raises:
            DataError: an input is missing, unknown, or of the wrong dtype, rank or size (also one outside the range
                that was declared for its dimension).
        """
        with self._lock:
            for run in self._quick:
                found = run(inputs)
                if found is not None:
                    return found
        arrays, sizes = self._signature.fit(inputs)
        with self._lock:
            if self._session is None:
                raise ArtifactError(f"{self.name} was closed: load it again.")
            results = chosen(self._variants, sizes, self._session)(arrays)
        return {name: _of_type(result, dtype) for (name, dtype), result in zip(self._results, results, strict=True)}

    def __call__(self, *arrays: Any) -> Any:
        """Run on positional arrays; gives the array where there is one output, else a tuple of them."""
        if len(arrays) > len(self.inputs):
            raise TypeError(f"{len(arrays)} arrays given, and the model has {len(self.inputs)} inputs")
        results = tuple(self.run(dict(zip((s.name for s in self.inputs), arrays, strict=False))).values())
        return results[0] if len(results) == 1 else results

    def _directly(self) -> list[Callable[[Mapping[str, Any]], dict[str, Array] | None]]:
        """The programs, of variants too, that can be called without the virtual machine."""
        if any(dtype_of(spec.dtype).kind not in "fiub" for spec in (*self.inputs, *self.outputs)):
            return []  # the library may have bytes for what ml_dtypes has: 4-bit integers, float8
        specs = [*(variant.parts[0].direct for variant in self.manifest.variants), self.manifest.direct]
        programs = [*(program for _, program in self._variants), self._session]
        return [
            Direct(program, spec, self.inputs, self.outputs).run
            for spec, program in zip(specs, programs, strict=True)
            if spec is not None and isinstance(program, Session)
        ]

    def instrument(self, around: Callable[..., None] | None) -> None:
        """Have every run call ``around(function, name, before, result, *arguments)`` before and after each kernel.

        TVM's own: `name` is the function's, `before` whether it is still to come, the last of `arguments` mostly its
        output. None ends it.
        """
        with self._lock:
            if self._session is not None:
                self._quick = self._direct if around is None else []
                self._session.instrument(around)
                for index, (_, program) in enumerate(self._variants):
                    program.instrument(None if around is None else prefixed(around, f"variant{index}"))

    @property
    def threads(self) -> int:
        """How many CPU threads a call may use."""
        return self._session.threads if self._session else 0

    def close(self) -> None:
        """Let go of the library and of the weights."""
        with self._lock:
            self._session, self._variants, self._direct, self._quick = None, [], [], []

    def __enter__(self) -> Executable:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _of_type(result: Any, dtype: np.dtype[Any]) -> Any:
    """An array as `dtype`; sequences and empty optionals as they are."""
    return meant(result, dtype) if isinstance(result, np.ndarray) else result
