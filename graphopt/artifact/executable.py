"""A compiled model to call: what `graphopt.load` and `graphopt.compile` give.

Nothing here imports onnx or onnxruntime, nor TVM's compiler; only `Executable.graph` needs onnx.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from graphopt.artifact import host, manifest
from graphopt.artifact.checks import fit
from graphopt.artifact.container import MANIFEST, Container
from graphopt.artifact.manifest import Manifest, TensorSpec, WeightSpec
from graphopt.artifact.runtime import Session
from graphopt.artifact.store import WEIGHTS, view
from graphopt.atomic import atomic_write
from graphopt.errors import ArtifactError

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

LIBRARY, REPORT, FILES = "library.so", "report.json", "files/"

# Targets whose libraries call back into graphopt: the module whose `register()` makes that possible. A fixed
# table: a module named by a file would be code taken from data.
_RUNTIMES = {"npu": "graphopt.targets.npu.runtime"}


def load(path: str | Path, threads: int | None = None) -> Executable:
    """Open a `.gopt` file to run it, after verifying every byte of it.

    The digest tells damage, not malice: an artifact holds machine code, so load only those you trust.
    `threads` bounds the CPU threads of a call (default: every core this process may use).

    Raises:
        ArtifactError: no such file, damaged, of an unknown version, or made for another machine.
        UsageError: `threads` is not between 1 and the number that can be had.
    """
    try:
        with open(path, "rb") as file:
            return Executable(file, str(path), threads)
    except OSError as error:
        raise ArtifactError(f"can't open the artifact {path}: {error.strerror or error}.") from error


class Executable:
    """A compiled model. Call `run` with named arrays, or the object itself with arrays in the order of `inputs`.

    Safe to call from several threads (calls take turns). The weights are used where they lie in the mapped file.
    """

    def __init__(self, file: BinaryIO, name: str, threads: int | None = None) -> None:
        """Load the artifact in `file`; see `load`."""
        self._container = Container(file, name)
        self.manifest: Manifest = manifest.from_json(bytes(self._container.read(MANIFEST)), name)
        host.check_host(self.manifest, name)
        runtime = _RUNTIMES.get(self.manifest.target.partition("{")[0])
        if runtime is not None:
            importlib.import_module(runtime).register()
        library = self._container.read(LIBRARY)
        session = Session(library, self.manifest.device, self.manifest.entry, threads)
        session.set_weights([self._weight(name, spec) for name, spec in self.manifest.weights.items()])
        self._session: Session | None = session
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Run the model once on named arrays; the arrays returned are the caller's own.

        Raises:
            DataError: an input is missing, unknown, or of the wrong dtype, rank or size.
        """
        arrays = fit(self.inputs, inputs)
        if self._session is None:
            raise ArtifactError(f"{self._container.name} was closed: load it again.")
        with self._lock:
            results = self._session(arrays)
        return {spec.name: _cast(result, spec) for spec, result in zip(self.outputs, results, strict=True)}

    def __call__(self, *arrays: Any) -> Any:
        """Run on positional arrays; gives the array where there is one output, else a tuple of them."""
        if len(arrays) > len(self.inputs):
            raise TypeError(f"{len(arrays)} arrays given, and the model has {len(self.inputs)} inputs")
        results = tuple(self.run(dict(zip((s.name for s in self.inputs), arrays, strict=False))).values())
        return results[0] if len(results) == 1 else results

    @property
    def inputs(self) -> list[TensorSpec]:
        """Name, dtype and shape of each input, in the order of a positional call."""
        return self.manifest.inputs

    @property
    def outputs(self) -> list[TensorSpec]:
        """Name, dtype and shape of each output."""
        return self.manifest.outputs

    @property
    def threads(self) -> int:
        """How many CPU threads a call may use."""
        return self._session.threads if self._session else 0

    @property
    def report(self) -> dict[str, Any]:
        """What each pass and the target had to say when the artifact was made."""
        return json.loads(bytes(self._container.read(REPORT)))

    @property
    def weights(self) -> dict[str, Array]:
        """The program's weights, as views of the mapped file."""
        return {name: self._weight(name, spec) for name, spec in self.manifest.weights.items()}

    @property
    def files(self) -> list[str]:
        """Further files the target left (kernels, logs, command streams), for `read_file`."""
        return [name.removeprefix(FILES) for name in self._container.members if name.startswith(FILES)]

    def read_file(self, name: str) -> bytes:
        """The bytes of one of `files`; ArtifactError when there is none of that name."""
        return bytes(self._container.read(FILES + name))

    def graph(self, which: Literal["before", "after"]) -> ir.Model:
        """The ONNX graph before the passes, or after them (what was compiled)."""
        from graphopt.artifact import graphs

        return graphs.read(self._container, f"{which}.onnx")

    def save(self, path: str | Path) -> Path:
        """Write the artifact to `path`, whole or not at all; returns the path."""
        with atomic_write(path) as scratch, open(scratch, "wb") as file:
            file.write(self._container.data)
        return Path(path)

    def close(self) -> None:
        """Let go of the library and of the weights."""
        self._session = None

    def __enter__(self) -> Executable:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(f"{s.name}: {s}" for s in specs) for specs in (self.inputs, self.outputs))
        return f"<Executable {self._container.name} for {self.manifest.target}: ({inputs}) -> ({outputs})>"

    def _weight(self, name: str, spec: WeightSpec) -> Array:
        try:
            return view(self._container.read(WEIGHTS), spec.offset, manifest.dtype_of(spec.dtype), spec.shape)
        except ValueError as error:
            raise ArtifactError(f"{self._container.name}: weight {name}: {error}.") from error


def _cast(result: Array, spec: TensorSpec) -> Array:
    return result.astype(manifest.dtype_of(spec.dtype), copy=False)
