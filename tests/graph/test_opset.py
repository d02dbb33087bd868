"""Raising the opset changes no result: each operator whose form changed between 13 and 21."""

import numpy as np
import pytest

from graphopt import oracle
from graphopt.errors import ModelError
from graphopt.graph import normalise, sources
from graphopt.graph.opset import raise_opset
from graphopt.testing import from_text

BODIES = {
    "reduce": ("float[2]", "m = ReduceMean <axes = [1, 3]> (x)\n y = ReduceMax <axes = [1,2,3], keepdims = 0> (m)"),
    "reduce-all": ("float", "y = ReduceMin <keepdims = 0> (x)"),
    "sum": ("float[2,4,6]", "y = ReduceSum <keepdims = 0> (x, axes)"),
    "split": ("float[2,2,6,6]", "a, b = Split <axis = 1> (x)\n y = Mul (a, b)"),
    "split-sizes": ("float[2,4,6,6]", "a, b = Split <axis = 1> (x, sizes)\n y = Concat <axis = 1> (b, a)"),
    "pool": ("float[2,4,6,6]", "y = AveragePool <kernel_shape = [2,2], pads = [1,1,0,0]> (x)"),
    "softmax": ("float[2,4,6,6]", "y = Softmax <axis = 1> (x)"),
}


def build(name, opset=13):
    out, body = BODIES[name]
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g (float[2,4,6,6] x, int64[1] axes, int64[2] sizes) => '
    return from_text(f"{text} ({out} y) {{ {body} }}", axes=np.array([2]), sizes=np.array([1, 3]))


@pytest.mark.parametrize("name", BODIES)
def test_results_stay(name):
    before = build(name)
    after = before.clone()
    raise_opset(after, 21)
    normalise(after)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    np.testing.assert_allclose(oracle.run(after, feeds)["y"], oracle.run(before, feeds)["y"], rtol=1e-6, atol=1e-7)
    assert after.graph.opset_imports[""] == 21
    assert [sources(n) for n in after.graph] == [sources(n) for n in before.graph]


def test_a_split_whose_sizes_are_named_empty():
    """An optional input may be left out, or be there without a name."""
    before = build("split")
    after = before.clone()
    next(iter(after.graph)).resize_inputs(2)
    raise_opset(after, 21)
    normalise(after)
    feeds = {"x": np.arange(288, dtype=np.float32).reshape(2, 4, 6, 6)}
    np.testing.assert_array_equal(oracle.run(after, feeds)["y"], oracle.run(before, feeds)["y"])


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_sampling_keeps_its_mode_whatever_it_is_called(mode):
    before = from_text(
        '<ir_version: 8, opset_import: ["": 16]> g (float[1,2,5,5] x, float[1,3,4,2] grid) => (float[1,2,3,4] y) '
        f'{{ y = GridSample<mode="{mode}">(x, grid) }}'
    )
    keeps(before, x=(1, 2, 5, 5), grid=(1, 3, 4, 2))


def test_regions_keep_their_old_coordinates():
    before = from_text(
        '<ir_version: 8, opset_import: ["": 13]> g (float[1,2,8,8] x, float[2,4] r, int64[2] b) => (float[2,2,3,3] y) '
        "{ y = RoiAlign<output_height=3, output_width=3>(x, r, b) }",
        r=np.float32([[1, 1, 6, 5], [0, 2, 7, 7]]),
        b=np.array([0, 0]),
    )
    keeps(before, x=(1, 2, 8, 8))


def keeps(before, **shapes):
    after = before.clone()
    raise_opset(after, 21)
    normalise(after)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    np.testing.assert_allclose(oracle.run(after, feeds)["y"], oracle.run(before, feeds)["y"], rtol=1e-6, atol=1e-7)


def test_inside_a_branch_too():
    before = from_text(
        '<ir_version: 8, opset_import: ["": 13]> g (bool c, float[2,3] x) => (float[2,1] y) { y = If (c) <'
        "then_branch = t () => (float[2,1] p) { p = ReduceMax <axes = [1]> (x) },"
        "else_branch = e () => (float[2,1] q) { q = ReduceMin <axes = [-1]> (x) }> }"
    )
    after = before.clone()
    raise_opset(after, 18)
    for c in (True, False):
        feeds = {"c": np.array(c), "x": np.float32([[1, 2, 3], [6, 5, 4]])}
        np.testing.assert_array_equal(oracle.run(after, feeds)["y"], oracle.run(before, feeds)["y"])


def test_a_newer_model_is_left_and_what_cannot_be_carried_over_is_refused():
    model = build("softmax", 22)
    raise_opset(model, 21)
    assert model.graph.opset_imports[""] == 22
    model = build("reduce-all", 17)
    next(iter(model.graph)).op_type = "DFT"
    with pytest.raises(ModelError, match="DFT"):
        raise_opset(model, 21)
