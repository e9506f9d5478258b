"""A setting with a `kind` is what its keys say, in whatever order and from whatever source."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_cnn.settings import RunSettings
from glass_cnn.study import Study, load_study
from glass_cnn.train_settings import Train
from hpc.commandline import assignments
from hpc.config import Settings
from hpc.errors import ConfigError
from jobs import train

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


def write(
    place: Path, keys: dict[str, tuple[str, Any]], nested: bool = False, lowest: Any = None
) -> tuple[Path, list[str]]:
    """A study whose dotted keys stand in the sources they are given, and its --set.

    `nested` writes those of arm and grid as mappings, `lowest` lies below all of them.
    """
    by = {source: {k: v for k, (s, v) in keys.items() if s == source} for source in SOURCES}
    study: dict[str, Any] = {"name": "x", "seeds": 1}
    if by["arm"]:
        study["arms"] = {"a": nest(by["arm"]) if nested else by["arm"]}
    if by["grid"]:
        grid = nest(by["grid"])["train"] if nested else by["grid"]
        study["grid"] = {f"train.{k}" if nested else k: [value] for k, value in grid.items()}
    (place / "lowest.yaml").write_text(yaml.safe_dump(lowest or {}))
    base = {"extends": "lowest.yaml", **nest(by["extends"])}
    (place / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    top = {"extends": "base.yaml", "study": study, **nest(by["file"])}
    (place / "study.yaml").write_text(yaml.safe_dump(top, sort_keys=False))
    sets = [f"{key}={yaml.safe_dump(v, default_flow_style=True)}" for key, v in by["SET"].items()]
    texts = [each.removesuffix("\n").removesuffix("\n...") for each in sets]
    return place / "study.yaml", assignments(" ".join(texts)) if texts else []


def nest(keys: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *above, last = key.split(".")
        functools.reduce(lambda branch, part: branch.setdefault(part, {}), above, tree)[last] = (
            value
        )
    return tree


@pytest.mark.parametrize(("name", "kind"), CASES, ids=IDS)
@settings(max_examples=40)
@given(data=st.data())
def test_the_result_is_what_the_keys_say(
    name: str, kind: type[Settings], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wanted = said(kind)
    order = data.draw(st.permutations(sorted(wanted)))
    keys = {f"{name}.{key}": (data.draw(st.sampled_from(SOURCES)), wanted[key]) for key in order}
    other = data.draw(st.sampled_from([None, *(k for n, k in CASES if n == name)]))
    lowest = nest({f"{name}.{key}": value for key, value in said(other).items()}) if other else None
    place = tmp_path_factory.mktemp("study")
    config, sets = write(place, keys, nested=data.draw(st.booleans()), lowest=lowest)
    study = load_study(config, sets)
    assert as_plain(study, name) == wanted
    resolved = place / "resolved.yaml"
    resolved.write_text(study.to_yaml())
    assert load_study(resolved).runs[0].name == study.runs[0].name


def as_plain(study: Study, name: str) -> dict[str, Any]:
    """The setting of this dotted name in the study's only point, as a plain tree.

    In lists without what is null: there one says `above` or `at_least`.
    """
    point: Any = study.points[0].settings
    part = functools.reduce(getattr, name.split("."), point)
    tree: dict[str, Any] = part.model_dump(mode="json")
    for key, value in tree.items():
        if isinstance(value, list):
            tree[key] = [{k: v for k, v in each.items() if v is not None} for each in value]
    return tree


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


# Relatives


def told(tmp_path: Path, text: str, sets: tuple[str, ...] = (), **files: str) -> Study:
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    (tmp_path / "s.yaml").write_text(text)
    return load_study(tmp_path / "s.yaml", sets)


SGD = "{train.optimizer.kind: sgd, train.optimizer.momentum: 0.9}"
NESTED = "{train: {optimizer: {kind: sgd, momentum: 0.9}}}"


@pytest.mark.parametrize("lower", [SGD, NESTED])
@pytest.mark.parametrize(
    "upper", ["{train.optimizer.momentum: 0.5}", "{train.optimizer: {momentum: 0.5}}"]
)
def test_an_arm_is_laid_over_that_of_the_extended_file(
    tmp_path: Path, lower: str, upper: str
) -> None:
    text = f"extends: base.yaml\nstudy: {{name: x, arms: {{a: {upper}, b: {{}}}}}}"
    study = told(tmp_path, text, base=f"study: {{arms: {{a: {lower}}}}}")
    assert as_plain(study, "train.optimizer")["momentum"] == 0.5
    assert study.notes == ()


@pytest.mark.parametrize("lower", [SGD, NESTED])
def test_set_reaches_into_an_arm(tmp_path: Path, lower: str) -> None:
    text = f"study: {{name: x, arms: {{a: {lower}}}}}"
    study = told(tmp_path, text, ("study.arms.a.train.optimizer.momentum=0.5",))
    assert as_plain(study, "train.optimizer")["momentum"] == 0.5
    study = told(tmp_path, text, ("study.arms.a.train.optimizer.kind=adam",))
    assert as_plain(study, "train.optimizer")["kind"] == "adam"
    (note,) = study.notes
    assert note.endswith(
        'arm a: train.optimizer.kind = "adam" drops train.optimizer.momentum = 0.9'
    )


def test_one_source_that_sets_the_same_twice_in_an_arm_is_refused(tmp_path: Path) -> None:
    arm = "{train.optimizer.momentum: 0.9, train: {optimizer: {kind: sgd, momentum: 0.5}}}"
    text = f"extends: base.yaml\nstudy: {{name: x, arms: {{a: {arm}}}}}"
    with pytest.raises(ConfigError, match=r"arms\.a: train\.optimizer\.momentum is set twice"):
        told(tmp_path, text, base="study: {arms: {a: {train.l2: 0.5}}}")


def test_a_misspelt_key_is_not_dropped_with_its_kind(tmp_path: Path) -> None:
    text = (
        "study: {name: x, arms: {a: {train.optimizer.kind: adam}}}\n"
        "train: {optimizer: {kind: sgd, momentun: 0.9}}"
    )
    with pytest.raises(ConfigError, match=r"train\.optimizer\.momentun is no setting"):
        told(tmp_path, text)


def test_what_is_dropped_at_many_points_is_told_once(tmp_path: Path) -> None:
    text = (
        "study: {name: x, grid: {train.optimizer.kind: [adam, sgd], train.l2: [0, 1, 2, 3, 4]}}\n"
        "train: {optimizer: {kind: sgd, momentum: 0.9}}"
    )
    (note,) = told(tmp_path, text).notes
    assert (
        "s.yaml (optimizer_adam-l2_0, optimizer_adam-l2_1, optimizer_adam-l2_2 and 2 more): "
        in note
    )


def test_a_run_that_is_started_by_itself_tells_what_was_dropped_for_it(tmp_path: Path) -> None:
    text = (
        "study: {name: x, seeds: 1, arms: {a: {train.optimizer.kind: adam}, b: {}}}\n"
        "train: {optimizer: {kind: sgd, momentum: 0.9}}"
    )
    told(tmp_path, text)
    place = [str(tmp_path / "s.yaml"), "--logs", str(tmp_path)]
    *_, notes = train.choose(train.parse([*place, "a-s0"]))
    assert [note.split("s.yaml: ")[1] for note in notes] == [
        'train.optimizer.kind = "adam" drops train.optimizer.momentum = 0.9'
    ]
    *_, notes = train.choose(train.parse([*place, "b-s0"]))
    assert notes == ()


def test_a_grid_of_whole_mappings_keeps_what_they_do_not_say(tmp_path: Path) -> None:
    text = (
        "study: {name: x, grid: {train.learning_rate: [{kind: constant}, {final: 1e-6}]}}\n"
        "train: {learning_rate: {kind: linear, initial: 1e-5, final: 1e-7, schedule_length: 9}}"
    )
    study = told(tmp_path, text)
    rates = [point.settings.train.learning_rate.model_dump() for point in study.points]
    assert rates == [
        {"kind": "constant", "initial": 1e-5},
        {"kind": "linear", "initial": 1e-5, "final": 1e-6, "schedule_length": 9},
    ]
    assert len(study.notes) == 2


def test_nothing_over_a_mapping_is_refused_and_a_mapping_over_nothing_is_not(
    tmp_path: Path,
) -> None:
    text = "study: {name: x, arms: {a: {train.optimizer: %s}}}\ntrain: {optimizer: %s}"
    with pytest.raises(ConfigError, match=r"train\.optimizer is nothing; a mapping"):
        told(tmp_path, text % ("null", "{kind: sgd}"))
    study = told(tmp_path, text % ("{kind: sgd, momentum: 0.5}", "null"))
    assert as_plain(study, "train.optimizer")["momentum"] == 0.5
