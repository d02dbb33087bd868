"""The C around the kernels: a header, the function that calls them, the weights, and an example."""

from __future__ import annotations

from collections.abc import Sequence
from string import Template

import numpy as np

from graphopt.artifact.container import ALIGNMENT
from graphopt.artifact.manifest import TensorSpec, dtype_of
from graphopt.targets.llvm.single import Argument, Place, Program

CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}  # DLPack's

HEADER = Template(
    """\
/* $name, compiled by graphopt for $cpu ($triple). The CPU must have: $features. */
#ifndef ${guard}_H
#define ${guard}_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ${guard}_ALIGNMENT $alignment /* of every pointer, bytes */
#define ${guard}_INPUTS $inputs
#define ${guard}_OUTPUTS $outputs
#define ${guard}_WORKSPACE_BYTES $workspace

$sizes
/* Runs the model once. `inputs` and `outputs` point to one array each, row-major, in the order above; `workspace` to
   ${guard}_WORKSPACE_BYTES bytes, whose content does not matter. Nothing may overlap. Calls with workspaces and outputs
   of their own may run at the same time. Some kernels take scratch memory from aligned_alloc() while they run.
   Returns 0; 1 when a pointer is null or not aligned; 2 when there is no memory left, or what the inputs
   say can't be computed: an index beyond what it indexes, an integer divided by zero. */
int ${name}_run(const void* const* inputs, void* const* outputs, void* workspace);

#ifdef __cplusplus
}
#endif
#endif
"""
)

GLUE = Template(
    """\
/* Calls the kernels of $name with TVM's calling convention. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "$name.h"

typedef struct { int32_t type, id; } Device;
typedef struct { uint8_t code, bits; uint16_t lanes; } DType;
typedef struct { void* data; Device device; int32_t ndim; DType dtype; const int64_t* shape; const int64_t* strides;
                 uint64_t byte_offset; } Tensor;
typedef struct { int32_t type, padding; union { int64_t integer; void* pointer; } value; } Any;
typedef struct { uint8_t place; int32_t ndim; DType dtype; int64_t at; const int64_t* dims; } Argument;

enum { INPUT, WEIGHT, OUTPUT, WORKSPACE };
enum { CPU = 1, TENSOR = 7 };

extern char graphopt_weights[];
extern int32_t __tvm_ffi_$function(void*, const Any*, int32_t, Any*);

static void* scratch(int device, int id, uint64_t bytes, int code, int bits) {
  (void)device, (void)id, (void)code, (void)bits;
  return aligned_alloc($alignment, (bytes + $alignment - 1) / $alignment * $alignment);
}
static int32_t release(int device, int id, void* pointer) {
  (void)device, (void)id;
  free(pointer);
  return 0;
}
/* Variables of the kernels, which are weak there. */
void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = scratch;
int32_t (*__TVMBackendFreeWorkspace)(int, int, void*) = release;

void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) { (void)kind, (void)message; }
void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  (void)kind, (void)parts, (void)count;
}

static const int64_t dims[] = {$dims};
static const Argument arguments[] = {
$arguments
};
enum { COUNT = sizeof arguments / sizeof arguments[0] };

int ${name}_run(const void* const* inputs, void* const* outputs, void* workspace) {
  Tensor tensors[COUNT];
  Any values[COUNT], result;
  uintptr_t joined = (uintptr_t)workspace;
  for (int i = 0; i < $inputs; ++i) {
    if (!inputs[i]) return 1;
    joined |= (uintptr_t)inputs[i];
  }
  for (int i = 0; i < $outputs; ++i) {
    if (!outputs[i]) return 1;
    joined |= (uintptr_t)outputs[i];
  }
  if (joined % $alignment || ($workspace && !workspace)) return 1;
  for (int i = 0; i < COUNT; ++i) {
    const Argument* a = &arguments[i];
    void* data = a->place == INPUT    ? (void*)inputs[a->at]
                 : a->place == OUTPUT ? outputs[a->at]
                 : a->place == WEIGHT ? graphopt_weights + a->at
                                      : workspace;
    Tensor t = {data, {CPU, 0}, a->ndim, a->dtype, a->dims, a->dims + a->ndim, 0};
    tensors[i] = t;
    memset(&values[i], 0, sizeof values[i]);
    values[i].type = TENSOR;
    values[i].value.pointer = &tensors[i];
  }
  memset(&result, 0, sizeof result);
  if (__tvm_ffi_$function(0, values, COUNT, &result)) return 2;
$copies  return 0;
}
"""
)

WEIGHTS = """\
	.section .rodata.graphopt_weights,"a"
	.balign {alignment}
	.globl graphopt_weights
graphopt_weights:
	.incbin "{path}"
	.byte 0
	.section .note.GNU-stack,"",%progbits
"""

EXAMPLE = Template(
    """\
/* Runs $name once on inputs from files, and writes its outputs:  ./example input0.bin ... output0.bin ...
   Files are raw: row-major, this machine's byte order. */
#include <stdio.h>
#include <stdlib.h>
#include "$name.h"

static void* place(size_t bytes) {
  size_t whole = (bytes + ${guard}_ALIGNMENT) / ${guard}_ALIGNMENT * ${guard}_ALIGNMENT;
  void* pointer = aligned_alloc(${guard}_ALIGNMENT, whole);
  if (!pointer) exit(3);
  return pointer;
}

int main(int count, char** files) {
  static const size_t input_bytes[] = ${guard}_INPUT_BYTES, output_bytes[] = ${guard}_OUTPUT_BYTES;
  const void* inputs[${guard}_INPUTS];
  void* outputs[${guard}_OUTPUTS];
  if (count != 1 + ${guard}_INPUTS + ${guard}_OUTPUTS) return fprintf(stderr, "see main.c\\n"), 2;
  for (int i = 0; i < ${guard}_INPUTS; ++i) {
    void* data = place(input_bytes[i]);
    FILE* file = fopen(files[1 + i], "rb");
    if (!file || fread(data, 1, input_bytes[i], file) != input_bytes[i]) return perror(files[1 + i]), 2;
    fclose(file);
    inputs[i] = data;
  }
  for (int i = 0; i < ${guard}_OUTPUTS; ++i) outputs[i] = place(output_bytes[i]);
  int code = ${name}_run(inputs, outputs, place(${guard}_WORKSPACE_BYTES));
  if (code) return fprintf(stderr, "${name}_run: %d\\n", code), 1;
  for (int i = 0; i < ${guard}_OUTPUTS; ++i) {
    FILE* file = fopen(files[1 + ${guard}_INPUTS + i], "wb");
    if (!file || fwrite(outputs[i], 1, output_bytes[i], file) != output_bytes[i]) return perror("output"), 2;
    fclose(file);
  }
  return 0;
}
"""
)


def header(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], **known: object) -> str:
    """`NAME.h`; `known`: cpu, triple, features and workspace (bytes)."""
    guard = name.upper()
    sizes = [
        f"/* {kind} {index}: {_in_comment(spec.name)}, {spec} */"
        for kind, specs in (("input", inputs), ("output", outputs))
        for index, spec in enumerate(specs)
    ]
    sizes += [
        f"#define {guard}_{kind}_BYTES {{{', '.join(str(nbytes(spec)) for spec in specs)}}}"
        for kind, specs in (("INPUT", inputs), ("OUTPUT", outputs))
    ]
    return HEADER.substitute(
        name=name, guard=guard, alignment=ALIGNMENT, inputs=len(inputs), outputs=len(outputs),
        sizes="\n".join(sizes) + "\n", **known,
    )  # fmt: skip


def glue(name: str, program: Program, offsets: Sequence[int], outputs: Sequence[TensorSpec], inputs: int) -> str:
    """The C function; weight number i lies at ``offsets[i]``."""
    dims: list[int] = []
    rows: list[str] = []
    for argument in program.arguments:
        rows.append(_row(argument, offsets, len(dims)))
        strides = [int(np.prod(argument.shape[axis + 1 :])) for axis in range(len(argument.shape))]
        dims += [*argument.shape, *strides]
    copies = [
        f"  memcpy(outputs[{index}], {_source(place, offsets)}, {nbytes(outputs[index])});\n"
        for index, place in program.copies
    ]
    return GLUE.substitute(
        name=name, function=program.function, alignment=ALIGNMENT, dims=", ".join(map(str, dims or [0])),
        arguments="\n".join(rows), inputs=inputs, outputs=len(outputs), copies="".join(copies),
        workspace=int(any(a.place.kind == "workspace" for a in program.arguments)),
    )  # fmt: skip


def example(name: str) -> str:
    """`main.c`."""
    return EXAMPLE.substitute(name=name, guard=name.upper())


def weights(path: str) -> str:
    """Assembler source that takes the bytes of the file `path` in."""
    return WEIGHTS.format(alignment=ALIGNMENT, path=path)


def nbytes(spec: TensorSpec) -> int:
    """Bytes of a tensor whose sizes are all known."""
    return dtype_of(spec.dtype).itemsize * int(np.prod([int(d or 0) for d in spec.shape or ()], dtype=np.int64))


def _row(argument: Argument, offsets: Sequence[int], dims: int) -> str:
    word = argument.dtype.rstrip("0123456789")
    bits = argument.dtype.removeprefix(word) or "8"
    at = offsets[argument.place.index] if argument.place.kind == "weight" else argument.place.index
    place = argument.place.kind.upper()
    return f"  {{{place}, {len(argument.shape)}, {{{CODES[word]}, {bits}, 1}}, {at}, dims + {dims}}},"


def _source(place: Place, offsets: Sequence[int]) -> str:
    if place.kind == "weight":
        return f"graphopt_weights + {offsets[place.index]}"
    return f"{place.kind}s[{place.index}]"


def _in_comment(text: str) -> str:
    return text.replace("*/", "* /").replace("\n", " ")
