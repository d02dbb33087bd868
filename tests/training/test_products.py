"""What training computes outside of TVM: convolutions and pools against onnxruntime, gradients as transposes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from graphopt.training import depthwise, pools, products
from graphopt.training.window import Window

FEW = settings(max_examples=40, deadline=None)


@st.composite
def problems(draw, by_channel=False):
    """A window, groups, and arrays x, weight of one, two or three axes of space."""
    rank = draw(st.integers(1, 3))
    axis = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2), st.integers(1, 2))
    each = [draw(axis) for _ in range(rank)]
    kernel, strides, begin, end, dilations = (tuple(column) for column in zip(*each, strict=True))
    window = Window(kernel, strides, begin, end, dilations)
    least = [max(1, d * (k - 1) + 1 - b - e) for k, b, e, d in zip(kernel, begin, end, dilations, strict=True)]
    space = [low + draw(st.integers(0, 4)) for low in least]
    n, groups = draw(st.integers(1, 3)), draw(st.integers(2 if by_channel else 1, 3))
    per, outs = (1, 1) if by_channel else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    x = rng.standard_normal((n, groups * per, *space)).astype(np.float32)
    weight = rng.standard_normal((groups * outs, per, *kernel)).astype(np.float32)
    return window, groups, x, weight


def run(op, inputs, **attributes):
    """What onnxruntime computes."""
    import onnxruntime

    names = [f"i{k}" for k in range(len(inputs))]
    node = helper.make_node(op, names, ["y"], **attributes)
    values = [helper.make_tensor_value_info(n, 1, a.shape) for n, a in zip(names, inputs, strict=True)]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", 1, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


def attributes(window, **more):
    return {
        "kernel_shape": window.kernel,
        "strides": window.strides,
        "pads": [*window.begin, *window.end],
        "dilations": window.dilations,
        **more,
    }


def scaled(a, b):
    """|a - b| beside the size of what was summed."""
    return np.abs(a - b).max() / (np.abs(b).max() + 1)


@pytest.mark.parametrize("by_channel", [False, True])
@FEW
@given(data=st.data())
def test_convolutions(by_channel, data):
    """The convolution is onnxruntime's, and both gradients are its transposes: <dy, conv(x, w)> = <dx, x> = <dw, w>."""
    window, groups, x, weight = data.draw(problems(by_channel))
    y = np.empty((len(x), len(weight), *window.out(x.shape[2:])), np.float32)
    dx, dw = np.empty_like(x), np.empty_like(weight)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    if by_channel:
        depthwise.conv(window, x, weight, y)
        depthwise.input_gradient(window, dy, weight, dx)
        depthwise.weight_gradient(window, x, dy, dw)
    else:
        products.conv(window, x, weight, y, groups)
        products.conv_input_gradient(window, dy, weight, dx, groups)
        products.conv_weight_gradient(window, x, dy, dw, groups)
    assert scaled(y, run("Conv", [x, weight], **attributes(window, group=groups))) < 1e-5
    size = np.linalg.norm(y) * np.linalg.norm(dy) + 1
    assert abs(np.vdot(y, dy) - np.vdot(dx, x)) < 1e-5 * size
    assert abs(np.vdot(y, dy) - np.vdot(dw, weight)) < 1e-5 * size


def test_convolutions_in_parts(monkeypatch):
    """Columns made for a few samples at a time give what all at once give."""
    rng, window = np.random.default_rng(0), Window((3, 3), (1, 2), (1, 1), (1, 1), (1, 1))
    x, weight = rng.standard_normal((7, 4, 9, 8)).astype("f"), rng.standard_normal((6, 2, 3, 3)).astype("f")
    dy = rng.standard_normal((7, 6, *window.out((9, 8)))).astype("f")

    def all_three():
        y, dw, dx = np.empty_like(dy), np.empty_like(weight), np.empty_like(x)
        products.conv(window, x, weight, y, 2)
        products.conv_weight_gradient(window, x, dy, dw, 2)
        products.conv_input_gradient(window, dy, weight, dx, 2)
        return y, dw, dx

    whole = all_three()
    monkeypatch.setattr(products, "COLUMNS", 3 * 4 * 9 * 36)
    for part, one in zip(all_three(), whole, strict=True):
        np.testing.assert_allclose(part, one, rtol=1e-4, atol=1e-4)


@FEW
@given(problem=problems(), include=st.booleans())
def test_pools(problem, include):
    """Pools are onnxruntime's; the gradient of an average is its transpose, that of a maximum goes where it was."""
    window, _, x, _ = problem
    if any(2 * p > k for p, k in zip((*window.begin, *window.end), window.kernel * 2, strict=True)):
        return  # onnxruntime refuses margins of half a window and more
    y, dx = np.empty((*x.shape[:2], *window.out(x.shape[2:])), np.float32), np.empty_like(x)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    pools.average_pool(window, include, x, y)
    assert scaled(y, run("AveragePool", [x], **attributes(window, count_include_pad=int(include)))) < 1e-5
    pools.average_pool_gradient(window, include, dy, dx)
    assert abs(np.vdot(y, dy) - np.vdot(dx, x)) < 1e-4 * (np.linalg.norm(y) * np.linalg.norm(dy) + 1)
    pools.max_pool(window, x, y)
    np.testing.assert_array_equal(y, run("MaxPool", [x], **attributes(window)))
    pools.max_pool_gradient(window, x, y, dy, dx)
    assert abs(np.vdot(y, dy) - np.vdot(dx, x)) < 1e-4 * (np.linalg.norm(y) * np.linalg.norm(dy) + 1)


def test_max_pool_shares_nothing():
    """Of equal largest values the first gets the gradient, all of it."""
    window, x = Window((2, 2), (2, 2), (0, 0), (0, 0), (1, 1)), np.ones((1, 1, 2, 4), np.float32)
    y, dx = np.ones((1, 1, 1, 2), np.float32), np.empty((1, 1, 2, 4), np.float32)
    pools.max_pool_gradient(window, x, y, np.array([[[[3.0, 5.0]]]], np.float32), dx)
    np.testing.assert_array_equal(dx[0, 0], [[3, 0, 5, 0], [0, 0, 0, 0]])
