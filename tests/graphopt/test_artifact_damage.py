"""Files that are damaged, foreign or made for another machine are refused in one paragraph, before anything runs."""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt.artifact as artifact
from graphopt import graph
from graphopt.artifact import container, host, manifest
from graphopt.artifact.container import Container, content, pack
from graphopt.base import Program
from graphopt.errors import ArtifactError, GraphoptError


def model() -> ir.Model:
    return ir.from_onnx_text('<ir_version: 10, opset_import: ["": 18]> g (float[2] x) => (float[2] y) { y = Relu(x) }')


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    """An artifact whose library is no library: damage must be told before it is looked at."""
    program = Program(bytes(range(256)) * 40, {"w": np.arange(300, dtype=np.float32)}, ["x"], ["y"], report={"a": 1})
    place = tmp_path_factory.mktemp("damage") / "sound.gopt"
    return artifact.write(place, program, target="llvm", before=model(), after=model(), report={}).read_bytes()


def opened(data: bytes) -> Container:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return Container(file, "x.gopt")


def refused(data: bytes) -> str:
    with pytest.raises(ArtifactError) as caught:
        opened(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_sound_file_opens(sound):
    assert container.MANIFEST in opened(sound).members


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_one_changed_byte_anywhere_is_refused(sound, data):
    place = data.draw(st.integers(0, len(sound) - 1))
    flipped = bytearray(sound)
    flipped[place] ^= data.draw(st.integers(1, 255))
    refused(bytes(flipped))


def test_one_changed_byte_in_every_structure_is_refused(sound):
    """Headers, names, times and padding too: the places a zip reader does not look at."""
    end = len(sound)
    central = sound.index(b"PK\x01\x02")
    for place in [*range(200), *range(central, end, 3), *range(end - 100, end)]:
        flipped = bytearray(sound)
        flipped[place] ^= 1 << (place % 8)
        refused(bytes(flipped))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cut_anywhere_it_is_refused(sound, data):
    refused(sound[: data.draw(st.integers(0, len(sound) - 1))])


@settings(max_examples=30, deadline=None)
@given(tail=st.binary(min_size=1, max_size=300))
def test_anything_after_the_end_is_refused(sound, tail):
    refused(sound + tail)


def test_files_that_are_something_else(tmp_path, sound):
    assert "is not a .gopt file" in refused(b"\x08\x0a\x12\x07pytorch")
    assert "can't be read" in refused(b"")
    assert "cut short" in refused(sound[:-10])
    assert "damaged" in refused(sound[:3000] + b"\x00\x01" + sound[3002:])
    with pytest.raises(ArtifactError, match=r"can't open the artifact .*No such file"):
        artifact.load(tmp_path / "none.gopt")
    with pytest.raises(ArtifactError, match="can't open the artifact"):
        artifact.load(tmp_path)
    import zipfile

    with zipfile.ZipFile(tmp_path / "plain.gopt", "w") as archive:
        archive.writestr("manifest.json", "{}")
    with pytest.raises(ArtifactError, match="seal is missing"):
        artifact.load(tmp_path / "plain.gopt")


@pytest.mark.parametrize("size", [10, 1 << 40])
def test_a_member_of_another_size_than_it_says(tmp_path, size):
    """However large the size it claims: no more is inflated than that, and the mistake is named."""
    place = tmp_path / "odd.gopt"
    with open(place, "w+b") as file:
        pack(file, {"a.txt": content(b"x" * 100)}, lambda _: b"{}")
    odd = opened(place.read_bytes())
    odd._members["a.txt"] = odd._members["a.txt"]._replace(inflated=size)
    with pytest.raises(ArtifactError, match="is not of the size"):
        odd.read("a.txt")
    odd._members["a.txt"] = odd._members["a.txt"]._replace(data=memoryview(b"\xff" * 20))
    with pytest.raises(ArtifactError, match="can't be inflated"):
        odd.read("a.txt")


def resealed(tmp_path, change, members=None):
    """A whole file, properly sealed, whose manifest was changed."""
    described = json.loads(bytes(opened(change.pop("base")).read("manifest.json")))
    described |= change
    place = tmp_path / "resealed.gopt"
    with open(place, "w+b") as file:
        pack(file, {k: content(v) for k, v in (members or {}).items()}, lambda _: json.dumps(described).encode())
    return place


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 99}, "is of format 99, and this graphopt reads format 1"),
        ({"format": "new"}, "manifest that can't be used: format"),
        ({"machine": "m68k"}, "compiled for linux on m68k"),
        ({"system": "plan9"}, "compiled for plan9"),
        ({"device": "tpu"}, "manifest that can't be used: device"),
        ({"surprise": 1}, "surprise"),
        ({"weights": {"w": {"dtype": "object", "shape": [1], "offset": 0}}}, "object is not a tensor's dtype"),
        ({"weights": {"w": {"dtype": "int8", "shape": [-1], "offset": 0}}}, "weights.w.StoredSpec.shape.0"),
        ({"versions": {"graphopt": "0", "tvm": "0.1", "tvm_ffi": "0"}}, "built with apache-tvm 0.1"),
        ({}, "has no member library.so"),
    ],
)
def test_a_whole_file_that_can_not_run_here(tmp_path, sound, change, said):
    with pytest.raises(ArtifactError, match=said):
        artifact.load(resealed(tmp_path, {"base": sound, **change}))


def test_a_manifest_that_is_no_json(tmp_path):
    with open(tmp_path / "x.gopt", "w+b") as file:
        pack(file, {}, lambda _: b"\xff\x00")
    with pytest.raises(ArtifactError, match="manifest that can't be used"):
        artifact.load(tmp_path / "x.gopt")


def test_a_library_that_is_none(tmp_path, sound):
    place = tmp_path / "x.gopt"
    place.write_bytes(sound)
    with pytest.raises(ArtifactError, match="TVM can't load the compiled library"):
        artifact.load(place)


def test_a_cpu_without_the_instruction_sets(monkeypatch, tmp_path, sound):
    if host.host_flags() is None:
        pytest.skip("the CPU's flags can't be read here")
    monkeypatch.setattr(host, "host_flags", lambda: frozenset({"sse4_1", "avx", "avx512_vnni", "amx_int8"}))
    assert host.missing(["sse4.1", "avx", "avx2", "fma", "avx512vnni", "amx-int8", "64bit"]) == ["avx2", "fma"]
    with pytest.raises(ArtifactError, match="CPU with avx2, fma, which this one lacks"):
        artifact.load(resealed(tmp_path, {"base": sound, "cpu_features": ["avx", "avx2", "fma"]}))
    monkeypatch.setattr(host, "host_flags", lambda: None)
    assert host.missing(["avx2"]) == []


def test_an_artifact_for_this_cpu_names_what_it_needs(tmp_path):
    from graphopt.base import Context
    from graphopt.targets.llvm import Llvm

    net = graph.normalise(model())
    place = artifact.write(
        tmp_path / "x.gopt", Llvm().build(net, Context()), target="llvm", before=net, after=net, report={}
    )
    needed, flags = artifact.read(place).manifest.cpu_features, host.host_flags()
    assert host.missing(needed) == []
    assert flags is None or ("avx2" in needed) == ("avx2" in flags)
    np.testing.assert_array_equal(artifact.load(place)(np.array([-1, 2], np.float32)), [0, 2])


def test_a_target_that_compiled_another_signature(tmp_path):
    program = Program(b"", {}, ["z"], ["y"])
    with pytest.raises(ValueError, match="compiled"):
        artifact.write(tmp_path / "x.gopt", program, target="llvm", before=model(), after=model(), report={})
    assert list(tmp_path.iterdir()) == []


def test_large_members_are_aligned_and_read_back(tmp_path):
    rng = random.Random(0)
    members = {f"{'n' * i}.bin": rng.randbytes(i * 37) for i in range(1, 40)}
    with open(tmp_path / "x", "w+b") as file:
        pack(file, {k: content(v) for k, v in members.items()}, lambda digests: b"{}")
        whole = Container(file, "x")
    for name, data in members.items():
        assert bytes(whole.read(name)) == data
        assert np.frombuffer(whole.read(name), np.uint8).ctypes.data % 64 == 0


def test_members_beyond_two_gigabytes_use_zip64(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "_ZIP64_ABOVE", 100)
    with open(tmp_path / "x", "w+b") as file:
        pack(file, {"big.bin": content(bytes(5000)), "small": content(b"s")}, lambda digests: b"{}")
        whole = Container(file, "x")
    assert bytes(whole.read("big.bin")) == bytes(5000)
    assert np.frombuffer(whole.read("big.bin"), np.uint8).ctypes.data % 64 == 0
    assert bytes(whole.read("small")) == b"s"


def test_all_errors_are_graphopts(sound):
    assert issubclass(ArtifactError, GraphoptError)
    assert dataclasses.is_dataclass(Program)
    assert manifest.FORMAT == 1
