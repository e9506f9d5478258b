"""One run directory to one row: what it holds, what became of the run, or what is wrong with it."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from glass_cnn import outcomes, records
from glass_cnn.metrics import NO_DIAGNOSTICS, DiagnosticSummary, Metrics, read_metrics
from glass_cnn.paths import RUN_NAME, RunDir, is_named
from glass_cnn.settings import Analysis, RunSettings, run_identity, stored_run
from hpc.config import digest, to_tree
from hpc.errors import UserError
from hpc.records import Event
from hpc.yaml_files import parse_yaml

FILES = ("config.yaml", "metrics.jsonl", "result.json", "provenance.jsonl", "events.jsonl")
LATE = 12
"""evaluations whose pace tells how long the rest will take"""
LOGS = {"output.log", "events.jsonl", "crashes"}
"""what stands in a directory before the run has written its settings"""


@dataclass
class Row:
    """What is known of one directory by itself; the study it belongs to adds the rest."""

    run: str
    """directory of the run, or of what lies there"""
    label: str | None = None
    """point of the study"""
    seed: int | None = None
    """seed of weights, order and masks"""
    copy: int | None = None
    """0 for the run of a seed itself; others differ from it by rounding alone"""
    rounding_step: int | None = None
    """updates before a copy's weight was moved"""
    state: str = "foreign"
    """complete, unfinished, missing (logs at most), damaged or foreign; the study tells which are
    superseded or duplicate"""
    reason: str | None = None
    """why it is not counted"""
    point: str | None = None
    """digest of the settings but for seed and copy"""
    analysis: str | None = None
    """digest of the thresholds"""
    outcome: str = "incomplete"
    """what became of it: survived, transient_collapse, permanent_collapse, never_learned,
    non_finite or incomplete"""
    outcome_so_far: str | None = None
    """the same by its evaluations up to now, also of runs that have not ended"""
    evaluations: int = 0
    """evaluations in metrics.jsonl"""
    iteration: int | None = None
    """iteration of the last evaluation"""
    step: int | None = None
    """its optimizer updates"""
    epoch: float | None = None
    """times that the training images were gone through by then"""
    learned_iteration: int | None = None
    """iteration at which it had learned"""
    learned_step: int | None = None
    """step at which it had learned"""
    onset_after_step: int | None = None
    """step of the last good evaluation before the first collapse"""
    onset_before_step: int | None = None
    """step of the first evaluation at chance"""
    onset_iteration: int | None = None
    """iteration of that evaluation"""
    dead_before_onset: float | None = None
    """share of the dense layer's units that were dead at the last good evaluation before it"""
    dead_at_onset: float | None = None
    """the same at the first evaluation at chance"""
    dead_at_end: float | None = None
    """the same at the last evaluation"""
    dead_channels_before_onset: float | None = None
    """share of the second convolution's channels that were dead at the last good evaluation before
    the first collapse"""
    dead_channels_at_onset: float | None = None
    """the same at the first evaluation at chance"""
    dead_channels_at_end: float | None = None
    """the same at the last evaluation"""
    watched_steps: int | None = None
    """steps from learning to the collapse, or to the end of a run that did not collapse"""
    watched_samples: int | None = None
    """the same in training examples"""
    collapses: int = 0
    """times that it fell to chance after it had learned"""
    relearned: bool = False
    """whether it learned again after a collapse"""
    chance_at_end: bool = False
    """whether it ended at chance"""
    optimal_iteration: int | None = None
    """iteration of the best validation accuracy"""
    optimal_validation_accuracy: float | None = None
    """the best validation accuracy, a fraction of 1"""
    optimal_test_accuracy: float | None = None
    """test accuracy of the weights of that moment"""
    final_validation_accuracy: float | None = None
    """validation accuracy of the last evaluation"""
    final_test_accuracy: float | None = None
    """test accuracy of the last weights"""
    final_train_accuracy: float | None = None
    """accuracy on the last iteration's training examples, with dropout"""
    final_train_loss: float | None = None
    """their mean cross-entropy, without L2"""
    final_validation_loss: float | None = None
    """mean cross-entropy of the last evaluation, without L2"""
    final_predicted_glass_fraction: float | None = None
    """share of validation examples that it called glass"""
    validation_examples: int | None = None
    """validation examples of each evaluation"""
    curve: str | None = None
    """digest of losses and accuracies: runs of different seeds have different ones"""
    seconds_per_iteration: float | None = None
    """over the last evaluations"""
    torn_lines: int = 0
    """lines of metrics.jsonl that a crash cut short"""
    rollbacks: int = 0
    """times that it went back"""
    checkpoints_refused: int = 0
    """checkpoints that were found damaged"""
    starts: int = 0
    """times that it was started"""
    restarts: int | None = None
    """starts after the first"""
    wall_seconds: float | None = None
    """wall time of all starts together, s"""
    core_hours: float | None = None
    """that time on the cores of the last start, h; by Slurm, of every attempt on its cores,
    in equal parts where runs shared a job"""
    core_hours_by: str | None = None
    """whose count that is: run, its own; slurm, of Slurm's accounting, killed attempts included"""
    peak_memory: int | None = None
    """the most memory that one rank of the last start held, bytes; by Slurm, one task of a step"""
    peak_memory_by: str | None = None
    """whose count that is, run or slurm: the larger one"""
    useful_share: float | None = None
    """processor time of the last start as a share of its cores' time, imports included"""
    started: str | None = None
    """time of the first start, UTC"""
    last_started: str | None = None
    """time of the last start, UTC"""
    commit: str | None = None
    """commit of the code at the last start"""
    dirty: bool | None = None
    """whether the code had changes of its own"""
    hosts: str | None = None
    """machines of all starts"""
    slurm_jobs: str | None = None
    """batch jobs of all starts, as sacct calls them; null where a start was in none"""
    ranks: int | None = None
    """MPI ranks of the last start"""
    versions: str | None = None
    """versions of Python and of packages, JSON"""
    data_name: str | None = None
    """directory of the data set that the run was trained on"""
    data_fingerprint: str | None = None
    """fingerprint of its contents"""
    data_stored: str | None = None
    """when that data set was stored"""
    numerics_changed: int | None = None
    """how often the run went on under other numerics: exact where 0; null where that is unknown"""
    numerics_change: str | None = None
    """when and what"""
    lineage_run: str | None = None
    """run whose weights it started from"""
    lineage_step: int | None = None
    """step of those"""
    lineage_which: str | None = None
    """latest or best"""
    weights_sha256: str | None = None
    """digest of the final weights"""
    well_named: bool = False
    """the directory's name carries the digest of the settings in it"""
    diagnostics: DiagnosticSummary = NO_DIAGNOSTICS


_TYPES = {"str": pl.String, "int": pl.Int64, "float": pl.Float64, "bool": pl.Boolean}
SCHEMA = {
    name: _TYPES[str(kind.type).split(" ")[0]]
    for name, kind in Row.__dataclass_fields__.items()
    if name != "diagnostics"
}


def read_run(path: Path, analysis: Analysis | None = None) -> Row:
    """What one directory holds; `analysis` in place of the thresholds in its own settings.

    Never raises for what is in the directory: a damaged or foreign one says so.
    """
    name = RUN_NAME.fullmatch(path.name)
    if name is None:
        return Row(path.name, reason="is not named <label>-s<seed>-<hash> as runs are")
    copy = int(name["copy"] or 0)
    row = Row(path.name, label=name["label"], seed=int(name["seed"]), copy=copy)
    run = RunDir(path)
    try:
        if run.config.exists():
            _read_config(row, run, analysis)
        else:
            row.state, row.reason = _without_config(path)
    except (UserError, OSError, ValueError) as error:
        row.state, row.reason = "damaged", " ".join(str(error).split())[:300]
    if row.state in ("damaged", "foreign"):
        row.outcome = "incomplete"
    return row


def _without_config(path: Path) -> tuple[str, str]:
    """State of a directory that has the name of a run and no settings, and why."""
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    if names <= LOGS:
        return "missing", "not started yet"
    if names & {*FILES, "checkpoints"}:
        return "damaged", "config.yaml is missing"
    return "foreign", "holds no run"


def _read_config(row: Row, run: RunDir, analysis: Analysis | None) -> None:
    settings, point, seed = _settings(run.config.read_bytes().decode())
    rounding = settings.rounding
    copy = rounding.number if rounding else 0
    if (seed, copy) != (row.seed, row.copy):
        told = [
            f"seed {s}" + (f", copy {c}" if c else "")
            for s, c in ((row.seed, row.copy), (seed, copy))
        ]
        raise ValueError(f"the name says {told[0]}, config.yaml says {told[1]}")
    row.rounding_step = rounding.step if rounding else None
    analysis = analysis or settings.analysis
    row.point, row.analysis = point, thresholds(analysis)
    row.well_named = is_named(run.path, run_identity(point, seed, rounding))
    _read_provenance(row, run)
    metrics = read_metrics(run.metrics, settings.train.batches_per_iteration)
    _read_last(row, metrics)
    _check_whole(row, run, metrics, settings)
    result = records.own_result(run, seed, settings.train)
    _read_course(row, metrics, analysis, settings, result is not None)
    if result is None:
        row.state = "unfinished"
        row.reason = f"at iteration {row.iteration or 0} of {settings.train.iterations}"
    else:
        row.state = "complete"
        _read_result(row, result, metrics)


def _check_whole(row: Row, run: RunDir, metrics: Metrics, settings: RunSettings) -> None:
    """Raise ValueError unless all evaluations up to the last are there, and not more."""
    if (row.iteration or 0) > settings.train.iterations:
        raise ValueError(
            f"{run.metrics.name} goes to iteration {row.iteration}, "
            f"{run.config.name} says {settings.train.iterations}"
        )
    if told := metrics.missing():
        raise ValueError(f"{run.metrics.name} {told}")


_SEED_LINE = re.compile(r"^seed: *(\d+) *$", re.MULTILINE)


def _settings(text: str) -> tuple[RunSettings, str, int]:
    """Settings, digest of the point, and seed of a run's config.yaml.

    Runs of one arm differ in the line of the seed alone; the rest is parsed once.
    """
    lines = list(_SEED_LINE.finditer(text))
    if len(lines) != 1:
        return _parsed(text)
    (line,) = lines
    settings, point, _ = _parsed(f"{text[: line.start()]}seed: 0{text[line.end() :]}")
    return settings, point, int(line[1])


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[RunSettings, str, int]:
    settings = stored_run(parse_yaml(text, "config.yaml"), "config.yaml")
    return settings, settings.point_digest(), settings.seed


@functools.lru_cache(maxsize=4096)
def thresholds(analysis: Analysis) -> str:
    """Short digest of the thresholds."""
    return digest(to_tree(analysis))[:8]


def _read_course(
    row: Row, metrics: Metrics, analysis: Analysis, settings: RunSettings, complete: bool
) -> None:
    """Outcome and times, and the last evaluation."""
    if not len(metrics):
        return
    course = outcomes.classify(metrics.evaluations(), analysis)
    row.outcome_so_far = course.outcome
    row.outcome = course.outcome if complete else "incomplete"
    step, iteration = metrics.step, metrics.iteration
    row.collapses, row.relearned = course.collapses, course.relearned
    row.chance_at_end = course.chance_at_end
    if course.learned is not None:
        row.learned_step = int(step[course.learned])
        row.learned_iteration = int(iteration[course.learned])
        if course.end is not None:
            row.watched_steps = max(0, int(step[course.end]) - row.learned_step)
            row.watched_samples = row.watched_steps * settings.train.batch_size
    if course.first_bad is not None and course.last_good is not None:
        row.onset_after_step = int(step[course.last_good])
        row.onset_before_step = int(step[course.first_bad])
        row.onset_iteration = int(iteration[course.first_bad])
        units, channels = metrics.dead["dense"], metrics.dead["conv2"]
        row.dead_before_onset = _finite(units[course.last_good])
        row.dead_at_onset = _finite(units[course.first_bad])
        row.dead_channels_before_onset = _finite(channels[course.last_good])
        row.dead_channels_at_onset = _finite(channels[course.first_bad])


def _read_last(row: Row, metrics: Metrics) -> None:
    """How far the run is, its last evaluation, and its best."""
    row.evaluations, row.torn_lines = len(metrics), metrics.torn
    row.diagnostics = metrics.diagnostics
    if not len(metrics):
        return
    row.step, row.iteration = int(metrics.step[-1]), int(metrics.iteration[-1])
    row.epoch = _finite(metrics.epoch[-1])
    row.dead_at_end = _finite(metrics.dead["dense"][-1])
    row.dead_channels_at_end = _finite(metrics.dead["conv2"][-1])
    for name, values in metrics.series.items():
        if f"final_{name}" in SCHEMA:
            setattr(row, f"final_{name}", _finite(values[-1]))
    row.validation_examples = int(metrics.examples[-1])
    row.curve, row.seconds_per_iteration = _curve(metrics), _pace(metrics)
    accuracy = metrics.series["validation_accuracy"]
    best = int(np.where(np.isfinite(accuracy), accuracy, -1).argmax())
    if np.isfinite(accuracy[best]):
        row.optimal_iteration = int(metrics.iteration[best])
        row.optimal_validation_accuracy = float(accuracy[best])


def _curve(metrics: Metrics) -> str | None:
    """Digest of what a run's seed decides; None where no loss was finite."""
    named = ("train_loss", "validation_loss", "validation_accuracy")
    curves = np.array([metrics.series[name] for name in named])
    if not np.isfinite(curves[:2]).any():
        return None
    return hashlib.blake2b(curves.tobytes(), digest_size=8).hexdigest()


def _pace(metrics: Metrics) -> float | None:
    """Seconds an iteration, over the last LATE evaluations."""
    late = slice(-LATE, None)
    seconds, iteration = metrics.seconds[late], metrics.iteration[late]
    if len(seconds) < 2:
        return None
    return _finite((seconds[-1] - seconds[0]) / max(1, int(iteration[-1] - iteration[0])))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _read_result(row: Row, result: records.Result, metrics: Metrics) -> None:
    if row.step is None or row.step < result.steps:
        raise ValueError(
            f"result.json says {result.steps} steps, metrics.jsonl ends at {row.step or 0}"
        )
    accuracy = metrics.series["validation_accuracy"]
    for end in (result.optimal, result.final):
        there = _finite(accuracy[end.iteration - 1])
        if end.validation_accuracy != there:
            raise ValueError(
                f"result.json says validation accuracy {end.validation_accuracy} at iteration "
                f"{end.iteration}, metrics.jsonl {there}"
            )
    row.optimal_iteration = result.optimal.iteration
    row.optimal_validation_accuracy = result.optimal.validation_accuracy
    row.optimal_test_accuracy = result.optimal.test_accuracy
    row.final_validation_accuracy = result.final.validation_accuracy
    row.final_test_accuracy = result.final.test_accuracy
    row.weights_sha256 = result.weights_sha256
    row.restarts, row.wall_seconds = result.restarts, result.wall_seconds
    if (usage := result.usage) is not None:
        row.core_hours = result.wall_seconds * usage.cores / 3600
        row.peak_memory = usage.peak_memory
        row.core_hours_by = row.peak_memory_by = "run"
        time_of_cores = usage.wall_seconds * usage.cores
        row.useful_share = usage.processor_seconds / time_of_cores if time_of_cores else None


def _slurm_jobs(starts: Sequence[records.Start], events: Sequence[Event]) -> str | None:
    """Batch jobs that a run was started in, also those that were killed before it said so."""
    jobs = [event.job for event in events if event.event == "job_start" and event.job]
    for slurm in (start.slurm or {} for start in starts):
        if not slurm.get("job"):
            return None
        array, index = slurm.get("array_job"), slurm.get("array_task")
        jobs.append(f"{array}_{index}" if array and index else slurm["job"])
    return " ".join(dict.fromkeys(jobs)) or None


def _read_provenance(row: Row, run: RunDir) -> None:
    starts = records.read_starts(run.provenance)
    events = records.all_events(run.events)
    kinds = Counter(event.event for event in events)
    row.rollbacks, row.checkpoints_refused = kinds["rollback"], kinds["checkpoint_refused"]
    row.starts = len(starts)
    row.slurm_jobs = _slurm_jobs(starts, events)
    if not starts:
        return
    last = starts[-1]
    row.started, row.last_started = str(starts[0].time), str(last.time)
    row.commit, row.dirty, row.ranks = last.commit, last.dirty, last.ranks
    row.hosts = " ".join(dict.fromkeys(host for start in starts for host in start.hosts))
    row.versions = json.dumps(last.versions, sort_keys=True)
    if data := next((start.data for start in reversed(starts) if start.data), None):
        row.data_name, row.data_fingerprint = data.name, data.fingerprint
        row.data_stored = data.created
    if last.numerics is not None or len(starts) == 1:
        changes = last.numerics_changes
        row.numerics_changed = len(changes)
        told = "; ".join(f"at step {change.step}: {change.what}" for change in changes)
        row.numerics_change = told or None
    if lineage := next((start.lineage for start in starts if start.lineage), None):
        row.lineage_run, row.lineage_step = lineage.run, lineage.step
        row.lineage_which = lineage.which
