"""Models made by NNSmith, for the fuzzer: run this in an environment of its own, then give the folder to graphopt.

    python -m venv nnsmith && nnsmith/bin/pip install nnsmith==0.1.0 onnx==1.14.1 onnxruntime 'numpy<2' torch
    nnsmith/bin/python benchmarks/nnsmith_models.py models --count 300 --nodes 10
    python -m graphopt.testing.fuzz --models models --ways O3,llvm

NNSmith (Liu et al., ASPLOS 2023) draws valid graphs with a solver, and searches weights that keep values finite.
Nothing of graphopt is imported here, and graphopt needs nothing of NNSmith.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="SEED.onnx files go there; those that exist are kept")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first model; the others follow it")
    parser.add_argument("--nodes", type=int, default=10, help="operators a model")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)

    import torch  # pyright: ignore[reportMissingImports]  # these are in the other environment

    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)  # NNSmith is older than the other exporter
    from nnsmith.abstract.extension import activate_ext  # pyright: ignore[reportMissingImports]
    from nnsmith.graph_gen import model_gen  # pyright: ignore[reportMissingImports]
    from nnsmith.materialize import Model  # pyright: ignore[reportMissingImports]
    from nnsmith.narrow_spec import auto_opset  # pyright: ignore[reportMissingImports]

    kind = Model.init("onnx", backend_target="cpu")
    kind.add_seed_setter()
    operators = auto_opset(kind)
    activate_ext(opset=operators, factory=None)
    for seed in range(asked.seed, asked.seed + asked.count):
        file = asked.folder / f"{seed}.onnx"
        if file.exists():
            continue
        try:
            graph = model_gen(operators, "symbolic-cinit", asked.nodes, seed, max_elem_per_tensor=4096)
            model = kind.from_gir(graph.make_concrete())
            model.refine_weights()
            model.dump(str(file))
        except Exception as error:  # its exporter refuses some of its own graphs
            print(f"{seed}: {type(error).__name__}: {str(error)[:150]}", file=sys.stderr)


if __name__ == "__main__":
    main()
