"""A study as stages: simulate, train, aggregate; what of it is missing, and with what it is made.

Built once here, for `make submit`, for batch scripts that are started by hand, and for the message
that nothing is left to do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glass_cnn import records
from glass_cnn.paths import DatasetDir, RunDir, dataset_dir
from glass_cnn.placement import placed
from glass_cnn.records import Result
from glass_cnn.settings import load_run
from glass_cnn.study import AFTER, Run, Study, load_study
from hpc.errors import ConfigError, DataError
from hpc.files import make_directory, storage_errors, write_atomic
from hpc.stages import Meter, Room, Stage, Task
from hpc.yaml_files import read_yaml

SHARED = ("simulation", "data", "render", "split", "model", "launch", "study.seeds")
"""what --set also sets for the studies that are needed: a run that goes on from another has the
same seed, data and network; how the other was trained is its own study's affair"""
SECTIONS = ("simulate", "aggregate")
"""stages that have a section of their own in a site profile; the rest of it is for training"""
SHOWN = {"validation_accuracy": "accuracy {:.2%}", "validation_loss": "loss {:.3f}"}
"""what of an evaluation is shown while a run trains"""


@dataclass(frozen=True)
class Pipeline:
    """A study with those that must be complete before it, under one logs directory."""

    chain: tuple[Study, ...]
    """in order; the study itself is the last"""
    root: Path
    sets: tuple[str, ...]
    """the assignments that it was asked for with"""
    notes: tuple[str, ...] = ()
    """what people should know of where these reach"""
    choices: tuple[str, ...] = ()
    """what was chosen of how its runs are started"""

    @property
    def study(self) -> Study:
        return self.chain[-1]

    def stages(self) -> list[Stage]:
        """What is missing of all of them, in order, once they are placed.

        Raises DataError for data that are not imported yet.
        """
        return [stage for study in self.chain for stage in self._stages(study)]

    def placed(self, room: Callable[[], Room]) -> Pipeline:
        """With numbers of ranks and threads where launch says auto; see `placement.placed`."""
        chain, choices = placed(self.chain, self.root, room)
        return replace(self, chain=chain, choices=tuple(choices))

    def damaged(self) -> list[Path]:
        """Files in the place of results that are none."""
        found = []
        for study in self.chain:
            for run in study.runs:
                place = study.run_dir(self.root, run)
                if place.result.exists() and result_of(run, place) is None:
                    found.append(place.result)
        return found

    def write(self) -> None:
        """Write each resolved study; one that is needed is found as it was submitted together."""
        after = None
        for study in self.chain:
            place = study.directory(self.root)
            make_directory(place.runs)
            write_atomic(place.study, study.to_yaml(after))
            after = place.study

    def _stages(self, study: Study) -> list[Stage]:
        launch = study.launch
        assert launch.ranks != "auto", "stages are of a pipeline that is placed"
        cores = launch.simulation_ranks or len(os.sched_getaffinity(0))
        data, runs = self._data_tasks(study), self._train_tasks(study)
        found = []
        if data:
            found.append(Stage("simulate", data, cores, 1))
        if runs:
            needs = "success" if data else "end"
            found.append(
                Stage(
                    "train",
                    runs,
                    launch.ranks,
                    launch.threads,
                    needs=needs,  # type: ignore[arg-type]
                    main=True,
                    gpus_per_rank=1,
                    tasks_per_gpu=launch.runs_per_gpu,
                    tasks_per_job=0 if launch.runs_per_job == "auto" else launch.runs_per_job,
                    after_failures=True,
                )
            )
        if found or self._outdated(study):
            report = aggregate_task(study, self.root)
            found.append(Stage("aggregate", (report,), 1, 1, after_failures=True, sums_up=True))
        return found

    def _data_tasks(self, study: Study) -> tuple[Task, ...]:
        tasks = []
        for settings in study.datasets:
            place = dataset_dir(self.root, settings.data.name, settings.dataset_digest())
            if place.is_done():
                continue
            if settings.data.source == "import":
                words = f' SET="{" ".join(self.sets)}"' if self.sets else ""
                raise DataError(
                    f"{place.path}: the imported data set is not there; first "
                    f"make import SOURCE=<directory> CONFIG={study.source}{words}"
                )
            tasks.append(data_task(study, self.root, place))
        return tuple(tasks)

    def _train_tasks(self, study: Study) -> tuple[Task, ...]:
        config = str(study.directory(self.root).study)
        places = ((run, study.run_dir(self.root, run)) for run in study.runs)
        missing = (run for run, place in places if result_of(run, place) is None)
        return tuple(train_task(study, self.root, run, config) for run in missing)

    def _outdated(self, study: Study) -> bool:
        """Whether the report is not there, or of fewer results or another form of the study."""
        place = study.directory(self.root)
        if not place.report.exists():
            return True
        if place.study.exists() and _form_there(place.study) != _form(study.tree):
            return True
        made = place.report.stat().st_mtime
        runs = (study.run_dir(self.root, run) for run in study.runs)
        return any(run.result.stat().st_mtime > made for run in runs)


def pipeline(config: str | Path, sets: Sequence[str], root: Path) -> Pipeline:
    """The pipeline of a study file, or of a study's name or directory; raises ConfigError."""
    own = [each for each in sets if not each.startswith(AFTER)]
    shared = [each for each in own if _name(each).startswith(tuple(f"{s}." for s in SHARED))]
    # Last, so that they lie over what both have.
    needs = shared + [each.removeprefix(AFTER) for each in sets if each.startswith(AFTER)]
    chain = [load_study(config, sets, root)]
    while chain[0].section.after is not None:
        needed = load_study(Path(chain[0].source).parent / chain[0].section.after, needs, root)
        if needed.name in [each.name for each in chain]:
            raise ConfigError(f"{needed.source}: study.after goes round in a circle.")
        chain.insert(0, needed)
    return Pipeline(tuple(chain), root, tuple(sets), _reach(chain, own, needs))


def _name(assignment: str) -> str:
    """The setting that `a.b=c` sets, with a dot behind it."""
    return assignment.partition("=")[0].strip() + "."


def _reach(chain: Sequence[Study], own: Sequence[str], needs: Sequence[str]) -> tuple[str, ...]:
    """Say of what a training is made of that it was set for the last study alone."""
    said = {_name(each) for each in needs}
    alone = [name[:-1] for name in map(_name, own) if name.startswith("train.")]
    return tuple(
        f"{name} is set for {chain[-1].name} alone; for {chain[-2].name}, from which it goes on, "
        f'say SET="{AFTER}{name}=…"'
        for name in alone
        if len(chain) > 1 and f"{name}." not in said
    )


def result_of(run: Run, place: RunDir) -> Result | None:
    """What a run ended with; None before its end, and for a result that is damaged or not its."""
    return records.result_of(place, run.seed, run.point.settings.train)


def is_damaged(done: Path) -> bool:
    """Whether the file by which a task is done is a run's result, and one that is none.

    Raises ConfigError where the run's own settings cannot be read.
    """
    run = RunDir(done.parent)
    if done != run.result or not (done.exists() and run.config.exists()):
        return False
    settings = load_run(run.config)
    return records.result_of(run, settings.seed, settings.train) is None


def set_aside(results: Sequence[Path]) -> None:
    """Rename results that are none, so that their runs are finished again."""
    for result in results:
        with storage_errors(result):
            result.replace(result.with_name(f"{result.name}.damaged"))


def data_task(study: Study, root: Path, place: DatasetDir) -> Task:
    """Making one data set."""
    config = str(study.directory(root).study)
    words = (config, "--only", place.name, "--logs", str(root))
    return Task(place.name, "jobs.dataset", words, place.record, place.log)


def train_task(study: Study, root: Path, run: Run, config: str) -> Task:
    """Training one run; `config` names the study on its command line."""
    place, train = study.run_dir(root, run), run.point.settings.train
    work = train.batch_size * train.batches_per_iteration
    return Task(
        name=run.name,
        module="jobs.train",
        args=(config, run.name, "--logs", str(root)),
        done=place.result,
        log=place.output,
        checkpoints=place.checkpoints,
        meter=Meter(place.metrics, train.iterations, SHOWN, work, "img/s"),
    )


def aggregate_task(study: Study, root: Path) -> Task:
    """The table and the report."""
    place = study.directory(root)
    return Task("report", "jobs.report", (str(place.path),), place.report, place.report_log)


def _form_there(path: Path) -> list[Any] | None:
    """That of a resolved study; None for a damaged one, which will be written anew."""
    with contextlib.suppress(ConfigError):
        return _form(read_yaml(path))
    return None


def _form(tree: Mapping[str, Any]) -> list[Any]:
    """What a report depends on beside its runs: other settings than these make other runs."""
    section = dict(tree.get("study") or {}, after=None)
    return [section, tree.get("analysis")]
