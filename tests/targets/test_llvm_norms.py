"""Layer normalization however exporters write it out, along any axis; and what only looks like it."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt import oracle
from graphopt.targets.llvm.plan.norms import find_norms
from graphopt.testing import from_text, op_types, random_feeds

SIZES = {"half": [0.5], "zero": [0.0], "one": [1.0], "two": [2.0], "e": [1e-5]}
SQUARES = {
    "mean of squares less square of mean": """
        s = ReduceSum<keepdims = KEEP>(x, axis)  xx = Mul(x, x)  ss = ReduceSum<keepdims = KEEP>(xx, axis)
        m0 = Mul(s, part)  q = Mul(ss, part)  mm = Mul(m0, m0)  v0 = Sub(q, mm)""",
    "at least zero, divided": """
        s = ReduceSum<keepdims = KEEP>(x, axis)  xx = Pow(x, two)  ss = ReduceSum<keepdims = KEEP>(xx, axis)
        m0 = Div(s, count)  q = Div(ss, count)  mm = Pow(m0, two)  v1 = Sub(q, mm)  v0 = Max(zero, v1)""",
}
CENTRED = {
    "mean": """m0 = ReduceMean<axes = [AXIS], keepdims = 1>(x)  cc = Sub(x, m0)  xx = Pow(cc, two)
        v0 = ReduceMean<axes = [AXIS], keepdims = 1>(xx)""",
    "sum": """s = ReduceSum<keepdims = 1>(x, axis)  m0 = Div(s, count)  cc = Sub(x, m0)  xx = Mul(cc, cc)
        ss = ReduceSum<keepdims = 1>(xx, axis)  v0 = Mul(part, ss)""",
}
ENDS = {
    "divided": "c = Sub(x, m)  ve = Add(v, e)  r = Sqrt(ve)  n = Div(c, r)  a = Mul(n, scale)  y = Add(a, bias)",
    "factor first": """c = Sub(x, m)  ve = Add(e, v)  r = Sqrt(ve)  i = Reciprocal(r)  f = Mul(i, scale)  n = Mul(c, f)
        y = Add(n, bias)""",
    "inverse": """c = Sub(x, m)  ve = Add(v, e)  r = Sqrt(ve)  i = Div(one, r)  n = Mul(i, c)  a = Mul(n, scale)
        y = Add(bias, a)""",
    "bare": "c = Sub(x, m)  ve = Add(v, e)  r = Sqrt(ve)  y = Div(c, r)",
}


def text(dims, axis: int, statistics: str, end: str, keep: bool = True, reshape: str = "Reshape(V0, kept)"):
    """ONNX text, and the arrays it reads."""
    size, rng = dims[axis], np.random.default_rng(0)
    affine = [size if i == axis else 1 for i in range(len(dims))][axis:]
    arrays = {name: np.array(v, np.float32) for name, v in SIZES.items()} | {
        "axis": np.array([axis]), "part": np.array(1 / size, np.float32), "count": np.array(size, np.float32),
        "kept": np.array([1 if i == axis else d for i, d in enumerate(dims)]),
        "scale": rng.standard_normal(affine).astype(np.float32), "bias": rng.standard_normal(affine).astype(np.float32),
    }  # fmt: skip
    kinds = {name: str(array.dtype).replace("float32", "float") for name, array in arrays.items()}
    declared = [
        f"{kinds[name]}{list(array.shape) if array.ndim else ''} {name}".replace(" ", "", array.ndim)
        for name, array in arrays.items()
    ]
    back = ["m", "v"] if not keep else []
    body = statistics.replace("KEEP", str(int(keep))).replace("AXIS", str(axis))
    body += "".join(f"  {name} = {reshape.replace('V0', name + '0')}" for name in back)
    body += "" if back else "  m = Identity(m0)  v = Identity(v0)"
    shape = f"float{list(dims)}".replace(" ", "")
    return f"g ({shape} x, {', '.join(declared)}) => ({shape} y) {{ {body}  {end} }}", arrays


def model_of(body: str, arrays: dict):
    model = from_text(f'<ir_version: 9, opset_import: ["": 17]>\n{body}', **arrays)
    for node in list(model.graph):
        if node.op_type == "Identity":
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)
    return model


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("spelling", "keep"), [*((s, keep) for s in SQUARES for keep in (True, False)), *((s, True) for s in CENTRED)]
)
def test_every_spelling_is_one_operator(spelling: str, keep: bool, end: str):
    statistics = (SQUARES | CENTRED)[spelling]
    model = model_of(*text((2, 3, 20), 2, statistics, ENDS[end], keep))
    feeds = random_feeds(model)
    want = oracle.run(model, feeds)["y"]
    find_norms(model)
    assert op_types(model) == ["LayerNormalization"]
    np.testing.assert_allclose(oracle.run(model, feeds)["y"], want, rtol=1e-4, atol=1e-5)
    across = model_of(*text((2, 20, 3), 1, statistics, ENDS[end], keep))
    find_norms(across)
    assert op_types(across) == ["LayerNormAcross"]


def test_another_number_of_elements_is_no_mean():
    body, arrays = text((2, 3, 20), 2, SQUARES["mean of squares less square of mean"], ENDS["divided"])
    model = model_of(body, arrays | {"part": np.array(1 / 19, np.float32)})
    before = op_types(model)
    find_norms(model)
    assert op_types(model) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("xx = Mul(x, x)", "x3 = Mul(x, half)  xx = Mul(x, x3)", id="squares of something else"),
        pytest.param("v0 = Sub(q, mm)", "v0 = Add(q, mm)", id="a sum"),
        pytest.param("v0 = Sub(q, mm)", "v0 = Sub(mm, q)", id="the wrong way round"),
        pytest.param("v0 = Sub(q, mm)", "v1 = Sub(q, mm)  v0 = Max(v1, half)", id="at least one half"),
        pytest.param("mm = Mul(m0, m0)", "mm = Mul(m0, s)", id="sum times mean"),
        pytest.param("m0 = Mul(s, part)", "m0 = Div(part, s)", id="inverse of the mean"),
        pytest.param("c = Sub(x, m)", "c = Sub(x, s)", id="less the sum"),
        pytest.param("c = Sub(x, m)", "c = Sub(m, x)", id="mean less value"),
        pytest.param("n = Div(c, r)", "n = Div(r, c)", id="inverse"),
        pytest.param("n = Div(c, r)", "n = Mul(c, r)", id="times the root"),
    ],
)
def test_what_only_looks_like_it_stays(old: str, new: str):
    body, arrays = text((2, 3, 20), 2, SQUARES["mean of squares less square of mean"], ENDS["divided"])
    assert old in body
    model = model_of(body.replace(old, new), arrays)
    before = op_types(model)
    find_norms(model)
    assert not {"LayerNormalization", "LayerNormAcross"} & set(op_types(model))
    assert op_types(model) == before


def test_statistics_without_their_axis_meet_other_rows():
    """A square image's row statistics, not kept as an axis, are subtracted from columns: nothing to find."""
    statistics = SQUARES["mean of squares less square of mean"].replace("KEEP", "0")
    body, arrays = text((20, 20), 1, statistics, ENDS["divided"])
    model = model_of(body, arrays)
    before = op_types(model)
    find_norms(model)
    assert op_types(model) == before


@settings(
    phases=[Phase.explicit, Phase.generate], max_examples=6, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    st.integers(1, 3), st.integers(1, 150), st.integers(2, 90), st.sampled_from(["native", "x86-64-v3"]), st.booleans()
)
def test_kernel_across_rows(check, n: int, size: int, inner: int, mcpu: str, square: bool):
    """Along an axis in front of others, of any sizes; the mean is ten times the deviation."""
    dims = (n, size, 3, inner) if square else (n, size, inner)
    body, arrays = text(dims, 1, CENTRED["mean"], ENDS["divided"])
    x = np.random.default_rng(1).normal(10, 1, dims).astype(np.float32)
    check(body, mcpu, None, feeds={"x": x}, rtol=3e-5, **arrays)


def test_kernel_across_rows_of_an_open_batch(check):
    body, arrays = text((2, 33, 20), 1, CENTRED["mean"], ENDS["factor first"])
    check(body.replace("float[2,33,20] ", "float[N,33,20] "), left=None, rtol=3e-5, **arrays,
          feeds={"x": np.random.default_rng(1).standard_normal((4, 33, 20)).astype(np.float32)})  # fmt: skip
