"""Every distinct kernel of a model, once, in the emulator, beside the same loops on the host and onnxruntime.

    python -m graphopt.testing.cuda_emulation model.onnx                         # random inputs, symbolic sizes small
    python -m graphopt.testing.cuda_emulation minilm-l3 --arch sm_90             # a reference model, its own example
    python -m graphopt.testing.cuda_emulation resnet50 --preset float16 --tolerance 1e-2 --json

Exit code: 0 all within the tolerance (integers: all equal), 1 a kernel is not or does what CUDA forbids.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from typing import Any

from graphopt.pipeline.presets import PRESETS
from graphopt.testing.cuda_emulation.by_kernel import KernelCheck, ModelCheck, check_kernels


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m graphopt.testing.cuda_emulation", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model", help="an ONNX file, or the name of a reference model")
    parser.add_argument("--arch", default="sm_80")
    first = parser.add_mutually_exclusive_group()
    first.add_argument("--passes", default="", help="a pipeline that runs first, as in graphopt opt")
    first.add_argument("--preset", choices=sorted(PRESETS), help="a named pipeline that runs first")
    parser.add_argument("--batch", type=int, default=1, help="samples in a reference model's example")
    parser.add_argument("--sample", type=int, default=8, help="blocks of each launch with checks of memory and races")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="over the largest magnitude of a kernel's output")
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    asked = parser.parse_args()
    from graphopt.errors import GraphoptError

    try:
        found = _checked(asked)
    except GraphoptError as error:
        print(f"graphopt: error: {error}", file=sys.stderr)
        return error.exit_code
    bad = [kernel for kernel in found.kernels if _wrong(kernel, asked.tolerance)]
    if asked.json:
        print(json.dumps({**dataclasses.asdict(found), "wrong": [kernel.function for kernel in bad]}, indent=1))
    else:
        _print(found, bad)
    return int(bool(bad))


def _checked(asked: argparse.Namespace) -> ModelCheck:
    from graphopt import models
    from graphopt.api import optimize
    from graphopt.graph import load
    from graphopt.testing import random_feeds

    entry = models.get(asked.model) if asked.model in models.names() else None
    model = load(entry.path() if entry else asked.model)
    calibration: Any = entry.calibration() if entry and entry.calibration else None
    passes = PRESETS[asked.preset] if asked.preset else asked.passes
    model = optimize(model, passes, calibration=calibration) if passes else model
    feeds = entry.example(asked.batch) if entry else random_feeds(model)
    return check_kernels(model, feeds, arch=asked.arch, sample=asked.sample)


def _wrong(kernel: KernelCheck, tolerance: float) -> bool:
    return bool(kernel.fault) or not (kernel.error or 0.0) <= (0.0 if _gives_integers(kernel) else tolerance)


def _gives_integers(kernel: KernelCheck) -> bool:
    return kernel.dtype.startswith(("int", "uint"))


def _print(found: ModelCheck, bad: list[KernelCheck]) -> None:
    print(f"{'emulated':>9} {'to ort':>9}  function")
    for kernel in sorted(found.kernels, key=lambda one: -(math.inf if one.error is None else one.error)):
        print(f"{_figure(kernel.error)} {_figure(kernel.onnxruntime_error)}  {kernel.function[:90]}")
        if kernel.fault:
            print(f"  {kernel.fault}")
    if whole := sum(map(_gives_integers, found.kernels)):
        print(f"{whole} kernels give integers: any difference is wrong")
    if found.unchecked:
        print(f"not checked: {', '.join(found.unchecked)}")
    print(
        f"{len(found.kernels)} kernels, {len(bad)} wrong; the host's outputs are {found.output_error:.1e} "
        "from onnxruntime's. Errors are over the largest magnitude of each output."
    )


def _figure(error: float | None) -> str:
    return f"{'-':>9}" if error is None else f"{error:9.1e}"


if __name__ == "__main__":
    sys.exit(main())
