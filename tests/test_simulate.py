"""Simulation: the physics, bit-for-bit repeatability, sharing over ranks, and every way to fail."""

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

import numpy as np
import pytest

from glass_cnn.data import simulate, trajectories
from glass_cnn.data.simulate import SimulationError, Stopped, trajectory_seeds
from glass_cnn.data.trajectories import COLUMNS, Trajectory
from glass_cnn.settings import RunSettings, Simulation, build_run
from hpc.config import to_yaml
from hpc.errors import ConfigError, DataError, StorageError
from hpc.preempt import StopFlag
from hpc.world import world

PUBLISHED = {1.756: -3.7719, 0.957: -3.8118}  # inherent-structure energy per particle
SMALL: dict[str, Any] = {
    "particles": 64,
    "equilibration_steps": 200,
    "cooling_steps": 400,
    "frames": 10,
}


def run_settings(form: str = "inherent", **simulation: Any) -> RunSettings:
    """Settings of a small simulation; a dozen milliseconds for each trajectory."""
    tree = {"simulation": {**SMALL, "trajectories": 7, **simulation}, "data": {"form": form}}
    return build_run(tree, "test")


def study_file(path: Path, settings: RunSettings) -> Path:
    """A study of one point with these settings."""
    tree: dict[str, Any] = {"study": {"name": "small", "seeds": 1}}
    tree["simulation"] = settings.simulation.model_dump()
    tree["data"] = {"form": settings.data.form}
    path.write_text(to_yaml(tree))
    return path


def same(a: Trajectory, b: Trajectory) -> bool:
    """Whether two trajectories agree in every bit."""
    pairs = ((getattr(a, name), getattr(b, name)) for name in COLUMNS)
    return all(np.array_equal(x, y) for x, y in pairs)


def all_same(a: list[Trajectory], b: list[Trajectory]) -> bool:
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


# Physics


Cooled = tuple[Simulation, list[Trajectory]]


def cool(count: int, equilibration_steps: int, cooling_steps: int) -> Cooled:
    """Coolings of 400 particles with frames at the published temperatures."""
    simulation = Simulation(
        equilibration_steps=equilibration_steps, cooling_steps=cooling_steps, temperature_end=0.952
    )
    ramp = np.array([simulation.temperature(frame) for frame in range(simulation.frames)])
    frames = [int(np.abs(ramp - temperature).argmin()) for temperature in PUBLISHED]
    return simulation, [simulate.simulate(simulation, i, frames, True) for i in range(count)]


@pytest.fixture(scope="module")
def cooled() -> Cooled:
    """A few coolings."""
    return cool(4, 1000, 2000)


@pytest.mark.slow
def test_energies_are_the_published_ones() -> None:
    _, made = cool(32, 6000, 16000)
    energies = np.array([t.inherent_energy for t in made])
    error = energies.std(axis=0, ddof=1) / np.sqrt(len(made))
    assert (error < 0.005).all()
    assert np.abs(energies.mean(axis=0) - list(PUBLISHED.values())).max() < 0.012
    # One configuration's temperature scatters by T/√N = 5 %, the mean of 32 by 1 %.
    measured = np.mean([t.kinetic_temperature for t in made], axis=0)
    np.testing.assert_allclose(measured, list(PUBLISHED), rtol=0.04)


def test_set_temperatures_are_those_of_the_ramp(cooled: Cooled) -> None:
    """And the mixture follows: one configuration's temperature scatters by T/√N = 5 %."""
    simulation, made = cooled
    measured = np.mean([trajectory.kinetic_temperature for trajectory in made], axis=0)
    np.testing.assert_allclose(measured, list(PUBLISHED), rtol=0.1)
    for trajectory in made:
        np.testing.assert_allclose(trajectory.temperature, list(PUBLISHED), atol=0.003)
        expected = [simulation.temperature(int(frame)) for frame in trajectory.frames]
        np.testing.assert_array_equal(trajectory.temperature, expected)


def test_mixture_is_65_to_35_exactly(cooled: Cooled) -> None:
    _, made = cooled
    assert all(np.bincount(t.types).tolist() == [0, 260, 140] for t in made)
    assert len({t.types.tobytes() for t in made}) == len(made)


def test_positions_lie_in_the_box_and_apart(cooled: Cooled) -> None:
    simulation, made = cooled
    for trajectory in made:
        assert trajectory.inherent_positions is not None
        assert trajectory.box == pytest.approx(np.sqrt(400 / 1.2))
        for positions in (*trajectory.positions, *trajectory.inherent_positions):
            assert positions.dtype == np.float32
            assert positions.min() >= 0
            assert positions.max() < trajectory.box
            distances = np.sqrt(squared_distances(positions, trajectory.box))
            scaled = distances / pair_table(trajectory.types, 1)
            assert 0.75 < scaled[np.triu_indices(400, 1)].min() < 1.1
    assert simulation.box == made[0].box


def test_what_rounds_up_to_the_edge_is_at_the_other() -> None:
    """A little below 0 is a little below the box in double precision, and the box in single."""
    for box in (6.0, Simulation().box):
        wrapped = simulate._wrap(np.array([[-1e-9, box], [box - 1e-9, -0.5]]), box)
        np.testing.assert_allclose(wrapped, [[0.0, 0.0], [0.0, box - 0.5]], atol=1e-6)
        assert (wrapped < box).all()


@pytest.mark.parametrize("style", simulate.available_styles())
def test_energies_are_the_sum_over_pairs(style: str) -> None:
    simulation = Simulation()
    with contextlib.closing(simulate.Lammps(style)) as lammps:
        simulate.start(lammps, simulation, trajectory_seeds(1, 0))
        lammps.do("fix thermostat all nvt temp 2.0 2.0 0.5")
        for move in (lambda: lammps.run(500), lambda: lammps.minimise(1e-4)):
            move()
            expected = pair_energy(lammps.positions(), lammps.types(), simulation.box)
            assert lammps.thermo("pe") == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("style", simulate.available_styles())
def test_motion_is_newtons_with_unit_masses(style: str) -> None:
    """One step of velocity Verlet from the start, which is at the first temperature exactly."""
    simulation = Simulation()
    with contextlib.closing(simulate.Lammps(style)) as lammps:

        def gathered(name: str) -> np.ndarray:
            return np.array(lammps._handle.gather_atoms(name, 1, 3)[:]).reshape(-1, 3)

        simulate.start(lammps, simulation, trajectory_seeds(1, 0))
        lammps.do("fix motion all nve", "run 0")
        places, velocities, forces = (gathered(name) for name in "xvf")
        assert (velocities**2).sum() == pytest.approx(2.0 * (2 * 400 - 2))
        assert velocities.sum(axis=0) == pytest.approx([0, 0, 0], abs=1e-9)
        lammps.run(1)
        dt, box = 0.005, simulation.box
        moved = (gathered("x") - places + box / 2) % box - box / 2
        np.testing.assert_allclose(moved, velocities * dt + forces * dt**2 / 2, atol=1e-12)
        kick = (forces + gathered("f")) * dt / 2
        np.testing.assert_allclose(gathered("v"), velocities + kick, atol=1e-10)


def test_stored_energies_are_those_of_the_stored_positions(cooled: Cooled) -> None:
    """To what rounding positions to float32 leaves."""
    _, made = cooled
    for t in made:
        assert t.inherent_positions is not None
        for row in range(len(PUBLISHED)):
            thermal = pair_energy(t.positions[row], t.types, t.box)
            assert thermal == pytest.approx(t.potential_energy[row], rel=1e-5)
            inherent = pair_energy(t.inherent_positions[row], t.types, t.box)
            assert inherent == pytest.approx(t.inherent_energy[row], rel=1e-6)


def test_order_is_that_of_the_stored_positions(cooled: Cooled) -> None:
    _, made = cooled
    for t in made:
        assert t.inherent_positions is not None
        for row in range(len(PUBLISHED)):
            thermal = simulate.hexatic_order(t.positions[row], t.box)
            inherent = simulate.hexatic_order(t.inherent_positions[row], t.box)
            assert (t.psi6[row], t.inherent_psi6[row]) == pytest.approx((thermal, inherent), 1e-4)


def test_inherent_structures_are_minima_below(cooled: Cooled) -> None:
    _, made = cooled
    for trajectory in made:
        assert (trajectory.inherent_energy < trajectory.potential_energy).all()
        assert (trajectory.inherent_force <= simulate.FORCE_TOLERANCE).all()


def squared_distances(positions: np.ndarray, box: float) -> np.ndarray:
    """[N, N], to the nearest images."""
    across = positions[:, None].astype(float) - positions[None].astype(float)
    return ((across - box * np.round(across / box)) ** 2).sum(axis=-1)


def pair_table(types: np.ndarray, column: int) -> np.ndarray:
    """[N, N]: ε (column 0) or σ (column 1) of each pair, from the published table."""
    a, b, mixed = ((1.0, 1.0), (0.5, 0.88), (1.5, 0.8))
    table = np.array([[a[column], mixed[column]], [mixed[column], b[column]]])
    return table[np.ix_(types - 1, types - 1)]


def pair_energy(positions: np.ndarray, types: np.ndarray, box: float) -> float:
    """Lennard-Jones energy per particle with unshifted cutoffs at 2.5 σ_ij, summed naively."""
    upper = np.triu_indices(len(positions), 1)
    squared = squared_distances(positions, box)[upper]
    epsilon, sigma = (pair_table(types, column)[upper] for column in (0, 1))
    power = (sigma**2 / squared) ** 3
    energies = np.where(squared < (2.5 * sigma) ** 2, 4 * epsilon * (power**2 - power), 0)
    return float(energies.sum()) / len(positions)


def test_hexatic_order_is_the_mean_over_six_nearest_neighbours() -> None:
    rng, box = np.random.default_rng(3), 9.0
    positions = rng.uniform(0, box, (60, 2))
    across = positions[None] - positions[:, None]
    across -= box * np.round(across / box)
    nearest = np.argsort((across**2).sum(axis=-1), axis=1)[:, 1:7]
    bonds = np.take_along_axis(across, nearest[..., None], axis=1)
    angles = np.arctan2(bonds[..., 1], bonds[..., 0])
    expected = np.abs(np.exp(6j * angles).mean(axis=1)).mean()
    assert simulate.hexatic_order(positions, box) == pytest.approx(expected, rel=1e-5)


def test_hexatic_order_of_a_triangular_lattice_is_one() -> None:
    columns, rows = 26, 30  # 26 and 30 · √3/2 = 25.98: very nearly a square
    y, x = np.divmod(np.arange(columns * rows), columns)
    positions = np.stack([x + 0.5 * (y % 2), y * columns / rows], axis=1) % columns
    assert simulate.hexatic_order(positions, columns) == pytest.approx(1, abs=1e-3)


# A pure function of settings and index


def test_same_index_same_bits_other_index_other_bits() -> None:
    simulation = run_settings().simulation
    first = simulate.simulate(simulation, 3, (0, 9), True)
    assert same(first, simulate.simulate(simulation, 3, (0, 9), True))
    others = [
        simulate.simulate(simulation, 4, (0, 9), True),
        simulate.simulate(simulation.model_copy(update={"seed": 2}), 3, (0, 9), True),
    ]
    for other in others:
        assert not np.array_equal(first.positions, other.positions)
        assert not np.array_equal(first.types, other.types)


@pytest.mark.parametrize(
    "change",
    [
        {"fraction_a": 0.5},
        {"density": 1.1},
        {"timestep": 0.004},
        {"temperature_start": 1.9},
        {"temperature_end": 0.06},
        {"equilibration_steps": 201},
        {"cooling_steps": 800},
        {"damping": 0.4},
    ],
)
def test_every_setting_matters(change: dict[str, Any]) -> None:
    base = run_settings().simulation
    another = Simulation(**{**base.model_dump(), **change})
    one, other = (simulate.simulate(s, 3, (9,), False) for s in (base, another))
    assert not np.array_equal(one.positions, other.positions)
    assert np.bincount(other.types).tolist() == (
        [0, 32, 32] if "fraction_a" in change else [0, 42, 22]
    )
    steps = change.get("cooling_steps", 400) * change.get("timestep", 0.005)
    fall = change.get("temperature_start", 2.0) - change.get("temperature_end", 0.05)
    assert other.cooling_rate == pytest.approx(fall / steps)


def test_each_seed_has_a_purpose_of_its_own() -> None:
    """Places, types, velocities."""

    def started(seeds: tuple[int, int, int]) -> list[bytes]:
        with contextlib.closing(simulate.Lammps("plain")) as lammps:
            simulate.start(lammps, run_settings().simulation, np.array(seeds))
            gathered = (lammps._handle.gather_atoms(name, 1, 3)[:] for name in "xv")
            places, velocities = (np.array(values).tobytes() for values in gathered)
            return [places, lammps.types().tobytes(), velocities]

    base = started((1, 2, 3))
    assert started((1, 2, 3)) == base
    assert [a == b for a, b in zip(started((1, 2, 4)), base, strict=True)] == [True, True, False]
    assert started((1, 9, 3))[1] != base[1]
    assert started((9, 2, 3))[0] != base[0]


def test_long_runs_ask_about_a_stop_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "CHUNK_PARTICLE_STEPS", 64 * 200)
    asked: list[bool] = []
    with contextlib.closing(simulate.Lammps("plain", lambda: asked.append(True))) as lammps:
        simulate.start(lammps, run_settings().simulation, trajectory_seeds(1, 0))
        lammps.do("fix motion all nve")
        lammps.run(1000)
    assert len(asked) == 5


def test_seeds_never_meet() -> None:
    seeds = [tuple(trajectory_seeds(s, i).tolist()) for s in range(40) for i in range(500)]
    assert len(set(seeds)) == len(seeds)
    assert min(map(min, seeds)) >= 1
    assert max(map(max, seeds)) <= 900_000_000  # LAMMPS' largest
    assert trajectory_seeds(2**31 - 1, 10**6).dtype == np.int32


def test_auto_is_the_first_style_that_is_built_in() -> None:
    assert simulate.choose_style("auto") == simulate.available_styles()[0]
    for missing in set(simulate.STYLES) - set(simulate.available_styles()):
        with pytest.raises(ConfigError, match=f"'{missing}'.*built without it.*plain"):
            simulate.choose_style(missing)


# The file of all trajectories


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
    h5py = pytest.importorskip("h5py")
    settings = run_settings("thermal")
    path = simulate.run(settings, tmp_path, world())
    assert path == simulate.product(settings, tmp_path)
    assert list(path.parent.iterdir()) == [path]
    with h5py.File(path) as file:
        tree = file.attrs["settings"]
        assert "positions as simulated" not in file
        assert "inherent_positions" not in file
        assert all(file[name].attrs["meaning"] for name in file)
    assert "particles: 64" in tree
    assert "form: thermal" in tree
    assert all(t.inherent_positions is None for t in trajectories.load(path))


def test_second_call_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = simulate.run(run_settings(), tmp_path, world())
    before = path.stat()
    monkeypatch.setattr(simulate, "simulate", never)
    assert simulate.run(run_settings(), tmp_path, world()) == path
    assert path.stat() == before


def never(*_: object) -> None:
    raise AssertionError("nothing was to be simulated")


def test_changed_settings_are_another_file(tmp_path: Path) -> None:
    base = simulate.product(run_settings(), tmp_path)
    assert simulate.product(run_settings(damping=0.4), tmp_path) != base
    assert simulate.product(run_settings("thermal"), tmp_path) != base
    assert simulate.product(run_settings(style="plain"), tmp_path) == base


@pytest.mark.requires("mpi")
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_number_of_ranks_changes_nothing(
    ranks: int, serial: list[Trajectory], tmp_path: Path, mpirun: Callable[..., Any]
) -> None:
    config = study_file(tmp_path / "small.yaml", run_settings())
    done = mpirun(ranks, "jobs.simulate", config, "--logs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert all_same(trajectories.load(simulate.product(run_settings(), tmp_path)), serial)
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
    assert len(list(tmp_path.glob("trajectories/*/trajectories.h5"))) == 2


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


# A tenth of a second each: long enough to be interrupted.
LONGER: dict[str, Any] = {"trajectories": 40, "particles": 100, "equilibration_steps": 8000}


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
    parts = simulate.product(settings, tmp_path).parent / "parts"
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
    path = simulate.run(run_settings(**LONGER), tmp_path, world())
    assert sorted(recorded) == sorted(set(range(40)) - kept)
    assert all_same(trajectories.load(path), uninterrupted)
    assert list(path.parent.iterdir()) == [path]


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
        "from hpc.preempt import StopFlag\n"
        "from hpc.world import world\n"
        "from tests.test_simulate import LONGER, run_settings\n"
        "stop = StopFlag()\n"
        "stop.signal = 15 if world().rank == 1 else 0\n"
        "try:\n"
        "    simulate.run(run_settings(**LONGER), Path(sys.argv[1]), world(), stop)\n"
        "except simulate.Stopped as stopped:\n"
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
    path = simulate.product(run_settings(), tmp_path)
    assert all_same(trajectories.load(path), serial)
    assert list(path.parent.iterdir()) == [path]


def half(part: Path) -> None:
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])


def one_bit(part: Path) -> None:
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 4
    part.write_bytes(content)


def empty(part: Path) -> None:
    part.write_bytes(b"")


def another(part: Path) -> None:
    part.write_bytes((part.parent / "000000.npz").read_bytes())


@pytest.mark.parametrize("damage", [half, one_bit, empty, another])
def test_damaged_part_is_named_and_simulated_again(
    damage: Callable[[Path], None],
    serial: list[Trajectory],
    recorded: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = run_settings()
    parts = simulate.product(settings, tmp_path).parent / "parts"
    parts.mkdir(parents=True)
    for index in (0, 1, 5):
        trajectories.write_part(parts / f"{index:06d}.npz", serial[index])
    damage(parts / "000005.npz")
    path = simulate.run(settings, tmp_path, world())
    assert recorded == [2, 3, 4, 5, 6]
    assert "000005.npz: is damaged" in capsys.readouterr().out
    assert all_same(trajectories.load(path), serial)


@pytest.mark.parametrize("content", [None, b"", b"no HDF5"])
def test_file_that_is_none_is_one_message(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "trajectories.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"trajectories\.h5: (no such file|is damaged)"):
        trajectories.load(path)


def test_bit_flipped_in_the_file_is_found(tmp_path: Path) -> None:
    path = simulate.run(run_settings(), tmp_path, world())
    content = bytearray(path.read_bytes())
    where = content.find(trajectories.load(path)[0].positions.tobytes())
    content[where + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        trajectories.load(path)


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
    path = simulate.product(settings, tmp_path)
    parts = path.parent / "parts"
    parts.mkdir(parents=True)
    for trajectory in serial:
        trajectories.write_part(parts / f"{trajectory.index:06d}.npz", trajectory)
    with largest_file(15_000), pytest.raises(StorageError, match="File too large"):
        simulate.run(settings, tmp_path, world())
    assert len(list(parts.glob("*.npz"))) == 7
    assert [entry.name for entry in path.parent.iterdir()] == ["parts"]
    assert all_same(trajectories.load(simulate.run(settings, tmp_path, world())), serial)
    assert recorded == []
