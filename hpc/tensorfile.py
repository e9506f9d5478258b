"""Named arrays in one safetensors file: copied fast, written durably, verified block by block.

The copy in memory is the file, byte by byte. So taking it is a plain memory copy, and writing it
needs no further one: the pages go to the disk past the page cache (O_DIRECT), which takes a
twentieth of the processor time that buffered writing takes. The header is written here because
the safetensors library offers no way to lay a file out in memory of one's own; the tests read
the files with that library.

Checksums are XXH3-128 over blocks of the whole file, header and padding included: they run at
memory speed, blocks can be checked in parallel, and an accidental change goes unseen once in
2^128. They are no protection against a forger.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

BLOCK = 16 * 2**20
"""Bytes under one checksum."""

ALIGNMENT = 4096
"""What O_DIRECT wants of addresses, offsets and lengths; at least every device's sector."""

PORTION = 2**20
"""Bytes read at a time when verifying: small enough to be hashed while still in the cache."""

DTYPES = {
    "BOOL": "|b1",
    "I8": "|i1",
    "U8": "|u1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "I64": "<i8",
    "U64": "<u8",
    "F64": "<f8",
    "C64": "<c8",
}
_CODES = {np.dtype(text): code for code, text in DTYPES.items()}


class DamagedFile(Exception):
    """A file that is not what was written; the text says how, without naming the file."""


class InParts(Protocol):
    """An array that lies elsewhere, on other ranks or a GPU, and comes when it is copied.

    What is cut from it is cut along its first axis.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def nbytes(self) -> int: ...

    def copy_to(self, memory: np.ndarray) -> None:
        """Put all of it into a contiguous array of its shape and type."""

    def parts(self) -> Iterator[np.ndarray]:
        """All of it, one part after another; each is valid until the next."""


Tensors = Mapping[str, np.ndarray] | Mapping[str, np.ndarray | InParts]


@dataclass(frozen=True)
class Place:
    """Where one array lies in a file."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def view(self, memory: mmap.mmap) -> np.ndarray:
        """The array in a file image, without a copy."""
        return np.ndarray(self.shape, self.dtype, buffer=memory, offset=self.offset)


@dataclass(frozen=True)
class Layout:
    """Header, places and size of a safetensors file."""

    header: bytes
    places: dict[str, Place]
    size: int


def lay_out(tensors: Tensors) -> Layout:
    """Lay arrays out without gaps, the widest element types first, so that all are aligned.

    Raises TypeError for a dtype that safetensors does not know.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    entries: dict[str, dict[str, object]] = {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        entries[name] = {
            "dtype": _code(name, tensors[name]),
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return Layout(header, _places(entries, len(header)), len(header) + end)


def _code(name: str, tensor: np.ndarray | InParts) -> str:
    code = _CODES.get(tensor.dtype.newbyteorder("<"))
    if code is None or name == "__metadata__":
        raise TypeError(f"tensor {name!r} of dtype {tensor.dtype} does not fit into safetensors")
    return code


def _places(entries: Mapping[str, Mapping], data_start: int) -> dict[str, Place]:
    return {
        name: Place(
            data_start + entry["data_offsets"][0],
            np.dtype(DTYPES[entry["dtype"]]),
            tuple(entry["shape"]),
        )
        for name, entry in entries.items()
        if name != "__metadata__"
    }


class Snapshot:
    """Arrays copied into the image of their file, in memory that is reused from copy to copy."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        padded = layout.size + -layout.size % ALIGNMENT
        self.memory = mmap.mmap(-1, padded, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        np.frombuffer(self.memory, np.uint8).fill(0)  # get the pages now, not while copying
        self.memory[: len(layout.header)] = layout.header
        self._views = {name: place.view(self.memory) for name, place in layout.places.items()}

    @property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """Views of the arrays that it holds."""
        return self._views

    def fill(self, tensors: Tensors) -> None:
        """Copy arrays of exactly this layout's names, dtypes and shapes."""
        for name, view in self._views.items():
            copy(tensors[name], view)


def copy(tensor: np.ndarray | InParts, memory: np.ndarray) -> None:
    """Put all of an array into a contiguous one of its shape and type."""
    if isinstance(tensor, np.ndarray):
        np.copyto(memory, tensor, casting="equiv")
    else:
        tensor.copy_to(memory)


def write(path: Path, snapshot: Snapshot) -> list[str]:
    """Write a snapshot durably and return its blocks' checksums; raises OSError.

    The space is reserved first, so that a full disk is noticed before anything is written.
    """
    size = snapshot.layout.size
    descriptor = _create(path)
    try:
        _reserve(descriptor, len(snapshot.memory))
        with memoryview(snapshot.memory) as image:
            checksums = [_write_block(descriptor, image, size, at) for at in range(0, size, BLOCK)]
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return checksums


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _reserve(descriptor: int, size: int) -> None:
    # os.posix_fallocate would write to every block where the file system cannot reserve (NFS).
    if _libc.fallocate(descriptor, 0, 0, size) == 0:
        return
    code = ctypes.get_errno()
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise OSError(code, os.strerror(code))


def _write_block(descriptor: int, image: memoryview, size: int, at: int) -> str:
    checksum = xxhash.xxh3_128_hexdigest(image[at : min(at + BLOCK, size)])
    data = image[at : at + BLOCK]
    while data:
        try:
            done = os.pwrite(descriptor, data, at)
        except OSError as error:
            if error.errno != errno.EINVAL or not _go_buffered(descriptor):
                raise
            continue
        data, at = data[done:], at + done
    if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
        os.fdatasync(descriptor)  # no heap of dirty pages that would stall everybody's writing
    return checksum


def _go_buffered(descriptor: int) -> bool:
    """Give up O_DIRECT, which some file systems refuse at the first write; False if it was off."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)


def verify(path: Path, size: int, block: int, checksums: list[str]) -> None:
    """Compare a whole file with its checksums, on all cores; raises DamagedFile or OSError.

    It is read, not mapped: a disk that fails then gives an error instead of killing the process.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor).st_size
        if found != size:
            raise DamagedFile(f"has {found} bytes instead of {size}")
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        workers = min(len(os.sched_getaffinity(0)), 8)
        with ThreadPoolExecutor(workers) as pool:
            starts = range(0, size, block)
            actual = pool.map(lambda at: _checksum(descriptor, at, min(at + block, size)), starts)
            for at, expected, checksum in zip(starts, checksums, actual, strict=True):
                if checksum != expected:
                    end = min(at + block, size)
                    raise DamagedFile(f"is damaged between bytes {at} and {end}")
    finally:
        os.close(descriptor)


def _checksum(descriptor: int, start: int, end: int) -> str:
    digest = xxhash.xxh3_128()
    portion = memoryview(bytearray(PORTION))
    while start < end:
        count = os.preadv(descriptor, [portion[: end - start]], start)
        if count == 0:
            raise DamagedFile(f"ends at byte {start}")
        digest.update(portion[:count])
        start += count
    return digest.hexdigest()


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a verified file, memory-mapped and read-only."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(memory[:8], "little")
    entries = json.loads(memory[8 : 8 + length])
    return {name: place.view(memory) for name, place in _places(entries, 8 + length).items()}


def digest_tensors(tensors: Tensors) -> str:
    """SHA-256, in hexadecimal, over names, dtypes, shapes and bytes in sorted order of names.

    For each array the JSON line [name, dtype, shape], then its elements, little-endian, in C
    order: equal for equal arrays, however they lie in memory.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        dtype = tensor.dtype.newbyteorder("<")
        digest.update(json.dumps([name, dtype.str, list(tensor.shape)]).encode() + b"\n")
        parts: Iterable[np.ndarray] = [tensor] if isinstance(tensor, np.ndarray) else tensor.parts()
        for part in parts:
            if part.size:
                digest.update(np.ascontiguousarray(part, dtype).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
