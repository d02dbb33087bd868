"""CUDA C as TVM writes it, turned into C++ for the headers in ``native/``.

The kernels' bodies stay as they are but for four things: what is declared ``__shared__``, casts between pointers,
inline assembly, and the signature, whose pointers become `ptr`. Each kernel gets a function the driver can launch.
"""

from __future__ import annotations

import re

_INCLUDE = re.compile(r"^\s*#\s*include\s*<(?:cuda|mma|math_constants|cooperative|sm_).*>.*$", re.MULTILINE)
_SIGNATURE = re.compile(
    r'^extern "C" __global__ void (?:__launch_bounds__\((\d+)[^)]*\) )?(\w+)\(([^()]*)\)\s*([;{])', re.MULTILINE
)
_SHARED = re.compile(r"\b__shared__ (?:alignas\(\d+\) |__align__\(\d+\) )?([\w ]+?) (\w+)\[(\d+)\];")
_DYNAMIC = re.compile(r"^.*extern __shared__ (?:\w+\(\d+\) )?[\w ]+ (\w+)\[\];", re.MULTILINE)
_CAST = re.compile(r"\((?:volatile )?(\w+)\s?\*\)(?=\s*[(\w&])")
_ASM = re.compile(r"\b(?:__asm__|asm)\s*(?:__volatile__|volatile)?\s*\(")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_MNEMONIC = re.compile(r"(?<![\w.])(mma\.|ldmatrix\.|stmatrix\.|cp\.async|wgmma\.)[\w.:]*")
_HELPER = re.compile(r"^__forceinline__ __device__ void (\w+)\(([^()]*)\)", re.MULTILINE)
_LOCAL_POINTER = re.compile(r"\b\w+\s?\*\s*(\w+) =")
_MEETS = re.compile(r"__sync|__shfl|__activemask|__ballot|__any|__all|wmma::|ptx_")


def to_cpp(source: str) -> str:
    """C++ that compiles against ``emulation.h``; each kernel K has an ``extern "C"`` function ``emulated_K``."""
    source = _INCLUDE.sub("", source)
    first = _SIGNATURE.search(source)
    start = first.start() if first else len(source)
    return '#include "emulation.h"\n' + _helpers(source[:start]) + _kernels(source[start:])


def _helpers(code: str) -> str:
    """What stands before the kernels; TVM's functions around inline assembly are templates over their pointers."""
    first = _HELPER.search(code)
    if first is None:
        return code
    functions = _LOCAL_POINTER.sub(r"auto \1 =", code[first.start() :])
    return code[: first.start()] + _assembly(_CAST.sub(r"(ptr<\1>)", _HELPER.sub(_template, functions)))


def _template(signature: re.Match[str]) -> str:
    parameters = [text.strip() for text in signature[2].split(",") if text.strip()]
    kinds = ", ".join(f"class P{index}" for index, text in enumerate(parameters) if "*" in text)
    given = [f"P{index} {text.split('*')[1]}" if "*" in text else text for index, text in enumerate(parameters)]
    template = f"template <{kinds}> " if kinds else ""
    return f"{template}static void {signature[1]}({', '.join(given)})"


def _kernels(code: str) -> str:
    code = _DYNAMIC.sub(r"auto \1 = emulated::dynamic_shared();", code)
    code = _SHARED.sub(r"SHARED(\1, \2, \3);", code)
    code = _assembly(_CAST.sub(r"(ptr<\1>)", code))
    pieces: list[str] = []
    found = list(_SIGNATURE.finditer(code))
    for match, following in zip(found, [*found[1:], None], strict=True):
        if match[4] == ";":
            continue
        body = code[match.end() : following.start() if following else len(code)]
        parameters = [_parameter(text) for text in match[3].split(",") if text.strip()]
        declared = ", ".join(f"{kind} {name}" for kind, name in parameters)
        pieces.append(f"static void {match[2]}({declared}) {{{body}")
        pieces.append(_launcher(match[2], match[1], parameters, bool(_MEETS.search(body))))
    return "".join(pieces)


def _parameter(text: str) -> tuple[str, str]:
    """Type and name: ``float* __restrict__ x_ptr`` is ``ptr<float>``, ``x_ptr``."""
    words = text.replace("__restrict__", " ").replace("const ", " ").replace("*", " * ").split()
    *kind, name = words
    return (f"ptr<{' '.join(kind[:-1])}>" if kind[-1] == "*" else " ".join(kind)), name


def _launcher(kernel: str, bound: str | None, parameters: list[tuple[str, str]], meets: bool) -> str:
    values: list[str] = []
    for index, (kind, name) in enumerate(parameters):
        if kind.startswith("ptr<"):
            at = f"*(void**)arguments[{index}]"
            values.append(
                f'emulated::global<{kind[4:-1]}>({at}, &regions[{index}], "{name}", emulated_bytes_from({at}))'
            )
        else:
            values.append(f"*({kind}*)arguments[{index}]")
    given = "".join(f"  auto given_{index} = {value};\n" for index, value in enumerate(values))
    passed = ", ".join(f"given_{index}" for index in range(len(values)))
    sizes = ", ".join(["8" if kind.startswith("ptr<") else f"sizeof({kind})" for kind, _ in parameters])
    return f"""
extern "C" unsigned sizes_of_{kernel}[] = {{{len(parameters)}, {sizes}}};
extern "C" void emulated_{kernel}(const unsigned* grid, const unsigned* block, unsigned shared, void** arguments) {{
  static emulated::Region regions[{len(parameters) + 1}];
{given}  auto body = [&] {{ {kernel}({passed}); }};
  emulated::launch("{kernel}", {bound or 1024}, {str(meets).lower()}, grid, block, shared,
                   [](void* with) {{ (*(decltype(body)*)with)(); }}, &body);
}}
"""


def _assembly(code: str) -> str:
    """Each inline assembly as a call of the function named for its mnemonic, with its operands in order."""
    done, at = "", 0
    while match := _ASM.search(code, at):
        end = _closing(code, match.end() - 1)
        done += code[at : match.start()] + _call(code[match.end() : end])
        at = end + 1
    return done + code[at:]


def _call(inside: str) -> str:
    template, *operands = _split(inside, ":")
    text = "".join(_STRING.findall(template))
    found = _MNEMONIC.search(text)
    name = found[0] if found else (text.split() or ["nothing"])[0]
    guarded = "if_" if "setp" in text else ""
    given: list[str] = []
    for operand in (one for group in operands[:2] for one in _split(group, ",") if one.strip()):
        given.append(operand[operand.index("(") :].strip())
    identifier = re.sub(r"\W+", "_", name).strip("_")
    return f"ptx_{guarded}{identifier}({', '.join([*given, *_literals(text)])})"


def _literals(text: str) -> list[str]:
    """Numbers the instruction has among its operands, as ``cp.async.wait_group 1``."""
    return re.findall(r"(?<=[ ,])(\d+)(?=\s*[;,])", text)


def _closing(code: str, at: int) -> int:
    """The position of the parenthesis that closes the one at `at`."""
    depth = 0
    while True:
        if code[at] == '"':
            at = _after_string(code, at)
            continue
        depth += (code[at] == "(") - (code[at] == ")")
        if depth == 0:
            return at
        at += 1


def _after_string(code: str, at: int) -> int:
    match = _STRING.match(code, at)
    return match.end() if match else at + 1


def _split(text: str, sign: str) -> list[str]:
    """`text` at every `sign` that is in no string, parenthesis or bracket; ``::`` is two splits."""
    parts, depth, begin, at = list[str](), 0, 0, 0
    while at < len(text):
        if text[at] == '"':
            at = _after_string(text, at)
            continue
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if text[at] == sign and depth == 0:
            parts.append(text[begin:at])
            begin = at + 1
        at += 1
    return [*parts, text[begin:]]
