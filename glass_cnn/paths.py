"""Names and places: the one room that knows where anything lies.

<logs>/<study>/study.yaml                      resolved study
<logs>/<study>/runs/<label>-s<seed>-<hash8>/   one run; a copy of it: <label>-s<seed>c<copy>-<hash8>
<logs>/datasets/<name>-<hash8>/                one data set
<logs>/trajectories/<name>-<hash8>/            the coolings behind it
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hpc.errors import ConfigError
from hpc.records import EVENTS

HASH_LENGTH = 8
RUN_NAME = re.compile(
    r"(?P<label>.+)-s(?P<seed>\d+)(?:c(?P<copy>\d+))?"
    rf"-(?P<hash>[0-9a-f]{{{HASH_LENGTH}}})"
)
"""what `run_name` makes"""


def logs_root(logs: str | Path | None = None) -> Path:
    """The directory of all outputs: `logs`, else $GLASS_LOGS, else ./logs.

    Raises ConfigError for a name that job scripts or file lists cannot carry.
    """
    root = Path(logs or os.environ.get("GLASS_LOGS") or "logs").expanduser().absolute()
    if not str(root).isprintable():
        raise ConfigError(
            f"LOGS={str(root)!r}: control characters and bytes that are no text are not allowed."
        )
    if root.exists() and not root.is_dir():
        raise ConfigError(f"LOGS={root}: is a file; name a directory.")
    return root


@dataclass(frozen=True)
class RunDir:
    """One run's directory."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def root(self) -> Path | None:
        """The directory of all outputs that it lies in; None for a run that was put elsewhere."""
        above = self.path.parents
        return above[2] if len(above) > 2 and above[0].name == "runs" else None

    @property
    def config(self) -> Path:
        """Resolved settings of the run."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """One record per start."""
        return self.path / "provenance.jsonl"

    @property
    def metrics(self) -> Path:
        """One record per evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """One record per thing out of the ordinary: rollback, refused checkpoint, requeue."""
        return self.path / EVENTS

    @property
    def digests(self) -> Path:
        """One record per checkpoint: the digest of its state."""
        return self.path / "digests.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints; `best/` holds the optimal model."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def heartbeats(self) -> Path:
        """One small file per rank: where it is, so that a rank that hangs can be named."""
        return self.path / "heartbeats"

    @property
    def log(self) -> Path:
        """What rank 0 prints, appended over restarts."""
        return self.path / "run.log"

    @property
    def figures(self) -> Path:
        """Pictures of what its model sees."""
        return self.path / "figures"

    @property
    def evaluation(self) -> Path:
        """What `jobs.evaluate` found of its models."""
        return self.path / "evaluation.json"

    def evaluation_on(self, dataset: str) -> Path:
        """What `jobs.evaluate` found of its models on another data set."""
        return self.path / f"evaluation-{dataset}.json"

    @property
    def predictions(self) -> Path:
        """What `jobs.predict` found of images without labels."""
        return self.path / "predictions"

    @property
    def exported(self) -> Path:
        """Its models in forms of other programs."""
        return self.path / "exported"

    @property
    def pictures(self) -> Path:
        """The page of its pictures."""
        return self.path / "visualize.html"

    @property
    def output(self) -> Path:
        """What all ranks and their launcher print, appended over restarts."""
        return self.path / "output.log"

    @property
    def crashes(self) -> Path:
        """Tracebacks, a file for each rank."""
        return self.path / "crashes"

    @property
    def result(self) -> Path:
        """Written last: the run is complete. Whether it is one: `records.result_of`."""
        return self.path / "result.json"


@dataclass(frozen=True)
class StudyDir:
    """One study's directory."""

    path: Path

    @property
    def study(self) -> Path:
        """The resolved study."""
        return self.path / "study.yaml"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def jobs(self) -> Path:
        """What was submitted to Slurm: job ids, scripts, job logs."""
        return self.path / "jobs"

    @property
    def accounting(self) -> Path:
        """What Slurm's accounting says of the runs' jobs, where there is one."""
        return self.path / "accounting.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.parquet"

    @property
    def summary_csv(self) -> Path:
        return self.path / "summary.csv"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def report_log(self) -> Path:
        """What the job prints that makes the report."""
        return self.path / "report.log"

    @property
    def frames(self) -> Path:
        """Configurations of its data as files of other programs."""
        return self.path / "frames"

    @property
    def results_log(self) -> Path:
        return self.path / "results_log.md"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def run(self, label: str, seed: int, digest: str) -> RunDir:
        return RunDir(self.runs / run_name(label, seed, digest))


@dataclass(frozen=True)
class DatasetDir:
    """One data set's directory."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def record(self) -> Path:
        """How it was made, counts, checksums; written last: its existence says it is whole."""
        return self.path / "dataset.json"

    @property
    def columns(self) -> Path:
        """One row for each image, and for each configuration that they were drawn from."""
        return self.path / "dataset.h5"

    @property
    def images(self) -> Path:
        return self.path / "images.npy"

    @property
    def building(self) -> Path:
        """The directory that it is made in, and gets its name when it is whole."""
        return self.path.with_name(f".{self.name}.building")

    @property
    def lock(self) -> Path:
        """Held by the job that makes it."""
        return self.path.with_name(f".{self.name}.lock")

    @property
    def log(self) -> Path:
        """What the jobs said that made it and its neighbours."""
        return self.path.parent / "build.log"

    @property
    def report(self) -> Path:
        """The page of `make data-report`."""
        return self.path / "data_report.html"

    def baselines(self, digest: str) -> Path:
        """What simple measures tell of it; `digest` says how they were asked."""
        return self.path / f"baselines-{digest[:HASH_LENGTH]}.json"

    def is_done(self) -> bool:
        return self.record.exists()


@dataclass(frozen=True)
class TrajectoriesDir:
    """The directory of one simulation's trajectories."""

    path: Path

    @property
    def file(self) -> Path:
        """All of them. Its existence means that there is nothing left to simulate."""
        return self.path / "trajectories.h5"

    @property
    def parts(self) -> Path:
        """Finished trajectories, until all are there."""
        return self.path / "parts"

    def part(self, index: int) -> Path:
        """One finished trajectory."""
        return self.parts / f"{index:06d}.npz"

    def is_done(self) -> bool:
        return self.file.exists()


def run_name(label: str, seed: int, digest: str, copy: int = 0) -> str:
    """`<label>-s<seed>-<hash8>`: readable, and different for different settings; copies: `s0c3`."""
    which = f"s{seed}c{copy}" if copy else f"s{seed}"
    return f"{label}-{which}-{digest[:HASH_LENGTH]}"


def is_named(path: Path, digest: str) -> bool:
    """Whether a run's directory carries this digest in its name."""
    return path.name.endswith(f"-{digest[:HASH_LENGTH]}")


def study_dir(root: Path, study: str) -> StudyDir:
    """Where a study's files lie under the logs directory `root`."""
    return StudyDir(root / study)


def dataset_dir(root: Path, name: str, digest: str) -> DatasetDir:
    """Where a data set lies under the logs directory `root`."""
    return DatasetDir(root / "datasets" / f"{name}-{digest[:HASH_LENGTH]}")


def trajectories_dir(root: Path, name: str, digest: str) -> TrajectoriesDir:
    """Where simulated trajectories lie under the logs directory `root`."""
    return TrajectoriesDir(root / "trajectories" / f"{name}-{digest[:HASH_LENGTH]}")
