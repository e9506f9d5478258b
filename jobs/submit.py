"""A whole study with one command: data, every run that is not done, table and report.

Calling it again does only what is missing. Exit codes: 0 complete, 75 stopped on request (run it
again), 78 bad configuration, 65 bad data, else that of the first task that failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glass_cnn.data.dataset import directory
from glass_cnn.paths import RunDir, StudyDir, logs_root
from glass_cnn.records import Result, read_result
from glass_cnn.study import Run, Study, load_study
from hpc.commandline import Parser, run_main
from hpc.errors import EXIT_AGAIN, ConfigError, DataError
from hpc.files import make_directory, storage_errors, write_atomic
from hpc.stages import Stage, Task
from hpc.words import plural, shown
from hpc.yaml_files import read_yaml

SHOWN = 40
"""runs that the summary lists; all of them are in the report"""


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("submit", __doc__)
    parser.add_study()
    parser.add_argument("--launcher", choices=("auto", "local", "slurm"), default="auto")
    parser.add_argument("--ranks", type=int, help="MPI ranks of each training")
    parser.add_settings()
    parser.add_logs()
    parser.add_argument("--dry-run", action="store_true", help="show what would be started")
    return parser.parse_args(argv)


def assignments(args: argparse.Namespace) -> list[str]:
    """All settings given on the command line, one `key=value` each."""
    return args.set + ([] if args.ranks is None else [f"launch.ranks={args.ranks}"])


def main(argv: list[str]) -> int:
    """Work out the stages and hand them to the launcher."""
    args = parse(argv)
    root = logs_root(args.logs)
    sets = assignments(args)
    study = load_study(args.config, sets, root)
    place = study.directory(root)
    chain = [*needed(study, root, sets), study]
    for result in (result for each in chain for result in damaged(each, root)):
        print(f"{shown(result)} is damaged: the run is finished again from its checkpoint.")
        if not args.dry_run:
            with storage_errors(result):
                result.replace(result.with_name("result.json.damaged"))
    for note in dict.fromkeys(note for each in chain for note in each.notes):
        print(f"note: {note}")
    missing = [stage for each in chain for stage in stages(each, root)]
    if not missing:
        print(f"{study.name}: {all_of(study)} complete; nothing to do.")
        print(f"report: {shown(place.report)}\nlog:    {shown(place.results_log)}")
        return 0
    if not args.dry_run:
        write_studies(chain, root)
    return start(args, study, place, missing)


def all_of(study: Study) -> str:
    """The runs of a study as what a sentence is about."""
    return "its only run is" if len(study.runs) == 1 else f"all {len(study.runs)} runs are"


SHARED = ("simulation", "data", "render", "split", "model", "launch")
"""sections in which --set also reaches the studies that are needed: a run that goes on from another
sees the same data with the same network; how the other was trained is its own study's affair"""


def needed(study: Study, root: Path, sets: Sequence[str] = ()) -> list[Study]:
    """The studies that must be complete before this one, first things first."""
    shared = [each for each in sets if re.split(r"[.=\s]", each)[0] in SHARED]
    chain: list[Study] = []
    while study.section.after is not None:
        study = load_study(Path(study.source).parent / study.section.after, shared, root)
        if study.name in [each.name for each in chain]:
            raise ConfigError(f"{study.source}: study.after goes round in a circle.")
        chain.insert(0, study)
    return chain


def write_studies(chain: Sequence[Study], root: Path) -> None:
    """Write each resolved study; one that is needed is found as it was submitted together."""
    after = None
    for study in chain:
        place = study.directory(root)
        make_directory(place.runs)
        write_atomic(place.study, study.to_yaml(after))
        after = place.study


def result_of(run: Run, place: RunDir) -> Result | None:
    """What a run ended with; None before its end, and for a result that is damaged or not its."""
    with contextlib.suppress(DataError):
        result = read_result(place.result)
        return result if result is not None and result.seed == run.seed else None
    return None


def damaged(study: Study, root: Path) -> list[Path]:
    """Files in the place of results that are none."""
    runs = [(run, study.run_dir(root, run)) for run in study.runs]
    return [at.result for run, at in runs if at.is_done() and result_of(run, at) is None]


def stages(study: Study, root: Path) -> list[Stage]:
    """What is missing of one study, in order."""
    launch = study.points[0].settings.launch
    place = study.directory(root)
    cores = launch.simulation_ranks or len(os.sched_getaffinity(0))
    found = [
        Stage("simulate", _data_tasks(study, root), cores, 1),
        Stage("train", _train_tasks(study, root), launch.ranks, launch.threads_per_rank),
    ]
    found = [stage for stage in found if stage.tasks]
    if found or outdated(study, root):
        report = Task(
            "report", "jobs.report", (str(place.path),), place.report, place.path / "report.log"
        )
        found.append(Stage("aggregate", (report,), 1, 1, after_failures=True))
    return found


def outdated(study: Study, root: Path) -> bool:
    """Whether the report is not there, or of fewer results or another form of the study."""
    place = study.directory(root)
    if not place.report.exists():
        return True
    if place.study.exists() and _form_there(place.study) != _form(study.tree):
        return True
    made = place.report.stat().st_mtime
    return any(study.run_dir(root, run).result.stat().st_mtime > made for run in study.runs)


def _form_there(path: Path) -> list[Any] | None:
    """That of a resolved study; None for a damaged one, which will be written anew."""
    with contextlib.suppress(ConfigError):
        return _form(read_yaml(path))
    return None


def _form(tree: Mapping[str, Any]) -> list[Any]:
    """What a report depends on beside its runs: other settings than these make other runs."""
    section = dict(tree.get("study") or {}, after=None)
    return [section, tree.get("analysis")]


def _data_tasks(study: Study, root: Path) -> tuple[Task, ...]:
    tasks = []
    for settings in study.datasets:
        place = directory(settings, root)
        if place.is_done():
            continue
        if settings.data.source == "import":
            raise DataError(
                f"{place.path}: the imported data set is not there; first "
                f"make import SOURCE=<directory> CONFIG={study.source}"
            )
        config = str(study.directory(root).study)
        words = (config, "--only", place.name, "--logs", str(root))
        tasks.append(Task(place.name, "jobs.dataset", words, place.record, place.log))
    return tuple(tasks)


def _train_tasks(study: Study, root: Path) -> tuple[Task, ...]:
    config = str(study.directory(root).study)
    tasks = []
    for run in study.runs:
        place = study.run_dir(root, run)
        if result_of(run, place) is None:
            words = (config, run.name, "--logs", str(root))
            train = run.point.settings.train
            tasks.append(
                Task(
                    name=run.name,
                    module="jobs.train",
                    args=words,
                    done=place.result,
                    log=place.path / "output.log",
                    checkpoints=place.checkpoints,
                    records=place.metrics,
                    total=train.iterations,
                    images=train.batch_size * train.batches_per_iteration,
                )
            )
    return tuple(tasks)


def start(args: argparse.Namespace, study: Study, place: StudyDir, todo: list[Stage]) -> int:
    """Give the stages to Slurm or to this machine."""
    launch = study.points[0].settings.launch
    kind = args.launcher
    if kind != "local":
        from hpc import slurm

        if kind == "slurm" or slurm.answers():
            return slurm.launch(todo, place.path, launch.site, launch.slurm, dry_run=args.dry_run)
    from hpc import local

    code = local.launch(todo, launch.side_by_side, args.dry_run)
    if not args.dry_run:
        summarize(study, place, code)
    return code


def summarize(study: Study, place: StudyDir, code: int) -> None:
    """The last words: every run with its accuracies and its place, and where the pages are."""
    root = place.path.parent
    rows: list[tuple[str, ...]] = [("optimal", "test", "final", "test", "run")]
    done = 0
    for run in study.runs:
        where = study.run_dir(root, run)
        result = result_of(run, where)
        if result is None:
            continue
        done += 1
        if done <= SHOWN:
            ends = (result.optimal, result.final)
            shares = (x for end in ends for x in (end.validation_accuracy, end.test_accuracy))
            texts = ("" if share is None else f"{share:.2%}" for share in shares)
            rows.append((*texts, str(shown(where.path))))
    if done:
        # Not a rich table: on a narrow terminal it would cut the numbers to make room for paths.
        print(*(" " + "  ".join(f"{x:7}" for x in row).rstrip() for row in rows), sep="\n")
    more = f" ({done - SHOWN} more in {shown(place.summary_csv)})" if done > SHOWN else ""
    print(f"\n{study.name}: {done} of {plural(len(study.runs), 'run')} complete{more}.")
    if place.report.exists():
        print(f"report: {shown(place.report)}\nlog:    {shown(place.results_log)}")
    if code == EXIT_AGAIN:
        print("stopped; the same command goes on from here.")
    elif code:
        print("some tasks failed (see above); the same command starts only those again.")


if __name__ == "__main__":
    sys.exit(run_main(main))
