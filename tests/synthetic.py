"""Run directories with made-up but lifelike curves, for tests and benchmarks of what reads them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from msgspec.structs import replace

from glass_cnn.analysis.table import Aggregation
from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.records import Evaluation, Result, Start, Tested
from glass_cnn.settings import RunSettings
from glass_cnn.study import Run, Study, build_study
from hpc.config import to_yaml
from hpc.files import write_json
from hpc.records import as_dict, as_line

EXAMPLES = 2960
CONSTANT_GLASS = 1457 / EXAMPLES  # the 2017 log's 49.223 %
CONSTANT_LIQUID = 1503 / EXAMPLES  # and 50.777 %
ARMS = {
    "high": {"train.learning_rate.initial": 1e-3},
    "low": {"train.learning_rate.initial": 1e-4},
}


def study(name: str = "synthetic", seeds: int = 4, **changes: Any) -> Study:
    """A small study; `changes` are keys of its study section, or sections of settings."""
    names = ("train", "analysis", "render")
    sections: dict[str, Any] = {name: changes.pop(name) for name in names if name in changes}
    section: dict[str, Any] = {"name": name, "seeds": seeds, **changes}
    tree: dict[str, Any] = {"study": section} | sections
    tree["train"] = {"iterations": 60, **tree.get("train", {})}
    return build_study(tree, f"{name}.yaml")


def directory(study: Study, root: Path) -> StudyDir:
    """The study's directory with its study.yaml."""
    place = study.directory(root)
    place.runs.mkdir(parents=True, exist_ok=True)
    place.study.write_text(study.to_yaml())
    return place


@dataclass(frozen=True)
class MadeUpCourse:
    """When a made-up run learns, collapses and recovers, in evaluations; None for never."""

    learned: int | None = 20
    collapsed: int | None = None
    recovered: int | None = None
    non_finite: int | None = None


COURSES = {
    "survived": MadeUpCourse(),
    "transient_collapse": MadeUpCourse(collapsed=40, recovered=44),
    "permanent_collapse": MadeUpCourse(collapsed=40),
    "never_learned": MadeUpCourse(learned=None),
    "non_finite": MadeUpCourse(non_finite=50),
}


def evaluations(
    course: MadeUpCourse, count: int, seed: int, settings: RunSettings
) -> list[Evaluation]:
    """The first `count` evaluations."""
    rng = np.random.default_rng(seed)
    per = settings.train.batches_per_iteration
    rate = getattr(settings.train.learning_rate, "initial", 1e-3)
    return [_evaluation(course, i, i * per, rate, rng) for i in range(1, count + 1)]


def _evaluation(
    course: MadeUpCourse, i: int, step: int, rate: float, rng: np.random.Generator
) -> Evaluation:
    down = course.collapsed is not None and i >= course.collapsed
    down &= course.recovered is None or i < course.recovered
    finite = course.non_finite is None or i < course.non_finite
    if down or course.learned is None:
        fraction = float(rng.integers(2))
        accuracy = CONSTANT_GLASS if fraction else CONSTANT_LIQUID
        loss = math.log(2) + abs(rng.normal(0, 0.01))
    else:
        share = 1 / (1 + math.exp(-(i - course.learned + 6) / 2))
        accuracy = 0.5 + 0.485 * share + rng.normal(0, 0.004)
        accuracy = min(1.0, max(0.5, accuracy))
        fraction, loss = 0.5 + rng.normal(0, 0.01), 0.05 + 0.65 * (1 - share)
    return Evaluation(
        iteration=i,
        step=step,
        epoch=step * 80 / 14_000,
        learning_rate=rate,
        train_accuracy=min(1.0, accuracy + 0.01),
        train_loss=loss * 0.9 if finite else None,
        l2_loss=2.5 * math.exp(-i / 300),
        validation_accuracy=round(accuracy * EXAMPLES) / EXAMPLES,
        validation_loss=loss if finite else None,
        predicted_glass_fraction=fraction,
        validation_examples=EXAMPLES,
        validation_glass=1457,
        finite=finite,
        seconds=2.5 * i,
        diagnostics=diagnostics(rng, 0.9 if down else 0.2, i % 10 == 0),
    )


TENSORS = [f"{layer}/{kind}" for layer in ("conv1", "conv2", "dense", "output")
           for kind in ("weights", "biases")]  # fmt: skip


def diagnostics(rng: np.random.Generator, dead: float, curvature: bool) -> dict[str, Any]:
    """As many numbers as a real evaluation has."""
    per_tensor = ("weight_norm", "gradient_norm", "adam_rms", "adam_ratio_max", "update_ratio")
    draws = rng.exponential(size=(len(per_tensor), len(TENSORS))).tolist()
    return {
        "logit_gap_mean": float(rng.normal()),
        "logit_gap_std": 1e-7 if dead > 0.5 else 3.0,
        "dead_fraction": {"conv1": 0.0, "conv2": 0.8 if dead > 0.5 else 0.1, "dense": dead},
        **{
            k: dict(zip(TENSORS, row, strict=True))
            for k, row in zip(per_tensor, draws, strict=True)
        },
        "curvature": float(rng.exponential()) if curvature else None,
    }


START = Start(
    time="2017-11-26T14:03:00+00:00",
    commit="0123456789abcdef0123456789abcdef01234567",
    dirty=False,
    versions={"python": "3.11.7", "tensorflow": "2.18.1"},
    slurm={},
    hosts=["node1"],
    ranks=2,
    reason="first start",
)


def write_run(
    place: StudyDir,
    run: Run,
    kind: str = "survived",
    *,
    count: int | None = None,
    done: bool = True,
    start: Mapping[str, Any] | None = None,
) -> RunDir:
    """Write one run; `kind` is a key of COURSES; `done` false leaves result.json out.

    `start` holds what its start says other than START.
    """
    target = RunDir(place.runs / run.name)
    target.path.mkdir(parents=True)
    settings = run.settings
    target.config.write_text(to_yaml(settings))
    drawn = run.seed + 1000 * run.copy
    records = evaluations(COURSES[kind], count or settings.train.iterations, drawn, settings)
    write_metrics(target.metrics, records)
    target.provenance.write_text(as_line(replace(START, **(start or {}))))
    if done:
        write_json(target.result, as_dict(result(run, records)))
    return target


def write_metrics(path: Path, records: Sequence[Evaluation]) -> None:
    """Write metrics.jsonl."""
    path.write_text("".join(map(as_line, records)))


def result(run: Run, records: Sequence[Evaluation]) -> Result:
    """What a run ends with after these evaluations."""
    best = max(records, key=lambda record: record.validation_accuracy or 0)
    return Result(
        seed=run.seed,
        steps=records[-1].step,
        optimal=_tested(best),
        final=_tested(records[-1]),
        weights_sha256=hashlib.sha256(run.name.encode()).hexdigest(),
        restarts=0,
        wall_seconds=records[-1].seconds or 0,
        examples={"train": 14_000, "validation": EXAMPLES, "test": EXAMPLES},
    )


def _tested(record: Evaluation) -> Tested:
    accuracy = record.validation_accuracy or 0
    return Tested(record.iteration, record.validation_accuracy, round(accuracy - 0.001, 6))


def row_of(result: Aggregation, run: str) -> dict[str, Any]:
    """The row of one run."""
    return result.table.row(by_predicate=pl.col("run") == run, named=True)
