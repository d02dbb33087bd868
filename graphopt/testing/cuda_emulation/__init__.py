"""CUDA kernels on the CPU: the very CUDA C of a model, run thread by thread, without a GPU.

::

    from graphopt.testing.cuda_emulation import emulate

    outputs = emulate(model, {"x": x}, arch="sm_80")

The CUDA C that ``--target cuda`` made is compiled by the host's C++ compiler against a few headers, behind a driver and
runtime library of which TVM's own CUDA runtime knows no better; the artifact's host code, memory plan and launches
are those a GPU would get. Threads are fibres; barriers, shuffles, tensor-core fragments and asynchronous copies do
what CUDA says of them. With `checks` every access to device memory is looked at, and these end the run with an
`EmulationError` that names kernel, block and thread: out of bounds; shared memory read before it is written; two
threads at the same shared bytes with no barrier between; threads of a block at different barriers; launch limits.

It is a test tool: how long it takes says nothing about any GPU, and what only silicon shows (timing, memory order
beyond barriers, the compiler's and the device's own faults) it does not see.
"""

from graphopt.testing.cuda_emulation.build import EmulationError
from graphopt.testing.cuda_emulation.by_kernel import KernelCheck, ModelCheck, check_kernels
from graphopt.testing.cuda_emulation.run import emulate, run_kernel

__all__ = ["EmulationError", "KernelCheck", "ModelCheck", "check_kernels", "emulate", "run_kernel"]
