"""What can't be lowered runs on onnxruntime inside the same artifact, and every way to run it gives what ONNX says."""

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt
from graphopt import oracle
from graphopt.errors import ArtifactError, DataError, LoweringError
from graphopt.graph import save
from graphopt.mixed.partition import partition
from graphopt.testing import from_text, random_feeds

RNG = np.random.default_rng(0)
MIXED = """
<ir_version: 9, opset_import: ["": 19]>
g (float[N,8] x, float[8,16] w, float[16,16] v, float[32,32] u, int64[3] s, int64 three)
=> (float[N] y, float[N,16] h) {
    a = MatMul(x, w)
    h = Relu(a)
    b = MatMul(h, v)
    c = Reshape(b, s)
    d = Det(c)
    f = ReduceMax<keepdims=0>(x)
    e = Loop<body=body (int64 i, bool go, float k) => (bool on, float l) {
        on = Identity(go)
        r = ReduceSum<keepdims=0>(u)
        l = Add(k, r)
    }>(three, , f)
    y = Mul(d, e)
}
"""


@pytest.fixture(scope="module")
def mixed():
    weights = {
        "w": RNG.normal(size=(8, 16)).astype(np.float32),
        "v": RNG.normal(size=(16, 16)).astype(np.float32),
        "u": RNG.normal(scale=0.2, size=(32, 32)).astype(np.float32),
        "s": np.array([-1, 4, 4], np.int64),
        "three": np.array(3, np.int64),
    }
    return from_text(MIXED, **weights)


@pytest.fixture(scope="module")
def artifact(mixed, tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed") / "mixed.gopt"
    graphopt.compile(mixed).save(path)
    return path


def agree(got, model, feeds):
    want = oracle.run(model, feeds)
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)


def test_the_rest_runs_compiled_for_every_batch(mixed, artifact):
    with graphopt.load(artifact) as program:
        assert [part.runs for part in program.manifest.parts] == ["library", "onnxruntime"]
        assert program.report["target"]["onnxruntime"]["reasons"].keys() >= {"Det (no converter)"}
        for rows in (1, 3, 8):
            x = RNG.normal(size=(rows, 8)).astype(np.float32)
            agree(program.run({"x": x}), mixed, {"x": x})
            agree(program.run({"x": x[::-1]}), mixed, {"x": x[::-1]})


def test_results_are_the_callers_own(artifact):
    x = RNG.normal(size=(2, 8)).astype(np.float32)
    with graphopt.load(artifact) as program:
        first = program.run({"x": x})
        kept = {name: array.copy() for name, array in first.items()}
        program.run({"x": -x})
        for name, array in first.items():
            np.testing.assert_array_equal(array, kept[name])
            array[...] = 0


def test_an_input_that_is_an_output_is_copied():
    model = from_text(
        '<ir_version: 9, opset_import: ["": 19]> g (float[N,4,4] x, float[4] w) => (float[N,4,4] x, float[N] y, '
        "float[N,4,4] z) { y = Det(x) z = Mul(x, w) }",
        w=np.ones(4, np.float32),
    )
    feeds = {"x": RNG.normal(size=(2, 4, 4)).astype(np.float32)}
    with graphopt.compile(model) as program:
        assert program.manifest.parts
        out = program.run(feeds)
    np.testing.assert_array_equal(out["x"], feeds["x"])
    assert not np.shares_memory(out["x"], feeds["x"])


def test_weights_of_onnx_parts_are_mapped_once(artifact):
    with graphopt.load(artifact) as program:
        (onnx_part,) = (part for part in program.manifest.parts if part.runs == "onnxruntime")
        assert onnx_part.weights == ["1/u"]
        assert program.weights["1/u"].shape == (32, 32)
        assert len(program.member(onnx_part.member)) < 3000


def test_a_new_process_runs_it_from_the_command_line(mixed, artifact, tmp_path):
    x = RNG.normal(size=(2, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    command = [sys.executable, "-m", "graphopt", "run", artifact, "-i", tmp_path / "x.npz", "-o", tmp_path / "y.npz"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "y.npz") as got:
        agree(dict(got), mixed, {"x": x})


def test_the_command_line_says_what_runs_where(mixed, tmp_path):
    from typer.testing import CliRunner

    from graphopt.cli.app import app

    path = save(mixed, tmp_path / "mixed.onnx")
    asked = ["compile", str(path), "-O0", "-o", str(tmp_path / "m.gopt")]
    done = CliRunner().invoke(app, asked)
    assert "of 8 nodes on onnxruntime: " in done.stdout
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert json.loads(done.stdout)["report"]["onnxruntime"]["of"] == 8
    refused = CliRunner().invoke(app, [*asked, "--no-fallback"])
    assert isinstance(refused.exception, LoweringError)
    assert refused.exception.nodes
    assert "Det (no converter)" in str(refused.exception)


def test_without_fallback_python_refuses_too(mixed):
    with pytest.raises(LoweringError, match=r"Det \(no converter\)"):
        graphopt.compile(mixed, fallback=False)


def test_a_model_that_lowers_whole_has_no_parts():
    model = from_text("""<ir_version: 9, opset_import: ["": 19]> g (float[2] x) => (float[2] y) { y = Relu(x) }""")
    program = graphopt.compile(model)
    assert program.manifest.parts == []
    assert "onnxruntime" not in program.report["target"]


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_a_flipped_byte_of_a_part_is_refused(artifact, tmp_path, at):
    data = bytearray(artifact.read_bytes())
    start = data.index(b"parts/001.onnx")
    data[start + int(at * 800)] ^= 1
    (tmp_path / "bad.gopt").write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        graphopt.load(tmp_path / "bad.gopt")


def test_shapes_that_depend_on_data(tmp_path):
    model = from_text("""
        <ir_version: 9, opset_import: ["": 19]>
        g (float[N,4] x, float[4] k) => (float[M,K] y) {
            i = NonZero(x)
            t = Transpose(i)
            f = Cast<to=1>(t)
            p = Compress<axis=0>(x, m)
            q = Mul(p, k)
            y = MatMul(q, q2)
            m = Cast<to=9>(first)
            first = ReduceMax<keepdims=0>(x, one)
            one = Constant<value_ints=[1]>()
            q2 = Transpose(q)
        }""", k=np.ones(4, np.float32))  # fmt: skip
    program = graphopt.compile(model)
    x = np.array([[1, 2, 3, 4], [0, 0, 0, 0], [5, 6, 7, 8]], np.float32)
    agree(program.run({"x": x}), model, {"x": x})
    assert program.run({"x": x})["y"].shape == (2, 2)


def test_text_sequences_and_optionals_run_on_onnxruntime(tmp_path):
    model = from_text("""
        <ir_version: 9, opset_import: ["": 19]>
        g (string[N] words, seq(float[K]) parts, float[2,3] a, float[3,2] b) => (string[M] kept, float[L] joined,
            seq(float[J]) more, float[2,2] c) {
            kept = StringNormalizer<stopwords=["b"], is_case_sensitive=1>(words)
            joined = ConcatFromSequence<axis=0>(parts)
            more = SequenceInsert(parts, joined)
            ab = MatMul(a, b)
            c = Relu(ab)
        }""")
    program = graphopt.compile(model)
    assert [part.runs for part in program.manifest.parts] == ["library", "onnxruntime"]
    feeds = {
        "words": np.array(["a", "b", "c"]),
        "parts": [np.ones(2, np.float32), np.zeros(1, np.float32)],
        **random_feeds(from_text('<ir_version: 9, opset_import: ["": 19]> '
                                 "g (float[2,3] a, float[3,2] b) => (float[2,2] c) { c = MatMul(a, b) }")),
    }  # fmt: skip
    got = program.run(feeds)
    assert got["kept"].tolist() == ["a", "c"]
    assert got["joined"].tolist() == [1, 1, 0]
    assert [part.tolist() for part in got["more"]] == [[1, 1], [0], [1, 1, 0]]
    np.testing.assert_allclose(got["c"], np.maximum(feeds["a"] @ feeds["b"], 0), rtol=1e-5)
    with pytest.raises(DataError, match=r"'parts' expects sequence of float32\[K\], a list of arrays, and got ndarray"):
        program.run({**feeds, "parts": np.ones(2, np.float32)})

    program.save(tmp_path / "text.gopt")
    spread = {"parts/0": feeds["parts"][0], "parts/1": feeds["parts"][1]}
    np.savez(tmp_path / "in.npz", **{k: v for k, v in feeds.items() if k != "parts"}, **spread)
    from graphopt.cli.run import run

    run(tmp_path / "text.gopt", tmp_path / "in.npz", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as out:
        assert out["kept"].tolist() == ["a", "c"]
        assert out["more/2"].tolist() == [1, 1, 0]


def test_a_loop_runs_whole_and_what_is_around_it_is_compiled():
    model = from_text("""
        <ir_version: 9, opset_import: ["": 19]>
        g (float[2,2] x, float[2,2] w, int64[2] s) => (float[2,2] y) {
            a = MatMul(x, w)
            n = Constant<value_int=3>()
            t = Constant<value_ints=[1]>()
            go = Cast<to=9>(t)
            b = Loop<body=body (int64 i, bool[1] c, float[2,2] s) => (bool[1] cc, float[2,2] ss) {
                cc = Identity(c)
                ss = Add(s, a)
            }>(n, go, a)
            c = Reshape(b, s)
            y = MatMul(c, w)
        }""", s=np.array([2, 2]), w=RNG.normal(size=(2, 2)).astype(np.float32))  # fmt: skip
    program = graphopt.compile(model)
    assert [part.runs for part in program.manifest.parts] == ["library", "onnxruntime", "library"]
    feeds = random_feeds(model)
    agree(program.run(feeds), model, feeds)


def test_an_operator_that_onnxruntime_lacks_too_is_refused_by_name():
    text = """<ir_version: 9, opset_import: ["": 19, "my": 1]> g (float[2] x) => (float[2] y) { y = my.Relu(x) }"""
    with pytest.raises(LoweringError, match=r"onnxruntime either: .*Relu"):
        graphopt.compile(from_text(text))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_parts_are_convex_in_order_and_complete(data):
    count = data.draw(st.integers(1, 12))
    lines, values = [], ["x"]
    for k in range(count):
        a, b = (data.draw(st.sampled_from(values)) for _ in range(2))
        lines.append(f"v{k} = MatMul({a}, {b})")
        values.append(f"v{k}")
    text = '<ir_version: 9, opset_import: ["": 19]> g (float[2,2] x) => (float[2,2] %s) {%s}'
    model = from_text(text % (values[-1], "\n".join(lines)))
    names = [str(node.name) for node in model.graph]
    left = data.draw(st.sets(st.sampled_from(names)))
    sections = partition(model, left)
    assert sorted(k for s in sections for k in s.nodes) == list(range(count))
    known = {"x"}
    for section in sections:
        assert set(section.inputs) <= known
        assert section.lowered == all(names[k] not in left for k in section.nodes)
        known |= set(section.outputs)
    assert values[-1] in known
    assert all(a.lowered != b.lowered for a, b in itertools.pairwise(sections))


def test_values_of_inputs_on_the_command_line(tmp_path):
    from typer.testing import CliRunner

    from graphopt.cli.app import app

    model = from_text("""<ir_version: 9, opset_import: ["": 19]>
    g (float[2,3] x, int64[1] axes, float k) => (float[A] y) {
        s = ReduceSum<keepdims=0>(x, axes)
        y = Mul(s, k)
    }""")
    path, out = save(model, tmp_path / "sum.onnx"), tmp_path / "sum.gopt"
    done = CliRunner().invoke(
        app, ["compile", str(path), "-O0", "-o", str(out), "--value", "axes=0,", "--value", "k=2.5"]
    )
    assert done.exit_code == 0, done.output
    with graphopt.load(out) as program:
        assert program.run({"x": np.ones((2, 3), np.float32)})["y"].tolist() == [5, 5, 5]
    for wrong, error in (("axes", "NAME=NUMBERS"), ("axes=x", "NAME=NUMBERS"), ("none=1", "no input is named 'none'"),
                         ("axes=0.5,", r"'axes' expects INT64"), ("axes=1", r"'axes' expects")):  # fmt: skip
        refused = CliRunner().invoke(app, ["compile", str(path), "-o", str(out), "--value", wrong])
        assert refused.exception is not None
        assert re.search(error, str(refused.exception)), refused.exception


NAMELESS = """
<ir_version: 9, opset_import: ["": 20]>
g (float[N,8] x, float[8,8] w) => (float[N,8] y, bool[N,1] any) {
    a = MatMul(x, w)
    b = Relu(a)
    over = Greater(b, x)
    any = ReduceMax<keepdims=1>(over, last)
    last = Constant<value_ints=[1]>()
    c = MatMul(b, w)
    y = Tanh(c)
}
"""


def test_the_node_is_found_that_tvm_fails_with_and_does_not_name():
    """TVM imports ReduceMax of bool, and fails when it compiles the whole: only that node goes to onnxruntime."""
    model = from_text(NAMELESS, w=np.eye(8, dtype=np.float32))
    name = next(str(node.name) for node in model.graph if node.op_type == "ReduceMax")
    with pytest.raises(LoweringError, match=rf"It fails with ReduceMax '{name}'\.$") as caught:
        graphopt.compile(model, fallback=False, verify=False)
    assert list(caught.value.nodes) == [name]
    program = graphopt.compile(model, verify=False)
    account = program.report["target"]["onnxruntime"]
    assert (account["nodes"], account["of"]) == (1, 6), account
    assert next(iter(account["reasons"])).startswith("ReduceMax (TVM imported the model and could not compile it")
    feeds = {"x": RNG.normal(size=(3, 8)).astype(np.float32)}
    agree(program.run(feeds), model, feeds)


@pytest.mark.parametrize("bad", [0, 1, 5, 6])
def test_the_search_for_a_culprit_takes_a_logarithm_of_tries_and_ends_in_time(bad: int):
    from graphopt.mixed.culprit import culprit

    lines = " ".join(f"v{k + 1} = Relu(v{k})" for k in range(7))
    model = from_text(f'<ir_version: 9, opset_import: ["": 20]> g (float[2] v0) => (float[2] v7) {{ {lines} }}')
    name, tries = [node.name for node in model.graph][bad], []

    def lower(part):
        tries.append(len(part.graph))
        if any(node.name == name for node in part.graph):
            raise LoweringError("it does not say why")

    assert culprit(model, lower).name == name
    assert len(tries) <= 5
    assert culprit(model, lower, seconds=-1) is None


@pytest.mark.parametrize("bad", [0, 9, 30, 99])
def test_the_search_for_a_culprit_begins_nothing_that_would_end_too_late(bad: int, monkeypatch):
    """Nodes take a second each, and a compilation three more; two of the culprits are too far for a hundred seconds."""
    from graphopt.mixed import culprit as search

    lines = " ".join(f"v{k + 1} = Relu(v{k})" for k in range(100))
    model = from_text(f'<ir_version: 9, opset_import: ["": 20]> g (float[2] v0) => (float[2] v100) {{ {lines} }}')
    name, clock = [node.name for node in model.graph][bad], [0.0]
    monkeypatch.setattr(search.time, "monotonic", lambda: clock[0])

    def lower(part):
        clock[0] += 3 + len(part.graph)
        if any(node.name == name for node in part.graph):
            raise LoweringError("it does not say why")

    found = search.culprit(model, lower, seconds=100)
    assert clock[0] <= 100
    assert (found is None) == (bad > 9)
    assert found is None or found.name == name
