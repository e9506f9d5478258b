"""What tests share: the repository's root, MPI worlds, their order, and what they require."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from hpc import gpus
from hpc.words import plural
from tests import clones

if TYPE_CHECKING:
    from glass_cnn.records import Numerics

ROOT = Path(__file__).resolve().parent.parent
VENV_BIN = Path(sys.executable).parent

# A requirement is met when one program of each group is found.
PROGRAMS: dict[str, list[tuple[str, ...]]] = {
    "mpi": [("mpiexec",)],
    "slurm": [("sbatch",), ("slurmctld",), ("slurmd",), ("munged",)],
    "tmux": [("tmux",)],
    "chromium": [("chromium", "chromium-browser", "google-chrome")],
}

# Or when a package can be imported.
PACKAGES = {"mdanalysis": "MDAnalysis"}

# Few cores, other work beside: one thread per rank. And the same examples every time.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}
os.environ["PATH"] = f"{VENV_BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
SEARCHED = os.environ["PATH"] + ":/usr/sbin:/sbin"  # Slurm's daemons, when we are not root
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
CARDS = gpus.here().uuids
"""GPUs of this machine, for tests marked `gpu`; hidden from all others"""
os.environ[gpus.VISIBLE] = ""
gpus.here.cache_clear()
settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")

MpiRun = Callable[..., subprocess.CompletedProcess[str]]


# `make test QUICK=1`: what needs none of these, in a minute.
QUICK = os.environ.get("QUICK", "0") not in ("", "0")
MARKS = ("slow", "slurm", "requires", "lasting")
FAST, SLOW, CLUSTER = "fast", "slow", "on the cluster"
LONGEST = {"test_docs.py", "test_train.py", "test_torture.py", "test_division.py", "test_rows.py"}
FIXTURES = {"mpirun", "tiny_logs", "tensorflow", "browser", "simulated"}
"""those that start ranks, LAMMPS, TensorFlow or a browser"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first, then slow ones, those on the development cluster last.

    `make test` starts these three one after the other, each in two processes that share out files
    in this order (pytest-xdist): tests of one stay together, for what they share. Those on the
    cluster have the machine for themselves, and each of their files a cluster.
    """
    if QUICK:
        left_out = [item for item in items if takes_long(item)]
        items[:] = [item for item in items if item not in set(left_out)]
        config.hook.pytest_deselected(items=left_out)
    items.sort(key=lambda item: ((FAST, SLOW, CLUSTER).index(kind(item)), begins_late(item)))


def kind(item: pytest.Item) -> str:
    """What a test's marks make it: its place in the order."""
    if item.get_closest_marker("slurm"):
        return CLUSTER
    return SLOW if item.get_closest_marker("slow") else FAST


def begins_late(item: pytest.Item) -> bool:
    """Whether a test is in none of the longest files; begun late, those would end alone."""
    return item.path.name not in LONGEST


def takes_long(item: pytest.Item) -> bool:
    """Whether a test has no place among the quick ones."""
    marked = any(item.get_closest_marker(mark) for mark in MARKS)
    return marked or not FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose requirement is not met; fail it where $GLASS_REQUIRE says it must be."""
    wanted = {what for mark in item.iter_markers("requires") for what in mark.args}
    wanted |= {"slurm"} if item.get_closest_marker("slurm") else set()
    for what in sorted(wanted):
        if what in PACKAGES and importlib.util.find_spec(PACKAGES[what]) is None:
            leave_out(what, f"requires {what}: no package {PACKAGES[what]}")
        for programs in PROGRAMS.get(what, []):
            if not any(shutil.which(program, path=SEARCHED) for program in programs):
                message = f"requires {what}: no {' or '.join(programs)} in PATH"
                leave_out(what, message)
    cards = max((mark.args[0] for mark in item.iter_markers("gpu")), default=0)
    if cards > len(CARDS):
        leave_out("gpu", f"requires {plural(cards, 'GPU')}, and there are {len(CARDS)}")


def leave_out(requirement: str, message: str) -> None:
    """Skip a test, or fail it where its requirement must be met."""
    required = requirement in os.environ.get("GLASS_REQUIRE", "").split(",")
    (pytest.fail if required else pytest.skip)(message)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logs directory with a small real data set (tests/tiny.py); not to be changed."""
    from tests import tiny

    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def small_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logs directory with another one (tests/small_data.py); not to be changed."""
    from tests import small_data

    return small_data.make(tmp_path_factory.mktemp("small"))


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Path:
    """The parts of a clone that set-up is made of."""
    return clones.make_clone(root, tmp_path / "a clone")


@pytest.fixture
def install(clone: Path) -> ModuleType:
    """The set-up script of that clone, as a module."""
    return clones.install_of(clone)


@pytest.fixture
def complete(clone: Path, install: ModuleType) -> dict[str, Any]:
    """That clone with an environment that claims to be complete; what its stamp says."""
    return clones.pretend_complete(clone, install)


@pytest.fixture(scope="session")
def tensorflow() -> Numerics:
    """How TensorFlow rounds in this process, set up once as a training sets it up: one thread.

    Every test that computes with it here asks for this, whichever comes first.
    """
    from glass_cnn.training.engine import set_up_tensorflow
    from hpc.world import world

    return set_up_tensorflow(1, world())


@pytest.fixture(scope="session")
def mpirun() -> MpiRun:
    """`mpirun(n, "script.py" or "package.module", *arguments, env={...}, timeout=120)` on n ranks.

    Returns the finished process with text `stdout` and `stderr` and its `returncode`; a world
    that takes longer than `timeout` seconds is killed and fails the test.
    """
    return start_world


def start_world(
    ranks: int,
    program: str | Path,
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """See the fixture `mpirun`."""
    target = [str(program)] if str(program).endswith(".py") else ["-m", str(program)]
    command = ["mpiexec", "-n", str(ranks), sys.executable, *target, *map(str, arguments)]
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT), **(env or {})}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as world:
        try:
            output, errors = world.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(world.pid, signal.SIGKILL)
            output, errors = world.communicate()
            pytest.fail(f"{ranks} ranks of {program} took over {timeout} s:\n{output}\n{errors}")
    return subprocess.CompletedProcess(command, world.returncode, output, errors)
