"""onnx's own checker, shape inference and version converter, on serialised models.

They are C++, and a hostile file can make them crash, hang or fill the memory. Run as a program, this file answers
such calls over its standard input and output, with limits: see `graphopt.graph.isolated`. It imports nothing of
graphopt, and of onnx the C++ library alone, so that such a process starts in a tenth of the time.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
import types

if __name__ == "__main__":  # onnx's own __init__ imports numpy, protobuf and much else
    _package = types.ModuleType("onnx")
    _spec = importlib.util.find_spec("onnx")
    _package.__path__ = [] if _spec is None else list(_spec.submodule_search_locations or ())
    sys.modules["onnx"] = _package

from onnx.onnx_cpp2py_export import checker, shape_inference, version_converter

MEMORY = 8 << 30
"""Bytes of address space that the program may use."""
SECONDS, SECONDS_PER_MB = 15, 2
"""The time a call may take: so long, and so much longer for each megabyte it is given."""
HEADER = struct.Struct("<cQ")
"""Before each message: the operation, or `OK` or `REFUSED`; and the length of what follows, in bytes."""
CHECK, INFER, CONVERT = b"c", b"i", b"v"
OK, REFUSED = b"+", b"-"
OPSET = 13
"""What `CONVERT` converts to."""


def call(operation: bytes, model: bytes) -> bytes:
    """Check `model` (the answer is empty), infer its types and shapes, or convert it to `OPSET`; the new model.

    Raises:
        ValueError: the library refuses the model; its words.
    """
    try:
        if operation == CHECK:
            checker.check_model(model, False, False, False)
            return b""
        return _inferred(model) if operation == INFER else version_converter.convert_version(model, OPSET)
    except (checker.ValidationError, shape_inference.InferenceError, version_converter.ConvertError) as error:
        raise ValueError(str(error)) from error
    except (ValueError, RuntimeError, TypeError, MemoryError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _inferred(model: bytes) -> bytes:
    """In strict mode, unless it fails within onnx's own definition of an operator: that is no fault of the model."""
    try:
        return shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        if str(error).count("Inference error(s)") < 2:  # the node's own, and those of the nodes it is defined by
            raise
        return shape_inference.infer_shapes(model, check_type=True, strict_mode=False, data_prop=True)


def serve() -> None:
    """Answer calls until the input ends. A call over its time ends the process by SIGALRM."""
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    while len(header := sys.stdin.buffer.read(HEADER.size)) == HEADER.size:
        operation, length = HEADER.unpack(header)
        signal.alarm(SECONDS + SECONDS_PER_MB * (length >> 20))
        try:
            verdict, answer = OK, call(operation, sys.stdin.buffer.read(length))
        except ValueError as error:
            verdict, answer = REFUSED, str(error).encode()
        signal.alarm(0)
        sys.stdout.buffer.write(HEADER.pack(verdict, len(answer)) + answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
