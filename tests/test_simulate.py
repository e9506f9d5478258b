"""Simulation: the physics, and bit-for-bit repeatability."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from glass_cnn.configuration import hexatic_order
from glass_cnn.data import lammps as engine
from glass_cnn.data import simulate
from glass_cnn.data.lammps import Lammps, SimulationError
from glass_cnn.data.trajectories import Trajectory
from glass_cnn.settings import Simulation
from glass_cnn.streams import lammps_seeds
from hpc.errors import ConfigError
from tests.small_simulation import run_settings, same

pytestmark = pytest.mark.lasting

PUBLISHED = {1.756: -3.7719, 0.957: -3.8118}  # inherent-structure energy per particle


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


@pytest.mark.parametrize("style", engine.available_styles())
def test_energies_are_the_sum_over_pairs(style: str) -> None:
    simulation = Simulation()
    with contextlib.closing(Lammps(style)) as lammps:
        simulate.start(lammps, simulation, lammps_seeds(1, 0))
        lammps.do("fix thermostat all nvt temp 2.0 2.0 0.5")
        for move in (lambda: lammps.run(500), lambda: lammps.minimise(1e-4)):
            move()
            expected = pair_energy(lammps.positions(), lammps.types(), simulation.box)
            assert lammps.thermo("pe") == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("style", engine.available_styles())
def test_motion_is_newtons_with_unit_masses(style: str) -> None:
    """One step of velocity Verlet from the start, which is at the first temperature exactly."""
    simulation = Simulation()
    with contextlib.closing(Lammps(style)) as lammps:

        def gathered(name: str) -> np.ndarray:
            return np.array(lammps._handle.gather_atoms(name, 1, 3)[:]).reshape(-1, 3)

        simulate.start(lammps, simulation, lammps_seeds(1, 0))
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
            thermal = hexatic_order(t.configuration(row))
            inherent = hexatic_order(t.configuration(row, inherent=True))
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
        with contextlib.closing(Lammps("plain")) as lammps:
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
    monkeypatch.setattr(engine, "CHUNK_PARTICLE_STEPS", 64 * 200)
    asked: list[bool] = []
    with contextlib.closing(Lammps("plain", lambda: asked.append(True))) as lammps:
        simulate.start(lammps, run_settings().simulation, lammps_seeds(1, 0))
        lammps.do("fix motion all nve")
        lammps.run(1000)
    assert len(asked) == 5


def test_auto_is_the_first_style_that_is_built_in() -> None:
    assert engine.choose_style("auto") == engine.available_styles()[0]
    for missing in set(engine.STYLES) - set(engine.available_styles()):
        with pytest.raises(ConfigError, match=f"'{missing}'.*built without it.*plain"):
            engine.choose_style(missing)


def test_positions_that_are_no_numbers_are_an_error_of_the_simulation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def blown_up(self: Lammps) -> np.ndarray:
        return np.full((64, 2), np.nan)

    monkeypatch.setattr(Lammps, "positions", blown_up)
    with pytest.raises(
        SimulationError, match=r"trajectory 3 .*positions: expected finite.*nan\]\. "
    ):
        simulate.simulate(run_settings().simulation, 3, (0, 9), True)
