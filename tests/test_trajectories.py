"""The file of all trajectories: sharing over ranks, interruptions, every way to fail."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest

from glass_cnn.data import simulate, trajectories
from glass_cnn.data.lammps import SimulationError
from glass_cnn.data.trajectories import Trajectory, directory
from glass_cnn.paths import TrajectoriesDir
from glass_cnn.settings import Simulation
from hpc.errors import DataError, Stopped, StorageError
from hpc.preempt import StopFlag
from hpc.world import world
from tests.small_simulation import LONGER, all_same, run_settings, same, study_file

pytestmark = pytest.mark.lasting


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> list[Trajectory]:
    """What an undisturbed serial run makes of `run_settings()`."""
    return trajectories.load(simulate.run(run_settings(), tmp_path_factory.mktemp("s"), world()))


def test_run_stores_what_simulate_returns(serial: list[Trajectory]) -> None:
    settings = run_settings()
    for index, trajectory in enumerate(serial):
        expected = simulate.simulate(settings.simulation, index, (0, 9), True)
        assert same(trajectory, expected)
        for field in dataclasses.fields(Trajectory):
            a, b = getattr(trajectory, field.name), getattr(expected, field.name)
            assert type(a) is type(b)


def test_file_says_what_made_it(tmp_path: Path) -> None:
    settings = run_settings("thermal")
    place = simulate.run(settings, tmp_path, world())
    assert place == directory(settings, tmp_path)
    assert list(place.path.iterdir()) == [place.file]
    with h5py.File(place.file) as file:
        tree = file.attrs["settings"]
        assert "positions as simulated" not in file
        assert "inherent_positions" not in file
        assert all(file[name].attrs["meaning"] for name in file)
    assert "particles: 64" in tree
    assert "form: thermal" in tree
    assert all(t.inherent_positions is None for t in trajectories.load(place))


def test_second_call_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = simulate.run(run_settings(), tmp_path, world())
    before = place.file.stat()
    monkeypatch.setattr(simulate, "simulate", never)
    assert simulate.run(run_settings(), tmp_path, world()) == place
    assert place.file.stat() == before


def never(*_: object) -> None:
    raise AssertionError("nothing was to be simulated")


def test_changed_settings_are_another_file(tmp_path: Path) -> None:
    base = directory(run_settings(), tmp_path)
    assert directory(run_settings(damping=0.4), tmp_path) != base
    assert directory(run_settings("thermal"), tmp_path) != base
    assert directory(run_settings(style="plain"), tmp_path) == base


@pytest.mark.requires("mpi")
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_number_of_ranks_changes_nothing(
    ranks: int, serial: list[Trajectory], tmp_path: Path, mpirun: Callable[..., Any]
) -> None:
    config = study_file(tmp_path / "small.yaml", run_settings())
    done = mpirun(ranks, "jobs.simulate", config, "--logs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert all_same(trajectories.load(directory(run_settings(), tmp_path)), serial)
    again = mpirun(ranks, "jobs.simulate", config, "--logs", tmp_path)
    assert again.returncode == 0
    assert again.stdout.count("complete; nothing to do") == 1


def test_study_with_two_simulations_makes_both(tmp_path: Path, mpirun: Callable[..., Any]) -> None:
    config = study_file(tmp_path / "small.yaml", run_settings(trajectories=2))
    config.write_text(config.read_text() + "train: {batch_size: 40}\n")
    grid = {"simulation.cooling_steps": [400, 800], "train.dropout": [0.1, 0.5]}
    changed = f"study.grid={grid}"
    done = mpirun(1, "jobs.simulate", config, "--logs", tmp_path, "--set", changed)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob(str(TrajectoriesDir(Path("trajectories/*")).file)))) == 2


# Interrupted, damaged, refused


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices that are simulated in this process."""
    indices: list[int] = []
    original = simulate.simulate

    def recording(simulation: Simulation, index: int, *rest: Any) -> Trajectory:
        indices.append(index)
        return original(simulation, index, *rest)

    monkeypatch.setattr(simulate, "simulate", recording)
    return indices


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Trajectory]:
    """What an undisturbed run makes of LONGER."""
    settings = run_settings(**LONGER)
    return trajectories.load(simulate.run(settings, tmp_path_factory.mktemp("l"), world()))


@pytest.fixture
def underway(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Two ranks that have finished a few trajectories of LONGER, and the directory of parts."""
    settings = run_settings(**LONGER)
    config = study_file(tmp_path / "small.yaml", settings)
    parts = directory(settings, tmp_path).parts
    job = [sys.executable, "-m", "jobs.simulate", str(config), "--logs", str(tmp_path)]
    with subprocess.Popen(
        ["mpiexec", "-n", "2", *job],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as ranks:
        while len(list(parts.glob("*.npz"))) < 3:
            assert ranks.poll() is None
            time.sleep(0.01)
        yield ranks, parts
        if ranks.poll() is None:
            os.killpg(ranks.pid, signal.SIGKILL)


@pytest.mark.requires("mpi")
def test_killed_simulation_goes_on_where_it_was(
    underway: tuple[subprocess.Popen[str], Path],
    uninterrupted: list[Trajectory],
    recorded: list[int],
    tmp_path: Path,
) -> None:
    ranks, parts = underway
    os.killpg(ranks.pid, signal.SIGKILL)
    ranks.wait(30)
    wait_for_end_of_ranks(parts)
    kept = {int(part.stem) for part in parts.glob("*.npz")}
    assert 3 <= len(kept) < 40
    place = simulate.run(run_settings(**LONGER), tmp_path, world())
    assert sorted(recorded) == sorted(set(range(40)) - kept)
    assert all_same(trajectories.load(place), uninterrupted)
    assert list(place.path.iterdir()) == [place.file]


def wait_for_end_of_ranks(parts: Path) -> None:
    """Return once no more parts appear: mpiexec's ranks end a little after it."""
    before = -1
    while len(list(parts.glob("*.npz"))) != before:
        before = len(list(parts.glob("*.npz")))
        time.sleep(0.7)


@pytest.mark.requires("mpi")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_simulation_exits_75_and_keeps_what_is_done(
    number: signal.Signals, underway: tuple[subprocess.Popen[str], Path]
) -> None:
    ranks, parts = underway
    ranks.send_signal(number)
    output, errors = ranks.communicate(timeout=30)
    assert ranks.returncode == 75, errors
    kept = len(list(parts.glob("*.npz")))
    assert output.count(f"stopped by {number.name}: {kept} of 40 trajectories are kept") == 1
    assert "error" not in errors
    assert 3 <= kept < 40


def test_request_to_stop_is_heeded_within_a_trajectory(tmp_path: Path) -> None:
    settings = run_settings(particles=400, equilibration_steps=10**7)
    stop = StopFlag()
    stop.signal = signal.SIGUSR2
    with pytest.raises(Stopped, match="stopped by SIGUSR2: 0 of 7 trajectories are kept"):
        simulate.run(settings, tmp_path, world(), stop)
    assert Stopped.exit_code == 75


@pytest.mark.requires("mpi")
def test_stop_of_one_rank_stops_all(tmp_path: Path, mpirun: Callable[..., Any]) -> None:
    script = tmp_path / "one_stops.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from glass_cnn.data import simulate\n"
        "from hpc.errors import Stopped\n"
        "from hpc.preempt import StopFlag\n"
        "from hpc.world import world\n"
        "from tests.small_simulation import LONGER, run_settings\n"
        "stop = StopFlag()\n"
        "stop.signal = 15 if world().rank == 1 else 0\n"
        "try:\n"
        "    simulate.run(run_settings(**LONGER), Path(sys.argv[1]), world(), stop)\n"
        "except Stopped as stopped:\n"
        "    sys.exit(stopped.exit_code)\n"
    )
    done = mpirun(3, script, tmp_path)
    assert done.returncode == 75, done.stderr
    assert len(list(tmp_path.rglob("*.npz"))) < 40


def test_two_jobs_at_once_make_one_good_file(serial: list[Trajectory], tmp_path: Path) -> None:
    config = study_file(tmp_path / "small.yaml", run_settings())
    command = [sys.executable, "-m", "jobs.simulate", str(config), "--logs", str(tmp_path)]
    root = Path(__file__).parent.parent
    jobs = [subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [job.wait(60) for job in jobs] == [0, 0]
    place = directory(run_settings(), tmp_path)
    assert all_same(trajectories.load(place), serial)
    assert list(place.path.iterdir()) == [place.file]


def half(part: Path) -> None:
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])


def one_bit(part: Path) -> None:
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 4
    part.write_bytes(content)


def empty(part: Path) -> None:
    part.write_bytes(b"")


def another(part: Path) -> None:
    part.write_bytes(part.with_name(TrajectoriesDir(Path()).part(0).name).read_bytes())


@pytest.mark.parametrize("damage", [half, one_bit, empty, another])
def test_damaged_part_is_named_and_simulated_again(
    damage: Callable[[Path], None],
    serial: list[Trajectory],
    recorded: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = run_settings()
    place = directory(settings, tmp_path)
    place.parts.mkdir(parents=True)
    for index in (0, 1, 5):
        trajectories.write_part(place.part(index), serial[index])
    damage(place.part(5))
    simulate.run(settings, tmp_path, world())
    assert recorded == [2, 3, 4, 5, 6]
    assert "000005.npz: is damaged" in capsys.readouterr().out
    assert all_same(trajectories.load(place), serial)


@pytest.mark.parametrize("content", [None, b"", b"no HDF5"])
def test_file_that_is_none_is_one_message(content: bytes | None, tmp_path: Path) -> None:
    place = TrajectoriesDir(tmp_path)
    if content is not None:
        place.file.write_bytes(content)
    with pytest.raises(DataError, match=r"trajectories\.h5: (there are no such|is damaged)"):
        trajectories.load(place)


def test_bit_flipped_in_the_file_is_found(tmp_path: Path) -> None:
    place = simulate.run(run_settings(), tmp_path, world())
    content = bytearray(place.file.read_bytes())
    where = content.find(trajectories.load(place)[0].positions.tobytes())
    content[where + 100] ^= 1
    place.file.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        trajectories.load(place)


@pytest.mark.requires("mpi")
def test_lammps_error_names_trajectory_and_seed_once(
    tmp_path: Path, mpirun: Callable[..., Any]
) -> None:
    wild = run_settings(temperature_start=1e7, timestep=0.02)
    with pytest.raises(SimulationError, match=r"trajectory 5 of simulation\.seed 1 .*'run 200"):
        simulate.simulate(wild.simulation, 5, (0, 9), True)
    config = study_file(tmp_path / "wild.yaml", wild)
    done = mpirun(2, "jobs.simulate", config, "--logs", tmp_path)
    assert done.returncode == 70
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr


def respect_permissions() -> None:
    """Take from root what lets it write anywhere, as from any other user."""
    for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_place_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    config = study_file(tmp_path / "small.yaml", run_settings())
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o555)
    done = subprocess.run(
        [sys.executable, "-m", "jobs.simulate", str(config), "--logs", str(logs)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        preexec_fn=respect_permissions,
    )
    assert done.returncode == StorageError.exit_code
    assert "not writable; choose another place with LOGS=dir" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writes beyond `size` bytes of a file fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_while_simulating_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    with largest_file(2000), pytest.raises(StorageError, match="File too large"):
        simulate.run(run_settings(), tmp_path, world())
    assert not list(tmp_path.rglob("*.npz"))
    assert len(trajectories.load(simulate.run(run_settings(), tmp_path, world()))) == 7


def test_full_disk_while_merging_leaves_the_parts(
    serial: list[Trajectory], recorded: list[int], tmp_path: Path
) -> None:
    settings = run_settings()
    place = directory(settings, tmp_path)
    parts = place.parts
    parts.mkdir(parents=True)
    for trajectory in serial:
        trajectories.write_part(place.part(trajectory.index), trajectory)
    with largest_file(15_000), pytest.raises(StorageError, match="File too large"):
        simulate.run(settings, tmp_path, world())
    assert len(list(parts.glob("*.npz"))) == 7
    assert list(place.path.iterdir()) == [parts]
    assert all_same(trajectories.load(simulate.run(settings, tmp_path, world())), serial)
    assert recorded == []
