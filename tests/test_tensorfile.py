from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hpc import tensorfile

DTYPES = st.sampled_from(
    [np.dtype(order + text[1:]) for text in tensorfile.DTYPES.values() for order in "<>"]
)
ARRAYS = npst.arrays(DTYPES, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
TENSORS = st.dictionaries(st.text(max_size=12).filter(lambda n: n != "__metadata__"), ARRAYS)


def write(path: Path, tensors: dict[str, np.ndarray]) -> tuple[int, list[str]]:
    snapshot = tensorfile.Snapshot(tensorfile.lay_out(tensors))
    snapshot.fill(tensors)
    return snapshot.layout.size, tensorfile.write(path, snapshot)


def check(path: Path, size: int, checksums: list[str]) -> None:
    tensorfile.verify(path, size, tensorfile.BLOCK, checksums)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    little = a.dtype.newbyteorder("<")
    return a.shape == b.shape and a.astype(little).tobytes() == b.astype(little).tobytes()


@given(tensors=TENSORS)
def test_every_bit_comes_back_and_safetensors_reads_the_same(
    tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("file") / "t.safetensors"
    size, checksums = write(path, tensors)
    check(path, size, checksums)
    mine, theirs = tensorfile.load(path), safetensors.numpy.load_file(path)
    assert mine.keys() == theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(mine[name], tensor)
        assert same(theirs[name], tensor)
        assert mine[name].flags.aligned
        assert not mine[name].flags.writeable


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_sizes_around_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int) -> None:
    monkeypatch.setattr(tensorfile, "BLOCK", 2 * tensorfile.ALIGNMENT)
    length = 3 * tensorfile.BLOCK - tensorfile.ALIGNMENT + extra
    tensor = np.arange(length, dtype=np.uint8)
    size, checksums = write(tmp_path / "t", {"a": tensor})
    assert len(checksums) == 3 + (extra > 0)
    assert (tmp_path / "t").stat().st_size == size
    check(tmp_path / "t", size, checksums)
    assert same(tensorfile.load(tmp_path / "t")["a"], tensor)


def test_arrays_that_are_not_contiguous(tmp_path: Path) -> None:
    square = np.arange(30.0).reshape(5, 6)
    tensors = {
        "transposed": square.T,
        "strided": square[::2, ::-1],
        "spread": np.broadcast_to(1, (3, 2)),
    }
    write(tmp_path / "t", tensors)
    loaded = tensorfile.load(tmp_path / "t")
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_snapshot_is_reused_for_the_next_values() -> None:
    snapshot = tensorfile.Snapshot(tensorfile.lay_out({"a": np.zeros(4)}))
    for value in (1.0, 2.0):
        snapshot.fill({"a": np.full(4, value)})
        assert snapshot.memory[-4096:].startswith(np.full(4, value).tobytes())


def test_what_does_not_fit_the_layout_is_refused() -> None:
    snapshot = tensorfile.Snapshot(tensorfile.lay_out({"a": np.zeros(4)}))
    with pytest.raises(TypeError):
        snapshot.fill({"a": np.zeros(4, np.float32)})


@pytest.mark.parametrize(
    "tensor", [np.array(["text"]), np.array([None]), np.zeros(2, np.complex128)]
)
def test_a_dtype_unknown_to_safetensors_is_named(tensor: np.ndarray) -> None:
    with pytest.raises(TypeError, match=r"'layer/kernel'.*dtype"):
        tensorfile.lay_out({"layer/kernel": tensor})


def test_a_file_system_that_refuses_unaligned_direct_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorfile, "ALIGNMENT", 8)  # the last write is then one the kernel refuses
    tensors = {"a": np.arange(10_001, dtype=np.int64)}
    size, checksums = write(tmp_path / "t", tensors)
    assert size % 4096
    check(tmp_path / "t", size, checksums)
    assert same(tensorfile.load(tmp_path / "t")["a"], tensors["a"])


@pytest.fixture
def ramfs(tmp_path: Path) -> Iterator[Path]:
    """A file system that knows neither direct writing nor reserving."""
    mounted = subprocess.run(["mount", "-t", "ramfs", "none", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_file_system_without_direct_writing_and_reserving(ramfs: Path) -> None:
    with pytest.raises(OSError, match="Invalid"):
        os.open(ramfs / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    tensors = {"a": np.arange(10_001, dtype=np.int64)}
    size, checksums = write(ramfs / "t", tensors)
    check(ramfs / "t", size, checksums)


@pytest.mark.parametrize("where", [0, 7, 100, 4095, 4096, 5000, 12287])
def test_a_changed_byte_is_found(tmp_path: Path, where: int) -> None:
    size, checksums = write(tmp_path / "t", {"a": np.zeros(8192, np.uint8)})
    with (tmp_path / "t").open("r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(tensorfile.DamagedFile, match=f"between bytes 0 and {size}"):
        check(tmp_path / "t", size, checksums)


def test_the_damaged_block_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "BLOCK", 4096)
    size, checksums = write(tmp_path / "t", {"a": np.zeros(16384, np.uint8)})
    with (tmp_path / "t").open("r+b") as file:
        file.seek(9000)
        file.write(b"x")
    with pytest.raises(tensorfile.DamagedFile, match="between bytes 8192 and 12288"):
        check(tmp_path / "t", size, checksums)


@given(tensors=TENSORS, data=st.data())
def test_digest_depends_on_content_alone(
    tensors: dict[str, np.ndarray], data: st.DataObject
) -> None:
    digest = tensorfile.digest_tensors(tensors)
    names = data.draw(st.permutations(sorted(tensors)))
    swapped = {n: tensors[n].astype(tensors[n].dtype.newbyteorder(">")) for n in names}
    assert tensorfile.digest_tensors(swapped) == digest
    turned = {n: np.array(tensors[n], order="F") for n in names}
    assert tensorfile.digest_tensors(turned) == digest


def test_digest_tells_name_dtype_shape_and_value_apart() -> None:
    base = np.zeros(4, np.float32)
    flipped = base.view(np.uint32).copy()
    flipped[3] ^= 1
    variants: list[dict[str, np.ndarray]] = [
        {"a": base},
        {"b": base},
        {"a": base.view(np.int32)},
        {"a": base.reshape(2, 2)},
        {"a": -base},
        {"a": flipped.view(np.float32)},
        {"a": base[:3], "b": base[3:]},
        {"a": base, "b": base[:0]},
    ]
    assert len({tensorfile.digest_tensors(v) for v in variants}) == len(variants)


def test_digest_is_sha256_of_the_documented_bytes() -> None:
    tensors = {"kernel": np.array([[1, -2]], np.int16), "bias": np.array(0.1)}
    text = b'["bias", "<f8", []]\n' + struct.pack("<d", 0.1)
    text += b'["kernel", "<i2", [1, 2]]\n' + struct.pack("<hh", 1, -2)
    assert tensorfile.digest_tensors(tensors) == hashlib.sha256(text).hexdigest()
