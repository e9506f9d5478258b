"""Configurations of a study's data as GSD or extended XYZ files, for OVITO and other programs.

Without --trajectory, all that the data sets hold: liquid and glass of each trajectory in turn. With
it, one cooling of the study is simulated once more and --frames of it are kept, evenly spaced in
temperature: a file for jobs.predict. They lie in the study's directory, under frames/. Exit codes:
0 complete, 65 bad data, 70 files cannot be written or LAMMPS gave up, 78 bad configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from glass_cnn.data.dataset import load
from glass_cnn.data.writers import LabelledFrame, write_frames
from glass_cnn.paths import logs_root
from glass_cnn.settings import CLASSES
from glass_cnn.study import load_study
from hpc.commandline import Parser, run_main
from hpc.errors import ConfigError, DataError
from hpc.files import make_directory
from hpc.words import plural, shown

if TYPE_CHECKING:
    from glass_cnn.data.dataset import Dataset
    from glass_cnn.settings import RunSettings


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("export-frames", __doc__)
    parser.add_study()
    parser.add_argument("--format", choices=("gsd", "xyz"), default="gsd", help="default: gsd")
    parser.add_argument("--trajectory", type=int, help="number of a cooling, to be simulated again")
    parser.add_argument("--frames", type=int, default=50, help="kept of it (default: 50)")
    parser.add_settings()
    parser.add_logs()
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Write a file for each data set, or for the one cooling of each."""
    args = parse(argv)
    root = logs_root(args.logs)
    study = load_study(args.config, args.set, root)
    place = make_directory(study.directory(root).frames)
    for settings in study.datasets:
        if args.trajectory is None:
            data = load(settings, root)
            name, frames = data.path.name, [*stored(data)]
        else:
            name = f"{settings.data.name}-cooling-{args.trajectory}"
            frames = [*cooled(settings, args.trajectory, args.frames)]
        path = place / f"{name}.{args.format}"
        write_frames(path, frames, args.format)
        print(f"{shown(path)}: {plural(len(frames), 'frame')}", flush=True)


def stored(data: Dataset) -> Iterator[LabelledFrame]:
    """The configurations of a data set, in its order; raises DataError where it has none."""
    labels = data.column("configurations/label")
    trajectories = data.column("configurations/trajectory")
    temperatures, energies = (_known(data, name) for name in ("temperature", "potential_energy"))
    for row, at in enumerate(data.configurations(np.arange(len(labels)))):
        yield LabelledFrame(
            configuration=at,
            trajectory=int(trajectories[row]),
            temperature=None if temperatures is None else float(temperatures[row]),
            energy=None if energies is None else float(energies[row]),
            label=CLASSES[labels[row]],
        )


def _known(data: Dataset, name: str) -> np.ndarray | None:
    try:
        return data.column(f"configurations/{name}")
    except DataError:  # imported configurations have neither
        return None


def cooled(settings: RunSettings, trajectory: int, frames: int) -> Iterator[LabelledFrame]:
    """One cooling with frames evenly spaced in temperature, the last one at its end."""
    ramp = settings.simulation
    if settings.data.source != "simulation":
        raise ConfigError("--trajectory: the data were imported; there is no cooling to simulate.")
    if trajectory < 0:
        raise ConfigError(f"--trajectory {trajectory}: coolings are counted from 0.")
    if not 2 <= frames <= ramp.frames:
        raise ConfigError(f"--frames {frames}: the ramp has {ramp.frames}; from 2 up to them all.")
    from glass_cnn.data.simulate import simulate

    kept = np.unique(np.linspace(0, ramp.frames - 1, frames).round().astype(int)).tolist()
    inherent = settings.data.form == "inherent"
    found = simulate(ramp, trajectory, kept, inherent)
    energies = found.inherent_energy if inherent else found.potential_energy
    for row in range(len(kept)):
        yield LabelledFrame(
            configuration=found.configuration(row, inherent),
            trajectory=trajectory,
            temperature=float(found.temperature[row]),
            energy=float(energies[row]),
        )


if __name__ == "__main__":
    sys.exit(run_main(main))
