"""Studies: points × seeds, their names, and what a study file must not say."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_cnn.study import MAX_NAME, Study, build_study, load_study
from hpc.errors import ConfigError


def study(sections: dict[str, Any] | None = None, **section: Any) -> Study:
    return build_study({"study": {"name": "s", **section}, **(sections or {})}, "s.yaml")


def refused(section: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_study({"study": section}, "s.yaml")
    assert str(caught.value).startswith("s.yaml")
    return str(caught.value)


# Points and runs


def test_a_study_without_variations_is_one_point() -> None:
    found = study(seeds=2)
    assert [p.label for p in found.points] == ["base"]
    assert [r.seed for r in found.runs] == [0, 1]


def test_a_grid_is_every_combination() -> None:
    found = study(grid={"train.batch_size": [10, 80], "train.dropout": [0.1, 0.5, 0]})
    pairs = {(p.settings.train.batch_size, p.settings.train.dropout) for p in found.points}
    assert pairs == set(itertools.product([10, 80], [0.1, 0.5, 0.0]))
    assert found.points[0].label == "batch_size_10-dropout_0.1"
    assert len(found.runs) == 6 * 12


def test_paired_lists_advance_together() -> None:
    found = study(
        paired=[{"train.iterations": [100, 200], "train.batch_size": [80, 40]}],
        grid={"train.l2": [0.0, 0.01]},
    )
    pairs = [(p.settings.train.iterations, p.settings.train.batch_size) for p in found.points]
    assert sorted(set(pairs)) == [(100, 80), (200, 40)]
    assert len(pairs) == 4


def test_two_paired_groups_cross() -> None:
    groups = [{"train.iterations": [1, 2, 3]}, {"train.l2": [0.0, 0.1], "train.dropout": [0, 0.5]}]
    assert len(study(paired=groups).points) == 6


def test_arms_are_named_changes_with_dots_or_nested() -> None:
    found = study(
        arms={
            "low": {"train.learning_rate.initial": 1e-4},
            "high": {"train": {"learning_rate": {"initial": 1e-2}, "batch_size": 20}},
        },
        grid={"train.dropout": [0.1, 0.5]},
    )
    assert [p.label for p in found.points] == [
        "low-dropout_0.1", "low-dropout_0.5", "high-dropout_0.1", "high-dropout_0.5",
    ]  # fmt: skip
    low, *_, high = (p.settings.train for p in found.points)
    assert (low.learning_rate.initial, low.dropout) == (1e-4, 0.1)  # type: ignore[union-attr]
    assert (high.learning_rate.initial, high.batch_size) == (1e-2, 20)  # type: ignore[union-attr]


def test_the_base_setting_reaches_every_point() -> None:
    found = study(
        {"train": {"l2": 0.5}, "render": {"pixels": 40}}, grid={"train.dropout": [0, 0.5]}
    )
    assert all(p.settings.train.l2 == 0.5 and p.settings.render.pixels == 40 for p in found.points)


@pytest.mark.parametrize(
    ("seeds", "wanted"),
    [
        (3, [0, 1, 2]),
        ([7, 3, 11], [7, 3, 11]),
        ({"from": 5, "count": 3}, [5, 6, 7]),
        ({"count": 2}, [0, 1]),
        ({"from": 2**31 - 2, "count": 2}, [2**31 - 2, 2**31 - 1]),
    ],
)
def test_seeds(seeds: Any, wanted: list[int]) -> None:
    found = study(seeds=seeds)
    assert found.section.seed_list == wanted
    assert [run.settings.seed for run in found.runs] == wanted


def test_seeds_vary_fastest_and_each_run_has_its_identity() -> None:
    found = study(seeds=2, grid={"train.l2": [0.0, 0.1]})
    assert [(r.point.label, r.seed) for r in found.runs] == [
        ("l2_0", 0), ("l2_0", 1), ("l2_0.1", 0), ("l2_0.1", 1),
    ]  # fmt: skip
    for run in found.runs:
        assert run.digest == run.settings.run_digest()
        assert run.name == f"{run.point.label}-s{run.seed}-{run.digest[:8]}"
    assert len({run.name for run in found.runs}) == 4


def test_points_that_share_a_data_set_name_it_once() -> None:
    assert len(study(grid={"train.l2": [0.0, 0.1]}).datasets) == 1
    assert len(study(grid={"render.pixels": [32, 64], "train.l2": [0.0, 0.1]}).datasets) == 2


# Names

values = st.one_of(
    st.text(max_size=30), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none()
)


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=6, unique=True))
def test_labels_are_safe_as_paths_and_shell_words(paths: list[str]) -> None:
    try:
        found = study(grid={"train.restart_from.run": paths})
    except ConfigError as error:
        assert "two points would both be called" in str(error)  # noqa: PT017
        return
    names = [run.name for run in found.runs]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name) for name in names)


def test_names_say_what_differs() -> None:
    found = study(
        {"train": {"iterations": 10}},
        grid={
            "train.learning_rate.initial": [1e-5],
            "train.optimizer": [{"kind": "sgd", "momentum": 0.9}],
            "train.restart_from.run": ["other/runs/base-s{seed}-*"],
        },
    )
    assert (
        found.points[0].label
        == "learning_rate_1e_05-optimizer_sgd-restart_from_other_runs_base_s_seed"
    )


def test_a_name_too_long_for_file_systems_is_refused() -> None:
    arm: dict[str, Any] = {"a" * 60: {}}
    settings = {"render": {"window": 5.0}}
    grid = {
        "simulation.equilibration_steps": [1000],
        "simulation.temperature_start": [3.0],
        "render.windows_per_configuration": [4],
        "train.batches_per_iteration": [3],
        "train.evaluation_examples": [100],
    }
    assert study(settings, grid=grid).points
    with pytest.raises(ConfigError, match=rf"at most {MAX_NAME} are allowed.*study\.arms"):
        study(settings, grid=grid, arms=arm)
    name = study(arms={"a" * 60: {"train.l2": 0.0}}).runs[0].name
    assert len(name) <= MAX_NAME


# What is refused


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "study.name is missing"),
        (None, "study is nothing; a mapping"),
        ([1], "study is a list"),
        ({"name": "a/b"}, "because it becomes a file name"),
        ({"name": "s", "sedes": 3}, "study.sedes is no setting: did you mean 'seeds'?"),
        ({"name": "s", "seeds": 2.5}, "study.seeds = 2.5: must be a valid integer"),
        ({"name": "s", "seeds": "three"}, 'study.seeds = "three": is text'),
        ({"name": "s", "seeds": True}, "study.seeds = true: is a truth value"),
        ({"name": "s", "seeds": None}, "study.seeds = null"),
        ({"name": "s", "seeds": []}, "seeds: is empty; leave it out or give it something"),
        ({"name": "s", "grid": {}}, "grid: is empty; leave it out"),
        ({"name": "s", "arms": {}}, "arms: is empty; leave it out"),
        ({"name": "s", "paired": []}, "paired: is empty; leave it out"),
        ({"name": "s", "seeds": [1, "a"]}, 'study.seeds.1 = "a": must be a valid integer'),
        ({"name": "s", "seeds": [True]}, "study.seeds.0 = true"),
        ({"name": "s", "seeds": [3, 4, 3]}, "3 stands there twice"),
        (
            {
                "name": "s",
                "arms": {"a": {}, "b": {}},
                "grid": {"train.batch_size": [*range(2000)], "train.l2": [*range(1000)]},
                "paired": [{"train.dropout": [0, 0.5], "train.iterations": [1, 2]}],
                "seeds": [4, 5, 6],
            },
            "asks for 24,000,000 runs; at most 200,000 are allowed",
        ),
        (
            {
                "name": "s",
                "arms": {"a": {"train.l2": 0.3, "train.dropout": 0}},
                "grid": {"train.l2": [0.1, 0.2]},
            },
            "s.yaml (a-l2_0.1): train.l2 is set twice; each setting may stand in one",
        ),
        (
            {
                "name": "s",
                "arms": {"a": {"train": {"l2": 0.3}}},
                "paired": [{"train.l2": [0.1], "train.dropout": [0]}],
            },
            "train.l2 is set twice",
        ),
        (
            {"name": "s", "grid": {"train": [{"l2": 0.3}], "train.l2": [0.1]}},
            "train.l2 is set twice",
        ),
        (
            {"name": "s", "arms": {"a": {"train.l2": 0.1, "train": {"l2": 0.2}}}},
            "s.yaml (a): train.l2 is set twice",
        ),
        (
            {"name": "s", "seeds": {"fron": 1}},
            "study.seeds.fron is no setting: did you mean 'from'?",
        ),
        ({"name": "s", "seeds": {"from": "0"}}, 'study.seeds.from = "0": is text'),
        ({"name": "s", "seeds": {"from": 2**31 - 1, "count": 2}}, "2147483648 is larger than"),
        ({"name": "s", "grid": [1]}, "study.grid is a list"),
        ({"name": "s", "grid": {"train.l2": 0.1}}, "must be a valid list"),
        ({"name": "s", "grid": {"train.l2": []}}, "train.l2 has no values"),
        ({"name": "s", "grid": {"train.l2": [0.1, 0.1]}}, "0.1 stands there twice"),
        ({"name": "s", "grid": {"train.L2": [0.1]}}, "train.L2 is no setting: did you mean 'l2'?"),
        ({"name": "s", "grid": {"trian.l2": [0.1]}}, "trian is no setting: did you mean 'train'?"),
        ({"name": "s", "grid": {"train..l2": [0.1]}}, "'train..l2' is no setting"),
        ({"name": "s", "grid": {"": [0.1]}}, "'' is no setting"),
        ({"name": "s", "grid": {3: [0.1]}}, "keys must be text"),
        ({"name": "s", "grid": {"train.l2": [0.1, "x"]}}, '(l2_x): train.l2 = "x": is text'),
        ({"name": "s", "grid": {"seed": [1, 2]}}, "seed cannot vary here; use study.seeds"),
        ({"name": "s", "arms": {"a": {"study.name": "b"}}}, "study.name cannot vary here"),
        ({"name": "s", "arms": {"a b": {}}}, "it becomes a directory name"),
        ({"name": "s", "arms": {"..": {}}}, "it becomes a directory name"),
        ({"name": "s", "arms": {"a": 3}}, "study.arms.a is a number; a mapping"),
        ({"name": "s", "arms": {"a": {"train.l2": -1}}}, "s.yaml (a): train.l2 = -1"),
        ({"name": "s", "arms": {"a": {}, "b": {}}}, "'a' and 'b' are the same settings"),
        ({"name": "s", "arms": {"a": {}, "b": {"launch.ranks": 1}}}, "are the same settings"),
        ({"name": "s", "paired": [{"train.l2": [1], "train.dropout": []}]}, "of equal, non-zero"),
        (
            {"name": "s", "paired": [{"train.l2": [1], "train.dropout": [0, 0.5]}]},
            "equal, non-zero",
        ),
        ({"name": "s", "paired": [{}]}, "of equal, non-zero length"),
        ({"name": "s", "paired": {"train.l2": [1]}}, "study.paired: must be a valid list"),
        ({"name": "s", "paired": [{"train.l2": [1, 1]}]}, "are the same settings"),
        (
            {"name": "s", "grid": {"train.l2": [0.1]}, "paired": [{"train.l2": [0.2]}]},
            "'train.l2' stands there twice",
        ),
        (
            {
                "name": "s",
                "grid": {
                    "train.learning_rate": [
                        {"kind": "constant", "initial": 1e-3},
                        {"kind": "constant", "initial": 1e-4},
                    ]
                },
            },
            "two points would both be called 'learning_rate_constant'",
        ),
        ({"name": "s", "after": 5}, "study.after = 5"),
    ],
    ids=lambda x: str(x)[:70],
)
def test_refused(section: Any, words: str) -> None:
    message = refused(section)
    assert words in message
    assert "\n" not in message


def test_arms_that_would_be_started_otherwise_than_the_first_are_not_started() -> None:
    """Reports of a study that was once made so can still be made; what a run reads may differ."""
    arms = {"a": {}, "b": {"train.l2": 0, "launch.division": "data", "launch.ranks": 4}}
    made = study({"study": {"name": "s", "arms": arms}})
    assert len(made.runs) == 2 * len(made.section.seed_list)
    with pytest.raises(ConfigError) as refusal:
        assert made.launch
    assert "(b): launch.ranks cannot vary here: it is 4 and 'auto' in 'a'" in str(refusal.value)
    arms["b"].pop("launch.ranks")
    assert study({"study": {"name": "s", "arms": arms}}).launch.ranks == "auto"


def test_a_file_of_settings_without_study_is_told_what_to_add() -> None:
    with pytest.raises(ConfigError, match="has no 'study:' section; add one"):
        build_study({"train": {}}, "s.yaml")
    with pytest.raises(ConfigError, match=r"seed belongs into study\.seeds"):
        study({"seed": 3})


# Files and names


def test_the_resolved_study_reads_back_to_the_same_runs(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {l2: 0.3}")
    path = tmp_path / "s.yaml"
    path.write_text(
        "extends: base.yaml\nstudy: {name: mine, seeds: {from: 3, count: 2}, "
        "grid: {train.dropout: [0.1, 0.2]}}"
    )
    first = load_study(path, ["train.batch_size=20", "study.seeds=1"])
    place = first.directory(tmp_path / "logs")
    place.path.mkdir(parents=True)
    place.study.write_text(first.to_yaml())
    for again in (load_study(place.path), load_study("mine", root=tmp_path / "logs")):
        assert [run.name for run in again.runs] == [run.name for run in first.runs]
        assert again.runs[0].settings == first.runs[0].settings
    assert len(first.runs) == 2
    assert first.run_dir(tmp_path / "logs", first.runs[0]).path.parent == place.runs


def test_a_run_is_found_by_the_beginning_of_its_name() -> None:
    found = study(seeds=2, grid={"train.l2": [0.0, 0.1]})
    assert found.find(found.runs[1].name) == found.runs[1]
    assert found.find("l2_0.1-s1") == found.runs[3]
    with pytest.raises(ConfigError, match=r"'l2_0\.1' fits 2 runs; for example: l2_0\.1-s0"):
        found.find("l2_0.1")
    with pytest.raises(ConfigError, match="'nothing' is no run of it; for example: l2_0-s0"):
        found.find("nothing")
