"""Files of runs: written whole or not at all, records that survive crashes, names."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_cnn import paths
from hpc import files, records
from hpc.errors import ConfigError, DataError, StorageError

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


# Writing


def test_atomic_write_replaces_and_leaves_nothing_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_atomic(path, "old")
    files.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match="Not a directory; choose another place with LOGS=dir"):
        files.write_atomic(file / "a.txt", "x")
    with pytest.raises(StorageError, match=f"{file}"):
        files.make_directory(file / "below")
    with pytest.raises(StorageError, match="No such file"):
        files.write_atomic(tmp_path / "missing" / "a.txt", "x")
    assert StorageError("").exit_code == 70


def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    """In a process without privileges: root may write anywhere."""
    tmp_path.chmod(0o555)
    script = (
        "import os, sys; from pathlib import Path; from hpc import files\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: files.write_atomic(Path(sys.argv[1]) / 'a', 'x')\n"
        "except files.StorageError as error: print(error)"
    )
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & stat.S_IXOTH and os.geteuid() == 0:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    tmp_path.chmod(0o755)
    assert "not writable; choose another place with LOGS=dir" in done.stdout, done.stderr


@root_only
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_aside(small: Path) -> None:
    path = small / "a.json"
    files.write_atomic(path, "old")
    with pytest.raises(StorageError, match="no space left; free some or move the output"):
        files.write_atomic(path, b"x" * 100_000)
    assert path.read_text() == "old"
    assert [p.name for p in small.iterdir()] == ["a.json"]
    files.write_atomic(path, "new")  # there is space again


@root_only
def test_a_record_that_does_not_fit_spoils_none(small: Path) -> None:
    path = small / "records.jsonl"
    records.append_record(path, {"n": 1})
    with pytest.raises(StorageError, match="no space left"):
        records.append_record(path, {"n": 2, "text": "x" * 100_000})
    assert records.read_records(path) == [{"n": 1}]
    assert path.read_text() == '{"n":1}\n'
    records.append_record(path, {"n": 3})
    assert records.read_records(path) == [{"n": 1}, {"n": 3}]


# Records

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.lasting
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=6), st.data())
def test_a_crash_costs_at_most_the_line_it_cut(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("records") / "r.jsonl"
    ends = [0]
    for record in written:
        records.append_record(path, record)
        ends.append(path.stat().st_size)
    cut = data.draw(st.integers(0, ends[-1]))
    whole = sum(end <= cut for end in ends[1:])
    if path.exists():
        os.truncate(path, cut)
    found = records.read_records(path)
    # A line that lacks only its newline is whole.
    assert found in (written[:whole], written[: whole + 1])
    records.append_record(path, {"after": 1})
    assert records.read_records(path) == [*found, {"after": 1}]


def test_numbers_that_json_has_not_become_null(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    records.append_record(path, {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5], "c": {"d": None}}
    files.write_json(tmp_path / "a.json", {"a": math.nan, "b": 0.1})
    assert files.read_json(tmp_path / "a.json") == {"a": None, "b": 0.1}


def test_floats_come_back_exactly(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308]
    records.append_record(tmp_path / "r", {"v": values})
    assert records.read_records(tmp_path / "r")[0]["v"] == values


def test_records_are_cut_back_to_those_wanted(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for n in range(5):
        records.append_record(path, {"n": n})
    with path.open("ab") as file:
        file.write(b'{"n": 9, "cut')
    assert records.keep_records(path, lambda record: record["n"] < 3) == 2
    assert path.read_text() == '{"n":0}\n{"n":1}\n{"n":2}\n'
    before = path.stat().st_ino
    assert records.keep_records(path, lambda _: True) == 0
    assert path.stat().st_ino == before, "a file that is right already is left alone"
    assert records.keep_records(tmp_path / "none", lambda _: True) == 0
    assert not (tmp_path / "none").exists()


def test_damaged_json_is_a_message_about_data(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match="no such file"):
        files.read_json(path)
    for content in (b"{", b"\xff", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.json: is damaged .* remove it and run again"):
            files.read_json(path)


# Names


def test_logs_come_from_the_argument_the_environment_or_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLASS_LOGS", raising=False)
    assert paths.logs_root() == tmp_path / "logs"
    monkeypatch.setenv("GLASS_LOGS", "/scratch/mine")
    assert paths.logs_root() == Path("/scratch/mine")
    assert paths.logs_root("other") == tmp_path / "other"
    monkeypatch.setenv("GLASS_LOGS", "")
    assert paths.logs_root() == tmp_path / "logs"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; name a directory"):
        paths.logs_root("file")
    for name in (b"a\nb", b"a\xffb"):
        with pytest.raises(ConfigError, match="control characters and bytes that are no text"):
            paths.logs_root(os.fsdecode(name))


def test_a_run_is_named_by_label_seed_and_digest(tmp_path: Path) -> None:
    run = paths.study_dir(tmp_path, "s").run("base", 3, "0123456789abcdef")
    assert run.path == tmp_path / "s" / "runs" / "base-s3-01234567"
    assert run.name == "base-s3-01234567"
