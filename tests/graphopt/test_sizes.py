"""Sizes of open dimensions: what was declared is checked when it runs, and listed sizes have programs of their own."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import graphopt
from graphopt import oracle
from graphopt.artifact import read
from graphopt.cli.app import app
from graphopt.errors import DataError, ModelError, UsageError
from graphopt.graph import declared_dims, load, save
from graphopt.graph.dims import DIMS, cases
from graphopt.sizes import Sizes, parse
from graphopt.testing import from_text, random_feeds

RNG = np.random.default_rng(0)
MLP = """
<ir_version: 9, opset_import: ["": 19]>
g (float[N,T,8] x, float[8,16] w, float[16,16] v) => (float[N,T,16] y) {
    a = MatMul(x, w)
    b = Relu(a)
    y = MatMul(b, v)
}
"""
WITH_DET = """
<ir_version: 9, opset_import: ["": 19]>
g (float[N,4,4] x, float[4,4] w) => (float[N] y, float[N,4,4] h) {
    a = MatMul(x, w)
    h = Relu(a)
    y = Det(h)
}
"""


@pytest.fixture(scope="module")
def mlp():
    weights = {"w": (8, 16), "v": (16, 16)}
    return from_text(MLP, **{k: RNG.normal(size=shape).astype(np.float32) for k, shape in weights.items()})


@pytest.fixture(scope="module")
def special(mlp, tmp_path_factory):
    path = tmp_path_factory.mktemp("sizes") / "mlp.gopt"
    graphopt.compile(mlp, dims={"N": [1, 4, (1, 8)], "T": (4, 32, 4)}).save(path)
    return path


def feeds_of(n, t):
    return {"x": RNG.normal(size=(n, t, 8)).astype(np.float32)}


def test_every_declared_size_gives_what_onnx_says(mlp, special):
    with graphopt.load(special) as program:
        for n, t in ((1, 4), (1, 32), (2, 8), (4, 12), (8, 32), (4, 4), (1, 4)):
            feeds = feeds_of(n, t)
            np.testing.assert_allclose(program.run(feeds)["y"], oracle.run(mlp, feeds)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "t", "said"),
    [
        (9, 4, "dimension 0, N, must be 1, 4 or from 1 to 8, not 9"),
        (0, 4, "dimension 0, N, must be 1, 4 or from 1 to 8, not 0"),
        (1, 6, "dimension 1, T, must be a multiple of 4 from 4 to 32, not 6"),
        (1, 36, "dimension 1, T, must be a multiple of 4 from 4 to 32, not 36"),
    ],
)
def test_other_sizes_are_refused_by_name(special, n, t, said):
    with graphopt.load(special) as program, pytest.raises(DataError) as caught:
        program.run(feeds_of(n, t))
    assert str(caught.value) == f"input 'x' expects float32[N, T, 8] and got float32[{n}, {t}, 8]: {said}."


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"x": np.zeros((1, 4, 8))}, r"input 'x' expects float32\[N, T, 8\] and got float64\[1, 4, 8\]"),
        ({"x": np.zeros((1, 8), np.float32)}, "it must have 3 dimensions, not 2"),
        ({"x": np.zeros((1, 4, 7), np.float32)}, "dimension 2 must be 8, not 7"),
        ({}, r"missing 'x'.*its inputs are 'x' \(float32\[N, T, 8\]\)"),
        ({"x": np.zeros((1, 4, 8), np.float32), "z": 1}, "unknown 'z'"),
        ({"y": np.zeros((1, 4, 8), np.float32)}, "missing 'x'; unknown 'y'"),
        ({"x": [[1.0], [2.0, 3.0]]}, "input 'x' expects .* got no array"),
    ],
)
def test_wrong_inputs_are_one_sentence(special, feeds, said):
    with graphopt.load(special) as program, pytest.raises(DataError, match=said) as caught:
        program.run(feeds)
    assert "\n" not in str(caught.value)


def test_listed_sizes_run_on_their_own_program_and_weights_lie_once(special):
    names = []
    with graphopt.load(special) as program:
        program.instrument(lambda _function, name, before, *_: names.append(name) if before else None)
        met = {}
        for n in (1, 4, 2):
            names.clear()
            program.run(feeds_of(n, 4))
            met[n] = {name.partition("/")[0] for name in names if name.startswith("variant")}
        assert met == {1: {"variant0"}, 4: {"variant1"}, 2: set()}
        assert [variant.sizes for variant in program.manifest.variants] == [{"N": 1}, {"N": 4}]
    opened = read(special)
    general = {spec.offset for spec in opened.manifest.weights.values()}
    assert {spec.offset for spec in opened.manifest.extra.values()} <= general


def test_listed_sizes_without_others(mlp):
    with graphopt.compile(mlp, dims={"N": "1,3", "T": 4}) as program:
        for n in (1, 3):
            feeds = feeds_of(n, 4)
            np.testing.assert_allclose(program.run(feeds)["y"], oracle.run(mlp, feeds)["y"], rtol=1e-4, atol=1e-5)
        with pytest.raises(DataError, match="N, must be 1 or 3, not 2"):
            program.run(feeds_of(2, 4))


def test_parts_on_onnxruntime_have_their_programs_too(tmp_path):
    model = from_text(WITH_DET, w=RNG.normal(size=(4, 4)).astype(np.float32))
    graphopt.compile(model, dims={"N": [1, "*"]}).save(tmp_path / "det.gopt")
    with graphopt.load(tmp_path / "det.gopt") as program:
        assert [part.runs for part in program.manifest.variants[0].parts] == ["library", "onnxruntime"]
        for n in (1, 5):
            feeds = {"x": RNG.normal(size=(n, 4, 4)).astype(np.float32)}
            for name, want in oracle.run(model, feeds).items():
                np.testing.assert_allclose(program.run(feeds)[name], want, rtol=1e-3, atol=1e-4)


def test_the_command_line_and_the_model_file_carry_it(mlp, tmp_path):
    path, optimised, output = (str(tmp_path / name) for name in ("a.onnx", "b.onnx", "c.gopt"))
    save(mlp, path)
    run = CliRunner().invoke
    result = run(app, ["opt", path, "-O2", "--dim", "N=1:8", "--dim", "T=3:9:3", "-o", optimised])
    assert result.exit_code == 0, result.output
    assert {name: str(sizes) for name, sizes in declared_dims(load(optimised)).items()} == {"N": "1:8", "T": "3:9:3"}
    result = run(app, ["compile", optimised, "--dim", "T=3", "--dim", "N=1,*", "-o", output])
    assert result.exit_code == 0, result.output
    assert json.loads(read(output).manifest.model_dump_json())["dims"] == {"N": "1,*"}
    for wrong in ("N=", "N=x", "N=0", "N=8:1", "N=1:64:0", "N=17:31:16", "N=*,1:8", "N=1;2", "N=-1", "N=1:2:3:4"):
        result = run(app, ["compile", path, "--dim", wrong, "-o", output])
        assert isinstance(result.exception, UsageError) or result.exit_code == 2, (wrong, result.output)


def test_random_inputs_are_of_declared_sizes(mlp):
    model = mlp.clone()
    model.metadata_props[DIMS] = json.dumps({"N": "5:9", "T": "48:96:48"})
    assert random_feeds(model)["x"].shape == (5, 48, 8)


def test_unknown_names_too_many_programs_and_bad_metadata_are_refused(mlp):
    with pytest.raises(ModelError, match="no input has a dimension named 'Q'; the symbolic dimensions are: N, T"):
        graphopt.compile(mlp, dims={"Q": (1, 8)})
    with pytest.raises(UsageError, match="make 25 programs, and at most 16"):
        graphopt.compile(mlp, dims={"N": "1,2,3,4,*", "T": "1,2,3,4,*"})
    for text in ("[", "[1]", '{"N": "no"}', '{"N": {"a": 1}}', "[" * 100_000):
        model = mlp.clone()
        model.metadata_props[DIMS] = text
        with pytest.raises(ModelError, match=r"graphopt\.dims"):
            graphopt.compile(model)


@pytest.mark.parametrize("wrong", [None, True, 1.5, (1,), (1, 2, 3, 4), [], "", {"a": 1}, [None], -3, 0, "1 2"])
def test_what_is_no_size_is_refused(wrong):
    with pytest.raises(UsageError, match="dimension 'N' can't be"):
        parse("N", wrong)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(1, 60), max_size=3, unique=True),
    st.one_of(st.none(), st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 9))),
)
def test_sizes_allow_what_they_say(listed, span):
    if span is None and len(listed) < 2:
        return
    try:
        sizes = parse("N", [*listed, *([span] if span else [])])
    except UsageError:
        assert span is not None
        assert not [n for n in range(span[0], span[1] + 1) if n % span[2] == 0]
        return
    assert isinstance(sizes, Sizes)
    assert parse("N", str(sizes)) == sizes
    want = {*listed, *(n for n in range(span[0], span[1] + 1) if n % span[2] == 0)} if span else set(listed)
    assert {n for n in range(100) if sizes.allows(n)} == want
    assert sizes.first(7) in want


def test_the_most_special_program_comes_first():
    assert cases({"N": Sizes((1,)), "T": Sizes((8, 9), rest=False)}) == [
        {"N": 1, "T": 8},
        {"N": 1, "T": 9},
        {"T": 8},
        {"T": 9},
    ]
    assert cases({}) == [{}]
