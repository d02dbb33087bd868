"""The host library of a GPU model, with its kernels inside as machine code.

TVM puts machine code into a library only where a CUDA driver is installed; elsewhere it puts the CUDA C source
there, to be compiled on each load. The packed modules end with ``cuda``: kind, then content, where::

    content = format, functions, code       every string: its length (u64, little-endian), then its bytes

so replacing ``format`` by "cubin" and ``code`` by the cubin gives what TVM would have packed beside a driver.
"""

from __future__ import annotations

import re
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm.support import cc

from graphopt.errors import HostError, LoweringError

_KIND = re.compile(rb"\x04\0{7}cuda(.{8})\x04\0{7}cuda", re.DOTALL)
_BLOB = """\
    .section .rodata
    .globl {symbol}
    .balign 16
{symbol}:
    .incbin "{path}"
    .section .note.GNU-stack,"",%progbits
"""


def cuda_source(executable: tvm.runtime.Executable) -> str:
    """The CUDA C of all kernels; empty when the model has none."""
    return "".join(m.inspect_source() for m in _modules(executable.mod) if m.kind == "cuda")


def _modules(module: Any) -> list[Any]:
    return [module, *(inner for imported in module.imports for inner in _modules(imported))]


def to_library(executable: tvm.runtime.Executable, cubin: bytes | None, source: str) -> bytes:
    """The shared library with host code and, in place of `source`, the `cubin` (None: the source stays).

    Raises:
        HostError: there is no C++ compiler to link with, or it fails.
    """

    def pack(module: Any, is_system_lib: bool, prefix: str, folder: str) -> str:
        blob = np.from_dlpack(tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(module)).tobytes()
        blob = blob if cubin is None else with_cubin(blob, source.encode(), cubin)
        data, assembly = Path(folder) / "modules.bin", Path(folder) / "modules.s"
        data.write_bytes(blob)
        assembly.write_text(_BLOB.format(symbol=f"{prefix}__tvm_ffi__library_bin", path=data))
        return str(assembly)

    linker = cc.get_cc()
    if linker is None:
        raise HostError("no C++ compiler was found to link the host library with: install g++ or clang.")
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "model.so"
        try:
            executable.mod.export_library(str(path), fpack_imports=pack, workspace_dir=folder)
        except (RuntimeError, OSError) as error:
            raise HostError(
                f"{linker} could not link the compiled model: {' '.join(str(error).split())[:600]}"
            ) from error
        return path.read_bytes()


def with_cubin(blob: bytes, source: bytes, cubin: bytes) -> bytes:
    """TVM's packed modules with the CUDA module's `source` replaced by `cubin`.

    Raises:
        LoweringError: the modules are not packed as this file's docstring says.
    """
    kind, end = _KIND.search(blob), len(blob)
    code = _string(source)
    if kind is None or not blob.endswith(code) or struct.unpack("<Q", kind[1])[0] != end - kind.end(1):
        raise LoweringError(
            "this TVM packs CUDA modules in a way graphopt does not know: install apache-tvm 0.27.0.post1."
        )
    content = _string(b"cubin") + blob[kind.end() : end - len(code)] + _string(cubin)
    packed = blob[8 : kind.start(1)] + struct.pack("<Q", len(content)) + content
    return struct.pack("<Q", len(packed)) + packed


def _string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data
