"""The version bounds in pyproject.toml are there for a reason; these tests say when a reason is gone or broken."""

import importlib.metadata
import json
import subprocess
import sys


def test_tvm_ffi_can_write_json():
    """apache-tvm-ffi 0.1.15.post2 segfaults here (save_json, MetaSchedule and tensorize with it), so 0.1.14 is pinned.

    In a child process: a crash must fail this test, not end the run.
    """
    code = "import tvm, json; json.loads(tvm.ir.save_json(tvm.IRModule({}))); print('written')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    version = importlib.metadata.version("apache-tvm-ffi")
    assert done.returncode == 0, f"apache-tvm-ffi {version} can't write JSON: {done.stderr[-500:]}"
    assert done.stdout.strip().endswith("written")


def test_help_needs_none_of_the_heavy_packages():
    """`graphopt --help` answers in half a second because it imports none of these."""
    code = (
        "import sys, json\nfrom graphopt.cli.app import app\n"
        "print(json.dumps([m for m in ('tvm', 'onnx', 'onnx_ir', 'onnxruntime', 'networkx', 'numpy', 'pydantic')"
        " if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []
