"""Fragments of bfloat16 loaded from shared memory as such: by ldmatrix in the machine code, as those of other types.

CUDA's header loads them by a generic address, of which NVVM (13.0) does not find out that it is one of shared memory:
ptxas then writes a load for each pair of numbers, and a transposition. These overloads for pointers to what is not
const, as TVM writes them, say so in PTX (ISA, "wmma.load"). Without them the code means the same.
"""

from __future__ import annotations

_HEADER = "#include <mma.h>\n"
_LOAD = """static __device__ __forceinline__ void load_matrix_sync(
    fragment<matrix_{which}, 16, 16, 16, __nv_bfloat16, {order}_major>& to, __nv_bfloat16* from, unsigned stride) {{
  int* x = (int*)&to;
  asm volatile("wmma.load.{which}.sync.aligned.{order}.m16n16k16.shared.bf16 {{%0, %1, %2, %3}}, [%4], %5;"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"((unsigned)__cvta_generic_to_shared(from)), "r"(stride) : "memory");
}}
"""


def with_shared_loads(source: str) -> str:
    """The CUDA C `source`, with these loads if it has fragments of bfloat16."""
    if ", nv_bfloat16, nvcuda::wmma::" not in source:
        return source
    loads = (_LOAD.format(which=which, order=order) for which, order in (("a", "row"), ("b", "row"), ("b", "col")))
    text = f"#ifdef __CUDACC__\nnamespace nvcuda {{ namespace wmma {{\n{''.join(loads)}}} }}\n#endif\n"
    return source.replace(_HEADER, _HEADER + text, 1)
