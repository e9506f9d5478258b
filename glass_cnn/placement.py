"""How many ranks and threads each run of a study has, where the study leaves that open (`auto`).

Many runs are done soonest side by side, a core each; of a few each has several ranks, or threads
where images are too small to share. Both decide how sums are rounded, so they are chosen once:
what was chosen stands in the study's resolved `study.yaml`, and a study that is submitted again,
with more seeds or on another machine, keeps it.
"""

from __future__ import annotations

import contextlib
import itertools
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
EXCHANGE = 0.95
"""share of its speed that a rank keeps beside others, those rows apart"""
SERIAL = 0.15
"""share of a step that threads do not divide"""
LEAST_ROWS = 25
"""of a rank: with fewer, threads do as much on processors, and latency takes what GPUs win"""
MOST_RANKS = MOST_THREADS = 8
"""of a run and of a rank: more gain little by the model on paper, and are better spent on runs"""
NEARLY = 1.1
"""times the shortest time that count as short: what takes fewer cores leaves more to others"""
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


def speed(settings: RunSettings, ranks: int, threads: int) -> float:
    """Of ranks that share a step by rows, in those of one rank of one thread, as expected.

    Both shares that this goes by were measured for two of one machine (`benchmarks/packing.py`).
    """
    rows = settings.render.pixels - MARGIN
    shared = 1.0
    if ranks > 1:
        shared = EXCHANGE * (rows + SHARED_ROWS) / (rows / ranks + SHARED_ROWS)
    return shared / (SERIAL + (1 - SERIAL) / threads)


def share_well(settings: RunSettings, ranks: int) -> bool:
    """Whether so many ranks of a machine share a step better than as many threads would."""
    rows = settings.render.pixels - MARGIN
    by_rows = division_of(settings, ranks) == "rows" and rows >= LEAST_ROWS * ranks
    return ranks == 1 or by_rows


def fastest(settings: Sequence[RunSettings], runs: int, room: Room) -> dict[str, int]:
    """Ranks of each run, and threads of each rank, with which all runs are done soonest.

    Args:
        settings: of all that are started alike, with the same launch; the slowest counts. What is
            a number there stays.
        runs: how many there are in all.
        room: what there is for them.
    """
    launch = settings[0].launch
    given = room.gpus or room.more  # threads come with the rank, else each takes a core
    sharing = launch.runs_per_gpu if room.gpus else 1
    slots = room.ranks * sharing
    ranks: Sequence[int] = range(1, min(MOST_RANKS, room.ranks) + 1)
    ranks = [number for number in ranks if all(share_well(each, number) for each in settings)]
    ranks = ranks if room.each is None else [room.each]
    ranks = ranks if launch.ranks == "auto" else [launch.ranks]
    most = min(MOST_THREADS, max(1, room.threads // sharing) if given else room.ranks)
    threads: Sequence[int] = [most] if given else range(1, most + 1)
    threads = threads if launch.threads_per_rank == "auto" else [launch.threads_per_rank]
    choices = list(itertools.product(ranks, threads))

    def takes(choice: tuple[int, int]) -> int:
        return choice[0] if given else math.prod(choice)

    def seconds(choice: tuple[int, int]) -> float:
        at_once = max(1, min(runs, room.tasks or runs, slots // takes(choice)))
        rounds: float = -(-runs // at_once)
        if room.more:  # what one node does not hold, another one takes
            rounds = max(1.0, runs * takes(choice) / slots)
        return rounds / min(speed(each, *choice) for each in settings)

    fitting = [choice for choice in choices if takes(choice) <= room.ranks] or choices[:1]
    enough = NEARLY * min(map(seconds, fitting))
    few = [choice for choice in fitting if seconds(choice) <= enough]
    best = min(few, key=lambda choice: (takes(choice), seconds(choice)))
    return {"ranks": best[0], "threads_per_rank": best[1]}


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
