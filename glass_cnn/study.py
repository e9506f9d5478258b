"""A study: one base setting, the points of a grid, and the seeds that repeat each point.

    study:
      name: rate_grid
      seeds: {from: 0, count: 12}            # or a number of seeds, or a list of them
      copies: {count: 12, seeds: [0]}        # of these seeds, runs that differ by rounding alone
      arms: {low: {train.learning_rate.initial: 1e-4}, high: {…}}   # named changes
      grid: {train.batch_size: [10, 80], train.dropout: [0.1, 0.5]} # every combination
      paired: [{train.iterations: [100, 200], train.batch_size: [80, 40]}]  # side by side
    train: …                                 # any other section is the base setting

Points are arms × grid × paired groups; runs are points × (seeds and their copies).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glass_cnn.paths import RUN_NAME, RunDir, StudyDir, is_named, run_name, study_dir
from glass_cnn.settings import MAX_SEED, Launch, RunSettings, build_run, load_run, run_identity
from glass_cnn.study_file import OWN, StudyFile, StudySection, lay, leaves, refuse_both
from glass_cnn.train_settings import Rounding
from hpc.config import overlay, to_yaml, validate
from hpc.errors import ConfigError
from hpc.words import shown
from hpc.yaml_files import read_tree, unflatten, union

AFTER = "after."
"""begins assignments of --set that are for the studies that a study goes on from alone"""
MAX_NAME = 200
"""longest name of a run, so that file systems (255 bytes) can hold it and what is added to it"""
READ_BY_RUNS = {"division", "collectives", "onednn", "max_cpu_isa", "hang_seconds"}
"""what of `launch` each run reads for itself; by the rest a launcher starts all runs of a study"""


@dataclass(frozen=True)
class Point:
    """One point of the grid: a label, what it changes, and its settings (at the first seed)."""

    label: str
    changes: Mapping[str, Any]
    settings: RunSettings
    digest: str
    notes: tuple[str, ...] = ()
    """what of the base setting its changes dropped"""


@dataclass(frozen=True)
class Run:
    """One training: a point with a seed, or a copy of that run."""

    point: Point
    seed: int
    rounding: Rounding | None = None

    @property
    def copy(self) -> int:
        """Number of the copy; 0 for the run itself."""
        return self.rounding.number if self.rounding else 0

    @property
    def digest(self) -> str:
        """The same as `settings.run_digest()`, without building the settings."""
        return run_identity(self.point.digest, self.seed, self.rounding)

    @functools.cached_property
    def name(self) -> str:
        return run_name(self.point.label, self.seed, self.digest, self.copy)

    @property
    def settings(self) -> RunSettings:
        changes = {"seed": self.seed, "rounding": self.rounding}
        return self.point.settings.model_copy(update=changes)


@dataclass(frozen=True)
class Study:
    """A study file, resolved. Everything in it has been validated."""

    section: StudySection
    tree: Mapping[str, Any]
    source: str
    dropped: tuple[str, ...] = ()
    """what of extended files the file, or --set, dropped"""

    @property
    def name(self) -> str:
        return self.section.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know before the study starts; each thing once for all its points."""
        where: dict[str, list[str]] = {}
        for point in self.points:
            for note in point.notes:
                where.setdefault(note, []).append(point.label)
        return (
            *self.dropped,
            *(f"{self.source} ({_some(labels)}): {note}" for note, labels in where.items()),
        )

    def notes_of(self, run: Run) -> tuple[str, ...]:
        """What people should know of one run."""
        return (*self.dropped, *(f"{self.source}: {note}" for note in run.point.notes))

    @functools.cached_property
    def points(self) -> tuple[Point, ...]:
        """Every point of the grid, in the order of the file; raises ConfigError."""
        points = tuple(self._point(label, changes) for label, changes in self._changes())
        seen: dict[str, str] = {}
        labels: set[str] = set()
        for point in points:
            if point.digest in seen:
                raise ConfigError(
                    f"{self.source}: '{seen[point.digest]}' and '{point.label}' are the same "
                    "settings: each run would be counted twice. Remove one of them."
                )
            longest = run_name(point.label, MAX_SEED, point.digest, self.section.copied.count)
            _check_length(self.source, longest)
            if point.label in labels:
                raise ConfigError(
                    f"{self.source}: two points would both be called '{point.label}'; "
                    "give them names with study.arms."
                )
            seen[point.digest] = point.label
            labels.add(point.label)
        return points

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        """Every run: seeds, each followed by its copies, vary fastest."""
        replicates = self.section.replicates
        return tuple(Run(point, *replicate) for point in self.points for replicate in replicates)

    @functools.cached_property
    def launch(self) -> Launch:
        """How its runs are started, all of them alike; raises ConfigError where points differ."""
        first, *others = self.points
        given = first.settings.launch.model_dump(exclude=READ_BY_RUNS)
        for point in others:
            wanted = point.settings.launch.model_dump(exclude=READ_BY_RUNS)
            for key, value in wanted.items():
                if value != given[key]:
                    raise ConfigError(
                        f"{self.source} ({point.label}): launch.{key} cannot vary here: it is "
                        f"{value!r} and {given[key]!r} in '{first.label}', and all runs of a "
                        "study are started alike. Make a study for each value."
                    )
        return first.settings.launch

    @functools.cached_property
    def datasets(self) -> tuple[RunSettings, ...]:
        """Settings of one point for each data set that the study needs."""
        return tuple({p.settings.dataset_digest(): p.settings for p in self.points}.values())

    def directory(self, root: Path) -> StudyDir:
        return study_dir(root, self.name)

    def run_dir(self, root: Path, run: Run) -> RunDir:
        return RunDir(self.directory(root).runs / run.name)

    def find(self, name: str) -> Run:
        """The run of this name, or the only one whose name starts with it; raises ConfigError."""
        named = [run for run in self.runs if run.name == name]
        found = named or [run for run in self.runs if run.name.startswith(name)]
        if len(found) == 1:
            return found[0]
        some = ", ".join(run.name for run in (found or self.runs)[:6])
        what = f"'{name}' " + (f"fits {len(found)} runs" if found else "is no run of it")
        if not name:
            what = f"has {len(found)} runs; name one"
        raise ConfigError(f"{self.source}: {what}; for example: {some}.")

    @property
    def needed(self) -> Path | None:
        """The study file that `after` names, beside this study's own file."""
        after = self.section.after
        return None if after is None else (Path(self.source).parent / after).resolve()

    def to_yaml(self, after: Path | None = None) -> str:
        """The resolved study: no `extends`, no --set; `load_study` reads it back to the same.

        It is read back from elsewhere, where the study that it needs must still be found: at
        `after`, or where that is now.
        """
        place = after or self.needed
        return to_yaml(union(self.tree, {"study": {"after": str(place)}} if place else {}))

    def _changes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        arms = list(self.section.arms.items()) or [("", {})]
        axes: list[list[dict[str, Any]]] = [
            [{key: value} for value in values] for key, values in self.section.grid.items()
        ]
        for group in self.section.paired:
            rows = zip(*group.values(), strict=True)
            axes.append([dict(zip(group, row, strict=True)) for row in rows])
        for arm, changes in arms:
            for choice in itertools.product(*axes):
                flat = {key: value for part in choice for key, value in part.items()}
                words = [arm] if arm else []
                words += [f"{_short(key)}_{_text(value)}" for key, value in flat.items()]
                label = "-".join(words) or "base"
                named = [name for part in (changes, *choice) for name in leaves(part)]
                refuse_both(f"{self.source} ({label})", named)
                yield label, {**changes, **flat}

    def _point(self, label: str, changes: dict[str, Any]) -> Point:
        for key in changes:
            if (first := key.split(".")[0]) in ("seed", "rounding", "study"):
                remedy = f"use {OWN[first]}" if first in OWN else "it is the whole study's"
                raise ConfigError(f"{self.source}: {key} cannot vary here; {remedy}.")
        base = {key: value for key, value in self.tree.items() if key != "study"}
        for key, place in OWN.items():
            if key in base:
                raise ConfigError(f"{self.source}: {key} belongs into {place}.")
        where = self.source if label == "base" else f"{self.source} ({label})"
        dropped: list[str] = []
        tree = overlay(RunSettings, base, unflatten(changes), dropped.append)
        tree["seed"] = self.section.seed_list[0]
        if self.section.copied_seeds:
            copy = {"copy": 1, "step": self.section.copied.step}
            build_run({**tree, "rounding": copy}, where)
        settings = build_run(tree, where)
        return Point(label, changes, settings, settings.point_digest(), tuple(dropped))


def _some(labels: list[str]) -> str:
    """The first of some labels, and how many more there are."""
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return ", ".join(labels[:3]) + more


def _check_length(source: str, name: str) -> None:
    if len(name) > MAX_NAME:
        raise ConfigError(
            f"{source}: the name of a run, {name[:60]}…, would have {len(name)} letters; at most "
            f"{MAX_NAME} are allowed. Give the points short names with study.arms."
        )


_GENERIC = {"initial", "kind", "enabled", "run", "which"}


def _short(key: str) -> str:
    """The telling part of a dotted key: `train.learning_rate.initial` is `learning_rate`."""
    parts = key.split(".")
    return parts[-2] if parts[-1] in _GENERIC and len(parts) > 1 else parts[-1]


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and "kind" in value:
        return str(value["kind"])
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9_.+]+", "_", text).strip("_")[:40] or "x"


def build_study(tree: Mapping[str, Any], source: str, dropped: tuple[str, ...] = ()) -> Study:
    """Validate a resolved tree that has a `study:` section; raises ConfigError."""
    if "study" not in tree:
        raise ConfigError(
            f"{source}: has no 'study:' section; add one with at least a name, for example "
            "'study: {name: my_study, seeds: 2}'."
        )
    section = validate(StudyFile, {"study": tree["study"]}, source).study
    study = Study(section, tree, source, dropped)
    if not study.points:
        raise ConfigError(f"{source}: the study has no points.")
    return study


def _file(path: Path, root: Path | None) -> Path:
    """The study file that CONFIG means; raises ConfigError for a directory or name that is none."""
    if path.is_dir():
        if not StudyDir(path).study.exists():
            raise ConfigError(
                f"CONFIG={path}: is a directory without a study.yaml; name a study file, for "
                "example jobs/quickstart.yaml."
            )
        return StudyDir(path).study
    if root is None or path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    if not StudyDir(root / path).study.exists():
        known = ", ".join(sorted(found.parent.name for found in root.glob("*/study.yaml"))[:12])
        raise ConfigError(
            f"CONFIG={path}: is neither a study file nor the name of a study in {root} "
            f"({known or 'which holds none yet'})."
        )
    return StudyDir(root / path).study


def load_study(config: str | Path, sets: Iterable[str] = (), root: Path | None = None) -> Study:
    """Read a study file, or the resolved study of a study's directory or name under `root`.

    Assignments behind AFTER are left to whoever reads the studies that it needs. Raises
    ConfigError, also for such ones where it needs none.
    """
    path = _file(Path(config), root)
    dropped: list[str] = []
    given = list(sets)
    own = [each for each in given if not each.startswith(AFTER)]

    def told(note: str) -> None:
        dropped.append(f"{path}: {note}")

    tree = read_tree(path, own, functools.partial(lay, told=told))
    study = build_study(tree, str(path), tuple(dropped))
    if study.section.after is None:
        if len(own) < len(given):
            raise ConfigError(
                f"{path}: {AFTER}… sets something for the study that this one goes on from, and it "
                "goes on from none (study.after); leave it out."
            )
        return study
    # Kept as a whole path: the resolved study lies elsewhere than the file it comes from.
    after = str(path.parent.absolute() / study.section.after)
    tree = union(study.tree, {"study": {"after": after}})
    return build_study(tree, str(path), study.dropped)


def find_run(path: Path) -> tuple[RunDir, RunSettings]:
    """A run's directory and settings; raises ConfigError when it is none.

    Prints a note where the directory has the name of other settings than those in it.
    """
    run = RunDir(path.absolute())
    if not run.config.exists():
        raise ConfigError(
            f"RUN={path}: is no run's directory (it has no config.yaml); name one of "
            "logs/<study>/runs/."
        )
    settings = load_run(run.config)
    if RUN_NAME.fullmatch(run.name) and not is_named(run.path, settings.run_digest()):
        print(
            f"note: {shown(run.path)}: its name is not that of its settings: they were changed, or "
            "meant something else when it was made; results may differ from those it records.",
            flush=True,
        )
    return run, settings
