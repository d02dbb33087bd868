"""What `manifest.json` says: everything needed to decide whether the artifact can run here, and how to call it."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated, Literal

import ml_dtypes
import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from graphopt.errors import ArtifactError, UsageError
from graphopt.packed import Step
from graphopt.sizes import parse

FORMAT = 1
"""The version of the `.gopt` format that this graphopt writes, and the only one it reads."""

_DTYPES = {
    **{np.dtype(t).name: np.dtype(t) for t in np.typecodes["AllInteger"] + "?efd"},
    **{np.dtype(t).name: np.dtype(t) for t in (ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.uint4)},
    **{
        np.dtype(t).name: np.dtype(t)
        for t in (
            ml_dtypes.float8_e4m3fn,
            ml_dtypes.float8_e4m3fnuz,
            ml_dtypes.float8_e5m2,
            ml_dtypes.float8_e5m2fnuz,
        )
    },
    **{np.dtype(t).name: np.dtype(t) for t in (np.complex64, np.complex128)},
    "str": np.dtype(object),
}


def dtype_of(name: str) -> np.dtype:
    """The numpy dtype (ml_dtypes' included) called `name`, object for text; ValueError when tensors can't have it."""
    if name not in _DTYPES:
        raise ValueError(f"{name} is not a tensor's dtype; known are {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _known_dtype(name: str) -> str:
    dtype_of(name)
    return name


def _known_sizes(text: str) -> str:
    try:
        if isinstance(parse("", text), int):
            raise ValueError(f"{text} is one size")
    except UsageError as error:
        raise ValueError(str(error)) from error
    return text


Declared = Annotated[str, AfterValidator(_known_sizes)]
DType = Annotated[str, AfterValidator(_known_dtype)]
Dim = NonNegativeInt | str | None
Kind = Literal["tensor", "sequence", "optional", "optional sequence"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TensorSpec(_Strict):
    """An input or output: a dimension is a number, a symbol (equal wherever it stands), or None when unknown.

    `shape` None means that even the rank is unknown. A sequence is a list of arrays, an optional may be None.
    """

    name: str
    dtype: DType
    shape: list[Dim] | None
    kind: Kind = "tensor"

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        tensor = f"{self.dtype}[{dims}]"
        return tensor if self.kind == "tensor" else f"{self.kind} of {tensor}"


class StoredSpec(_Strict):
    """Where a tensor lies in ``weights.bin``; with `encoded`, in so many bytes without its zeros (see `zeros`)."""

    dtype: DType
    shape: list[NonNegativeInt]
    offset: NonNegativeInt
    encoded: NonNegativeInt | None = None


class PackedSpec(_Strict):
    """A float32 weight of `shape`, made of few bits when it is loaded (see `graphopt.packed.Packed`)."""

    shape: list[NonNegativeInt]
    q: StoredSpec
    scale: StoredSpec
    zero: StoredSpec
    axis: NonNegativeInt
    block: NonNegativeInt
    steps: tuple[Step, ...]


WeightSpec = StoredSpec | PackedSpec


class DirectSpec(_Strict):
    """A program that is one call of one function; see `graphopt.base.Direct`."""

    function: str
    inputs: list[list[PositiveInt]]
    outputs: list[list[PositiveInt]]
    arguments: list[tuple[Literal["input", "weight", "output", "workspace"], NonNegativeInt, list[PositiveInt]]]


class PartSpec(_Strict):
    """A part of the program, where it is made of several; see `graphopt.base.Part`. `member` holds its data."""

    runs: Literal["library", "onnxruntime"]
    member: str
    inputs: list[str]
    outputs: list[str]
    weights: list[str]
    direct: DirectSpec | None = None


class VariantSpec(_Strict):
    """A program for some sizes of open dimensions, by their names; see `graphopt.base.Variant`."""

    sizes: dict[str, NonNegativeInt]
    entry: str
    parts: list[PartSpec]


class MemberSpec(_Strict):
    """What a member of the artifact must be."""

    sha256: str
    nbytes: NonNegativeInt


class Versions(_Strict):
    """Of what wrote the artifact. TVM's must be the installed one: its bytecode changes between releases."""

    graphopt: str
    tvm: str
    tvm_ffi: str


class Manifest(_Strict):
    """The manifest. `weights` follow the inputs in the call of `entry`, in this order. `parts`: see `PartSpec`.

    `dims`: the sizes that open dimensions may have, as `graphopt.sizes` writes them, where that was declared.
    `variants`: programs for some of these sizes; `extra`: what they take, mostly where a weight lies already.
    `direct`: how the library is called without the virtual machine, where that can be.
    """

    format: Literal[1]
    versions: Versions
    target: str
    device: Literal["cpu", "cuda"]
    system: str
    machine: str
    cpu_features: list[str]
    entry: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    weights: dict[str, WeightSpec]
    members: dict[str, MemberSpec]
    parts: list[PartSpec] = []
    dims: dict[str, Declared] = {}
    variants: list[VariantSpec] = []
    extra: dict[str, WeightSpec] = {}
    direct: DirectSpec | None = None


class _Format(BaseModel):
    format: int


def installed() -> Versions:
    """The versions of this process."""
    version = importlib.metadata.version
    return Versions(graphopt=version("graphopt"), tvm=version("apache-tvm"), tvm_ffi=version("apache-tvm-ffi"))


def to_json(manifest: Manifest) -> bytes:
    """The manifest's bytes, the same for equal manifests."""
    return manifest.model_dump_json(indent=1).encode()


def from_json(data: bytes, artifact: str) -> Manifest:
    """Read and check a manifest; `artifact` is the file's name for messages.

    Raises:
        ArtifactError: another format version, or not a manifest.
    """
    try:
        version = _Format.model_validate_json(data).format
        if version != FORMAT:
            raise ArtifactError(
                f"{artifact} is of format {version}, and this graphopt reads format {FORMAT}: compile the model again, "
                f"or install the graphopt that wrote it."
            )
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{artifact} has a manifest that can't be used: {where}: {first['msg']}.") from error
