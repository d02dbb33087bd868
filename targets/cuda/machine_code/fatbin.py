"""Machine code for several architectures as one image, of which the CUDA driver takes what its GPU runs.

The layout is that of ``fatbinary --create``, little-endian, uncompressed::

    header   u32 0xBA55ED50, u16 version = 1, u16 header's bytes = 16, u64 bytes that follow
    image    u16 kind = 2 (ELF), u16 version = 0x101, u32 header's bytes = 64, u64 bytes of code, 8 bytes of zeros,
             u16 8, u16 1, u32 architecture (80 for sm_80), 8 bytes of zeros, u64 flags = 0x11, 16 bytes of zeros;
             then the cubin, padded to 8 bytes
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_MAGIC, _ELF, _FLAGS = 0xBA55ED50, 2, 0x11
_HEADER = struct.Struct("<IHHQ")
_IMAGE = struct.Struct("<HHIQ8xHHI8xQ16x")


def fatbin(cubins: Mapping[str, bytes]) -> bytes:
    """One image of `cubins`, by architecture ("sm_80"); of a single one, the cubin itself."""
    if len(cubins) == 1:
        return next(iter(cubins.values()))
    images = b"".join(_image(int(arch.removeprefix("sm_")), cubin) for arch, cubin in cubins.items())
    return _HEADER.pack(_MAGIC, 1, _HEADER.size, len(images)) + images


def _image(arch: int, cubin: bytes) -> bytes:
    padded = cubin + bytes(-len(cubin) % 8)
    return _IMAGE.pack(_ELF, 0x101, _IMAGE.size, len(padded), 8, 1, arch, _FLAGS) + padded
