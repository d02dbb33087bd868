"""The CUDA target at run time: artifacts that carry CUDA C are compiled as they are loaded, for the GPU found."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import tvm_ffi

from graphopt.errors import ArtifactError
from graphopt.targets.cuda.machine_code.compiler import compile_source

_HOOK = "tvm_callback_cuda_compile"
_CUDA, _COMPUTE_VERSION = 2, 4


@contextlib.contextmanager
def compiling() -> Generator[None, None, None]:
    """While it lasts, TVM's runtime has this machine's compiler make machine code of CUDA C.

    The hook does not stay: `import tvm` brings one of its own and refuses to when there is one.
    """
    before = tvm_ffi.get_global_func(_HOOK, allow_missing=True)
    tvm_ffi.register_global_func(_HOOK, _compile, override=True)
    try:
        yield
    finally:
        if before is None:
            tvm_ffi.registry.remove_global_func(_HOOK)
        else:
            tvm_ffi.register_global_func(_HOOK, before, override=True)


def _compile(source: str) -> bytes:
    version = str(tvm_ffi.get_global_func("runtime.GetDeviceAttr")(_CUDA, 0, _COMPUTE_VERSION))
    binary = compile_source(source, f"sm_{version.replace('.', '')}")
    if binary.cubin is None:
        raise ArtifactError(
            "this artifact carries CUDA C instead of machine code, and this machine has neither nvcc nor NVRTC to "
            "compile it: install one with pip install 'graphopt[cuda]', or compile the model where there is one."
        )
    return binary.cubin
