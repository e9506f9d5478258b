"""Seed → trajectory: linear coolings of the two-dimensional Kob–Andersen mixture in LAMMPS.

A trajectory is a pure function of the settings and its index: neither the number of ranks nor
the order of work changes a bit of it. Each is written, once it is finished, to
`parts/<index>.npz`; when none is missing, rank 0 merges them into `trajectories.h5`, whose
existence means that there is nothing left to do. Only the positions are stored as float32.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glass_cnn.configuration import Configuration, hexatic_order
from glass_cnn.data.lammps import Lammps, LammpsError, SimulationError, choose_style
from glass_cnn.data.trajectories import (
    Trajectory,
    directory,
    load,
    merge,
    read_part,
    write_part,
)
from glass_cnn.mixture import CUTOFF, EPSILON, MASS, SIGMA, TYPE_A, TYPE_B
from glass_cnn.paths import TrajectoriesDir
from glass_cnn.settings import RunSettings, Simulation
from glass_cnn.streams import lammps_seeds
from hpc.config import to_tree, to_yaml
from hpc.errors import DataError, Stopped, UserError
from hpc.files import make_directory, storage_errors
from hpc.preempt import StopFlag, signal_name
from hpc.progress import counted
from hpc.words import plural
from hpc.world import World

FORCE_TOLERANCE = 1e-4
"""largest force component at which a configuration counts as an inherent structure, ε/σ"""
SKIN = 0.6  # σ; measured: a wider skin rebuilds neighbour lists less often but holds more pairs


# One trajectory


def simulate(
    simulation: Simulation,
    index: int,
    frames: Sequence[int],
    inherent: bool,
    stop: Callable[[], object] = bool,
) -> Trajectory:
    """Cool trajectory `index` down to the last of `frames` (0-based, rising) and measure each.

    The inherent structures' positions are kept where `inherent`. `stop` is asked about once a
    second; when it says so, the trajectory is given up with Stopped. Raises ConfigError for a
    style that this LAMMPS lacks and SimulationError when LAMMPS gives up, or goes on with
    positions that are no numbers.
    """
    style, seeds = choose_style(simulation.style), lammps_seeds(simulation.seed, index)
    try:
        with contextlib.closing(Lammps(style, stop)) as lammps:
            start(lammps, simulation, seeds)
            thermal = list(_ramp(lammps, simulation, frames))
            quenched = [_quench(lammps, one.configuration) for one in thermal]
            version = lammps.version()
    except (LammpsError, DataError) as error:
        why = str(error).rstrip(".")
        raise SimulationError(
            f"trajectory {index} of simulation.seed {simulation.seed} (LAMMPS seeds "
            f"{seeds.tolist()}, style {style}): {why}. A smaller simulation.timestep or a lower "
            "simulation.temperature_start may keep it stable."
        ) from None
    before = [one.configuration for one in thermal]
    after = [one.configuration for one in quenched]
    return Trajectory(
        index=index,
        seeds=seeds,
        style=style,
        lammps_version=version,
        box=simulation.box,
        cooling_rate=cooling_rate(simulation),
        types=before[0].species,
        frames=np.array(frames, np.int32),
        temperature=np.array([simulation.temperature(frame) for frame in frames]),
        kinetic_temperature=np.array([one.temperature for one in thermal]),
        potential_energy=np.array([one.energy for one in thermal]),
        inherent_energy=np.array([one.energy for one in quenched]),
        inherent_force=np.array([one.force for one in quenched]),
        psi6=np.array([hexatic_order(one) for one in before]),
        inherent_psi6=np.array([hexatic_order(one) for one in after]),
        positions=np.array([one.wrapped() for one in before]),
        inherent_positions=np.array([one.wrapped() for one in after]) if inherent else None,
    )


def cooling_rate(simulation: Simulation) -> float:
    """Fall of the set temperature, ε/k_B per τ."""
    fall = simulation.temperature_start - simulation.temperature_end
    return fall / (simulation.cooling_steps * simulation.timestep)


def start(lammps: Lammps, simulation: Simulation, seeds: np.ndarray) -> None:
    """Random places without deep overlaps, relaxed, and velocities of the first temperature."""
    places, types, velocities = seeds.tolist()
    count = simulation.particles
    count_b = count - round(simulation.fraction_a * count)
    apart = 0.65 / simulation.density**0.5  # discs so large cover a third: there is always room
    lammps.do(
        "units lj",
        "dimension 2",
        "atom_style atomic",
        "atom_modify map array",
        f"region box block 0 {simulation.box!r} 0 {simulation.box!r} -0.5 0.5",
        "create_box 2 box",
        f"create_atoms {TYPE_A} random {count} {places} box overlap {apart!r} maxtry 10000",
        f"set type {TYPE_A} type/subset {TYPE_B} {count_b} {types}",
        f"mass * {MASS}",
        f"pair_style lj/cut {CUTOFF}",
        *(
            f"pair_coeff {i} {j} {EPSILON[i, j]} {sigma} {CUTOFF * sigma!r}"
            for (i, j), sigma in SIGMA.items()
        ),
        "pair_modify shift no",
        f"neighbor {SKIN} bin",
        "neigh_modify every 1 delay 0 check yes",
        "fix flat all enforce2d",
    )
    if len(lammps.types()) != count:
        raise LammpsError(f"only {len(lammps.types())} of {count} particles fit into the box")
    lammps.do("min_style cg", "minimize 0 10 1000 10000")  # FIRE would throw overlaps too far
    temperature = simulation.temperature_start
    lammps.do(f"velocity all create {temperature!r} {velocities} dist gaussian")
    lammps.do(f"timestep {simulation.timestep!r}")


class _Thermal(NamedTuple):
    """A configuration as simulated, its kinetic temperature, and its energy per particle."""

    configuration: Configuration
    temperature: float
    energy: float


def _ramp(lammps: Lammps, simulation: Simulation, frames: Sequence[int]) -> Iterator[_Thermal]:
    """Equilibrate at the first temperature, then cool, with a configuration at each of `frames`."""
    hot, cold = simulation.temperature_start, simulation.temperature_end
    damping, length = simulation.damping, simulation.cooling_steps
    lammps.do(f"fix thermostat all nvt temp {hot!r} {hot!r} {damping!r}")
    lammps.run(simulation.equilibration_steps)
    lammps.do("reset_timestep 0", f"fix thermostat all nvt temp {hot!r} {cold!r} {damping!r}")
    for before, frame in itertools.pairwise((-1, *frames)):
        lammps.run((frame - before) * length // simulation.frames, f"start 0 stop {length}")
        at = _configuration(lammps, simulation.box)
        yield _Thermal(at, lammps.thermo("temp"), lammps.thermo("pe"))


class _Inherent(NamedTuple):
    """An inherent structure, its energy per particle, and the largest force component left."""

    configuration: Configuration
    energy: float
    force: float


def _quench(lammps: Lammps, configuration: Configuration) -> _Inherent:
    """The inherent structure of a configuration."""
    lammps.place(configuration.positions)
    lammps.minimise(FORCE_TOLERANCE)
    at = _configuration(lammps, float(configuration.box[0]))
    return _Inherent(at, lammps.thermo("pe"), lammps.thermo("fmax"))


def _configuration(lammps: Lammps, side: float) -> Configuration:
    """Where LAMMPS' particles are, in a square box; raises DataError when that is nowhere."""
    return Configuration(lammps.positions(), lammps.types(), np.array([side, side]))


# All trajectories of a data set


def run(
    settings: RunSettings, root: Path, world: World, stop: StopFlag | None = None
) -> TrajectoriesDir:
    """Simulate what is missing of the trajectories, shared over the ranks; returns where they lie.

    Collective. Returns at once when their file exists. Raises, on all ranks alike, ConfigError
    (style not available), SimulationError (LAMMPS gave up), StorageError (cannot write),
    DataError (a part spoilt while merging) and Stopped (`stop` is set on a rank); what is
    finished is kept in every case.
    """
    place, stop = directory(settings, root), stop or StopFlag()
    if world.broadcast(place.is_done()):
        return place
    job = _Coolings.of(settings, place)
    todo, token = world.broadcast(world.on_root(job.prepare))
    shown = counted("simulating", "trajectory", job.total, job.finished)
    with shown if world.is_root else contextlib.nullcontext():
        error = job.work(todo, token, stop)
        _wait_for_all(world)
    world.check(error)
    if number := stop.agreed(world):
        raise job.stopped(number, told=not world.is_root)
    world.on_root(job.finish)
    return place


def _wait_for_all(world: World) -> None:
    """A barrier that leaves the core to others; MPI's own would spin for a whole trajectory."""
    request = world.comm.Ibarrier()
    while not request.Test():
        time.sleep(0.02)


@dataclass(frozen=True)
class _Coolings:
    """The trajectories of one file, and their parts until all are there."""

    simulation: Simulation
    frames: tuple[int, ...]
    inherent: bool
    place: TrajectoriesDir

    @staticmethod
    def of(settings: RunSettings, place: TrajectoriesDir) -> _Coolings:
        frames = sorted({settings.frame("liquid"), settings.frame("glass")})
        inherent = settings.data.form == "inherent"
        return _Coolings(settings.simulation, tuple(frames), inherent, place)

    @property
    def total(self) -> int:
        return self.simulation.trajectories

    def finished(self) -> int:
        """How many parts there are, of all ranks."""
        with contextlib.suppress(FileNotFoundError):
            return sum(part.suffix == ".npz" for part in self.place.parts.iterdir())
        return self.total

    def prepare(self) -> tuple[list[int], str]:
        """Indices of the trajectories to simulate, and a token that is this start's alone."""
        choose_style(self.simulation.style)
        make_directory(self.place.parts)
        with storage_errors(self.place.parts):
            todo = [index for index in range(self.total) if not self._is_whole(index)]
        return todo, uuid.uuid4().hex[:8]

    def _is_whole(self, index: int) -> bool:
        """Whether a trajectory is there; a damaged part is removed and said so."""
        part = self.place.part(index)
        if not part.exists():
            return False
        try:
            read_part(part, index)
        except DataError as error:
            print(f"{error} Trajectory {index} is simulated again.", flush=True)
            part.unlink(missing_ok=True)
            return False
        return True

    def work(self, todo: Iterable[int], token: str, stop: StopFlag) -> UserError | None:
        """Simulate those of `todo` that this rank gets hold of; returns its error, if any.

        A rank that fails or is stopped leaves a note for the others, who then start no more.
        """
        halt = self.place.parts / f".{token}-halt"
        try:
            for index in self._claims(todo, token):
                if halt.exists():
                    break
                write_part(self.place.part(index), self._simulate(index, stop))
        except UserError as error:
            with contextlib.suppress(OSError):
                halt.touch()
            # Another job with the same settings may have finished first and tidied up.
            return None if isinstance(error, Stopped) or self.place.is_done() else error
        return None

    def _simulate(self, index: int, stop: StopFlag) -> Trajectory:
        return simulate(self.simulation, index, self.frames, self.inherent, lambda: stop.signal)

    def _claims(self, todo: Iterable[int], token: str) -> Iterator[int]:
        """The next index that no other rank has, again and again; raises StorageError.

        A claim is an empty file, which only one process can create, also on a network file
        system. So ranks on any nodes take work as they become free, and none has to coordinate:
        MPI's shared counters answer other nodes only while their owner is inside MPI. The
        token makes the claims of a job that was killed void.
        """
        for index in todo:
            with storage_errors(self.place.parts):
                try:
                    (self.place.parts / f".{token}-{index}").touch(exist_ok=False)
                except FileExistsError:
                    continue
            yield index

    def stopped(self, number: int, told: bool) -> Stopped:
        """What a rank raises after a request to stop, and whether another one tells it."""
        stopped = Stopped(
            f"stopped by {signal_name(number)}: {self.finished()} of "
            f"{plural(self.total, 'trajectory')} are kept in {self.place.parts}. "
            "Run the same command again to go on."
        )
        stopped.told = told
        return stopped

    def finish(self) -> None:
        """Merge the parts, unless another job with the same settings has, and tell the result."""
        try:
            parts = [self.place.part(index) for index in range(self.total)]
            merge(parts, self.place.file, self._settings())
        except DataError:
            if not self.place.is_done():
                raise
        shutil.rmtree(self.place.parts, ignore_errors=True)
        print(summary(load(self.place)), self.place.file, sep="\n", flush=True)

    def _settings(self) -> str:
        kept = {"frames": list(self.frames), "form": "inherent" if self.inherent else "thermal"}
        return to_yaml({"simulation": to_tree(self.simulation), "kept": kept})


def summary(made: Sequence[Trajectory]) -> str:
    """What the trajectories are, for people: a line for each kept frame, averaged over all."""
    first, styles = made[0], "/".join(sorted({trajectory.style for trajectory in made}))
    lines = [
        f"{plural(len(made), 'trajectory')} of {len(first.types)} particles, cooled by "
        f"{first.cooling_rate:.3g} per τ (LAMMPS {first.lammps_version}, {styles}, in double)",
        "frame       T  kinetic T   energy  inherent energy  mean |ψ6|  inherent |ψ6|",
    ]
    for row, frame in enumerate(first.frames):
        kinetic, energy, inherent, psi6, inherent_psi6 = (
            np.mean([getattr(trajectory, name)[row] for trajectory in made])
            for name in (
                "kinetic_temperature",
                "potential_energy",
                "inherent_energy",
                "psi6",
                "inherent_psi6",
            )
        )
        lines.append(
            f"{frame:5d}{first.temperature[row]:8.4f}{kinetic:11.4f}{energy:9.4f}{inherent:17.4f}"
            f"{psi6:11.3f}{inherent_psi6:15.3f}"
        )
    return "\n".join(lines)
