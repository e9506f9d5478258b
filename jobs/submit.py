"""A whole study with one command: data, every run that is not done, table and report.

Calling it again does only what is missing. Exit codes: 0 complete, 75 stopped on request (run it
again), 78 bad configuration, 65 bad data, else that of the first task that failed.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
from collections.abc import Mapping

from glass_cnn.data.dataset import check_split
from glass_cnn.data_identity import check_study
from glass_cnn.paths import StudyDir, logs_root
from glass_cnn.pipeline import SECTIONS, Pipeline, pipeline, result_of, set_aside
from glass_cnn.study import Study
from hpc import gpus, provenance
from hpc.commandline import Parser, run_main
from hpc.errors import EXIT_AGAIN, EXIT_COMPLETE, EXIT_DATA
from hpc.stages import Launcher
from hpc.words import plural, shown

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
    whole = pipeline(args.config, assignments(args), logs_root(args.logs))
    place = whole.study.directory(whole.root)
    chosen = functools.cache(lambda: choose(args.launcher, whole, place))
    whole = whole.placed(lambda: chosen()[0].room())
    notes = [*whole.notes, *(note for study in whole.chain for note in study.notes)]
    notes += [note for study in whole.chain if (note := check_study(study, whole.root))]
    for note in dict.fromkeys(notes):
        print(f"note: {note}")
    damaged = whole.damaged()
    for result in damaged:
        print(f"{shown(result)} is damaged: the run is finished again from its checkpoint.")
    if not args.dry_run:
        set_aside(damaged)
    missing = whole.stages()
    if not missing:
        broken = broken_runs(whole.study, place)
        if not broken:
            print(f"{whole.study.name}: {all_of(whole.study)} complete; nothing to do.")
        tell_broken(place, broken)
        print(f"report: {shown(place.report)}\nlog:    {shown(place.results_log)}")
        return EXIT_DATA if broken else EXIT_COMPLETE
    if any(stage.main for stage in missing):
        for choice in whole.choices:
            print(f"note: {choice}")
        for study in whole.chain:
            check_split((point.settings for point in study.points), whole.root)
    if not args.dry_run:
        whole.write()
    launcher, here = chosen()
    code = launcher.launch(missing, args.dry_run)
    if here and not args.dry_run:
        summarize(whole, place, code)
    return code


def all_of(study: Study) -> str:
    """The runs of a study as what a sentence is about."""
    return "its only run is" if len(study.runs) == 1 else f"all {len(study.runs)} runs are"


def choose(kind: str, whole: Pipeline, place: StudyDir) -> tuple[Launcher, bool]:
    """The launcher, Slurm's or this machine's, and whether it is this machine's."""
    launch = whole.study.launch
    if kind != "local":
        from hpc import slurm

        if kind == "slurm" or slurm.answers():
            return slurm.Slurm(
                place.path, launch.site, launch.slurm, SECTIONS, launch.notify
            ), False
        if shutil.which("sbatch"):
            print("note: sbatch is installed and no Slurm answers; using this machine.")
    from hpc.local import Local

    if launch.notify:
        print("note: launch.notify writes no mail from this machine; it is for jobs of Slurm.")
    return Local(launch.side_by_side, usable_gpus()), True


def usable_gpus() -> tuple[str, ...]:
    """GPUs of this machine; none, with a word, where TensorFlow was installed without CUDA."""
    found, complaint = gpus.here()
    if complaint:
        print(f"note: no GPU is used; nvidia-smi says: {complaint}")
    if found and "tensorflow" not in provenance.versions():  # but tensorflow-cpu
        print(
            f"note: {plural(len(found), 'GPU')} not used: this environment was set up for "
            "processors (make clean setup GPU=1)."
        )
        return ()
    return found


def broken_runs(study: Study, place: StudyDir) -> dict[str, str]:
    """Runs of the study whose records are damaged -> how; they are counted nowhere."""
    from glass_cnn.analysis.table import aggregate

    table = aggregate(study, place).table.select("run", "state", "reason")
    own = {run.name for run in study.runs}
    found = {run: str(reason) for run, state, reason in table.iter_rows() if state == "damaged"}
    return {run: reason for run, reason in found.items() if run in own}


def tell_broken(place: StudyDir, broken: Mapping[str, str]) -> None:
    """Name damaged runs, and say what to do."""
    for run, reason in list(broken.items())[:SHOWN]:
        print(f"{shown(place.runs / run)} is damaged and not counted: {reason}.")
    if broken:
        left = f"{len(broken) - SHOWN} more like this. " if len(broken) > SHOWN else ""
        print(f"{left}Remove these directories, and the same command trains them anew.")


def summarize(whole: Pipeline, place: StudyDir, code: int) -> None:
    """The last words: every run with its accuracies and its place, and where the pages are."""
    study, root = whole.study, whole.root
    rows: list[tuple[str, ...]] = [("optimal", "test", "final", "test", "run")]
    broken, done = broken_runs(study, place), 0
    for run in study.runs:
        where = study.run_dir(root, run)
        result = result_of(run, where)
        if result is None or run.name in broken:
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
    tell_broken(place, broken)
    if place.report.exists():
        print(f"report: {shown(place.report)}\nlog:    {shown(place.results_log)}")
    if code == EXIT_AGAIN:
        print("stopped; the same command goes on from here.")
    elif code:
        print("some tasks failed (see above); the same command starts only those again.")


if __name__ == "__main__":
    sys.exit(run_main(main))
