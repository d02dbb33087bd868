"""Programs called without the virtual machine: which ones, that they give the same, and what a call checks."""

import ml_dtypes
import numpy as np
import onnx
import pytest

import graphopt
from graphopt import artifact, oracle
from graphopt.artifact.checks import REMEMBERED
from graphopt.artifact.direct import Direct
from graphopt.artifact.manifest import DirectSpec
from graphopt.errors import ArtifactError, DataError
from graphopt.testing import from_text, random_feeds

HEADER = '<ir_version: 10, opset_import: ["": 20]>'
SEVERAL = """several (float[1,8,6,6] x, float[8,8,3,3] w, int64[1,4] k)
  => (float[1,8,1,1] y, float[48,6] z, int64[2,2] m) {
   c = Conv <pads=[1,1,1,1]> (x, w)
   r = Relu(c)
   y = GlobalAveragePool(r)
   s = Sigmoid(c)
   rows = Constant <value_ints=[48, 6]> ()
   z = Reshape(s, rows)
   square = Constant <value_ints=[2, 2]> ()
   a = Add(k, k)
   m = Reshape(a, square)
}"""
CHAIN = """chain (float[N,16] x, float[N,4] z, float[16,4] w) => (float[N,4] y) {
   h = MatMul(x, w)
   g = Relu(h)
   y = Add(g, z)
}"""
W = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)


def compiled(text, target="llvm{threads=1}", **arrays):
    return graphopt.compile(from_text(HEADER + text, **arrays), target, "", verify=False)


def chain(dims=None):
    model = from_text(HEADER + CHAIN, w=W.reshape(-1)[:64].reshape(16, 4))
    return graphopt.compile(model, "llvm{threads=1}", "", dims=dims, verify=False)


def feeds_of(n):
    return {"x": np.ones((n, 16), np.float32), "z": np.ones((n, 4), np.float32)}


def by_virtual_machine(program, feeds):
    calls = []
    program.instrument(lambda *_: calls.append(1))
    result = program.run(feeds)
    program.instrument(None)
    assert calls
    return result


@pytest.mark.parametrize("target", ["llvm{threads=1}", "llvm"])
def test_gives_the_virtual_machines_results_bit_for_bit(target, tmp_path):
    text, arrays = SEVERAL, {"w": W}
    made = compiled(text, target, **arrays)
    assert made.manifest.direct is not None
    program = artifact.load(made.save(tmp_path / "model.gopt"))
    feeds = random_feeds(from_text(HEADER + text, **arrays))
    want = by_virtual_machine(program, feeds)
    first = program.run(feeds)
    kept = {name: array.copy() for name, array in first.items()}
    program.run({name: 2 * array for name, array in feeds.items()})
    for name, array in want.items():
        np.testing.assert_array_equal(first[name], array)
        np.testing.assert_array_equal(first[name], kept[name])  # results are the caller's own
        assert (first[name].dtype, first[name].shape) == (array.dtype, array.shape)


def test_inputs_may_lie_anywhere():
    program = compiled(SEVERAL, w=W)
    feeds = random_feeds(from_text(HEADER + SEVERAL, w=W))
    want = program.run(feeds)
    odd = np.asfortranarray(np.repeat(feeds["x"], 2, axis=3))[..., ::2]
    odd.flags.writeable = False
    np.testing.assert_array_equal(program.run(feeds | {"x": odd})["z"], want["z"])


@pytest.mark.parametrize(
    "text",
    [
        "same (float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Exp(x) z = Identity(x) }",
        "twice (float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Exp(x) z = Identity(y) }",
        "empty (float[0,3] x) => (float[0,3] y) { y = Exp(x) }",
        "halves (bfloat16[2,8] x) => (bfloat16[2,8] y) { y = Relu(x) }",
        "counted (float[3,4] x) => (int64[2,K] y) { y = NonZero(x) }",
        "constant (float[2] x) => (float[2] y, int64[2] z) { y = Exp(x) z = Constant <value_ints=[3, 4]> () }",
    ],
)
def test_what_can_not_be_called_so_runs_as_before(text):
    model = from_text(HEADER + text)
    program = graphopt.compile(model, "llvm{threads=1}", "", verify=False)
    feeds = random_feeds(model)
    want = by_virtual_machine(program, feeds)
    for _ in range(2):
        for name, array in program.run(feeds).items():
            np.testing.assert_array_equal(array, want[name])


def test_open_sizes_need_the_virtual_machine_and_listed_ones_do_not():
    open_, listed = chain(), chain({"N": "2,*"})
    assert open_.manifest.direct is None
    assert listed.manifest.variants[0].parts[0].direct is not None
    only = chain({"N": "2,3"})
    assert only.manifest.variants[0].parts[0].direct is not None
    assert only.manifest.direct is not None
    for n in (2, 3, 2):
        for name, array in open_.run(feeds_of(n)).items():
            np.testing.assert_allclose(listed.run(feeds_of(n))[name], array, rtol=1e-6)
            np.testing.assert_allclose(only.run(feeds_of(n))[name], array, rtol=1e-6)


def test_shapes_that_came_before_are_checked_like_all_others():
    program = chain({"N": "1:100"})
    for n in (*range(1, REMEMBERED + 3), 2):
        assert program.run(feeds_of(n))["y"].shape == (n, 4)
    for wrong, said in (
        (feeds_of(101), "must be"),
        (feeds_of(2) | {"z": np.ones((3, 4), np.float32)}, "already 2"),
        (feeds_of(2) | {"x": np.ones((2, 16))}, "float64"),
        (feeds_of(2) | {"x": np.ones((2, 16), ">f4")}, "expects"),
        ({"x": feeds_of(2)["x"]}, "missing 'z'"),
        ({"x": feeds_of(2)["x"], "q": feeds_of(2)["z"]}, "unknown 'q'"),
        (feeds_of(2) | {"q": 1}, "unknown 'q'"),
    ):
        with pytest.raises(DataError, match=said):
            program.run(wrong)
    assert program.run({name: array.tolist() and array for name, array in feeds_of(2).items()})["y"].shape == (2, 4)


def test_a_manifest_that_says_otherwise_is_refused():
    program = compiled(SEVERAL, w=W)
    spec = program.manifest.direct
    assert spec is not None
    weight = next(k for k, (kind, *_) in enumerate(spec.arguments) if kind == "weight")
    for wrong in (
        {"function": "absent"},
        {"arguments": [("output", 7, [1]), *spec.arguments[1:]]},
        {"arguments": [("input", 0, [5]), *spec.arguments[1:]]},
        {"arguments": [("weight", spec.arguments[weight][1], [9])]},
    ):
        with pytest.raises(ArtifactError, match="can't be called"):
            Direct(
                program._session, DirectSpec.model_validate(spec.model_dump() | wrong), program.inputs, program.outputs
            )


def test_an_input_that_is_not_read_may_have_open_sizes():
    program = compiled("alike (float[3] x, double[M] like) => (double[3] y) { y = CastLike(x, like) }")
    feeds = {"x": np.ones(3, np.float32), "like": np.zeros(5)}
    assert program.run(feeds)["y"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("name", "number"), [("int4", 22), ("uint4", 21), ("float8_e4m3fn", 17)])
def test_what_lies_otherwise_in_numpy_goes_the_long_way(name, number):
    text = "cast (float[3] x) => (float[3] y) { y = Cast <to=1> (x) }"
    proto = onnx.parser.parse_model(HEADER.replace("20", "21") + text)
    proto.graph.input[0].type.tensor_type.elem_type = number
    program = graphopt.compile(proto, "llvm{threads=1}", "", verify=False, fallback=False)
    x = np.array([1, -3 if name == "int4" else 3, 7], np.float32).astype(getattr(ml_dtypes, name))
    assert program.run({"x": x})["y"].tolist() == x.astype(np.float32).tolist()


def test_a_weight_that_is_read_as_another_shape_goes_the_long_way():
    text = "cube (float[1,2,4,4,4] x, float[3,2,2,2,2] w, float[3] b) => (float[1,3,3,3,3] y) { y = Conv(x, w, b) }"
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(3, 2, 2, 2, 2)).astype(np.float32), "b": rng.normal(size=3).astype(np.float32)}
    feeds = {"x": rng.normal(size=(1, 2, 4, 4, 4)).astype(np.float32)}
    model = from_text(HEADER + text, **arrays)
    got = graphopt.compile(model, "llvm{threads=1}", "", verify=False).run(feeds)["y"]
    np.testing.assert_allclose(got, oracle.run(model, feeds)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [{"N": 2}, None])
def test_results_of_a_call_are_the_callers_own(dims):
    """The places that the function writes to are kept: the next call must not change what the last one gave."""
    program = chain(dims)
    assert (program.manifest.direct is None) == (dims is None)
    first = program.run(feeds_of(2))["y"]
    before = first.copy()
    second = program.run({name: 3 * array for name, array in feeds_of(2).items()})["y"]
    assert not np.shares_memory(first, second)
    assert not np.array_equal(before, second)
    np.testing.assert_array_equal(first, before)
