"""What an artifact holds, for looking at: works on any machine, also one that could not run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from graphopt.artifact import manifest
from graphopt.artifact.container import MANIFEST, Container
from graphopt.artifact.manifest import Manifest, PackedSpec, StoredSpec, TensorSpec, WeightSpec
from graphopt.artifact.store import WEIGHTS, Place, aligned, view
from graphopt.atomic import atomic_write
from graphopt.errors import ArtifactError
from graphopt.packed import Packed

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

LIBRARY, REPORT, FILES = "library.so", "report.json", "files/"


def read(path: str | Path) -> Artifact:
    """Open a `.gopt` file to look at, after verifying every byte of it; its library is not loaded.

    Raises:
        ArtifactError: no such file, damaged, or of an unknown version.
    """
    with open_file(path) as file:
        return Artifact(file, str(path))


def open_file(path: str | Path) -> BinaryIO:
    """The file at `path` for reading; ArtifactError when it can't be opened."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise ArtifactError(f"can't open the artifact {path}: {error.strerror or error}.") from error


class Artifact:
    """The verified contents of a `.gopt` file."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Verify and map `file`; `name` is what messages call it. See `read`."""
        self._container = Container(file, name)
        self.manifest: Manifest = manifest.from_json(bytes(self._container.read(MANIFEST)), name)

    @property
    def name(self) -> str:
        """Where the artifact came from."""
        return self._container.name

    @property
    def inputs(self) -> list[TensorSpec]:
        """Name, dtype and shape of each input, in the order of a positional call."""
        return self.manifest.inputs

    @property
    def outputs(self) -> list[TensorSpec]:
        """Name, dtype and shape of each output."""
        return self.manifest.outputs

    @property
    def report(self) -> dict[str, Any]:
        """What each pass and the target had to say when the artifact was made."""
        return json.loads(bytes(self._container.read(REPORT)))

    @property
    def weights(self) -> dict[str, Array]:
        """The program's weights: views of the mapped file, but for those stored without zeros or in few bits."""
        return {name: self._weight(name, spec) for name, spec in self.manifest.weights.items()}

    @property
    def tensors(self) -> dict[str, Array]:
        """Likewise those that only programs for some sizes of open dimensions take, by the names of these programs."""
        return self.weights | {name: self._weight(name, spec) for name, spec in self.manifest.extra.items()}

    @property
    def library(self) -> memoryview:
        """The bytes of the compiled shared library."""
        return self._container.read(LIBRARY)

    def member(self, name: str) -> memoryview:
        """The bytes of a member that the manifest names, where they lie in the map."""
        return self._container.read(name)

    @property
    def files(self) -> list[str]:
        """Further files the target left (kernels, logs, command streams), for `read_file`."""
        return [name.removeprefix(FILES) for name in self._container.members if name.startswith(FILES)]

    def read_file(self, name: str) -> bytes:
        """The bytes of one of `files`; ArtifactError when there is none of that name."""
        return bytes(self._container.read(FILES + name))

    def graph(self, which: Literal["before", "after"]) -> ir.Model:
        """The ONNX graph before the passes, or after them (what was compiled).

        Unless the artifact keeps its source, weights that the program doesn't hold have a type and a shape only
        (`graphopt.graph.absent`).
        """
        from graphopt.artifact import graphs

        return graphs.read(self._container, f"{which}.onnx")

    def graph_with_weights(self, which: Literal["before", "after"]) -> ir.Model:
        """Likewise, with every weight.

        Raises:
            ArtifactError: the artifact was made without its source.
        """
        from graphopt.graph.absent import absent

        model = self.graph(which)
        missing = absent(model)
        if missing:
            raise ArtifactError(
                f"{self.name} holds the weights that its program runs on, and not those of the ONNX graph ({which} the "
                f"passes: {len(missing)} are missing, such as {missing[0].name}), which this needs: compile with "
                "--keep-source (keep_source=True in Python), or give the ONNX model."
            )
        return model

    def save(self, path: str | Path) -> Path:
        """Write the artifact to `path`, whole or not at all; returns the path."""
        with atomic_write(path) as scratch, open(scratch, "wb") as file:
            file.write(self._container.data)
        return Path(path)

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(f"{s.name}: {s}" for s in specs) for specs in (self.inputs, self.outputs))
        return f"<{type(self).__name__} {self.name} for {self.manifest.target}: ({inputs}) -> ({outputs})>"

    def _weight(self, name: str, spec: WeightSpec) -> Array:
        try:
            return self._unpacked(spec) if isinstance(spec, PackedSpec) else self._stored(spec)
        except ValueError as error:
            raise ArtifactError(f"{self.name}: weight {name}: {error}.") from error

    def _stored(self, spec: StoredSpec) -> Array:
        place = Place(spec.offset, spec.encoded)
        return view(self._container.read(WEIGHTS), place, manifest.dtype_of(spec.dtype), spec.shape)

    def _unpacked(self, spec: PackedSpec) -> Array:
        q, scale, zero = (self._stored(part) for part in (spec.q, spec.scale, spec.zero))
        array = Packed(q, scale, zero, spec.axis, spec.block, spec.steps).array()
        if array.shape != tuple(spec.shape) or array.dtype != np.float32:
            raise ValueError(f"its parts make {array.dtype}{list(array.shape)}, not float32{spec.shape}")
        return aligned(array)
