"""The `.gopt` file as bytes: a zip of stored members, sealed by one digest, read through a memory map.

Anything that reads zip files can look inside. Beyond plain zip:

1. members are in sorted order; ``*.bin`` are stored, each one's data `ALIGNMENT`-aligned in the file, so that
   tensors can be used where they lie; all others are deflated. Times and permissions are fixed, so equal content
   gives equal bytes;
2. ``manifest.json`` comes last and holds the size and SHA-256 of every other member;
3. the archive's comment is the seal: the SHA-256 of every byte before it. A file with one flipped, lost or
   added byte is refused before anything in it is used.

The seal tells damage, not malice: whoever can change the file can seal it anew.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO, NamedTuple

from graphopt.errors import ArtifactError

ALIGNMENT = 64
"""Bytes; what TVM's kernels assume of every tensor, and a cache line."""
MANIFEST = "manifest.json"
STORED = ".bin"
"""How the names of members end that are read where they lie."""

_SEAL = b"graphopt sha256 "
_SEAL_LENGTH = len(_SEAL) + 64
_ZIP_MAGIC = b"PK\x03\x04"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_LOCAL_HEADER = 30  # bytes, before the name
_ZIP64_EXTRA = 20
_ZIP64_ABOVE = (1 << 31) - 1
_ALIGNMENT_FIELD = 0xD935  # the extra field zipalign pads with


class Content(NamedTuple):
    """A member to be written: how many bytes, and the pieces that give them."""

    nbytes: int
    pieces: Callable[[], Iterable[bytes | memoryview]]


class Digest(NamedTuple):
    """What the manifest says of a member."""

    sha256: str
    nbytes: int


class _Place(NamedTuple):
    """The bytes of a member in the file, and if they are deflated, how many they will be."""

    data: memoryview
    inflated: int | None


def content(data: bytes) -> Content:
    """The member that is just `data`."""
    return Content(len(data), lambda: [data])


def pack(file: BinaryIO, members: Mapping[str, Content], manifest: Callable[[Mapping[str, Digest]], bytes]) -> None:
    """Write `members` and the manifest made from their digests to `file` (empty, seekable, readable), and seal it."""
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        digests = {name: _append(archive, file, name, members[name]) for name in sorted(members)}
        _append(archive, file, MANIFEST, content(manifest(digests)))
        archive.comment = _SEAL + b"0" * 64
    file.flush()
    end = os.fstat(file.fileno()).st_size - 64
    seal = _digest(file, end)
    file.seek(end)
    file.write(seal)
    file.flush()


def _digest(file: BinaryIO, end: int) -> bytes:
    """The SHA-256 of the first `end` bytes of `file`, in hexadecimal."""
    file.seek(0)
    seal = hashlib.sha256()
    for start in range(0, end, 1 << 20):
        seal.update(file.read(min(1 << 20, end - start)))
    return seal.hexdigest().encode()


def _append(archive: zipfile.ZipFile, file: BinaryIO, name: str, member: Content) -> Digest:
    zip64 = member.nbytes > _ZIP64_ABOVE
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3
    info.external_attr = 0o644 << 16
    info.compress_type = zipfile.ZIP_STORED if name.endswith(STORED) else zipfile.ZIP_DEFLATED
    header = _LOCAL_HEADER + len(name.encode()) + _ZIP64_EXTRA * zip64
    gap = -(file.tell() + header + 6) % ALIGNMENT
    info.extra = struct.pack("<HHH", _ALIGNMENT_FIELD, 2 + gap, ALIGNMENT) + bytes(gap)
    digest = hashlib.sha256()
    with archive.open(info, "w", force_zip64=zip64) as out:
        for piece in member.pieces():
            digest.update(piece)
            out.write(piece)
    return Digest(digest.hexdigest(), member.nbytes)


class Container:
    """A `.gopt` file opened for reading: verified, and mapped copy-on-write, so that members are read in place."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Map `file` (which may be closed afterwards); `name` is what messages call it.

        Raises:
            ArtifactError: it is not a `.gopt` file, or not the bytes that were sealed.
        """
        self.name = name
        try:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (ValueError, OSError) as error:
            raise ArtifactError(f"{name} can't be read as a .gopt file: {error}.") from error
        self.data = memoryview(self._map)
        self._check_seal(file)
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                self._members = {info.filename: self._locate(info) for info in archive.infolist()}
        except (zipfile.BadZipFile, struct.error, ValueError, OSError) as error:
            raise ArtifactError(f"{name} is not a zip file that graphopt wrote: {error}.") from error

    def _check_seal(self, file: BinaryIO) -> None:
        """The digest is taken of the file as it is read, not of the map: pages that nobody uses stay out of memory."""
        head, seal = bytes(self.data[:4]), bytes(self.data[-_SEAL_LENGTH:])
        if head != _ZIP_MAGIC:
            raise ArtifactError(f"{self.name} is not a .gopt file: `graphopt compile` writes one from an ONNX model.")
        if not seal.startswith(_SEAL):
            raise ArtifactError(
                f"{self.name} is cut short, or is a zip file that graphopt did not write: its seal is missing. "
                "Copy it again from where it was made, or compile the model again."
            )
        if _SEAL + _digest(file, len(self.data) - 64) != seal:
            raise ArtifactError(
                f"{self.name} is damaged: its bytes are not those that were written (SHA-256 differs), so nothing of "
                "it was loaded. Copy it again from where it was made, or compile the model again."
            )

    def _locate(self, info: zipfile.ZipInfo) -> _Place:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"member {info.filename} is compressed in a way that graphopt doesn't use")
        names, extras = struct.unpack_from("<HH", self.data, info.header_offset + 26)
        start = info.header_offset + _LOCAL_HEADER + names + extras
        if start + info.compress_size > len(self.data):
            raise ValueError(f"member {info.filename} reaches past the end")
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        return _Place(self.data[start : start + info.compress_size], info.file_size if deflated else None)

    @property
    def members(self) -> list[str]:
        """The names of all members, the manifest's included."""
        return list(self._members)

    def read(self, member: str) -> memoryview:
        """The bytes of `member`: where they lie in the map if it is stored, else inflated anew.

        Raises:
            ArtifactError: there is no such member, or it can't be inflated.
        """
        if member not in self._members:
            raise ArtifactError(f"{self.name} has no member {member}; it has {', '.join(self._members)}.")
        data, nbytes = self._members[member]
        if nbytes is None:
            return data
        try:
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, nbytes + 1)
        except zlib.error as error:
            raise ArtifactError(f"{self.name}: member {member} can't be inflated: {error}.") from error
        if len(inflated) != nbytes:
            raise ArtifactError(f"{self.name}: member {member} is not of the size that the file says, {nbytes} bytes.")
        return memoryview(inflated)
