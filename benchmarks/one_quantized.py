"""One reference model, quantized by one recipe; prints a JSON row. `quantization.py` runs it in its own process."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import subprocess
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
from graphopt.measure.command import Command
from graphopt.measure.latency import bench
from graphopt.measure.rivals import open_rivals
from graphopt.models import ReferenceModel
from graphopt.pipeline import PRESETS, make_target

Feeds = dict[str, np.ndarray[Any, Any]]


def measure(reference: ReferenceModel, recipe: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Accuracy by onnxruntime on held-out labels, speed and size of the llvm target's programs, size of the files."""
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
        rivals: dict[str, Any] = {}
        if asked.nncf and recipe != "int8-dynamic":
            row |= _by_nncf(asked.nncf, reference, recipe, float_path, batches, Path(folder))
            if "openvino_error" not in row:
                script = str(Path(__file__).with_name("by_nncf.py"))
                command = shlex.join([asked.nncf, script, "time", str(Path(folder) / "nncf.xml")])
                rivals["openvino_quantized"] = command + " {inputs} {threads}"
        return row | _programs(model, recipe, batches, their_model, rivals, example, asked)


def _by_nncf(
    python: str, reference: ReferenceModel, recipe: str, source: Path, samples: Iterable[Feeds], folder: Path
) -> dict[str, Any]:
    """The metric of OpenVINO's quantizer, run by the interpreter `python`; leaves ``nncf.xml`` in `folder`."""
    evaluation = reference.evaluation() if reference.evaluation is not None else None
    script = str(Path(__file__).with_name("by_nncf.py"))
    for name, feeds in (("samples", samples), ("feeds", evaluation.feeds() if evaluation is not None else ())):
        (folder / name).mkdir()
        for index, batch in enumerate(feeds):
            np.savez(folder / name / f"{index}.npz", allow_pickle=False, **batch)
    (folder / "results").mkdir()
    made = str(folder / "nncf.xml")
    for words in (
        ["quantize", str(source), recipe, str(folder / "samples"), made],
        ["outputs", made, str(folder / "feeds"), str(folder / "results")],
    ):
        done = subprocess.run([python, script, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            return {"openvino_error": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:200]}
    if evaluation is None:
        return {}
    paths = sorted((folder / "results").glob("*.npz"), key=lambda path: int(path.stem))
    return {"openvino_quantized": evaluation.score(dict(np.load(path)) for path in paths)}


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


def _programs(
    model: ir.Model,
    recipe: str,
    batches: Iterable[Feeds],
    theirs: ir.Model | None,
    commands: dict[str, str],
    example: Feeds,
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """Sizes of the artifacts; speed, all taking turns on the example, every free dimension bound to its size."""
    free, threads, against = free_sizes(model, example), asked.threads, asked.against
    sizes: dict[str, int] = {}
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
        with tempfile.TemporaryDirectory() as folder:
            path = artifact.write(Path(folder) / "model.gopt", program, **parts)
            sizes[name] = path.stat().st_size
            runners[name] = artifact.load(path, threads=threads).run
        quantized = result.model if name == "quantized" else quantized
    row = {
        "artifact_ratio": sizes["quantized"] / sizes["float"],
        "weights_ratio": nbytes["quantized"] / nbytes["float"],
    }
    if not asked.seconds:
        return row
    bound = api.open_model(model, free)
    runners |= {f"{name}_float": run for name, run in open_rivals(["onnxruntime", *against], bound, threads).items()}
    runners |= {f"{name}_same": run for name, run in open_rivals(["onnxruntime", *against], quantized, threads).items()}
    if theirs is not None:
        bind_dims(theirs, free)
        runners["onnxruntime_quantized"] = oracle.Session(theirs, threads=threads, optimised=True).run
    rows = bench(runners, example, baseline="quantized", seconds=asked.seconds)
    for name, command in commands.items():  # apart: another process leaves cold caches to whoever comes next
        pair = {"quantized": runners["quantized"], name: Command(command, bound, threads), "": runners["quantized"]}
        rows.append(bench(pair, example, baseline="quantized", seconds=asked.seconds / 2)[1])
    return row | {
        "quantized_ms": rows[0].median_ms,
        **{f"ratio_vs_{row.name}": 1 / row.ratio for row in rows[1:]},
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
    parser.add_argument("--nncf", help="a Python that has nncf and openvino")
    asked = parser.parse_args()
    row: dict[str, Any] = {"model": asked.model, "recipe": asked.recipe}
    try:
        row |= measure(models.get(asked.model), asked.recipe, asked)
    except GraphoptError as error:
        row["error"] = str(error)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
