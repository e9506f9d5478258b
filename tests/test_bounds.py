"""Every bound that a setting declares is kept: what lies just inside, and just outside, of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

import annotated_types
import pydantic
import pytest

from glass_cnn.settings import RunSettings
from glass_cnn.study_file import StudyFile
from hpc.config import Settings, validate
from hpc.errors import ConfigError
from hpc.site import Site

Wrap = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Bound:
    """One bound of one setting, and how a tree is made that holds a value of it."""

    name: str
    model: type[Settings]
    inside: Any
    outside: Any
    wrap: Wrap


@dataclass(frozen=True)
class Number:
    """A setting that takes a number, bounded or not."""

    name: str
    bounded: bool


Found = Bound | Number


def samples(model: type[Settings]) -> dict[str, Any]:
    """The smallest tree of a group of settings: its kind and what has no default."""
    tree: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name == "kind":
            (tree["kind"],) = get_args(field.annotation)
        elif field.is_required():
            tree[field.alias or name] = sample(field.annotation)
    return tree


def sample(annotation: Any) -> Any:
    """A value of a type that lies within the bounds of all settings without a default."""
    inner = [part for part in get_args(annotation) if part is not Ellipsis]
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return samples(annotation)
    if get_origin(annotation) is tuple:
        return [sample(inner[0])]
    if get_origin(annotation) is Annotated:
        return sample(inner[0])
    return {int: 7, float: 0.5, str: "x"}[annotation]


def parts(annotation: Any, metadata: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Each plain type in an annotation, with the bounds that it has there."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        more = [m for mark in marks for m in getattr(mark, "metadata", [mark])]
        yield from parts(inner, [*metadata, *more])
    elif get_args(annotation) and get_origin(annotation) not in (list, tuple, dict):
        for each in get_args(annotation):
            yield from parts(each, metadata)
    else:
        yield annotation, metadata


def edges(kind: Any, mark: Any) -> Iterator[tuple[Any, Any]]:
    """The values just inside and just outside of one bound."""

    def step(value: Any, up: bool) -> Any:
        if kind is int:
            return value + (1 if up else -1)
        return math.nextafter(float(value), math.inf if up else -math.inf)

    match mark:
        case annotated_types.Ge(ge=edge):
            yield edge, step(edge, up=False)
        case annotated_types.Le(le=edge):
            yield edge, step(edge, up=True)
        case annotated_types.Gt(gt=edge):
            yield step(edge, up=True), edge
        case annotated_types.Lt(lt=edge):
            yield step(edge, up=False), edge


def walk(root: type[Settings], model: type[Settings], place: str, wrap: Wrap) -> Iterator[Found]:
    """All bounds and numbers of a group of settings and of those below it."""
    base = samples(model)
    for name, field in model.model_fields.items():
        key = field.alias or name

        def put(value: Any, key: str = key) -> dict[str, Any]:
            return wrap({**base, key: value})

        yield from below(root, field.annotation, field.metadata, place + key, put)


def below(
    root: type[Settings], annotation: Any, metadata: list[Any], name: str, put: Wrap
) -> Iterator[Found]:
    """Those of one setting."""
    for kind, marks in parts(annotation, metadata):
        if kind in (int, float):
            found = [edge for mark in marks for edge in edges(kind, mark)]
            yield Number(name, bool(found))
            yield from (Bound(name, root, *edge, put) for edge in found)
        elif get_origin(kind) in (list, tuple):
            member = get_args(kind)[0]
            if any(isinstance(mark, annotated_types.MinLen) for mark in marks):
                yield Bound(name, root, [sample(member)], [], put)
            yield from below(root, member, [], f"{name}.0", lambda value: put([value]))
        elif isinstance(kind, type) and issubclass(kind, Settings):
            yield from walk(root, kind, f"{name}.", put)


FOUND = [
    *walk(RunSettings, RunSettings, "", dict),
    *walk(StudyFile, StudyFile, "", dict),
    *walk(Site, Site, "", dict),
]
BOUNDS = [found for found in FOUND if isinstance(found, Bound)]


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: f"{bound.name}={bound.outside}")
def test_what_lies_just_outside_of_a_bound_is_refused_by_name(bound: Bound) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(bound.model, bound.wrap(bound.outside), "x.yaml")
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"x.yaml: {bound.name} = ") for line in lines), lines


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: f"{bound.name}={bound.inside}")
def test_what_lies_just_inside_of_a_bound_is_not_refused_for_it(bound: Bound) -> None:
    try:
        validate(bound.model, bound.wrap(bound.inside), "x.yaml")
    except ConfigError as error:  # it may not go together with another setting
        assert f"x.yaml: {bound.name} = " not in str(error)  # noqa: PT017


FREE = {"data.liquid.frame", "data.glass.frame", "data.liquid.above_transition",
        "data.glass.above_transition", "gpus_per_node"}  # fmt: skip
"""numbers whose bounds depend on other settings, and one that may be words, too"""


def test_every_number_has_a_bound() -> None:
    numbers = [found for found in FOUND if isinstance(found, Number)]
    assert {number.name for number in numbers if not number.bounded} == FREE
    assert len({number.name for number in numbers}) > 70
    walked = {"seed", "train.optimizer.momentum", "train.learning_rate.levels.0.rate",
              "train.learning_rate.levels", "study.seeds", "study.seeds.0",
              "study.seeds.from"}  # fmt: skip
    assert walked <= {bound.name for bound in BOUNDS}


def test_numbers_that_are_whole_are_not_rounded() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size = 2\.5: must be a valid integer"):
        validate(RunSettings, {"train": {"batch_size": 2.5}}, "x.yaml")


def test_a_field_without_its_bound_would_be_found() -> None:
    class Loose(Settings):
        size: int | None = None
        """no bound"""
        share: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.5
        """two bounds"""

    found = list(walk(Loose, Loose, "", dict))
    assert [f.bounded for f in found if isinstance(f, Number)] == [False, True]
    assert [(f.inside, f.outside) for f in found if isinstance(f, Bound)] == [
        (0, -5e-324),
        (math.nextafter(1.0, 0.0), 1),
    ]
