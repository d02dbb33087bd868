"""Open sizes that are equal only when the model runs: right for each size, and refused where ONNX refuses."""

import numpy as np
import pytest

import graphopt
from graphopt import models, oracle
from graphopt.api import open_model
from graphopt.errors import DataError, ModelError
from graphopt.testing import from_text

RNG = np.random.default_rng(0)
HEAD = '<ir_version: 9, opset_import: ["": 19]>'
GRAPHS = {
    "add, one repeated": ("g (float[N,T] a, float[M,T] b) => (float[K,T] y) { c = Add(a, b) y = Relu(c) }",
        [((2, 3), (2, 3)), ((1, 3), (4, 3)), ((4, 3), (1, 3)), ((1, 3), (1, 3)), ((4, 3), (3, 3)), ((3, 3), (4, 3))]),
    "twice": ("g (float[N,T] a, float[M,U] b) => (float[K,L] y) { c = Add(a, b) y = Mul(c, b) }",
        [((2, 3), (2, 3)), ((1, 3), (4, 1)), ((4, 1), (4, 7)), ((4, 3), (3, 3))]),
    "of unequal rank": ("g (float[N,T,4] a, float[U,4] b) => (float[N,K,4] y) { y = Sub(b, a) }",
        [((2, 3, 4), (3, 4)), ((2, 1, 4), (3, 4)), ((2, 3, 4), (1, 4)), ((2, 3, 4), (2, 4))]),
    "three": ("g (float[N] a, float[M] b, float[L] c) => (float[K] y) { y = Max(a, b, c) }",
        [((3,), (3,), (3,)), ((1,), (3,), (1,)), ((1,), (1,), (5,)), ((2,), (1,), (3,))]),
    "concat": ("g (float[N,T] a, float[M,U] b) => (float[K,L] y) { y = Concat<axis=1>(a, b) }",
        [((2, 3), (2, 5)), ((1, 3), (1, 1)), ((1, 3), (4, 1)), ((4, 3), (1, 3))]),
    "concat with a number": ("g (float[N,T] a, float[2,U] b) => (float[2,L] y) { y = Concat<axis=-1>(a, b) }",
        [((2, 3), (2, 5)), ((1, 3), (2, 1))]),
    "pyramid": ("""g (float[N,3,H,W] a, float[4,3,3,3] k, float[4,4,3,3] l, float[4] s) => (float[N,8,P,Q] y) {
            c = Conv<strides=[2, 2], pads=[1, 1, 1, 1]>(a, k)
            d = Conv<strides=[2, 2], pads=[1, 1, 1, 1]>(c, l)
            e = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(d, , s)
            f = Add(c, e)
            y = Concat<axis=1>(f, e)
        }""",
        [((1, 3, 16, 16),), ((2, 3, 32, 8),), ((1, 3, 15, 19),), ((1, 3, 6, 4),)]),
}  # fmt: skip
WEIGHTS = {"pyramid": {
    "k": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "l": RNG.normal(size=(4, 4, 3, 3)).astype(np.float32),
    "s": np.array([1, 1, 2, 2], np.float32),
}}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_it_computes_what_onnx_does_and_refuses_what_onnx_does(name):
    text, cases = GRAPHS[name]
    model = from_text(HEAD + text, **WEIGHTS.get(name, {}))
    refused = 0
    with graphopt.compile(model, fallback=False) as program:
        for shapes in cases:
            values = [RNG.normal(size=shape).astype(np.float32) for shape in shapes]
            feeds = dict(zip((spec.name for spec in program.inputs), values, strict=True))
            try:
                want = oracle.run(model, feeds)["y"]
            except (DataError, ModelError):
                refused += 1
                with pytest.raises(DataError, match=r"don't fit together: inside the model \d+ meets \d+"):
                    program.run(feeds)
                continue
            np.testing.assert_allclose(program.run(feeds)["y"], want, rtol=1e-4, atol=1e-4)
    assert refused < len(cases)
    assert refused or name == "pyramid"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("ocr-recogniser", [(1, 3, 48, 320), (3, 3, 48, 100)]),
        ("ocr-detector", [(1, 3, 64, 64), (2, 3, 96, 160)]),
        ("minilm-l3", [(1, 7), (3, 20)]),
        ("magika", [(1, 2048), (3, 2048)]),
        ("angle-classifier", [(2, 3, 48, 192), (1, 3, 48, 96)]),
    ],
)
def test_reference_models_compile_with_all_their_sizes_open(name, shapes):
    path = models.get(name).path()
    model = open_model(path)
    with graphopt.compile(path, fallback=False) as program:
        for shape in shapes:
            feeds = {}
            for spec in program.inputs:
                integer = np.issubdtype(np.dtype(spec.dtype), np.integer)
                array = RNG.integers(1, 200, shape) if integer else RNG.normal(size=shape)
                feeds[spec.name] = (np.ones(shape) if "mask" in spec.name else array).astype(spec.dtype)
            for output, want in oracle.run(model, feeds).items():
                np.testing.assert_allclose(program.run(feeds)[output], want, rtol=1e-3, atol=1e-4)
