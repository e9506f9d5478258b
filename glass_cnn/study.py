"""A study: one base setting, the points of a grid, and the seeds that repeat each point.

    study:
      name: rate_grid
      seeds: {from: 0, count: 12}            # or a number of seeds, or a list of them
      arms: {low: {train.learning_rate.initial: 1e-4}, high: {…}}   # named changes
      grid: {train.batch_size: [10, 80], train.dropout: [0.1, 0.5]} # every combination
      paired: [{train.iterations: [100, 200], train.batch_size: [80, 40]}]  # side by side
    train: …                                 # any other section is the base setting

Points are arms × grid × paired groups; runs are points × seeds.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic

from glass_cnn.paths import RunDir, StudyDir, run_name, study_dir
from glass_cnn.settings import MAX_SEED, RunSettings, Seed, build_run
from hpc.config import Name, Settings, digest, overlay, to_yaml, validate
from hpc.errors import ConfigError
from hpc.yaml_files import is_key, read_tree, unflatten, union

Values = dict[str, list[Any]]
MAX_RUNS = 200_000
"""of one study; more is a typing error, and would fill memory before anything is printed"""
MAX_NAME = 200
"""longest name of a run, so that file systems (255 bytes) can hold it and what is added to it"""


class SeedRange(Settings):
    """`count` seeds in a row."""

    model_config = pydantic.ConfigDict(populate_by_name=True)

    first: Seed = pydantic.Field(default=0, alias="from")
    """first seed"""
    count: int = pydantic.Field(default=12, ge=1, le=MAX_RUNS)
    """number of seeds"""


def _form_of_seeds(value: Any) -> str:
    if isinstance(value, Mapping | SeedRange):
        return "range"
    return "list" if isinstance(value, list) else "number"


Seeds = Annotated[
    Annotated[SeedRange, pydantic.Tag("range")]
    | Annotated[int, pydantic.Field(ge=1, le=MAX_RUNS), pydantic.Tag("number")]
    | Annotated[list[Annotated[Seed, pydantic.Strict()]], pydantic.Tag("list")],
    pydantic.Discriminator(_form_of_seeds),
]


class StudySection(Settings):
    """The `study:` section of a study file."""

    name: Name
    """name of the study and of its directory under logs/"""
    description: str = ""
    """what the study asks, one or two sentences; stands at the head of its report"""
    seeds: Seeds = SeedRange()
    """{from: 0, count: 12}, a number of seeds, or a list of seeds"""
    arms: dict[str, dict[str, Any]] = {}
    """named changes of the base setting; keys with dots or nested mappings"""
    grid: Values = {}
    """setting with dots: list of values; all combinations"""
    paired: list[Values] = []
    """groups of settings whose lists advance together"""
    after: str | None = None
    """a study file that must be complete first (its runs are restarted from here)"""

    @pydantic.field_validator("name")
    @classmethod
    def _not_taken(cls, name: str) -> str:
        if name in ("datasets", "trajectories"):
            raise ValueError("is the name of the directory of all data; choose another")
        return name

    @pydantic.model_validator(mode="after")
    def _sound(self) -> StudySection:
        for name in ("seeds", "arms", "grid", "paired"):
            if name in self.model_fields_set and getattr(self, name) in ([], {}):
                raise ValueError(f"{name}: is empty; leave it out or give it something")
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid: {key} has no values; give a list of at least one")
            _refuse_repeats(f"grid: {key}", values)
        for group in self.paired:
            lengths = {key: len(values) for key, values in group.items()}
            if not group or len(set(lengths.values())) > 1 or 0 in lengths.values():
                raise ValueError(
                    f"paired: lists must be of equal, non-zero length; they have {lengths}"
                )
        if isinstance(self.seeds, list):
            _refuse_repeats("seeds", self.seeds)
        if self.seed_list[-1] > MAX_SEED:
            raise ValueError(f"seeds: {self.seed_list[-1]} is larger than {MAX_SEED}")
        if self.run_count > MAX_RUNS:
            raise ValueError(
                f"asks for {self.run_count:,d} runs; at most {MAX_RUNS:,d} are allowed"
            )
        keys = [*self.grid, *(key for group in self.paired for key in group)]
        for key in keys:
            if not is_key(key):
                raise ValueError(f"grid and paired: {key!r} is no setting; write section.setting")
        _refuse_repeats("grid and paired: settings", keys)
        for arm in self.arms:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}", arm):
                raise ValueError(
                    f"arms: {arm!r} must start with a letter or digit and hold at most 60 "
                    "letters, digits, '_', '.', '+', '-': it becomes a directory name"
                )
        return self

    @property
    def seed_list(self) -> list[int]:
        """All seeds, in order."""
        if isinstance(self.seeds, SeedRange):
            return list(range(self.seeds.first, self.seeds.first + self.seeds.count))
        if isinstance(self.seeds, int):
            return list(range(self.seeds))
        return list(self.seeds)

    @property
    def run_count(self) -> int:
        """Number of runs, without building them."""
        axes = [*map(len, self.grid.values()), *(len(next(iter(g.values()))) for g in self.paired)]
        return math.prod([len(self.arms) or 1, *axes, len(self.seed_list)])


class _StudyFile(Settings):
    """What of a study file is not settings of its runs; so errors name `study.seeds`."""

    study: StudySection


def _refuse_repeats(what: str, values: Iterable[Any]) -> None:
    seen: list[Any] = []
    for value in values:
        if value in seen:
            raise ValueError(f"{what}: {value!r} stands there twice; each may stand once")
        seen.append(value)


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
    """One training: a point with a seed."""

    point: Point
    seed: int

    @property
    def digest(self) -> str:
        """The same as `settings.run_digest()`, without building the settings."""
        return digest({"point": self.point.digest, "seed": self.seed})

    @property
    def name(self) -> str:
        return run_name(self.point.label, self.seed, self.digest)

    @property
    def settings(self) -> RunSettings:
        return self.point.settings.model_copy(update={"seed": self.seed})


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
        """What people should know before the study starts."""
        return (*self.dropped, *(note for point in self.points for note in point.notes))

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
            _check_length(self.source, run_name(point.label, MAX_SEED, point.digest))
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
        """Every run: seeds vary fastest."""
        seeds = self.section.seed_list
        return tuple(Run(point, seed) for point in self.points for seed in seeds)

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
                named = [name for part in (changes, *choice) for name in _leaves(part)]
                for name in named:
                    if named.count(name) > 1:
                        raise ConfigError(
                            f"{self.source} ({label}): {name} is set twice; each setting may stand "
                            "in one arm, grid or paired list only."
                        )
                yield label, {**changes, **flat}

    def _point(self, label: str, changes: dict[str, Any]) -> Point:
        for key in changes:
            if key == "seed" or key.split(".")[0] == "study":
                remedy = "use study.seeds" if "seed" in key else "it is the whole study's"
                raise ConfigError(f"{self.source}: {key} cannot vary here; {remedy}.")
        base = {key: value for key, value in self.tree.items() if key != "study"}
        if "seed" in base:
            raise ConfigError(f"{self.source}: seed belongs into study.seeds.")
        where = self.source if label == "base" else f"{self.source} ({label})"
        dropped: list[str] = []
        tree = overlay(RunSettings, base, unflatten(changes), dropped.append)
        settings = build_run({**tree, "seed": self.section.seed_list[0]}, where)
        notes = tuple(f"{where}: {each}" for each in dropped)
        return Point(label, changes, settings, settings.point_digest(), notes)


def _leaves(changes: Mapping[str, Any]) -> Iterator[str]:
    """Dotted names of all settings that some changes set."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{key}.{name}" for name in _leaves(value))
        else:
            yield key


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
    section = validate(_StudyFile, {"study": tree["study"]}, source).study
    study = Study(section, tree, source, dropped)
    if not study.points:
        raise ConfigError(f"{source}: the study has no points.")
    return study


def _file(path: Path, root: Path | None) -> Path:
    """The study file that CONFIG means; raises ConfigError for a directory or name that is none."""
    if path.is_dir():
        if not (path / "study.yaml").exists():
            raise ConfigError(
                f"CONFIG={path}: is a directory without a study.yaml; name a study file, for "
                "example jobs/quickstart.yaml."
            )
        return path / "study.yaml"
    if root is None or path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    if not (root / path / "study.yaml").exists():
        known = ", ".join(sorted(found.parent.name for found in root.glob("*/study.yaml"))[:12])
        raise ConfigError(
            f"CONFIG={path}: is neither a study file nor the name of a study in {root} "
            f"({known or 'which holds none yet'})."
        )
    return root / path / "study.yaml"


def load_study(config: str | Path, sets: Iterable[str] = (), root: Path | None = None) -> Study:
    """Read a study file, or the resolved study of a study's directory or name under `root`.

    Raises ConfigError.
    """
    path = _file(Path(config), root)
    dropped: list[str] = []

    def lay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        return overlay(RunSettings, base, over, lambda note: dropped.append(f"{path}: {note}"))

    study = build_study(read_tree(path, sets, lay), str(path), tuple(dropped))
    if study.section.after is None:
        return study
    # Kept as a whole path: the resolved study lies elsewhere than the file it comes from.
    after = str(path.parent.absolute() / study.section.after)
    tree = union(study.tree, {"study": {"after": after}})
    return build_study(tree, str(path), study.dropped)
