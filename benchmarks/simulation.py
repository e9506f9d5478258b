"""How fast the simulation is, and whether it is right.

    python -m benchmarks.simulation                          # LAMMPS styles and neighbour skins
    mpiexec -n 2 python -m benchmarks.simulation --energies  # against published energies
    python -m benchmarks.simulation --farm                   # two ranks against two bare lmp

Speeds are processor time of one core, in rounds that take every variant in turn, so that other
work on the machine falls on all alike. The published energies are those of inherent structures,
plotted in Swanson, Trivedi, Lequieu, Swanson, Kondor, Soft Matter 16, 435 (2020); theirs at 0.44
and 0.05 depend on the cooling, and the one at 0.44 comes from a slower one than is made here.

The farm is `jobs.simulate` on two ranks of one core, from its start to the merged file. Beside it
two processes of LAMMPS' own program, on the same cores, are each handed half of the trajectories in
one input: the same commands, no Python, nothing kept but the frames that they need themselves.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.table import Row, measured, ratios, tell
from glass_cnn.data.lammps import STYLES, Lammps, available_styles, choose_style
from glass_cnn.data.simulate import FORCE_TOLERANCE, SKIN, simulate, start
from glass_cnn.settings import Simulation
from glass_cnn.streams import lammps_seeds
from glass_cnn.study import load_study
from hpc.world import World, world

# Inherent-structure energy per particle at a temperature; the glass after 2·10⁵ steps.
PUBLISHED = {1.756: -3.7719, 0.957: -3.8118, 0.44: -3.8863, 0.05: -3.8674}
SKINS = (0.3, 0.4, 0.5, SKIN, 0.7, 0.8)
STEPS = 2000
MANY = 100
"""trajectories of a farm from which on its start hardly counts"""
FARM = """
study: {{name: farm, seeds: 1}}
simulation: {{trajectories: {trajectories}, equilibration_steps: 2500, cooling_steps: 10000}}
data: {{name: farm, form: inherent}}
"""


class Variant:
    """One LAMMPS at work, and the times its rounds took."""

    def __init__(self, simulation: Simulation, style: str, skin: float) -> None:
        self.name = f"{style:5s}  {skin:.1f} σ"
        self.lammps = Lammps(style)
        self.simulation = simulation
        self.times: list[float] = []
        start(self.lammps, simulation, lammps_seeds(1, 0))
        self.lammps.do(f"neighbor {skin} bin")

    def hold(self, temperature: float) -> None:
        """Bring it to a temperature, at which the rounds that follow keep it."""
        self.lammps.do(f"fix thermostat all nvt temp {temperature} {temperature} 0.5")
        self.lammps.run(STEPS)
        self.times = []

    def round(self) -> None:
        """Time a run."""
        began = time.process_time()
        self.lammps.run(STEPS)
        self.times.append(time.process_time() - began)

    @property
    def microseconds(self) -> float:
        """Median over rounds of the time for one particle's step."""
        return float(np.median(self.times)) / STEPS / self.simulation.particles * 1e6


def speeds(particles: int, rounds: int) -> None:
    """Print µs per particle-step of every style, and of every skin with the fastest one."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    simulation = Simulation(particles=particles)
    pairs = [(style, SKIN) for style in available_styles()]
    pairs += [(choose_style("auto"), skin) for skin in SKINS if skin != SKIN]
    variants = [Variant(simulation, *pair) for pair in pairs]
    print(f"{platform.processor() or platform.machine()}, {particles} particles, {rounds} rounds")
    print("style  skin      T 2.0         T 0.05        (µs per particle-step, over plain's)")
    hot, cold = (measure(variants, temperature, rounds) for temperature in (2.0, 0.05))
    plain = len(available_styles()) - 1
    for variant, a, b in zip(variants, hot, cold, strict=True):
        over = a / hot[plain], b / cold[plain]
        print(f"{variant.name}  {a:.4f} {over[0]:5.2f}  {b:.4f} {over[1]:5.2f}")
    style = choose_style("auto")
    chosen = next(i for i, one in enumerate(variants) if one.name == f"{style:5s}  {SKIN:.1f} σ")
    for what, found in (("liquid at T = 2", hot), ("glass at T = 0.05", cold)):
        label = f"{particles} particles, {what}, one core: {style}"
        tell(
            measured(label, [found[chosen]], "µs a particle and step"),
            measured(f"{label} / plain LAMMPS", [found[chosen] / found[plain]]),
        )


def measure(variants: list[Variant], temperature: float, rounds: int) -> list[float]:
    """µs per particle-step of each variant at one temperature."""
    for variant in variants:
        variant.hold(temperature)
    for _ in range(rounds):
        for variant in variants:
            variant.round()
    return [variant.microseconds for variant in variants]


def trajectory_time(simulation: Simulation, count: int) -> None:
    """Print the processor time of whole trajectories, minimisation and order included."""
    times = []
    for index in range(count):
        began = time.process_time()
        simulate(simulation, index, (0, simulation.frames - 1), inherent=True)
        times.append(time.process_time() - began)
    steps = simulation.equilibration_steps + simulation.cooling_steps
    print(
        f"one trajectory of {simulation.particles} particles, {steps} steps, two inherent "
        f"structures: {np.median(times):.3f} s"
    )


def energies(particles: int, count: int, ranks: World) -> None:
    """Print energies and order at the published temperatures, with standard errors."""
    simulation = Simulation(particles=particles, trajectories=count)
    frames = [nearest_frame(simulation, temperature) for temperature in PUBLISHED]
    mine = range(count)[ranks.share(count)]
    made = ranks.gather([simulate(simulation, index, frames, inherent=False) for index in mine])
    if made is None:
        return
    trajectories = [trajectory for part in made for trajectory in part]
    print(f"{count} coolings of {particles} particles in {simulation.cooling_steps} steps")
    print("    T  published   inherent energy   off by  potential energy  kinetic T   |ψ6|  there")
    for row, (temperature, published) in enumerate(PUBLISHED.items()):
        inherent, inherent_error = mean([t.inherent_energy[row] for t in trajectories])
        energy, energy_error = mean([t.potential_energy[row] for t in trajectories])
        kinetic, _ = mean([t.kinetic_temperature[row] for t in trajectories])
        psi6, _ = mean([t.psi6[row] for t in trajectories])
        inherent_psi6, _ = mean([t.inherent_psi6[row] for t in trajectories])
        print(
            f"{temperature:5.3f}    {published:7.4f}  {inherent:7.4f} ± {inherent_error:.4f}  "
            f"{inherent - published:+7.4f}  {energy:7.4f} ± {energy_error:.4f}     {kinetic:.4f}  "
            f"{psi6:.3f}  {inherent_psi6:.3f}"
        )


def nearest_frame(simulation: Simulation, temperature: float) -> int:
    """The frame of the ramp nearest to a temperature."""
    distances = [abs(simulation.temperature(f) - temperature) for f in range(simulation.frames)]
    return int(np.argmin(distances))


def mean(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


class Script(Lammps):
    """The commands of a trajectory, written down instead of done."""

    def __init__(self, particles: int) -> None:
        self.particles = particles
        self.lines: list[str] = []

    def do(self, *commands: str) -> None:
        """One more line each."""
        self.lines += commands

    def run(self, steps: int, ramp: str = "") -> None:
        """In one piece."""
        self.do(f"run {steps} {ramp}")

    def types(self) -> np.ndarray:
        """As many as were asked for."""
        return np.zeros(self.particles, np.uint8)


def bare(simulation: Simulation, index: int, folder: Path) -> list[str]:
    """LAMMPS' input for what `simulate` does of one trajectory with its first and last frame."""
    script = Script(simulation.particles)
    script.do("clear")
    start(script, simulation, lammps_seeds(simulation.seed, index))
    hot, cold = simulation.temperature_start, simulation.temperature_end
    length, piece = simulation.cooling_steps, simulation.cooling_steps // simulation.frames
    damping = simulation.damping
    script.do(f"fix thermostat all nvt temp {hot!r} {hot!r} {damping!r}")
    script.run(simulation.equilibration_steps)
    script.do("reset_timestep 0", f"fix thermostat all nvt temp {hot!r} {cold!r} {damping!r}")
    frames = {folder / f"{index}-{steps}": steps for steps in (piece, length)}
    for (file, steps), before in zip(frames.items(), (0, piece), strict=True):
        script.run(steps - before, f"start 0 stop {length}")
        script.do(f"write_dump all custom {file} id x y modify format float %.17g")
    for file, steps in frames.items():
        script.do(f"read_dump {file} {steps} x y box no replace yes")
        script.minimise(FORCE_TOLERANCE)
    return script.lines


def farm(trajectories: int, rounds: int) -> None:
    """Tell how many trajectories a second two ranks make, and over two bare LAMMPS by turns."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2 or shutil.which("mpiexec") is None or shutil.which("lmp") is None:
        tell(Row("farm of simulations", why="left out: needs two cores, mpiexec and lmp"))
        return
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory(prefix="farm-") as place:
        folder = Path(place)
        config = folder / "study.yaml"
        config.write_text(FARM.format(trajectories=trajectories))
        simulation = load_study(config).points[0].settings.simulation
        inputs = [folder / f"half-{rank}.in" for rank in range(2)]
        for rank, path in enumerate(inputs):
            lines = [bare(simulation, index, folder) for index in range(rank, trajectories, 2)]
            path.write_text("\n".join(line for each in lines for line in each) + "\n")
        style = STYLES[choose_style(simulation.style)]
        own = ["taskset", "-c", ",".join(map(str, cores)), "mpiexec", "-n", "2", "-bind-to", "core"]
        own += [sys.executable, "-m", "jobs.simulate", str(config), "--logs"]
        quiet = ("lmp", "-screen", "none", "-log", "none", "-nocite", *style)
        for number in range(rounds):
            ours.append(trajectories / together([[*own, str(folder / f"logs-{number}")]]))
            pinned = zip(cores, inputs, strict=True)
            peers = [["taskset", "-c", str(c), *quiet, "-in", str(file)] for c, file in pinned]
            theirs.append(trajectories / together(peers))
            print(f"{ours[-1]:.2f} trajectories/s, bare LAMMPS {theirs[-1]:.2f}", flush=True)
    goal = 0.95 if trajectories >= MANY else None
    what = f"farm of {trajectories} coolings of {simulation.particles} particles on two ranks"
    tell(
        measured(what, ours, "a second"),
        measured(f"{what} / two bare lmp", ratios(ours, theirs), at_least=goal),
    )


def together(commands: Sequence[Sequence[str]]) -> float:
    """Seconds until all of some commands, started at the same time, have ended well."""
    began = time.perf_counter()
    started = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for words in commands]
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit(f"{commands[0][3]} …: exit codes {codes}")
    return time.perf_counter() - began


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--energies", action="store_true", help="check energies (minutes)")
    parser.add_argument("--farm", action="store_true", help="against two bare lmp")
    parser.add_argument("--particles", type=int, help="default 400; 1024 for energies")
    parser.add_argument("--trajectories", type=int, default=24, help="for energies and farm")
    parser.add_argument("--rounds", type=int, default=15, help="for speeds and farm")
    arguments = parser.parse_args()
    if arguments.farm:
        farm(arguments.trajectories, arguments.rounds)
        return
    if arguments.energies:
        energies(arguments.particles or 1024, arguments.trajectories, world())
    else:
        particles = arguments.particles or 400
        speeds(particles, arguments.rounds)
        trajectory_time(
            Simulation(particles=particles, equilibration_steps=10_000, cooling_steps=2_000), 5
        )


if __name__ == "__main__":
    main()
