"""onnxsim's structured pruning of an ONNX file: a part of the channels of each chain of layers that it finds.

    by_onnxsim.py FLOAT.onnx SAMPLES.npz OUT.onnx SPARSITY

Nothing of graphopt is imported: `one_compressed.py` starts it with the interpreter that ``--onnxsim`` names.
"""

import sys

import numpy as np
import onnx
import onnxsim  # pyright: ignore[reportMissingImports]


def main(model: str, samples: str, out: str, sparsity: str) -> None:
    """By onnxsim's criterion that looks at activations."""
    with np.load(samples) as file:
        arrays = dict(file)
    feeds = [{k: a[i : i + 1] for k, a in arrays.items()} for i in range(len(next(iter(arrays.values()))))]
    opened = onnx.load(model)
    before = sum(np.prod(w.dims) for w in opened.graph.initializer)
    pruned = onnxsim.apply_structured_wanda_pruning(opened, calibration_data=feeds, sparsity=float(sparsity))
    if sum(np.prod(w.dims) for w in pruned.graph.initializer) == before:
        raise SystemExit("onnxsim finds no channel to take out")
    del pruned.graph.value_info[:]  # shapes from before pruning
    onnx.save(pruned, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
