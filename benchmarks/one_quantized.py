"""One reference model, quantized by one recipe; prints a JSON row. `quantization.py` runs it in its own process."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from sizes import free_sizes

from graphopt import api, artifact, models, oracle
from graphopt.errors import GraphoptError
from graphopt.graph import bind_dims, save
from graphopt.measure import evaluate
from graphopt.measure.latency import bench
from graphopt.measure.rivals import open_rivals
from graphopt.models import ReferenceModel
from graphopt.pipeline import PRESETS, make_target

Feeds = dict[str, np.ndarray[Any, Any]]


def measure(reference: ReferenceModel, recipe: str, against: list[str], threads: int, seconds: float) -> dict[str, Any]:
    """Accuracy by onnxruntime on held-out labels, speed of the llvm target's programs, size of the ONNX files."""
    model = api.open_model(reference.path())
    example = reference.example(1)
    batches = reference.calibration() if reference.calibration is not None else [example]
    plain = api.run_pipeline(model, PRESETS["O2"], verify=False).model
    result = api.run_pipeline(model, PRESETS.get(recipe, recipe), calibration=batches, verify=False)
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        float_path = save(plain, Path(folder) / "float.onnx")
        our_path = save(result.model, Path(folder) / "ours.onnx")
        row["size_ratio"] = our_path.stat().st_size / float_path.stat().st_size
        theirs = Path(folder) / "theirs.onnx"
        try:
            _quantize_by_onnxruntime(recipe, float_path, theirs, batches)
            their_model = api.open_model(theirs)
        except Exception as error:  # whatever it breaks on is its result
            their_model = None
            row["onnxruntime_error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    row |= _accuracy(reference, {"float": plain, "quantized": result.model, "onnxruntime_quantized": their_model})
    if not seconds:
        return row
    return row | _speed(model, recipe, batches, their_model, example, against, threads, seconds)


def _accuracy(reference: ReferenceModel, candidates: dict[str, ir.Model | None]) -> dict[str, Any]:
    evaluation = reference.evaluation() if reference.evaluation is not None else None
    row: dict[str, Any] = {"metric": None, "n": 0, **dict.fromkeys(candidates)}
    if evaluation is None:
        return row
    row |= {"metric": evaluation.metric, "n": evaluation.n}
    for name, candidate in candidates.items():
        if candidate is not None:
            row[name] = evaluate(oracle.Session(candidate).run, evaluation)
    return row


def _speed(
    model: ir.Model,
    recipe: str,
    batches: Iterable[Feeds],
    theirs: ir.Model | None,
    example: Feeds,
    against: list[str],
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    """All take turns on the example, every free dimension bound to its size."""
    free = free_sizes(model, example)
    runners: dict[str, Any] = {}
    nbytes: dict[str, int] = {}
    quantized, target = model, make_target(f"llvm{{threads={threads}}}")
    for name, pipeline in (("quantized", PRESETS.get(recipe, recipe)), ("float", PRESETS["O2"])):
        before = api.open_model(model, free)
        few = _one_by_one(batches, example)
        result = api.run_pipeline(before, pipeline, calibration=few, verify=False, target=target)
        try:
            program, parts = api.build(before, result, target)
        except GraphoptError as error:
            return {"error": f"{name}: {error}"}
        nbytes[name] = sum(array.nbytes for array in program.weights.values())
        runners[name] = artifact.assemble(program, **parts, threads=threads).run
        quantized = result.model if name == "quantized" else quantized
    bound = api.open_model(model, free)
    runners |= {f"{name}_float": run for name, run in open_rivals(["onnxruntime", *against], bound, threads).items()}
    runners |= {f"{name}_same": run for name, run in open_rivals(["onnxruntime", *against], quantized, threads).items()}
    if theirs is not None:
        bind_dims(theirs, free)
        runners["onnxruntime_quantized"] = oracle.Session(theirs, threads=threads, optimised=True).run
    rows = bench(runners, example, baseline="quantized", seconds=seconds)
    return {
        "quantized_ms": rows[0].median_ms,
        **{f"ratio_vs_{row.name}": 1 / row.ratio for row in rows[1:]},
        "weights_ratio": nbytes["quantized"] / nbytes["float"],
        "rounds": rows[0].rounds,
    }


def _one_by_one(batches: Iterable[Feeds], example: Feeds) -> list[Feeds]:
    """A few calibration batches of the example's size: speed does not depend on how good the ranges are."""
    few: list[Feeds] = []
    for feeds in batches:
        cut = {name: array[: len(example[name])] for name, array in feeds.items()}
        if all(cut[name].shape == array.shape for name, array in example.items()):
            few.append(cut)
        if len(few) == 4:
            break
    return few or [example]


def _quantize_by_onnxruntime(recipe: str, source: Path, target: Path, batches: Iterable[Feeds]) -> None:
    """onnxruntime's own tool with its per-channel settings, on the model after batch-norm folding."""
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        """The batches, one at a time."""

        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> Feeds | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return next(self._batches, None)

    logging.disable(logging.WARNING)
    bare = onnx.load(source)
    del bare.graph.value_info[:]  # the tool wants to infer the shapes itself
    onnx.save(bare, source)
    if recipe == "int8-dynamic":
        q.quantize_dynamic(source, target, per_channel=True)
    elif recipe.startswith("int4"):
        from onnxruntime.quantization.matmul_nbits_quantizer import (  # pyright: ignore[reportMissingTypeStubs]
            MatMulNBitsQuantizer,
        )

        tool: Any = MatMulNBitsQuantizer(onnx.load(source), block_size=32, quant_format=q.QuantFormat.QDQ)
        tool.process()
        tool.model.save_model_to_file(str(target))
    else:
        q.quantize_static(
            source, target, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
            activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
        )  # fmt: skip


def main() -> None:
    """Measure as the arguments say; a graphopt error becomes the row's ``error``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--against", nargs="*", default=[])
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    asked = parser.parse_args()
    row: dict[str, Any] = {"model": asked.model, "recipe": asked.recipe}
    try:
        row |= measure(models.get(asked.model), asked.recipe, asked.against, asked.threads, asked.seconds)
    except GraphoptError as error:
        row["error"] = str(error)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
