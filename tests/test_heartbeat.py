"""A rank that falls behind is named and the run ended; a slow but living one is left alone."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc.heartbeat import Heartbeat
from tests.conftest import ROOT

pytestmark = pytest.mark.lasting

RANK = """
import sys, time
from pathlib import Path
from hpc.heartbeat import Heartbeat

rank, beats, pause = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
with Heartbeat(Path(sys.argv[1]), rank, int(sys.argv[6]), limit=6.0) as heart:
    for number in range(beats):
        heart.beat(f"before step {number}")
        for _ in range(round(pause / 0.1)):  # a process that was stopped sleeps on
            time.sleep(0.1)
    time.sleep(float(sys.argv[5]))
"""

Kind = tuple[int, float, float]


def start(place: Path, size: int, kinds: tuple[Kind, ...]) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, place, str(rank), *map(str, kind), str(size)],
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for rank, kind in enumerate(kinds)
    ]  # fmt: skip


def end(started: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and words of each."""
    ended = []
    for process in started:
        words = process.communicate(timeout=60)[1]
        ended.append((process.returncode, words))
    return ended


def ranks(place: Path, *kinds: Kind) -> list[tuple[int, str]]:
    """Exit code and words of three ranks of (beats, seconds between them, seconds of silence)."""
    return end(start(place, 3, kinds))


def test_the_rank_that_fell_behind_is_named_once(tmp_path: Path) -> None:
    """Ranks 0 and 2 wait in step 5 for rank 1, which never came out of step 3."""
    ended = ranks(tmp_path, (6, 0.0, 60), (4, 0.0, 60), (6, 0.0, 60))
    assert [code for code, _ in ended] == [70, 70, 70]
    said = "".join(words for _, words in ended)
    assert re.fullmatch(
        r"error: no progress for \d+ s: rank 1 \(process \d+ on \S+, last seen before step 3\) "
        r"fell behind the others\. The run ends; .* raise launch\.hang_seconds \(now 6\)\.\n",
        said,
    )


def test_a_rank_that_never_came_is_named(tmp_path: Path) -> None:
    ended = ranks(tmp_path, (3, 0.0, 60), (3, 0.0, 60))
    assert [code for code, _ in ended] == [70, 70]
    said = "".join(words for _, words in ended)
    assert said.count("error:") == 1
    assert "rank 2 (process ? on an unknown host, last seen never) fell behind" in said


def test_all_ranks_may_be_slow_within_the_limit(tmp_path: Path) -> None:
    ended = ranks(tmp_path, (14, 0.5, 0), (14, 0.5, 0), (14, 0.5, 0))
    assert ended == [(0, "")] * 3
    assert not list(tmp_path.iterdir()), "files of ranks that ended are removed"


def test_a_job_that_was_suspended_goes_on(tmp_path: Path) -> None:
    """All ranks are stopped for longer than the limit, as by a batch system, and go on."""
    started = start(tmp_path, 3, ((2, 4, 0),) * 3)
    while len(list(tmp_path.glob("rank-*.json"))) < 3:
        time.sleep(0.05)
    time.sleep(1)
    for process in started:
        process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    for process in started:
        process.send_signal(signal.SIGCONT)
    assert end(started) == [(0, "")] * 3


def test_a_rank_alone_that_stands_still_says_where(tmp_path: Path) -> None:
    ((code, words),) = end(start(tmp_path, 1, ((3, 0.0, 60),)))
    assert code == 70
    assert re.search(
        r"rank 0 \(process \d+ on \S+, last seen before step 2\) came no further\.", words
    )


COMPILING = """
import sys, time
from pathlib import Path
from hpc.heartbeat import Heartbeat

with Heartbeat(Path(sys.argv[1]), 0, 1, limit=1.0) as heart:
    heart.beat("before step 1", patience=3.0)
    time.sleep(2.5)
    heart.beat("before step 2")
    time.sleep(60)
"""


def test_what_is_done_for_the_first_time_may_take_longer_and_nothing_after_it(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", COMPILING, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert ended.returncode == 70
    assert "error: no progress for 1 s: " in ended.stderr
    assert "last seen before step 2) came no further" in ended.stderr


@pytest.mark.parametrize("content", ["", "{"])
def test_a_torn_file_of_another_rank_does_no_harm(tmp_path: Path, content: str) -> None:
    with Heartbeat(tmp_path, 0, 2, limit=60) as heart:
        (tmp_path / "rank-1.json").write_text(content)
        beat = heart._read(1)
        assert {"count", "where", "host", "pid"} <= set(beat)
        mine = json.loads((tmp_path / "rank-0.json").read_text())
        assert mine["count"] == 0
        assert mine["where"] == "starting"
