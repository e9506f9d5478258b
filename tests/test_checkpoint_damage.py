"""Damaged checkpoints: every flip and cut is found, and the next older one is used."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc import checkpoint
from hpc.checkpoint import InvalidCheckpoint, NoValidCheckpoint, newest, read
from hpc.checkpoint_names import MANIFEST, STATE
from hpc.errors import DataError, StorageError
from tests.checkpoints import IDENTITY, Directory, belongs, damage, fork, wait


@pytest.fixture
def run(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "checkpoints")


def flips(path: Path, folder: Path, places: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """The flipped (byte, bit) that go unnoticed."""
    unnoticed = []
    original = path.read_bytes()
    for where, bit in places:
        damage(path, where, bit)
        with contextlib.suppress(InvalidCheckpoint):
            read(folder, IDENTITY)
            unnoticed.append((where, bit))
        damage(path, where, bit)
    assert path.read_bytes() == original
    return unnoticed


def test_every_flipped_bit_of_the_manifest_is_found(run: Directory) -> None:
    run.write(10)
    folder = run.kept()[0]
    size = (folder / MANIFEST).stat().st_size
    assert flips(folder / MANIFEST, folder, itertools.product(range(size), range(8))) == []
    assert belongs(read(folder, IDENTITY))


@pytest.mark.lasting
def test_a_flipped_bit_in_every_byte_of_the_state_is_found(run: Directory) -> None:
    run.write(10)
    folder = run.kept()[0]
    size = (folder / STATE).stat().st_size
    assert flips(folder / STATE, folder, ((at, at % 8) for at in range(size))) == []
    assert belongs(read(folder, IDENTITY))


@pytest.mark.parametrize("part", [STATE, MANIFEST])
def test_every_truncation_is_found(run: Directory, part: str) -> None:
    run.write(10)
    folder = run.kept()[0]
    whole = (folder / part).read_bytes()
    for length in {0, 1, 7, 8, 9, *range(0, len(whole), 97), len(whole) - 1}:
        (folder / part).write_bytes(whole[:length])
        with pytest.raises(InvalidCheckpoint, match=part):
            read(folder)


def remove(part: str) -> Callable[[Path], None]:
    return lambda folder: (folder / part).unlink()


def append(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / part).open("ab") as file:
            file.write(b"\0")

    return change


def flip(part: str, where: int) -> Callable[[Path], None]:
    return lambda folder: damage(folder / part, where)


def replace(part: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / part).write_text(text)

    return change


def take_from_other(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.copy(folder.with_name("step-000000010") / part, folder / part)

    return change


def be_a_copy(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-000000010"), folder)


def empty(folder: Path) -> None:
    for part in folder.iterdir():
        part.unlink()


def be_a_directory(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / part).unlink()
        (folder / part).mkdir()

    return change


def rewrite(**changes: Any) -> Callable[[Path], None]:
    """A manifest that is sound in itself, with other content."""

    def change(folder: Path) -> None:
        content = json.loads((folder / MANIFEST).read_text()) | changes
        del content["checksum"]
        (folder / MANIFEST).write_bytes(checkpoint.manifest_text(content))

    return change


HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "header flipped": (flip(STATE, 3), f"{STATE} is damaged"),
    "padding flipped": (flip(STATE, 4000), f"{STATE} is damaged"),
    "tensor flipped": (flip(STATE, 4100), f"{STATE} is damaged between bytes 0 and"),
    "manifest flipped": (flip(MANIFEST, 40), f"{MANIFEST} is damaged"),
    "no state": (remove(STATE), f"{STATE} is missing"),
    "no manifest": (remove(MANIFEST), f"{MANIFEST} is missing"),
    "empty": (empty, f"{MANIFEST} is missing"),
    "state too long": (append(STATE), "bytes instead of"),
    "manifest too long": (append(MANIFEST), f"{MANIFEST} is damaged"),
    "state is a directory": (be_a_directory(STATE), STATE),
    "manifest is a directory": (be_a_directory(MANIFEST), MANIFEST),
    "state of another": (take_from_other(STATE), f"{STATE} is damaged"),
    "manifest of another": (take_from_other(MANIFEST), "holds step 10"),
    "renamed": (be_a_copy, "holds step 10: the directory was renamed"),
    "other settings": (rewrite(identity="f" * 64), "other settings"),
    "newer version": (
        rewrite(format=checkpoint.FORMAT + 1),
        f"newer version of this program .checkpoint format {checkpoint.FORMAT + 1}",
    ),
    "manifest too deep": (replace(MANIFEST, "[" * 10**5), f"{MANIFEST} is damaged"),
    "manifest a list": (replace(MANIFEST, "[]"), f"{MANIFEST} is damaged"),
}


@pytest.mark.parametrize("harm", HARM)
def test_the_next_older_one_is_used(run: Directory, harm: str) -> None:
    run.write(10, 20)
    change, reason = HARM[harm]
    change(run.path / "step-000000020")
    found = run.latest()
    assert found.step == 10
    assert belongs(found)
    (event,) = run.events
    assert event["event"] == "checkpoint_refused"
    assert event["path"].endswith("step-000000020")
    assert re.search(reason, event["reason"])
    assert [p.name for p in run.path.glob("*.refused")] == ["step-000000020.refused"]
    assert run.latest().step == 10
    assert len(run.events) == 1  # marked: not looked at again
    run.write(20)
    assert run.latest().step == 20


def test_the_error_is_the_same_on_other_ranks(run: Directory) -> None:
    with pytest.raises(InvalidCheckpoint, match="there is no such directory") as caught:
        read(run.path / "step-000000001")
    sent = pickle.loads(pickle.dumps(caught.value))
    assert (str(sent), sent.path) == (str(caught.value), run.path / "step-000000001")


def test_none_valid_stops_the_run_until_told_otherwise(run: Directory) -> None:
    run.write(10, 20)
    for folder in run.kept():
        damage(folder / STATE, 4100)
    for _ in range(2):  # the refusal is no way to a silent start from nothing
        with run.open() as checkpoints, pytest.raises(NoValidCheckpoint) as caught:
            checkpoints.latest()
        assert isinstance(caught.value, DataError)
        assert str(run.path) in str(caught.value)
        assert "step-000000020" in str(caught.value)
        assert "--start-over" in str(caught.value)
    with run.open() as checkpoints:
        checkpoints.clear()
        assert checkpoints.latest() is None


def test_reading_another_run_changes_nothing_there(run: Directory) -> None:
    run.write(10, 20)
    found = newest(run.path)
    assert found is not None
    assert found.step == 20
    damage(run.path / "step-000000020" / STATE, 4100)
    with pytest.raises(
        InvalidCheckpoint, match=r"step-000000020 is no usable checkpoint: .*damaged"
    ):
        newest(run.path)
    refused: list[InvalidCheckpoint] = []
    found = newest(run.path, None, refused.append)
    assert found is not None
    assert found.step == 10
    assert len(refused) == 1
    assert run.steps() == [10, 20]


def test_a_copy_elsewhere_is_readable(run: Directory, tmp_path: Path) -> None:
    run.write(10)
    shutil.copytree(run.kept()[0], tmp_path / "my favourite")
    assert belongs(read(tmp_path / "my favourite"))
    with pytest.raises(InvalidCheckpoint, match="no such directory"):
        read(tmp_path / "another")


def test_trouble_of_the_system_is_no_fault_of_the_checkpoint(run: Directory) -> None:
    run.write(10)
    (folder,) = run.kept()

    def child() -> None:
        with run.open() as checkpoints:
            lowest = os.dup(0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))
            with pytest.raises(StorageError, match="step-000000010: cannot be read: Too many open"):
                read(folder)
            with pytest.raises(StorageError, match="checkpoints: cannot be read: Too many open"):
                checkpoints.latest()

    assert wait(fork(child)) == 0
    assert run.steps() == [10]
    assert run.events == []
