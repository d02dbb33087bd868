"""Calibration data from every kind of source, cut, regrouped and checked."""

import itertools
import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime.quantization import CalibrationDataReader

from graphopt.data import Batches, open_data
from graphopt.errors import DataError
from graphopt.testing import from_text, random_feeds


def model_of(**inputs):
    """A model with these inputs: name -> (dtype, shape)."""
    values = [ir.Value(name=n, type=ir.TensorType(t), shape=ir.Shape(s)) for n, (t, s) in inputs.items()]
    return ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 17}), ir_version=10)


IMAGE = model_of(x=(ir.DataType.FLOAT, ["N", 2, 3]))
FIXED = model_of(x=(ir.DataType.FLOAT, [4, 2, 3]))
PAIR = model_of(ids=(ir.DataType.INT64, ["N", "L"]), mask=(ir.DataType.INT64, ["N", "L"]))


def images(n, start=0):
    return np.arange(start * 6, (start + n) * 6, dtype=np.float32).reshape(n, 2, 3)


def sizes(batches):
    return [len(feeds["x"]) for feeds in batches]


def joined(batches):
    return np.concatenate([feeds["x"] for feeds in batches])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("key", ["x", None], ids=["named", "unnamed"])
def test_npz_is_read_in_batches_and_again(tmp_path, save, key):
    save(tmp_path / "d.npz", *([] if key else [images(70)]), **({key: images(70)} if key else {}))
    batches = open_data(tmp_path / "d.npz", IMAGE)
    assert sizes(batches) == [32, 32, 6]
    for _ in range(2):
        np.testing.assert_array_equal(joined(batches), images(70))


def test_npz_is_streamed(tmp_path):
    array = np.zeros((4000, 2, 3, 100), np.float32)  # 9.6 MB
    np.savez(tmp_path / "d.npz", x=array)
    batches = open_data(tmp_path / "d.npz", model_of(x=(ir.DataType.FLOAT, ["N", 2, 3, 100])))
    tracemalloc.start()
    assert sum(sizes(batches)) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes / 4


def test_npz_with_whole_values_as_samples(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((5, 4, 2, 3), np.float32), rate=np.arange(5))
    model = model_of(x=(ir.DataType.FLOAT, [4, 2, 3]), rate=(ir.DataType.INT64, []))
    assert [(feeds["x"].shape, int(feeds["rate"])) for feeds in open_data(tmp_path / "d.npz", model)] == [
        ((4, 2, 3), i) for i in range(5)
    ]


def test_fixed_batch_is_regrouped_and_the_tail_dropped(tmp_path):
    np.savez(tmp_path / "d.npz", x=images(11))
    np.testing.assert_array_equal(joined(open_data(tmp_path / "d.npz", FIXED)), images(8))
    ragged = [{"x": images(3)}, {"x": images(6, 3)}, {"x": images(1, 9)}]
    batches = open_data(ragged, FIXED)
    assert sizes(batches) == [4, 4]
    np.testing.assert_array_equal(joined(batches), images(8))


def test_directory_of_ragged_batches(tmp_path):
    for k, (n, length) in enumerate([(3, 5), (1, 9), (40, 2)]):
        np.savez(tmp_path / f"{k}.npz", ids=np.ones((n, length), int), mask=np.ones((n, length), int))
    got = [feeds["ids"].shape for feeds in open_data(tmp_path, PAIR)]
    assert got == [(3, 5), (1, 9), (32, 2), (8, 2)]


def test_calibration_data_reader_is_rewound_or_kept():
    class Once(CalibrationDataReader):
        def __init__(self):
            self.left = iter([{"x": images(2)}, {"x": images(3, 2)}])

        def get_next(self):
            return next(self.left, None)

    class Rewindable(Once):
        def rewind(self):
            self.__init__()

    for reader in (Once(), Rewindable()):
        batches = open_data(reader, IMAGE)
        assert sizes(batches.take(1)) == [2]
        for _ in range(2):
            np.testing.assert_array_equal(joined(batches), images(5))


@pytest.mark.parametrize("kind", ["list", "function", "generator", "mapping", "batches"])
def test_python_sources(kind):
    data = [{"x": images(4)}, {"x": images(1, 4)}]
    source = {
        "list": data,
        "function": lambda: iter(data),
        "generator": (feeds for feeds in data),
        "mapping": {"x": images(5)},
        "batches": Batches(lambda: data),
    }[kind]
    batches = open_data(source, IMAGE)
    for _ in range(2):
        np.testing.assert_array_equal(joined(batches), images(5))


def test_a_source_read_once_is_pulled_no_further_than_needed():
    pulled = []

    def source():
        for k in itertools.count():
            pulled.append(k)
            yield {"x": images(1, k)}

    assert sizes(open_data(source(), IMAGE).take(3)) == [1, 1, 1]
    assert pulled == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"y": images(2)}, "inputs are x, but the data has y"),
        ({"x": images(2).astype(float)}, "'x' needs float32, but the data is float64"),
        ({"x": images(2)[..., :2]}, r"'x' needs shape \[N,2,3\].* \[2, 2, 2\]"),
        ({"x": images(2)[0]}, "'x' needs shape"),
        ({"x": images(0)}, "does not hold one sample"),
        ({"x": images(2), "y": images(2)}, "has x, y"),
    ],
)
def test_what_does_not_fit_is_named(data, message):
    with pytest.raises(DataError, match=message):
        list(open_data([data], IMAGE))


def test_one_symbol_is_one_size():
    with pytest.raises(DataError, match="'mask' needs shape"):
        list(open_data([{"ids": np.ones((2, 5), int), "mask": np.ones((2, 4), int)}], PAIR))


def test_too_few_samples_for_a_fixed_batch():
    with pytest.raises(DataError, match="one batch of 4 samples"):
        list(open_data([{"x": images(3)}], FIXED))


def test_bad_files(tmp_path):
    np.savez(tmp_path / "good.npz", x=images(500))
    data = (tmp_path / "good.npz").read_bytes()
    middle = len(data) // 2
    (tmp_path / "flipped.npz").write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    (tmp_path / "short.npz").write_bytes(data[:middle])
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "pickle.npz", x=np.array([{}], object))
    np.savez(tmp_path / "fortran.npz", x=np.asfortranarray(images(5)))
    np.savez(tmp_path / "uneven.npz", ids=np.ones((2, 5), int), mask=np.ones((3, 5), int))
    (tmp_path / "empty").mkdir()
    for name, model, message in [
        ("flipped.npz", IMAGE, "not a readable"),
        ("short.npz", IMAGE, "not a readable"),
        ("text.npz", IMAGE, "not a readable"),
        ("pickle.npz", IMAGE, "pickled"),
        ("fortran.npz", IMAGE, "ascontiguousarray"),
        ("uneven.npz", PAIR, "disagree"),
        ("empty", IMAGE, "holds no .npz"),
        ("absent.npz", IMAGE, "There is no calibration data"),
    ]:
        with pytest.raises(DataError, match=message):
            list(open_data(tmp_path / name, model))


def test_split_by_sample_is_disjoint_complete_and_even():
    batches = open_data([{"x": images(7)}, {"x": images(33, 7)}, {"x": images(1, 40)}], IMAGE)
    fit, held = batches.split(0.25)
    a, b = joined(fit)[:, 0, 0] / 6, joined(held)[:, 0, 0] / 6
    assert len(b) == 10
    assert sorted([*a, *b]) == list(range(41))
    np.testing.assert_array_equal(b, np.arange(3, 41, 4))


def test_split_by_batch_where_batches_are_whole():
    fit, held = open_data({"x": images(20)}, FIXED).split(0.4)
    assert (sizes(fit), sizes(held)) == ([4, 4, 4], [4, 4])


def test_split_of_too_little_data():
    fit, held = open_data([{"x": images(1)}], IMAGE).split(0.2)
    assert sizes(fit) == [1]
    with pytest.raises(DataError, match="too few"):
        list(held)


def test_an_input_that_no_memory_holds_gets_no_random_values():
    header = '<ir_version: 8, opset_import: ["": 17]>'
    text = f"{header} g (float[4611686018427387904,2] x) => (float[N,2] y) {{ y = Relu(x) }}"
    with pytest.raises(DataError, match=r"input 'x': \[4611686018427387904, 2\] is too large"):
        random_feeds(from_text(text))
