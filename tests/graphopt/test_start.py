"""What a command costs before it begins: libraries that it does not need are not loaded."""

import subprocess
import sys
from pathlib import Path

MODEL = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_model_is_optimised_without_compilers_and_onnxscript(tmp_path: Path):
    code = f"""if True:
        import sys, onnx.parser
        from graphopt.api import optimize
        onnx.save(onnx.parser.parse_model({MODEL!r}), sys.argv[1])
        from graphopt.pipeline.presets import preset
        optimize(sys.argv[1], preset("O3"), verify=False)
        print(*(name for name in ("onnxscript", "tvm", "onnxruntime") if name in sys.modules))
    """
    assert python(code, str(tmp_path / "m.onnx")) == ""


def test_the_process_that_checks_models_loads_nothing_but_onnxs_library():
    from graphopt.graph import onnx_library

    code = """if True:
        import runpy, sys, io
        sys.stdin = io.TextIOWrapper(io.BytesIO())
        runpy.run_path(sys.argv[1], run_name="__main__")
        print(*(name for name in ("numpy", "google.protobuf", "onnx.helper") if name in sys.modules))
    """
    assert python(code, onnx_library.__file__) == ""
