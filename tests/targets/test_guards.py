"""What onnxruntime refuses when it runs, compiled code refuses by name: indices out of range, integers over zero."""

import shutil
import sys

import numpy as np
import pytest

import graphopt
from graphopt import oracle
from graphopt.errors import DataError, GraphoptError, LoweringError
from graphopt.testing import from_text

RNG = np.random.default_rng(0)
HEADER = '<ir_version: 9, opset_import: ["": 20]> '
X = RNG.normal(size=(4, 3, 32)).astype(np.float32)


def compiled(text: str, **arrays: np.ndarray):
    model = from_text(HEADER + text, **arrays)
    return model, graphopt.compile(model, verify=False, fallback=False)


def check(text: str, fine: dict, *wrong: dict, said: str, **arrays: np.ndarray) -> None:
    """Same as onnxruntime for `fine`; refused as onnxruntime does for each of `wrong`; and fine again after."""
    model, program = compiled(text, **arrays)
    for feeds in wrong:
        with pytest.raises(GraphoptError):
            oracle.run(model, {**fine, **feeds})
        with pytest.raises(DataError, match=said):
            program.run({**fine, **feeds})
    want = oracle.run(model, fine)
    for name, got in program.run(fine).items():
        np.testing.assert_allclose(got, want[name], rtol=1e-5, err_msg=name)


INDEXING = {
    "Gather": "int64[2,2] i) => (float[a,b,c,d] y) {y = Gather<axis=1>(x, i)}",
    "Gather of one": "int64 i) => (float[a,b] y) {y = Gather<axis=1>(x, i)}",
    "GatherElements": "int64[2,2] i) => (float[a,b,c] y) {t = Constant<value_ints=[0]>() j = Unsqueeze(i, t) "
    "y = GatherElements<axis=1>(x, j)}",
    "GatherND": "int64[2,2] i) => (float[a,b] y) {y = GatherND(x, i)}",
    "GatherND of batches": "int64[N,2] i) => (float[a] y) {y = GatherND<batch_dims=1>(x, i)}",
}


@pytest.mark.parametrize("size", ["4", "N"])
@pytest.mark.parametrize("case", INDEXING)
def test_reading_at_indices(case: str, size: str):
    """From -n to n - 1; one more is refused at both ends, and what no address space holds."""
    shape = {"Gather of one": (), "GatherND of batches": (4, 2)}.get(case, (2, 2))
    fine, over, under, far = (np.broadcast_to(np.int64(k), shape) for k in (-3, 3, -4, 2**62))
    check(
        f"g (float[{size},3,32] x, {INDEXING[case].replace('[N', f'[{size}')}",
        {"x": X, "i": fine},
        {"i": over if "ND" not in case else over + np.array([1, 0])},
        {"i": under if "ND" not in case else under + np.array([-1, 0])},
        {"i": far},
        {"i": -far},
        said=f"{case.split()[0]} .*: an index in 'i' is beyond ax"
        if case != "GatherElements"
        else "GatherElements .*: an index",
    )


WRITING = {
    "ScatterElements": ("int64[1,1,2] i, float[1,1,2] u", "ScatterElements<axis=1>(x, i, u)", (1, 1, 2), (1, 1, 2)),
    "ScatterElements that adds": (
        "int64[1,1,2] i, float[1,1,2] u", "ScatterElements<axis=1, reduction=\"add\">(x, i, u)", (1, 1, 2), (1, 1, 2)
    ),
    "ScatterND": ("int64[1,2] i, float[1,32] u", "ScatterND(x, i, u)", (1, 2), (1, 32)),
}  # fmt: skip


@pytest.mark.parametrize("size", ["4", "N"])
@pytest.mark.parametrize("case", WRITING)
def test_writing_at_indices(case: str, size: str):
    inputs, call, shape, updates = WRITING[case]
    fine, over, under, far = (np.full(shape, k, np.int64) for k in (-2, 3, -4, 2**40))
    if case == "ScatterND":
        fine[:], over[:], under[:] = [[-4, 2]], [[0, 3]], [[-5, 0]]
    else:
        fine[0, 0, 1] = 2
    check(
        f"g (float[{size},3,32] x, {inputs}) => (float[{size},3,32] y) {{y = {call}}}",
        {"x": X, "i": fine, "u": np.ones(updates, np.float32)},
        *({"i": k} for k in (over, under, far, -far)),
        said=f"{case.split()[0]} .*: an index in 'i'",
    )


def test_other_indices():
    """Lengths of ReverseSequence and places of MaxUnpool don't count from the end."""
    check(
        "g (float[4,2,3] x, int64[2] i) => (float[4,2,3] y) {y = ReverseSequence(x, i)}",
        {"x": X[:, :2, :3], "i": np.array([4, 1])},
        {"i": np.array([5, 1])},
        {"i": np.array([1, -1])},
        said="ReverseSequence .*: a length",
    )
    check(
        "g (float[1,1,2,2] x, int64[1,1,2,2] i) => (float[1,1,4,4] y) "
        "{y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i)}",
        {"x": X[:1, :1, :4].reshape(1, 1, 2, 2), "i": np.array([[[[0, 15], [3, 7]]]])},
        {"i": np.array([[[[0, 16], [3, 7]]]])},
        {"i": np.array([[[[0, -1], [3, 7]]]])},
        said="MaxUnpool .*: an index",
    )


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint32"])
@pytest.mark.parametrize("op", ["Div", "Mod", "Mod<fmod=1>"])
def test_integers_over_zero_and_the_least_over_minus_one(op: str, dtype: str):
    """Zero is refused; the least integer over -1 is itself, and leaves nothing (onnxruntime's Mod dies of it)."""
    info = np.iinfo(dtype)
    most = min(info.max, 2**53)  # onnxruntime's fmod goes through double precision
    a = np.array([most, 7, most // 2, 100, 0, 1], dtype)
    b = np.array([3, info.max, 2, 7, 5, 1], dtype)
    text = f"g ({dtype}[N] a, {dtype}[N] b) => ({dtype}[N] y) {{y = {op}(a, b)}}"
    check(text, {"a": a, "b": b}, {"b": np.where(b == 7, 0, b).astype(dtype)}, said=f"{op[:3]} .*divided by zero")
    if info.min < 0:
        _, program = compiled(text)
        for sign in (1, -1):
            feeds = {"a": np.array([info.min, info.min, -7, 7], dtype), "b": np.array([-1, 2, 2, 2], dtype)}
            feeds["b"][1:] *= sign
            whole, rest = np.trunc(feeds["a"][1:] / feeds["b"][1:]), np.remainder(feeds["a"][1:], feeds["b"][1:])
            if "fmod" in op:
                rest = np.fmod(feeds["a"][1:], feeds["b"][1:])
            want = [info.min, *whole] if op == "Div" else [0, *rest]
            assert program.run(feeds)["y"].tolist() == [int(k) for k in want]


def test_of_constants_only_what_may_fail_is_checked():
    """An index of a constant, or along a known axis, is looked at now; what always fails is left to onnxruntime."""
    text = "g (float[{},8] x, int64[2] i) => (float[2,8] y) {{y = Gather(x, i)}}"
    for size, index, kernels in (("4", [0, -4], 0), ("4", [0, 3], 0), ("N", [0, 3], 1)):
        _, program = compiled(text.format(size), i=np.array(index))
        assert sum(name.startswith("check") for name in program.report["target"]["kernels"]) == kernels
        np.testing.assert_array_equal(program.run({"x": X[:, 0, :8]})["y"], X[:, 0, :8][index])
    with pytest.raises(DataError, match="beyond axis 0"):
        program.run({"x": X[:2, 0, :8]})
    with pytest.raises(LoweringError, match=r"Gather \(an index is out of range\)"):
        compiled(text.format("4"), i=np.array([0, 4]))
    with pytest.raises(LoweringError, match=r"Mod \(it divides by zero\)"):
        compiled("g (int32[2] a, int32[2] b) => (int32[2] y) {y = Mod(a, b)}", b=np.array([1, 0], np.int32))


def test_one_check_for_tables_of_one_size():
    _, program = compiled(
        "g (int64[N] i, float[9,32] v, float[9,32] w) => (float[N,32] y) "
        "{a = Gather(v, i) b = Gather(w, i) y = Add(a, b)}",
        v=RNG.normal(size=(9, 32)).astype(np.float32), w=RNG.normal(size=(9, 32)).astype(np.float32),
    )  # fmt: skip
    assert sum(name.startswith("check") for name in program.report["target"]["kernels"]) == 1
    with pytest.raises(DataError, match="an index in 'i' is beyond axis 0 of 9 elements"):
        program.run({"i": np.array([9])})


def test_in_branches_indices_are_brought_into_range():
    """Both branches of an If are computed, so the one not taken may not refuse the run."""
    _, program = compiled(
        "g (float[4,32] x, int64[2] i, bool c, int32[32] k) => (float[2,32] y) {"
        " y = If(c) <then_branch = t () => (float[2,32] p) { p = Gather(x, i) },"
        " else_branch = e () => (float[2,32] q) {"
        " o = Constant<value_ints=[0, 0]>() g = Gather(x, o) h = Div(k, k) f = Cast<to=1>(h) q = Mul(g, f) }> }"
    )
    feeds = {"x": X[:, 0], "i": np.array([-1, 2]), "c": np.array(True), "k": np.zeros(32, np.int32)}
    np.testing.assert_array_equal(program.run(feeds)["y"], X[[-1, 2], 0])
    np.testing.assert_array_equal(program.run({**feeds, "i": np.array([-9, 9])})["y"], X[[0, 3], 0])
    feeds |= {"i": np.array([4, 0]), "c": np.array(False), "k": np.ones(32, np.int32)}
    np.testing.assert_array_equal(program.run(feeds)["y"], X[[0, 0], 0])


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")
def test_on_a_gpu_indices_and_divisors_are_brought_into_range():
    """A kernel there can't refuse the run. The emulator ends with an error at an access beyond what was allocated."""
    from graphopt.testing.cuda_emulation import emulate

    text = """g (float[4,3,8] x, int64[2] i, int32[2] k) =>
    (float[2,3,8] y, float[1,2,1] z, float[4,3,8] u, int32[2] d) {
        y = Gather(x, i)
        o = Constant<value_ints=[0, 2]>()
        r = Unsqueeze(i, o)
        z = GatherElements<axis=1>(x, r)
        s = Constant<value_ints=[1]>()
        p = Unsqueeze(i, s)
        u = ScatterND(x, p, y)
        d = Div(k, k)
    }"""
    model = from_text(HEADER + text)
    fine = {"x": X[..., :8], "i": np.array([-1, 1]), "k": np.array([3, -1], np.int32)}
    wrong = {"x": X[..., :8], "i": np.array([9, -9]), "k": np.array([0, 2], np.int32)}
    first, second = emulate(model, [fine, wrong])
    for name, array in oracle.run(model, fine).items():
        np.testing.assert_allclose(first[name], array, rtol=1e-5)
    np.testing.assert_array_equal(second["y"], X[[3, 0], :, :8])


def test_sizes_that_fit_no_memory_are_told():
    model, program = compiled("g (float[2,1] x, int64[2] s) => (float[a,b] y) {y = Expand(x, s)}")
    feeds = {"x": X[0, :2, :1], "s": np.array([2, 3])}
    np.testing.assert_array_equal(program.run(feeds)["y"], oracle.run(model, feeds)["y"])
    with pytest.raises(DataError, match=r"don't fit memory, or are negative\.$"):
        program.run({**feeds, "s": np.array([3, -4])})


def test_shapes_go_into_any_operator():
    """TVM's importer refuses Mul, Sub and others of a Shape; the last token of a sequence is picked that way."""
    check(
        "g (float[N,T,32] x, int64[1] k) => (int64[1] y, float[N,1,32] z) { s = Shape<start=0, end=1>(x) y = Mul(s, k)"
        " t = Shape<start=1, end=2>(x) o = Constant<value_ints=[1]>() m = Sub(t, o) z = Gather<axis=1>(x, m) }",
        {"x": X, "k": np.array([3])},
        {"x": X[:, :0]},
        said="Gather .*: an index in 'm' is beyond axis 1",
    )


def test_what_the_importer_raises_has_a_name():
    model = from_text(HEADER + "g (float[1,1,4,4] x) => (float[1,1,2,2] y, int64[1,1,2,2] i) "
                      "{r = Relu(x) y, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)}")  # fmt: skip
    with pytest.raises(LoweringError, match=r"MaxPool \(Missing outputs.*\) at node_1") as caught:
        graphopt.compile(model, verify=False, fallback=False)
    assert caught.value.nodes == {"node_1": next(iter(caught.value.nodes.values()))}


SIZES = "g (int64[N,2] x, int64[1] k) => (int64[N,2] y) {{ s = Shape<start=1>(x) d = {}(s, k) y = Div(x, d) }}"


@pytest.mark.parametrize(("op", "fine", "wrong"), [("Mul", 3, 0), ("Sub", 1, 2), ("Mod", 3, 2)])
def test_a_divisor_made_of_sizes_may_be_zero(op: str, fine: int, wrong: int):
    """A size is above zero; a difference, remainder, or product with an input may be zero (onnxruntime dies)."""
    model, program = compiled(SIZES.format(op))
    feeds = {"x": np.array([[4, 6]]), "k": np.array([fine])}
    np.testing.assert_array_equal(program.run(feeds)["y"], oracle.run(model, feeds)["y"])
    with pytest.raises(DataError, match=r"Div .*an integer is divided by zero"):
        program.run({**feeds, "k": np.array([wrong])})
