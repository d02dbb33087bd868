"""Reading torch checkpoints without torch: both layouts, strides, and what is refused."""

import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from graphopt.errors import ModelError
from graphopt.models.torch_state import read_state

MAGIC = 0x1950A86A20F9469CFC6C
WEIGHT = np.arange(24, dtype=np.float32).reshape(4, 6)
COUNT = np.array(7, np.int64)


class Tensor:
    """Pickles as torch's tensors do."""

    def __init__(self, storage, offset, shape, strides):
        self.fields = storage, offset, shape, strides

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.fields, False, OrderedDict())


class Storage:
    def __init__(self, kind, key, elements):
        self.record = kind, key, elements


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        kind, key, elements = obj.record
        return "storage", getattr(sys.modules["torch"], kind), key, "cpu", elements


@pytest.fixture
def torch(monkeypatch):
    """Just enough of a module for pickle to write torch's names; the reader must do without it."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_):
        raise AssertionError("the reader called torch")

    for name in "FloatStorage", "LongStorage":
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def state(offset=6):
    weight, count = Storage("FloatStorage", "0", 24), Storage("LongStorage", "1", 1)
    return OrderedDict(
        {
            "whole": Tensor(weight, 0, (4, 6), (6, 1)),
            "turned": Tensor(weight, offset, (6, 3), (1, 6)),
            "count": Tensor(count, 0, (), ()),
        }
    )


def write_zip(path, value, weight=WEIGHT):
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            Pickler(file, 2).dump(value)
        archive.writestr("archive/data/0", weight.tobytes())
        archive.writestr("archive/data/1", COUNT.tobytes())
    return path


def write_stream(path, value):
    with path.open("wb") as file:
        for part in MAGIC, 1001, {"little_endian": True}:
            pickle.dump(part, file, 2)
        Pickler(file, 2).dump(value)
        pickle.dump(["0", "1"], file, 2)
        for array in WEIGHT, COUNT:
            file.write(struct.pack("<q", array.size) + array.tobytes())
    return path


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("write", [write_zip, write_stream])
def test_reads_shapes_strides_and_types(tmp_path, write):
    found = read_state(write(tmp_path / "state.pth", state()))
    assert list(found) == ["whole", "turned", "count"]
    np.testing.assert_array_equal(found["whole"], WEIGHT)
    np.testing.assert_array_equal(found["turned"], WEIGHT[1:].T)
    assert found["count"].dtype == np.int64
    assert found["count"].shape == ()
    assert found["count"] == 7


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("write", [write_zip, write_stream])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, write):
    with pytest.raises(ModelError, match="beyond its storage of 24"):
        read_state(write(tmp_path / "state.pth", state(offset=7)))


@pytest.mark.usefixtures("torch")
def test_a_negative_stride_is_refused(tmp_path):
    weight = Storage("FloatStorage", "0", 24)
    with pytest.raises(ModelError, match="beyond its storage"):
        read_state(write_zip(tmp_path / "s.pth", {"w": Tensor(weight, 0, (4, 6), (-6, 1))}))


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("write", [write_zip, write_stream])
def test_a_pickle_that_calls_anything_else_is_refused_and_does_not_run(tmp_path, write):
    marker = tmp_path / "ran"
    path = write(tmp_path / "state.pth", {"w": Malicious(marker)})
    with pytest.raises(ModelError, match=r"system.*refused"):
        read_state(path)
    assert not marker.exists()


@pytest.mark.usefixtures("torch")
def test_a_builtin_hidden_behind_a_dotted_name_is_refused(tmp_path):
    attack = b"\x80\x04\x8c\x0btorch._utils\x8c\x10sys.modules.clear\x93."
    with zipfile.ZipFile(tmp_path / "state.pth", "w") as archive:
        archive.writestr("archive/data.pkl", attack)
    with pytest.raises(ModelError):
        read_state(tmp_path / "state.pth")


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("write", [write_zip, write_stream])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_a_truncated_file_is_a_model_error(tmp_path, write, share):
    path = write(tmp_path / "state.pth", state())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ModelError, match=r"state\.pth"):
        read_state(path)


def test_a_text_file_is_a_model_error(tmp_path):
    (tmp_path / "notes.txt").write_text("no weights here")
    with pytest.raises(ModelError, match=r"notes\.txt is not a readable torch state dict"):
        read_state(tmp_path / "notes.txt")
