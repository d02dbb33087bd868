"""Normalisations over channels that are spelled out: their sums are layers while channels go, and sums again after."""

import numpy as np
import pytest

from graphopt import oracle
from graphopt.base import Context
from graphopt.data import open_data
from graphopt.graph import constant_array, infer_shapes
from graphopt.passes.channels.sums import as_layers, as_sums
from graphopt.passes.prune_channels import PruneChannels
from graphopt.testing import apply, from_text, op_types

SUMS = {
    "sums without their axis": (
        "s = ReduceSum<keepdims=0>(h, last)  m0 = Mul(s, share)  m = Unsqueeze(m0, last)  h2 = Mul(h, h)"
        "  q = ReduceSum<keepdims=0>(h2, last)  v0 = Mul(q, share)  v = Unsqueeze(v0, last)",
        17,
    ),
    "means by attribute": ("m = ReduceMean<axes=[-1]>(h)  h2 = Mul(h, h)  v = ReduceMean<axes=[1]>(h2)", 17),
    "means by operand": ("m = ReduceMean(h, last)  h2 = Mul(h, h)  v = ReduceMean(h2, last)", 18),
}


def normalised(sums, opset, width=24, hidden=24, first="g = Gemm(x, a, b)  h = Relu(g)"):
    """LayerNormalization of a hidden layer whose channels are made of 6 directions."""
    rng = np.random.default_rng(0)
    low = rng.standard_normal((width, 6)) @ rng.standard_normal((6, hidden)) / 5
    arrays = {
        "a": low.astype(np.float32), "b": np.full(hidden, 2.0, np.float32), "share": np.array(1 / hidden, np.float32),
        "small": np.array(1e-5, np.float32), "scale": rng.uniform(0.5, 1.5, (1, hidden)).astype(np.float32),
        "w": rng.standard_normal((hidden, 5)).astype(np.float32), "c": np.zeros(5, np.float32), "last": np.array([1]),
    }  # fmt: skip
    kinds = {"f": "float", "i": "int64"}
    declared = [f"{kinds[a.dtype.kind]}{list(a.shape) if a.ndim else ''} {name}" for name, a in arrays.items()]
    body = (
        f"{first} {sums} mm = Mul(m, m)  var = Sub(v, mm)  vs = Add(var, small)  dev = Sqrt(vs)  centred = Sub(h, m)"
        "  unit = Div(centred, dev)  scaled = Mul(unit, scale)  y = Gemm(scaled, w, c)"
    )
    model = from_text(
        f'<ir_version: 9, opset_import: ["": {opset}]> g (float[N,{width}] x, {", ".join(declared)}) => (float[N,5] y) '
        f"{{ {body} }}",
        **arrays,
    )
    for node in model.graph:
        node.name = node.outputs[0].name
    infer_shapes(model)
    return model


def data(n=256, width=24):
    return {"x": np.random.default_rng(1).standard_normal((n, width)).astype(np.float32)}


@pytest.mark.parametrize("form", SUMS)
def test_sums_become_layers_and_sums_again(form):
    model = normalised(*SUMS[form])
    before, names = op_types(model), [node.name for node in model.graph]
    y = oracle.run(model, data())["y"]
    made = as_layers(model.graph)
    assert len(made) == 2
    assert not {"ReduceSum", "ReduceMean"} & set(op_types(model))
    np.testing.assert_allclose(oracle.run(model, data())["y"], y, rtol=1e-4, atol=1e-4)
    as_sums(model.graph, made)
    assert op_types(model) == before
    assert [node.name for node in model.graph] == names
    np.testing.assert_allclose(oracle.run(model, data())["y"], y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", SUMS)
def test_channels_go_and_the_mean_is_that_of_all(form):
    """Magika: nothing could be taken out. Without weights of its own the mean would be of those that stay."""
    model = normalised(*SUMS[form])
    context = Context(calibration=open_data(data(), model))
    after, _ = apply(PruneChannels(ratio=0.5, round_to=1), model, context)
    assert constant_array(after.graph.initializers["w"]).shape == (12, 5)
    fresh = {"x": np.random.default_rng(2).standard_normal((200, 24)).astype(np.float32)}
    wanted, given = (oracle.run(m, fresh)["y"] for m in (model, after))
    error = np.square(given - wanted).sum() / np.square(wanted - wanted.mean(axis=0)).sum()
    assert error < 0.1
    bare, _ = apply(PruneChannels(ratio=0.5, round_to=1, recover=False, criterion="l2"), model, Context())
    assert constant_array(bare.graph.initializers["w"]).shape == (24, 5)  # nothing to fit a mean of all on: they stay
    assert op_types(bare) == op_types(model)


def test_where_no_channel_can_go_sums_stay_as_they_are():
    """The channels normalised are those of the input."""
    model = normalised(SUMS["means by attribute"][0], 17, first="h = Relu(x)")
    before = op_types(model)
    assert as_layers(model.graph) == {}
    assert op_types(model) == before
