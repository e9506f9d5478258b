"""How many ranks and threads runs have where their study leaves that open."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from glass_cnn.pipeline import Pipeline, pipeline
from glass_cnn.placement import LEAST_ROWS, MOST_RANKS, MOST_THREADS, fastest, speed
from glass_cnn.settings import RunSettings, build_run
from hpc.batch import room_of, shape_of
from hpc.commandline import run_main
from hpc.local import Local
from hpc.site import load_site
from hpc.stages import Room
from jobs import submit
from tests import tiny

WHOLE = {"pixels": 250, "window": None}


def settings(pixels: int = 250, batch: int = 80, **launch: Any) -> RunSettings:
    tree = {"render": {"pixels": pixels}, "train": {"batch_size": batch}, "launch": launch}
    return build_run(tree, "x")


def chosen(runs: int, room: Room, pixels: int = 250, batch: int = 80, **launch: Any) -> Any:
    numbers = fastest([settings(pixels, batch, **launch)], runs, room)
    return numbers["ranks"], numbers["threads_per_rank"]


# The rule


@pytest.mark.parametrize(
    ("runs", "room", "numbers"),
    [
        (1, Room(1), (1, 1)),
        (36, Room(2), (1, 1)),
        (2, Room(2), (1, 1)),
        (1, Room(2), (2, 1)),
        (3, Room(2), (2, 1)),  # one side by side with nobody would take as long as two
        (31, Room(2), (1, 1)),
        (1, Room(64), (8, 7)),  # less than a tenth slower than eight
        (2, Room(64), (8, 4)),
        (40, Room(64), (3, 1)),  # 21 at a time
        (60, Room(64), (1, 1)),
        (1000, Room(64), (1, 1)),
        (36, Room(8, tasks=1), (8, 1)),
        # GPUs, each with cores of its own
        (1, Room(4, 8, gpus=True), (4, 8)),
        (2, Room(4, 8, gpus=True), (2, 8)),
        (8, Room(4, 8, gpus=True), (1, 8)),
        # a cluster, where more nodes take what one does not hold
        (1, Room(32, more=True), (8, 1)),
        (16, Room(32, more=True), (2, 1)),
        (40, Room(32, more=True), (1, 1)),
        (40, Room(4, 16, gpus=True, more=True), (1, 8)),
        # the site says it
        (40, Room(4, 2, gpus=True, more=True, each=8), (8, 2)),
    ],
    ids=str,
)
def test_numbers_that_let_all_runs_end_soonest(
    runs: int, room: Room, numbers: tuple[int, int]
) -> None:
    assert chosen(runs, room) == numbers


def test_runs_that_share_a_gpu_share_its_cores() -> None:
    """Else the launcher, which gives each core away once, would start fewer than are to share."""
    assert chosen(4, Room(1, 16, gpus=True), runs_per_gpu=4) == (1, 4)
    assert chosen(3, Room(2, 8, gpus=True), runs_per_gpu=2) == (1, 4)
    assert chosen(1, Room(2, 8, gpus=True), runs_per_gpu=2) == (2, 4)
    assert chosen(40, Room(4, 2, gpus=True, more=True), runs_per_gpu=8) == (1, 1)


def test_what_is_said_is_left() -> None:
    assert chosen(36, Room(2), ranks=2) == (2, 1)
    assert chosen(1, Room(8), ranks=2) == (2, 4)
    assert chosen(1, Room(8), threads_per_rank=2) == (4, 2)
    assert chosen(3, Room(8), threads_per_rank=8) == (1, 8)
    assert chosen(1, Room(2), ranks=4, threads_per_rank=3) == (4, 3)
    assert chosen(1, Room(8, more=True), ranks=2) == (2, 1)


def test_images_too_small_to_share_have_threads() -> None:
    assert chosen(1, Room(2), 48) == (1, 2)  # 35 rows
    assert chosen(3, Room(2), 48) == (1, 2)
    assert chosen(36, Room(2), 48) == (1, 1)
    assert chosen(1, Room(8), 128)[0] == 4  # 115 rows
    assert chosen(1, Room(2), division="data") == (1, 2)
    assert chosen(1, Room(2), batch=2000) == (1, 2)  # by data
    assert chosen(1, Room(4, 8, gpus=True), 48) == (1, 8)
    mixed = [settings(250), settings(48)]
    assert fastest(mixed, 1, Room(8))["ranks"] == 1


@pytest.mark.parametrize("gpus", [False, True])
@pytest.mark.parametrize("more", [False, True])
def test_whatever_there_is_the_numbers_fit(gpus: bool, more: bool) -> None:
    for runs, slots, threads, pixels, batch in itertools.product(
        (1, 2, 3, 5, 7, 36), (1, 2, 3, 4, 6, 16, 33, 128), (1, 3), (20, 48, 250), (1, 12, 80, 2000)
    ):
        apart = gpus or more
        room = Room(slots, threads if apart else 1, gpus, more=more)
        ranks, each = chosen(runs, room, pixels, batch)
        assert 1 <= ranks <= min(slots, MOST_RANKS)
        assert ranks == 1 or pixels - 13 >= LEAST_ROWS * ranks
        assert 1 <= each <= MOST_THREADS
        assert ranks * (1 if apart else each) <= slots
        assert each == threads or not apart
        if runs >= 8 * slots:
            assert ranks == 1


def test_speeds_are_those_that_were_measured() -> None:
    """docs/performance.md: two ranks of one core by rows, and two threads, over one core."""
    assert speed(settings(250), 2, 1) == pytest.approx(1.90, abs=0.06)
    assert speed(settings(48), 2, 1) == pytest.approx(1.63, abs=0.12)
    assert speed(settings(250), 1, 2) == pytest.approx(1.82, abs=0.1)
    assert speed(settings(48), 1, 2) == pytest.approx(1.70, abs=0.1)
    speeds = [speed(settings(250), ranks, threads) for ranks in (1, 2, 5, 8) for threads in (1, 8)]
    assert speeds[::2] == sorted(speeds[::2])
    assert all(one < eight < 8 * one for one, eight in zip(speeds[::2], speeds[1::2], strict=True))


# What there is


def test_this_machine_offers_its_cores_or_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert Local().room() == Room(16)
    assert Local(side_by_side=3).room() == Room(16, tasks=3)
    assert Local(gpus=("a", "b", "c")).room() == Room(3, 5, gpus=True)


@pytest.mark.parametrize(
    ("profile", "over", "room"),
    [
        ("dev", {}, Room(1, more=True)),
        ("cpu", {}, Room(32, more=True)),
        ("cpu", {"cpus_per_rank": 4}, Room(32, 4, more=True)),
        ("cpu", {"nodes": 2}, Room(32, more=True, each=64)),
        ("cpu", {"ranks": 3}, Room(32, more=True, each=3)),
        ("cpu", {"min_nodes": 2}, Room(32, more=True, each=64)),
        ("gpu", {}, Room(4, 8, gpus=True, more=True)),
        ("gpu", {"gpus_per_rank": 0, "gpus_per_node": 2}, Room(2, 8, gpus=True, more=True)),
    ],
    ids=str,
)
def test_a_cluster_offers_what_its_nodes_hold(
    profile: str, over: dict[str, Any], room: Room
) -> None:
    assert room_of(load_site(profile, over, ("simulate", "aggregate"))) == room


@pytest.mark.parametrize("over", [{"nodes": 2}, {"ranks": 3}, {"min_nodes": 2}, {}])
@pytest.mark.parametrize("runs", [1, 2, 5, 40, 100])
def test_what_is_chosen_for_a_cluster_can_be_submitted(
    over: dict[str, Any], runs: int, tmp_path: Path
) -> None:
    site = load_site("gpu", over, ("simulate", "aggregate"))
    study = tiny.write_study(tmp_path / "s.yaml", tree(runs, pixels=250))
    stages = pipeline(study, (), tmp_path).placed(lambda: room_of(site)).stages()
    shape = shape_of(stages[1], site)
    assert (shape.ranks or shape.nodes * shape.per_node) >= stages[1].ranks
    assert shape.per_node <= site.ranks_per_node


# Chosen once, and kept


def tree(seeds: int, after: str | None = None, pixels: int = 250, **launch: Any) -> dict[str, Any]:
    found = tiny.tree(seeds=seeds, render={"pixels": pixels})
    found["launch"] = launch
    return found


def place(study: Path, logs: Path, room: Room, *sets: str) -> Pipeline:
    return pipeline(study, sets, logs).placed(lambda: room)


def ranks_of(whole: Pipeline) -> list[int | str]:
    return [study.launch.ranks for study in whole.chain]


def unasked() -> Room:
    raise AssertionError("nothing is to be chosen")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return tiny.write_study(tmp_path / "study.yaml", tree(1))


def test_what_was_chosen_is_kept_with_more_seeds_and_on_other_machines(
    study: Path, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    first = place(study, logs, Room(2))
    assert ranks_of(first) == [2]
    assert first.choices == (
        f"tiny: launch.ranks 2 (MPI ranks a run) chosen, and kept in {logs / 'tiny/study.yaml'}",
    )
    first.write()
    again = pipeline(study, ["study.seeds=9"], logs).placed(unasked)
    assert (ranks_of(again), len(again.study.runs), again.choices) == ([2], 9, ())
    assert ranks_of(pipeline("tiny", (), logs).placed(unasked)) == [2]
    # Somebody says otherwise: that counts, then and afterwards.
    other = pipeline(study, ["launch.ranks=1"], logs).placed(lambda: Room(4))
    assert (other.study.launch.ranks, other.study.launch.threads) == (1, 4)
    other.write()
    assert ranks_of(pipeline(study, (), logs).placed(unasked)) == [1]


def test_a_run_has_the_same_name_whatever_was_chosen(study: Path, tmp_path: Path) -> None:
    names = {place(study, tmp_path, room).study.runs[0].name for room in (Room(1), Room(2))}
    assert len(names) == 1


def test_studies_of_earlier_versions_keep_their_two_ranks(study: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    whole = pipeline(study, (), logs)
    whole.study.directory(logs).path.mkdir(parents=True)
    whole.study.directory(logs).study.write_text(whole.study.to_yaml())
    placed = pipeline(study, ["study.seeds=50"], logs).placed(unasked)
    assert (placed.study.launch.ranks, placed.study.launch.threads) == (2, 1)


@pytest.mark.parametrize("text", ["{", "[]", "launch: 3", "launch: {ranks: many}", "", "a: b: c"])
def test_a_damaged_study_is_chosen_for_anew(study: Path, tmp_path: Path, text: str) -> None:
    logs = tmp_path / "logs"
    kept = pipeline(study, (), logs).study.directory(logs)
    kept.path.mkdir(parents=True)
    kept.study.write_text(text)
    assert ranks_of(place(study, logs, Room(1))) == [1]


def test_a_study_goes_on_with_as_many_ranks_as_the_one_it_needs(tmp_path: Path) -> None:
    """Of both the one with more runs tells how many."""
    one, two = tree(1), tree(36)
    one["study"]["name"], two["study"] = "one", {**two["study"], "name": "two", "after": "one.yaml"}
    tiny.write_study(tmp_path / "one.yaml", one)
    study, logs = tiny.write_study(tmp_path / "two.yaml", two), tmp_path / "logs"
    whole = place(study, logs, Room(2))
    assert ranks_of(whole) == [1, 1]
    assert len(whole.choices) == 1
    place(tmp_path / "one.yaml", logs, Room(2)).write()
    assert ranks_of(pipeline(study, (), logs).placed(unasked)) == [2, 2]
    assert ranks_of(pipeline(study, ["launch.ranks=1"], logs).placed(lambda: Room(2))) == [1, 1]


def test_arms_that_read_it_for_themselves_keep_what_they_say(tmp_path: Path) -> None:
    arms = {"a": {"launch.division": "data"}, "b": {"launch.division": "rows", "train.l2": 0.5}}
    content = tree(1)
    content["study"]["arms"] = arms
    whole = place(tiny.write_study(tmp_path / "s.yaml", content), tmp_path, Room(2))
    assert ranks_of(whole) == [1]  # two runs
    assert [p.settings.launch.division for p in whole.study.points] == ["data", "rows"]


def test_as_many_runs_share_a_gpu_as_are_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(submit, "usable_gpus", lambda: ("GPU-a",))
    study = tiny.write_study(tmp_path / "study.yaml", tree(4, runs_per_gpu=4))
    words = [str(study), "--launcher", "local", "--logs", str(tmp_path / "logs"), "--dry-run"]
    assert run_main(submit.main, words) == 0
    said = capsys.readouterr().out
    assert "4 tasks of 1 rank with 4 threads on 4 cores and 1 GPU, 4 at a time" in said


def test_a_submission_says_what_is_chosen_and_how_it_would_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    study = tiny.write_study(tmp_path / "study.yaml", tree(2))
    words = [str(study), "--launcher", "local", "--logs", str(tmp_path / "logs"), "--dry-run"]
    assert run_main(submit.main, words) == 0
    said = capsys.readouterr().out
    assert "note: tiny: launch.ranks 2 (MPI ranks a run) chosen" in said
    assert "2 tasks of 2 ranks with 1 thread on 2 cores, 2 at a time" in said
    assert run_main(submit.main, [*words, "--ranks", "1"]) == 0
    said = capsys.readouterr().out
    assert "note: tiny: launch.threads_per_rank 2 (threads a rank) chosen" in said
    assert "2 tasks of 1 rank with 2 threads on 2 cores, 2 at a time" in said
