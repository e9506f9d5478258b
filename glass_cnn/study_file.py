"""The `study:` section of a file: seeds, arms, grid; and how one source lies over another.

Everything here is checked without building a run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any

import pydantic

from glass_cnn.settings import MAX_SEED, RunSettings, Seed
from glass_cnn.train_settings import Rounding
from hpc.config import Name, Settings, overlay
from hpc.errors import ConfigError
from hpc.yaml_files import is_key, unflatten

Values = dict[str, list[Any]]
MAX_RUNS = 200_000
"""of one study; more is a typing error, and would fill memory before anything is printed"""


OWN = {"seed": "study.seeds", "rounding": "study.copies"}
"""settings that each run has of its own, not its point -> what of a study says them"""


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


class Copies(Settings):
    """Runs of a seed that differ by rounding alone: `train_settings.Rounding` says how."""

    count: Annotated[int, pydantic.Field(ge=1, le=MAX_RUNS)] = 12
    """runs of each of these seeds; the first of them, copy 0, is the seed's run itself"""
    step: Annotated[int, pydantic.Field(ge=0)] = 0
    """updates before one weight is moved by one unit in the last place"""
    seeds: list[Annotated[Seed, pydantic.Strict()]] | None = None
    """the seeds of the study that have copies; null: all"""


def _form_of_copies(value: Any) -> str:
    return "some" if isinstance(value, Mapping | Copies) else "number"


class StudySection(Settings):
    """The `study:` section of a study file."""

    name: Name
    """name of the study and of its directory under logs/"""
    description: str = ""
    """what the study asks, one or two sentences; stands at the head of its report"""
    seeds: Seeds = SeedRange()
    """{from: 0, count: 12}, a number of seeds, or a list of seeds"""
    copies: Annotated[
        Annotated[Copies, pydantic.Tag("some")]
        | Annotated[int, pydantic.Field(ge=1, le=MAX_RUNS), pydantic.Tag("number")],
        pydantic.Discriminator(_form_of_copies),
    ] = 1
    """runs of a seed that differ by rounding alone: {count: 12, seeds: [0]}, or 12 of every seed"""
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
        self._check_copies()
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

    def _check_copies(self) -> None:
        seeds = self.copied.seeds
        if seeds is None:
            return
        _refuse_repeats("copies.seeds", seeds)
        if not seeds:
            raise ValueError("copies.seeds: is empty; leave it out or give it something")
        if strange := sorted(set(seeds) - set(self.seed_list)):
            raise ValueError(
                f"copies.seeds: {', '.join(map(str, strange))}: no seed of the study; study.seeds "
                "says which there are"
            )

    @property
    def copied(self) -> Copies:
        """How many copies there are, of which seeds."""
        return Copies(count=self.copies) if isinstance(self.copies, int) else self.copies

    @property
    def copied_seeds(self) -> list[int]:
        """The seeds that have copies, in order."""
        if self.copied.count == 1:
            return []
        return self.seed_list if self.copied.seeds is None else self.copied.seeds

    @property
    def replicates(self) -> list[tuple[int, Rounding | None]]:
        """What every point is run with: each seed by itself, followed by its copies."""
        copied = set(self.copied_seeds)
        copies = [
            Rounding(copy=number, step=self.copied.step) for number in range(1, self.copied.count)
        ]
        return [
            (seed, rounding)
            for seed in self.seed_list
            for rounding in (None, *(copies if seed in copied else ()))
        ]

    @property
    def run_count(self) -> int:
        """Number of runs, without building them."""
        axes = [*map(len, self.grid.values()), *(len(next(iter(g.values()))) for g in self.paired)]
        copies = (self.copied.count - 1) * len(self.copied_seeds)
        return math.prod([len(self.arms) or 1, *axes, len(self.seed_list) + copies])


class StudyFile(Settings):
    """What of a study file is not settings of its runs; so errors name `study.seeds`."""

    study: StudySection


def _refuse_repeats(what: str, values: Iterable[Any]) -> None:
    seen: list[Any] = []
    for value in values:
        if value in seen:
            raise ValueError(f"{what}: {value!r} stands there twice; each may stand once")
        seen.append(value)


def leaves(changes: Mapping[str, Any]) -> Iterator[str]:
    """Dotted names of all settings that some changes set."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{key}.{name}" for name in leaves(value))
        else:
            yield key


def lay(
    base: Mapping[str, Any], over: Mapping[str, Any], told: Callable[[str], object]
) -> dict[str, Any]:
    """One source of a study file laid over another; raises ConfigError.

    Of an arm that both have, each source's keys are put together first, as those of sections are.
    """
    tree = overlay(RunSettings, base, over, told)
    lower, upper = _arms(base), _arms(over)
    for name in [name for name in lower if name in upper]:
        if not isinstance(lower[name], Mapping) or not isinstance(upper[name], Mapping):
            continue
        dropped: list[str] = []
        both = (_nested(name, lower[name]), _nested(name, upper[name]))
        arm = overlay(RunSettings, *both, dropped.append)
        tree["study"] = {**tree["study"], "arms": {**tree["study"]["arms"], name: arm}}
        for note in dropped:
            told(f"arm {name}: {note}")
    return tree


def _arms(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    section = tree.get("study")
    arms = section.get("arms") if isinstance(section, Mapping) else None
    return arms if isinstance(arms, Mapping) else {}


def _nested(arm: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of one arm in one source as a tree; raises ConfigError where two set the same."""
    refuse_both(f"study.arms.{arm}", list(leaves(changes)))
    return unflatten(changes)


def refuse_both(where: str, names: list[str]) -> None:
    """Raise ConfigError for a setting that stands twice among those that make a point."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{where}: {name} is set twice; each setting may stand in one arm, grid or paired "
                "list only."
            )
