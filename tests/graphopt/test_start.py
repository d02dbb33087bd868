"""What a command costs before it begins: libraries that it does not need are not loaded."""

import subprocess
import sys
from pathlib import Path

MODEL = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_model_is_optimised_without_sympy_and_onnxscript(tmp_path: Path):
    code = f"""if True:
        import sys, onnx.parser
        from graphopt.api import optimize
        onnx.save(onnx.parser.parse_model({MODEL!r}), sys.argv[1])
        from graphopt.pipeline.presets import preset
        optimize(sys.argv[1], preset("O3"), verify=False)
        print(*(name for name in ("sympy.core", "onnxscript", "tvm", "onnxruntime") if name in sys.modules))
    """
    assert python(code, str(tmp_path / "m.onnx")) == ""


def test_sizes_are_computed_with_sympy_when_somebody_asks_from_many_threads_at_once():
    code = """if True:
        import sys, threading
        import graphopt, onnx_ir as ir
        assert "sympy.core" not in sys.modules
        found, together = [], threading.Barrier(8)
        def work():
            together.wait()
            found.append(str(ir.SymbolicDim("N") * 2 + 1))
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        import sympy
        print(*found, sympy.Max(2, 3), sympy.__version__ > "1")
    """
    assert python(code) == " ".join(["2*N + 1"] * 8 + ["3", "True"])


def test_the_process_that_checks_models_loads_nothing_but_onnxs_library():
    from graphopt.graph import onnx_library

    code = """if True:
        import runpy, sys, io
        sys.stdin = io.TextIOWrapper(io.BytesIO())
        runpy.run_path(sys.argv[1], run_name="__main__")
        print(*(name for name in ("numpy", "google.protobuf", "onnx.helper") if name in sys.modules))
    """
    assert python(code, onnx_library.__file__) == ""
