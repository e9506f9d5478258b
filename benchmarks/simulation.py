"""How fast the simulation is, and whether it is right.

    python -m benchmarks.simulation                          # LAMMPS styles and neighbour skins
    mpiexec -n 2 python -m benchmarks.simulation --energies  # against published energies

Speeds are processor time of one core, in rounds that take every variant in turn, so that other
work on the machine falls on all alike. The published energies are those of inherent structures,
plotted in Swanson, Trivedi, Lequieu, Swanson, Kondor, Soft Matter 16, 435 (2020); theirs at 0.44
and 0.05 depend on the cooling, and the one at 0.44 comes from a slower one than is made here.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import numpy as np

from glass_cnn.data.lammps import Lammps, available_styles, choose_style
from glass_cnn.data.simulate import SKIN, simulate, start
from glass_cnn.settings import Simulation
from glass_cnn.streams import lammps_seeds
from hpc.world import World, world

# Inherent-structure energy per particle at a temperature; the glass after 2·10⁵ steps.
PUBLISHED = {1.756: -3.7719, 0.957: -3.8118, 0.44: -3.8863, 0.05: -3.8674}
SKINS = (0.3, 0.4, 0.5, SKIN, 0.7, 0.8)
STEPS = 2000


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
        ratios = a / hot[plain], b / cold[plain]
        print(f"{variant.name}  {a:.4f} {ratios[0]:5.2f}  {b:.4f} {ratios[1]:5.2f}")


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


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--energies", action="store_true", help="check energies (minutes)")
    parser.add_argument("--particles", type=int, help="default 400; 1024 for energies")
    parser.add_argument("--trajectories", type=int, default=24, help="for energies")
    parser.add_argument("--rounds", type=int, default=15, help="for speeds")
    arguments = parser.parse_args()
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
