"""OpenVINO's own quantizer, NNCF, set as its guide says; runs in an environment that has nncf and openvino.

    by_nncf.py quantize MODEL.onnx RECIPE SAMPLES OUT.xml     SAMPLES: a folder of .npz, one for each batch
    by_nncf.py outputs OUT.xml SAMPLES RESULTS                the outputs of each batch, under the same name
    by_nncf.py time OUT.xml INPUTS.npz THREADS                a run for each line on stdin

Nothing of graphopt is imported: `one_quantized.py` starts it with the interpreter that ``--nncf`` names.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov  # pyright: ignore[reportMissingImports]

SETTINGS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}


def batches(folder: str) -> list[Path]:
    """The files of the batches, in order."""
    return sorted(Path(folder).glob("*.npz"), key=lambda path: int(path.stem))


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a batch by name."""
    with np.load(path) as arrays:
        return dict(arrays)


def attends(model: Any) -> bool:
    """Whether a softmax goes into a product of matrices: NNCF wants to be told that a model is a transformer."""
    softmaxes = [op for op in model.get_ops() if op.get_type_name() == "Softmax"]
    readers = [read.get_node() for op in softmaxes for read in op.output(0).get_target_inputs()]
    return any(reader.get_type_name() == "MatMul" for reader in readers)


def quantize(model: str, recipe: str, samples: str, out: str) -> None:
    """Static int8 by calibration, or weights of 4 bits in groups of 32."""
    import nncf  # pyright: ignore[reportMissingImports]

    opened = ov.Core().read_model(model)
    if recipe.startswith("int4"):
        done = nncf.compress_weights(opened, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=32)
    else:
        files, kind = batches(samples), nncf.ModelType.TRANSFORMER if attends(opened) else None
        done = nncf.quantize(opened, nncf.Dataset(files, read), subset_size=len(files), model_type=kind)
    ov.save_model(done, out, compress_to_fp16=False)


def outputs(model: str, samples: str, results: str) -> None:
    """What the model gives for each batch."""
    run = ov.Core().compile_model(model, "CPU", SETTINGS | {"INFERENCE_NUM_THREADS": 1})
    for path in batches(samples):
        found = run(read(path))
        np.savez(Path(results) / path.name, **{output.any_name: found[output] for output in run.outputs})


def time(model: str, inputs: str, threads: str) -> None:
    """Run once for each line, as a rival that is a command does (`graphopt.measure.command`)."""
    feeds = read(Path(inputs))
    opened = ov.Core().read_model(model)
    opened.reshape({name: array.shape for name, array in feeds.items()})
    request = ov.Core().compile_model(opened, "CPU", SETTINGS | {"INFERENCE_NUM_THREADS": int(threads)})
    request = request.create_infer_request()
    for _ in sys.stdin:
        request.infer(feeds, share_inputs=True)
        print("done", flush=True)


if __name__ == "__main__":
    {"quantize": quantize, "outputs": outputs, "time": time}[sys.argv[1]](*sys.argv[2:])
