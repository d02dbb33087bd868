"""Choosing kernels: by estimate, by measuring, and from the cache of measurements."""

import json
import warnings

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from graphopt import oracle
from graphopt.artifact import assemble
from graphopt.base import Context
from graphopt.cli.app import app
from graphopt.errors import UsageError
from graphopt.graph import save
from graphopt.targets.llvm import Llvm, tune, tuned
from graphopt.targets.llvm.cpu import native, resolve
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.plan.choice import Candidate, Choices, convolution, product
from graphopt.testing import from_text, random_feeds

ISAS = [Isa(16, 32), Isa(8, 16), Isa(4, 32), Isa(4, 16)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tuned"


def network() -> ir.Model:
    rng = np.random.default_rng(0)
    return from_text(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[1, 16, 9, 9] x, float[32, 16, 3, 3] w0, float[48, 32, 1, 1] w1, float[48, 20] w2) => (float[1, 20] y)
        {
            a = Conv<pads=[1, 1, 1, 1]>(x, w0)
            b = Relu(a)
            c = Conv(b, w1)
            d = GlobalAveragePool(c)
            e = Flatten(d)
            y = MatMul(e, w2)
        }""",
        w0=rng.standard_normal((32, 16, 3, 3), np.float32) / 12,
        w1=rng.standard_normal((48, 32, 1, 1), np.float32) / 6,
        w2=rng.standard_normal((48, 20), np.float32) / 7,
    )


def run(model, program):
    feeds = random_feeds(model)
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        got = executable.run(feeds)
    want = oracle.run(model, feeds)
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def known_by(choose):
    """Choices that take ``choose(candidates)`` of every problem."""

    class Chosen(Choices):
        def choose(self, what, problem):
            chosen = super().choose(what, problem)
            return type(chosen)(choose(problem.candidates))

    return Chosen


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(ISAS), st.integers(1, 40), st.integers(1, 40), st.integers(1, 70), st.integers(1, 70),
    st.sampled_from([1, 3, 5]), st.booleans(),
)  # fmt: skip
def test_every_convolution_has_candidates_in_order_that_fit_the_registers(isa, h, w, ci, co, kernel, depthwise):
    pads = (kernel // 2,) * 4
    c = Conv(1, h, w, co if depthwise else ci, co, (kernel, kernel), pads=pads, group=co if depthwise else 1)
    found = convolution(c, isa)
    assert found
    assert [f.cycles for f in found] == sorted(f.cycles for f in found)
    assert all(f.tile is None or f.tile.rows * f.tile.cols + f.tile.cols < isa.registers for f in found)
    assert len(set(map(str, found))) == len(found)
    few = tune.shortlist(found)
    assert few[0] == found[0]
    assert len(few) <= tune.MOST


def test_winograd_is_estimated_fastest_where_channels_are_many_and_images_large():
    isa = Isa(16, 32)
    assert convolution(Conv(1, 56, 56, 64, 64, (3, 3), pads=(1, 1, 1, 1)), isa)[0].algorithm == "winograd4"
    assert convolution(Conv(1, 56, 56, 3, 64, (3, 3), pads=(1, 1, 1, 1)), isa)[0].algorithm == "direct"
    assert convolution(Conv(1, 56, 56, 64, 64, (3, 3), strides=(2, 2)), isa)[0].algorithm == "direct"


@pytest.mark.parametrize("which", [1, 3, -1])
def test_any_candidate_computes_the_same(which, monkeypatch):
    from graphopt.targets.llvm.plan import choice

    monkeypatch.setattr(choice, "Choices", known_by(lambda found: found[which % len(found)]))
    model = network()
    program = Llvm(threads=1).build(model, Context())
    run(model, program)
    assert all("measured_us" not in made for made in program.report["choices"].values())


def test_tuning_measures_once_and_then_is_deterministic(cache, monkeypatch):
    model = network()
    program = Llvm(threads=1, tune=True).build(model, Context())
    run(model, program)
    measured = [made for made in program.report["choices"].values() if "measured_us" in made]
    assert measured, "nothing was measured"
    for made in measured:
        assert made["measured_us"] == made["candidates_us"][made["candidate"]]
        assert min(made["candidates_us"].values()) >= tune.GAIN * made["measured_us"]
    assert len(list(cache.iterdir())) == len(measured)
    monkeypatch.setattr(tune, "measure", lambda *_: pytest.fail("measured again"))
    again = Llvm(threads=1, tune=True).build(model, Context())
    assert again.report["choices"] == program.report["choices"]


def entry(times, candidates=("a", "b")):
    key = tuned.key("problem", native(), 1)
    tuned.write(key, times)
    return key, set(candidates)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": {}, "microseconds": {}}', None])
def test_a_damaged_or_foreign_measurement_is_told_and_made_again(cache, content):
    key, candidates = entry({"a": 1.0, "b": 2.0})
    assert tuned.read(key, candidates) == {"a": 1.0, "b": 2.0}
    (path,) = cache.iterdir()
    if content is None:
        content = json.dumps(json.loads(path.read_text()) | {"microseconds": {"a": -1.0, "b": 2.0}})
    path.write_text(content)
    with pytest.warns(UserWarning, match="not used"):
        assert tuned.read(key, candidates) is None
    tuned.write(key, {"a": 1.0, "b": 3.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned.read(key, candidates) == {"a": 1.0, "b": 3.0}


def test_measurements_of_other_candidates_are_not_used():
    key, _ = entry({"a": 1.0, "b": 2.0})
    with pytest.warns(UserWarning, match="other candidates"):
        assert tuned.read(key, {"a", "c"}) is None


def test_measurements_are_of_one_problem_cpu_and_number_of_threads():
    keys = [
        tuned.key("a", native(), 1),
        tuned.key("b", native(), 1),
        tuned.key("a", native(), 2),
        tuned.key("a", resolve("x86-64-v3"), 1),
    ]
    for index, key in enumerate(keys):
        tuned.write(key, {"x": index + 1.0})
    assert [tuned.read(key, {"x"}) for key in keys] == [{"x": index + 1.0} for index in range(4)]


def test_only_a_clear_gain_changes_the_choice():
    first, second = (Candidate("gemm", None, 1.0), Candidate("direct", None, 2.0))
    names = {"first": first, "second": second}
    assert tune.pick(names, {"first": 10.0, "second": 9.9}).candidate is first
    assert tune.pick(names, {"first": 10.0, "second": 9.0}).candidate is second


def test_tuning_for_another_cpu_is_refused(tmp_path):
    other = "neoverse-n1" if native().triple.startswith("x86") else "x86-64-v3"
    with pytest.raises(UsageError, match="mcpu=native"):
        Llvm(mcpu=other, tune=True).build(network(), Context())
    save(network(), tmp_path / "m.onnx")
    command = ["compile", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "m.gopt"), "--tune", "--target"]
    assert isinstance(CliRunner().invoke(app, [*command, f"llvm{{mcpu={other}}}"]).exception, UsageError)
    refused = CliRunner().invoke(app, [*command, "npu"]).exception
    assert isinstance(refused, UsageError)
    assert "--tune" in str(refused)
    assert not (tmp_path / "m.gopt").exists()


def test_open_rows_are_ranked_as_many():
    from graphopt.targets.llvm.kernels.gemm import Gemm

    isa = Isa(16, 32)
    assert product(Gemm(("d0",), 64, 64), isa)[0].tile == product(Gemm((1 << 20,), 64, 64), isa)[0].tile
