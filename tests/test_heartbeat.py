"""A rank that falls behind is named and the run ended; a slow but living one is left alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpc.heartbeat import Heartbeat
from tests.conftest import ROOT

RANK = """
import sys, time
from pathlib import Path
from hpc.heartbeat import Heartbeat
rank, beats, pause = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
with Heartbeat(Path(sys.argv[1]), rank, 3, limit=6.0) as heart:
    for number in range(beats):
        heart.beat(f"before step {number}")
        time.sleep(pause)
    time.sleep(float(sys.argv[5]))
"""


def ranks(place: Path, *kinds: tuple[int, float, float]) -> list[tuple[int, str]]:
    """Exit code and words of three ranks of (beats, seconds between them, seconds of silence)."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, place, str(rank), *map(str, kind)],
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for rank, kind in enumerate(kinds)
    ]  # fmt: skip
    ended = []
    for process in started:
        words = process.communicate(timeout=60)[1]
        ended.append((process.returncode, words))
    return ended


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


@pytest.mark.parametrize("content", ["", "{"])
def test_a_torn_file_of_another_rank_does_no_harm(tmp_path: Path, content: str) -> None:
    with Heartbeat(tmp_path, 0, 2, limit=60) as heart:
        (tmp_path / "rank-1.json").write_text(content)
        beat = heart._read(1)
        assert {"count", "where", "host", "pid"} <= set(beat)
        mine = json.loads((tmp_path / "rank-0.json").read_text())
        assert mine["count"] == 0
        assert mine["where"] == "starting"
