"""How many ranks and threads each run of a study has, where the study leaves that open (`auto`).

Many small runs are done soonest side by side, a core each; a few have several ranks, and a large
machine several threads for each rank. The number of ranks and of threads decides how sums are
rounded, so it is chosen once: what was chosen stands in the study's resolved `study.yaml`, and a
study that is submitted again, with more seeds or on another machine, keeps it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pydantic

from glass_cnn.settings import Launch, RunSettings
from glass_cnn.study import Study
from glass_cnn.train_settings import MARGIN
from hpc.errors import ConfigError
from hpc.stages import Room
from hpc.words import shown
from hpc.yaml_files import read_yaml, union

WORTH = 3
"""times the rows of an image from which on the batch is too large for a division by rows"""
SHARED_ROWS = 4
"""rows of the first convolution's image that two neighbours both compute"""
EXCHANGE = {"rows": 0.95, "data": 0.75}
"""share of its speed that a rank keeps beside others, as two of one core were measured with 48 and
250 px (docs/performance.md); by rows what both compute is counted besides"""
NEARLY = 1.1
"""times the shortest time that count as short: fewer ranks leave more to others, and know less of
what was not measured"""
MOST_RANKS = 8
"""of a run: more gain little by the model on paper, and are better spent on more runs"""
MOST_THREADS = 8
"""of a rank"""
LEAST_ROWS, LEAST_EXAMPLES = 4, 10
"""of a rank: with fewer rows than that most of what it computes is its neighbours', too"""
LEAST_ROWS_OF_A_GPU = 25
"""below it latency takes what is won, by the model on paper"""
BEFORE = {"ranks": 2, "threads_per_rank": 1}
"""what a study was started with by versions that wrote no number"""


def division_of(settings: RunSettings, ranks: int) -> Literal["data", "rows"]:
    """By what so many ranks divide the steps of a new run.

    Under `launch.division: auto` what is expected to be faster. Rows cost every rank, however many
    there are, four rows of the first convolution for each example: batch × rows. They save sending
    and updating dense weights: rows². By the model on paper (`benchmarks/scaling_model.py`) steps
    on processors gain where the rows are a fifth of the batch; a third, because evaluations have
    that cost, too, and save nothing.
    """
    rows = settings.render.pixels - MARGIN
    if settings.launch.division != "auto":
        return settings.launch.division
    return "rows" if rows >= ranks and WORTH * rows >= settings.train.batch_size else "data"


def speed(settings: RunSettings, ranks: int, on_gpus: bool = False) -> float:
    """Of so many ranks, in those of one, as expected; 0 for more than share a step well."""
    if ranks == 1:
        return 1.0
    division = division_of(settings, ranks)
    rows, batch = settings.render.pixels - MARGIN, settings.train.batch_size
    few = rows < LEAST_ROWS * ranks if division == "rows" else batch < LEAST_EXAMPLES * ranks
    if few or (on_gpus and rows < LEAST_ROWS_OF_A_GPU * ranks):
        return 0.0
    if division == "data":
        return EXCHANGE["data"] * ranks
    return EXCHANGE["rows"] * (rows + SHARED_ROWS) / (rows / ranks + SHARED_ROWS)


def fastest(settings: Sequence[RunSettings], runs: int, room: Room) -> dict[str, int]:
    """Ranks of each run, and threads of each rank, with which all runs are done soonest.

    Args:
        settings: of all that are started alike, with the same launch; the slowest counts. What is
            a number there stays.
        runs: how many there are in all.
        room: what there is for them.
    """
    launch = settings[0].launch
    cores, slots = room.ranks * room.threads, room.ranks
    if launch.threads_per_rank != "auto" and not room.more:
        slots = max(1, min(slots, cores // launch.threads_per_rank))

    def at_once(ranks: int) -> int:
        return max(1, min(runs, room.tasks or runs, slots // ranks))

    def seconds(ranks: int) -> float:
        rounds = max(1.0, runs * ranks / slots) if room.more else -(-runs // at_once(ranks))
        slowest = min(speed(each, ranks, room.gpus) for each in settings)
        return rounds / slowest if slowest else math.inf

    every = range(1, min(MOST_RANKS, slots) + 1)
    enough = NEARLY * min(seconds(ranks) for ranks in every)
    ranks = room.each or next(ranks for ranks in every if seconds(ranks) <= enough)
    ranks = ranks if launch.ranks == "auto" else launch.ranks
    left = room.threads if room.more else cores // (at_once(ranks) * ranks)
    threads = max(1, min(MOST_THREADS, left))
    return _laid(launch, Launch(ranks=ranks, threads_per_rank=threads))


def placed(
    chain: Sequence[Study], root: Path, room: Callable[[], Room]
) -> tuple[tuple[Study, ...], list[str]]:
    """Studies that are started together, with numbers in place of `auto`, and what was chosen.

    A study that was submitted before keeps what was chosen then; one that goes on from another has
    as many as that one. `room` is asked only where something is to be chosen. Raises ConfigError.
    """
    found: list[Study] = []
    notes: list[str] = []
    for study in chain:
        numbers = _known(study, root, found)
        if numbers is None:
            numbers = fastest(*_work(study, chain), room())
            notes += _told(study, numbers, study.directory(root).study)
        same = all(getattr(study.launch, name) == number for name, number in numbers.items())
        tree = union(study.tree, {"launch": numbers})
        found.append(study if same else replace(study, tree=tree))
    return tuple(found), notes


def _told(study: Study, numbers: Mapping[str, int], place: Path) -> list[str]:
    """What was chosen, in words; nothing where that is one thread for each rank asked for."""
    told = {"ranks": "MPI ranks a run", "threads_per_rank": "threads a rank"}
    words = [
        f"launch.{name} {numbers[name]} ({what})"
        for name, what in told.items()
        if getattr(study.launch, name) == "auto" and (name == "ranks" or numbers[name] > 1)
    ]
    return [f"{study.name}: {', '.join(words)} chosen, and kept in {shown(place)}"] if words else []


def _work(study: Study, chain: Sequence[Study]) -> tuple[list[RunSettings], int]:
    """What is started, and how often: of a chain the study with most runs tells."""
    every = [point.settings for point in study.points]
    unlike = {(s.render.pixels, s.train.batch_size, s.launch.division): s for s in every}
    return list(unlike.values()), max(len(each.runs) for each in chain)


def _known(study: Study, root: Path, before: Sequence[Study]) -> dict[str, int] | None:
    """Its numbers, where none is to be chosen."""
    launch = study.launch
    there = _submitted(study.directory(root).study)
    if there is not None and launch.ranks in ("auto", there.ranks):
        return _laid(launch, there)
    if before and launch.ranks == "auto":
        return _laid(launch, before[-1].launch)
    return None if "auto" in (launch.ranks, launch.threads_per_rank) else _laid(launch, launch)


def _submitted(path: Path) -> Launch | None:
    """How a study was started when it was submitted before; None where it was not."""
    if not path.exists():
        return None
    with contextlib.suppress(ConfigError, pydantic.ValidationError, AttributeError):
        tree = read_yaml(path).get("launch") or {}
        found = Launch(**{name: tree.get(name, value) for name, value in BEFORE.items()})
        return None if "auto" in (found.ranks, found.threads_per_rank) else found
    return None  # a damaged one, which will be written anew


def _laid(launch: Launch, over: Launch) -> dict[str, int]:
    """The numbers of `launch`, and in place of `auto` those of another."""
    given = {name: getattr(launch, name) for name in BEFORE}
    return {k: getattr(over, k) if v == "auto" else v for k, v in given.items()}
