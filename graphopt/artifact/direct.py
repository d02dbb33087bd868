"""A program that is one function of its library, called without TVM's virtual machine.

Where sizes are known, the machine would check what was checked before and make the same tensors anew at each call, 0.2
us for each of a dozen instructions. Here they are made once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.artifact.manifest import dtype_of
from graphopt.artifact.store import room
from graphopt.artifact.tensors import to_tensor
from graphopt.errors import ArtifactError

if TYPE_CHECKING:
    from graphopt.artifact.manifest import DirectSpec, TensorSpec

Array = np.ndarray[Any, Any]


class Direct:
    """The function, and the places it reads and writes. Not for concurrent calls."""

    def __init__(
        self,
        library: Any,
        spec: DirectSpec,
        inputs: Sequence[TensorSpec],
        weights: Sequence[Any],
        outputs: Sequence[TensorSpec],
    ) -> None:
        """Make the places, of the types of `inputs` and `outputs`.

        Raises:
            ArtifactError: there is no such function, or `spec` is not for these tensors.
        """
        try:
            self._function = library.get_function(spec.function, query_imports=True)
            self._inputs = [_place(one, shape) for one, shape in zip(inputs, spec.inputs, strict=True)]
            self._outputs = [_place(one, shape) for one, shape in zip(outputs, spec.outputs, strict=True)]
            places = {"input": self._inputs, "output": self._outputs}
            self._arguments: list[Any] = []
            for kind, index, shape in spec.arguments:
                if kind == "weight":
                    tensor = weights[index]
                    if tuple(tensor.shape) != tuple(shape):
                        raise ValueError(f"weight {index} is not of the shape {shape}")
                else:
                    place = room(shape[0]) if kind == "workspace" else places[kind][index]
                    tensor = to_tensor(place.reshape(shape))
                self._arguments.append(tensor)
        except (AttributeError, IndexError, ValueError) as error:
            raise ArtifactError(f"the artifact can't be called as it says: {error}.") from error

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once on arrays of the types and shapes of the inputs; every result is a fresh array."""
        for place, array in zip(self._inputs, inputs, strict=True):
            place[...] = array
        self._function(*self._arguments)
        return [place.copy() for place in self._outputs]


def _place(spec: TensorSpec, shape: Sequence[int]) -> Array:
    """An array of its type and this shape, aligned, its values unset."""
    dtype = dtype_of(spec.dtype)
    return room(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
