"""Compile the same models for every target, to artifacts in a folder: what test_determinism.py runs twice."""

import sys
from pathlib import Path

import numpy as np

from graphopt import artifact
from graphopt.api import build, open_model, run_opened
from graphopt.pipeline.presets import preset
from graphopt.pipeline.registry import make_target
from graphopt.testing import from_text

OPEN = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N,4,H,W] x, float[8,4,3,3] w, float[8,8,3,3] v, float[4] scales, int64[1] rest)
=> (float[N,8,A,B] y, float[N,C] z, float[N,8] d) {
    a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)
    b = Relu(a)
    c = Conv<strides=[2,2], pads=[1,1,1,1]>(b, v)
    e = Resize(c, , scales)
    y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(e)
    n = Shape<start=0, end=1>(x)
    s = Concat<axis=0>(n, rest)
    z = Reshape(e, s)
    p = GlobalAveragePool(e)
    d = Flatten(p)
}"""
PARTS = (
    OPEN.replace("int64[1] rest", "int64[1] rest, float[8,16] m, int64[3] square")
    .replace("float[N,8] d)", "float[N,8] d, float[N] t)")
    .replace("d = Flatten(p)", "d = Flatten(p) q = MatMul(d, m) u = Reshape(q, square) t = Det(u)")
)
FIXED, LISTED = {"N": 1, "H": 32, "W": 32}, {"N": [1, 8, (1, 64)]}
WAYS = {
    "open": (OPEN, "llvm", "O3", {}),
    "listed": (OPEN, "llvm", "O0", LISTED),
    "int8": (OPEN, "llvm", "int8", {}),
    "parts": (PARTS, "llvm", "O1", {}),
    "listed-parts": (PARTS, "llvm", "O0", LISTED),
    "cuda": (OPEN, "cuda{compiler=source}", "O0", {}),
    "npu-parts": (PARTS, "npu", "int8", FIXED),
}


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(8, 4, 3, 3)).astype(np.float32),
        "v": rng.normal(size=(8, 8, 3, 3)).astype(np.float32),
        "m": rng.normal(size=(8, 16)).astype(np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "rest": np.array([-1]),
        "square": np.array([0, 4, 4]),
    }
    feeds = [{"x": rng.normal(size=(1, 4, 32, 32)).astype(np.float32)} for _ in range(2)]
    for name, (text, target, level, dims) in WAYS.items():
        model = from_text(text, **{k: array for k, array in weights.items() if f" {k}" in text.split("=>")[0]})
        before = open_model(model, dims)
        result = run_opened(before, preset(level), calibration=feeds, verify=False, target=make_target(target))
        program, parts = build(before, result, target)
        artifact.write(folder / f"{name}.gopt", program, **parts)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
