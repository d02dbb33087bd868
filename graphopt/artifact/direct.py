"""A program that is one function of its library, called without TVM's virtual machine.

Where sizes are known, the machine would check what was checked before and make the same tensors anew at each call, 0.2
us for each of a dozen instructions. Here they are made once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from graphopt.artifact.manifest import dtype_of
from graphopt.artifact.runtime import limit_threads, refused
from graphopt.artifact.store import room
from graphopt.artifact.tensors import to_tensor
from graphopt.errors import ArtifactError

if TYPE_CHECKING:
    from graphopt.artifact.manifest import DirectSpec, TensorSpec
    from graphopt.artifact.runtime import Session

Array = np.ndarray[Any, Any]


class Direct:
    """The function, and the places it reads and writes. Not for concurrent calls."""

    def __init__(
        self, session: Session, spec: DirectSpec, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        """Make the places, of the types of `inputs` and `outputs`.

        Raises:
            ArtifactError: the session's library has no such function, or `spec` is not for these tensors.
        """
        self._threads = session.threads
        try:
            self._function = session.library.get_function(spec.function, query_imports=True)
            given = [_place(one, shape) for one, shape in zip(inputs, spec.inputs, strict=True)]
            made = [_place(one, shape) for one, shape in zip(outputs, spec.outputs, strict=True)]
            places = {"input": given, "output": made}
            self._arguments: list[Any] = []
            for kind, index, shape in spec.arguments:
                if kind == "weight":
                    tensor = session.weights[index]
                    if tuple(tensor.shape) != tuple(shape):
                        raise ValueError(f"weight {index} is not of the shape {shape}")
                else:
                    place = room(shape[0]) if kind == "workspace" else places[kind][index]
                    tensor = to_tensor(place.reshape(shape))
                self._arguments.append(tensor)
        except (AttributeError, IndexError, ValueError) as error:
            raise ArtifactError(f"the artifact can't be called as it says: {error}.") from error
        self._inputs = [(one.name, place, place.dtype, place.shape) for one, place in zip(inputs, given, strict=True)]
        self._outputs = [(one.name, place) for one, place in zip(outputs, made, strict=True)]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array] | None:
        """Run once, every result a fresh array; None where `feeds` are not arrays of the very types and shapes.

        Raises:
            DataError: the program refused the inputs.
        """
        if len(feeds) != len(self._inputs):
            return None
        for name, place, dtype, shape in self._inputs:
            array = feeds.get(name)
            if type(array) is not ndarray or array.dtype is not dtype or array.shape != shape:
                return None
            place[...] = array
        limit_threads(self._threads)
        try:
            self._function(*self._arguments)
        except (RuntimeError, ValueError, TypeError) as error:
            raise refused(error) from error
        return {name: place.copy() for name, place in self._outputs}


def _place(spec: TensorSpec, shape: Sequence[int]) -> Array:
    """An array of its type and this shape, aligned, its values unset."""
    dtype = dtype_of(spec.dtype)
    return room(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
