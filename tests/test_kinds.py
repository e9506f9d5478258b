"""A setting with a `kind` is what its keys say, in whatever order and from whatever source."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from glass_cnn.settings import RunSettings
from glass_cnn.study import Study, load_study
from glass_cnn.train_settings import Train
from hpc.config import Settings
from hpc.errors import ConfigError

SOURCES = ("file", "extends", "arm", "grid", "SET")
VALUES: dict[str, Any] = {
    "levels": [{"above": 0.5, "rate": 1e-4}],
    "schedule_length": 7,
    "decay_iterations": 7,
    "warmup_iterations": 7,
    "staircase": True,
    "nesterov": True,
}
"""of fields whose value is no small number"""


def unions() -> Iterator[tuple[str, list[type[Settings]]]]:
    """Every setting of a training that has kinds: its dotted name, and the class of each kind."""
    for name, field in Train.model_fields.items():
        kinds = [m for m in get_args(field.annotation) if "kind" in getattr(m, "model_fields", {})]
        if kinds:
            yield f"train.{name}", kinds


CASES = [(name, kind) for name, kinds in unions() for kind in kinds]
IDS = [f"{name.split('.')[1]}-{kind.__name__}" for name, kind in CASES]


def said(kind: type[Settings]) -> dict[str, Any]:
    """A value for each key of a kind, none of them a default."""
    (name,) = get_args(kind.model_fields["kind"].annotation)
    others = [key for key in kind.model_fields if key != "kind"]
    return {"kind": name} | {key: VALUES.get(key, 0.5) for key in others}


def write(place: Path, keys: dict[str, tuple[str, Any]]) -> tuple[Path, list[str]]:
    """A study whose dotted keys stand in the sources they are given, and its --set."""
    by = {source: {k: v for k, (s, v) in keys.items() if s == source} for source in SOURCES}
    nested = {source: nest(by[source]) for source in ("file", "extends")}
    study: dict[str, Any] = {"name": "x", "seeds": 1}
    if by["arm"]:
        study["arms"] = {"a": by["arm"]}
    if by["grid"]:
        study["grid"] = {key: [value] for key, value in by["grid"].items()}
    (place / "base.yaml").write_text(yaml.safe_dump(nested["extends"], sort_keys=False) or "{}")
    top = {"extends": "base.yaml", "study": study, **nested["file"]}
    (place / "study.yaml").write_text(yaml.safe_dump(top, sort_keys=False))
    sets = [f"{key}={yaml.safe_dump(v, default_flow_style=True)}" for key, v in by["SET"].items()]
    return place / "study.yaml", [each.removesuffix("\n").removesuffix("\n...") for each in sets]


def nest(keys: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *above, last = key.split(".")
        functools.reduce(lambda branch, part: branch.setdefault(part, {}), above, tree)[last] = (
            value
        )
    return tree


@pytest.mark.parametrize(("name", "kind"), CASES, ids=IDS)
@given(data=st.data())
def test_the_result_is_what_the_keys_say(
    name: str, kind: type[Settings], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wanted = said(kind)
    order = data.draw(st.permutations(sorted(wanted)))
    keys = {f"{name}.{key}": (data.draw(st.sampled_from(SOURCES)), wanted[key]) for key in order}
    config, sets = write(tmp_path_factory.mktemp("study"), keys)
    assert as_plain(load_study(config, sets), name) == wanted


def as_plain(study: Study, name: str) -> dict[str, Any]:
    """The setting of this dotted name in the study's only point, as a plain tree."""
    settings: Any = study.points[0].settings
    part = functools.reduce(getattr, name.split("."), settings)
    return part.model_dump(mode="json")


@pytest.mark.parametrize(("name", "kind"), CASES, ids=IDS)
def test_the_order_of_two_keys_in_one_arm_does_not_matter(
    name: str, kind: type[Settings], tmp_path: Path
) -> None:
    wanted = said(kind)
    for key in sorted(set(wanted) - {"kind"}):
        for first, second in (("kind", key), (key, "kind")):
            rest = {
                f"{name}.{k}": ("file", v) for k, v in wanted.items() if k not in (first, second)
            }
            pair = {f"{name}.{k}": ("arm", wanted[k]) for k in (first, second)}
            config, sets = write(tmp_path, rest | pair)
            assert as_plain(load_study(config, sets), name) == wanted


def default_kind(kinds: list[type[Settings]]) -> type[Settings]:
    return next(kind for kind in kinds if not kind.model_fields["kind"].is_required())


@pytest.mark.parametrize("later", ["arm", "grid", "SET"])
@pytest.mark.parametrize(("name", "kinds"), list(unions()), ids=[n for n, _ in unions()])
def test_naming_the_default_kind_replaces_nothing(
    name: str, kinds: list[type[Settings]], later: str, tmp_path: Path
) -> None:
    wanted = said(default_kind(kinds))
    keys = {f"{name}.{k}": ("file", v) for k, v in wanted.items() if k != "kind"}
    config, sets = write(tmp_path, keys | {f"{name}.kind": (later, wanted["kind"])})
    study = load_study(config, sets)
    assert as_plain(study, name) == wanted
    assert study.notes == ()


PAIRS = [
    (name, old, new)
    for name, kinds in unions()
    for old, new in itertools.permutations(kinds, 2)
    if set(old.model_fields) - set(new.model_fields)
]


@pytest.mark.parametrize(
    ("name", "old", "new"), PAIRS, ids=[f"{o.__name__}-{n.__name__}" for _, o, n in PAIRS]
)
def test_keys_that_another_kind_lacks_are_told_or_refused(
    name: str, old: type[Settings], new: type[Settings], tmp_path: Path
) -> None:
    dropped = sorted(set(old.model_fields) - set(new.model_fields))
    before = {f"{name}.{k}": ("file", v) for k, v in said(old).items()}
    config, sets = write(tmp_path, before | {f"{name}.{k}": ("arm", v) for k, v in said(new).items()
                                             if k not in old.model_fields})  # fmt: skip
    text = config.read_text()
    tree = yaml.safe_load(text)
    tree["study"].setdefault("arms", {}).setdefault("a", {})[f"{name}.kind"] = said(new)["kind"]
    config.write_text(yaml.safe_dump(tree))
    study = load_study(config, sets)
    told = " ".join(study.notes)
    assert all(f"drops {name}.{key} = " in told for key in dropped)
    result = as_plain(study, name)
    assert result["kind"] == said(new)["kind"]
    assert not set(dropped) & set(result)

    tree["study"]["arms"]["a"][f"{name}.{dropped[0]}"] = said(old)[dropped[0]]
    config.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=f"{name}.{dropped[0]} is no setting"):
        load_study(config, sets)


def test_every_union_with_kinds_is_walked() -> None:
    assert {name for name, _ in unions()} == {"train.learning_rate", "train.optimizer"}
    assert "kind" not in RunSettings.model_fields
