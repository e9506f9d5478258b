"""The study files in jobs/: each is valid in both sizes, and each small one really runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from glass_cnn.data.dataset import directory
from glass_cnn.pipeline import pipeline
from glass_cnn.settings import RunSettings
from glass_cnn.study import Study, load_study
from hpc.commandline import run_main
from hpc.errors import EXIT_COMPLETE, ConfigError
from hpc.yaml_files import read_tree
from jobs import aggregate, submit
from tests import tiny

JOBS = Path(submit.__file__).parent
FULL = {path.stem: path for path in sorted((JOBS / "full").glob("*.yaml"))}
SMALL = {path.stem: path for path in sorted((JOBS / "small").glob("*.yaml"))}
FILES = [JOBS / "quickstart.yaml", *FULL.values(), *SMALL.values()]
NAMES = [str(path.relative_to(JOBS)) for path in FILES]
LOG = {
    "repeats", "batch_grid", "dropout_grid", "linear_550", "augmentation", "threshold_90",
    "january_2018", "january_2018_restart", "exponential",
}  # fmt: skip
"""experiments of the results log; the others are this project's own"""


def flat(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    """`key=value` of every leaf."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={json.dumps(value)}"


# Every study on the one tiny data set, for one iteration of two steps.
SHRUNK = [
    *flat({key: tiny.DATA[key] for key in ("simulation", "data", "render")}),
    *("data.form=thermal", "data.liquid={frame: 0}", "data.glass={frame: -1}"),
    *(f"data.{side}.{how}=null" for side in ("liquid", "glass")
      for how in ("temperature", "above_transition")),
    *("train.iterations=1", "train.batches_per_iteration=2", "launch.ranks=1"),
]  # fmt: skip


# What is asked for


def test_every_experiment_of_the_log_is_there_in_both_sizes() -> None:
    assert set(FULL) == set(SMALL)
    assert set(FULL) > LOG


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_dry_run_shows_every_run(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(path), "--dry-run", "--launcher", "local", "--logs", str(tmp_path)]
    assert run_main(submit.main, words) == EXIT_COMPLETE
    shown = capsys.readouterr().out
    study = load_study(path)
    assert len(study.section.description) > 40
    for run in study.runs:
        assert f" {run.name} " in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FULL)
def test_both_sizes_are_the_same_experiment(name: str) -> None:
    full, small = load_study(FULL[name]), load_study(SMALL[name])
    assert small.name == f"small_{full.name}"
    assert full.name == name
    assert [p.label for p in full.points] == [p.label for p in small.points]
    assert full.section.seed_list == small.section.seed_list == list(range(12))
    for big, little in zip(full.points, small.points, strict=True):
        assert big.settings.train.optimizer == little.settings.train.optimizer
        for key in ("batch_size", "dropout", "augmentation", "l2"):
            assert getattr(big.settings.train, key) == getattr(little.settings.train, key), key
        assert big.settings.frame("liquid") == little.settings.frame("liquid")
        assert big.settings.analysis == little.settings.analysis


@pytest.mark.parametrize("name", FULL)
def test_full_sizes_are_the_logs(name: str) -> None:
    for point in load_study(FULL[name]).points:
        settings = point.settings
        assert (settings.render.pixels, settings.render.style) == (250, "scatter2017")
        assert settings.model.recipe == "swanson2017"
        assert settings.simulation.trajectories == 10_000
        assert settings.render.windows_per_configuration == 1


def points(name: str) -> dict[str, RunSettings]:
    return {point.label: point.settings for point in load_study(FULL[name]).points}


def test_grids_hold_the_logs_values() -> None:
    batches = [10, 15, 20, 25, 30, 50, 80, 100, 150, 200, 250]
    cells = [
        (s.train.batch_size, s.train.learning_rate.initial)  # type: ignore[union-attr]
        for s in points("batch_grid").values()
    ]
    assert sorted(cells) == sorted((b, r) for b in batches for r in (1e-4, 1e-3))
    dropouts = [s.train for s in points("dropout_grid").values()]
    assert [t.dropout for t in dropouts] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert {t.batch_size for t in dropouts} == {200}


def test_the_12_steps_data_lie_around_the_transition() -> None:
    near = {name for name in LOG if points(name).popitem()[1].data.name == "near_tg"}
    assert near == LOG - {"repeats"}
    settings = points("dropout_grid")["dropout_0.1"]
    cold, hot = (settings.simulation.temperature(settings.frame(s)) for s in ("glass", "liquid"))
    assert hot - cold == pytest.approx(24 * 0.00975)
    assert (hot + cold) / 2 == pytest.approx(0.21, abs=0.00975 / 2)


def test_arms_of_the_conjecture() -> None:
    rates = {label: s.train.learning_rate for label, s in points("collapse").items()}
    assert rates["constant_1e-3"].model_dump() == {"kind": "constant", "initial": 1e-3}
    assert rates["constant_1e-4"].model_dump() == {"kind": "constant", "initial": 1e-4}
    assert rates["threshold_90"].model_dump() == {
        "kind": "threshold",
        "initial": 1e-3,
        "levels": ({"above": 0.9, "rate": 1e-4},),
    }


def test_a_restarted_study_names_the_runs_it_starts_from() -> None:
    for files in (FULL, SMALL):
        study, first = load_study(files["january_2018_restart"]), load_study(files["january_2018"])
        assert study.needed == files["january_2018"]
        source = study.points[0].settings.train.restart_from
        assert source is not None
        pattern = source.run.replace("{seed}", "7")
        assert (Path(first.name) / "runs" / first.runs[7].name).match(pattern)
        assert study.points[0].settings.train.augmentation.rotations is True
        assert study.points[0].settings.train.dropout == 0.4


# A study after another


def write(path: Path, **study: Any) -> Path:
    return tiny.write_study(path, tiny.tree(name=path.stem) | {"study": study})


def test_what_a_study_needs_comes_first_and_is_still_found_from_the_logs(tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", name="first", seeds=1)
    second = write(tmp_path / "second.yaml", name="second", seeds=1, after="first.yaml")
    for place in (second, _resolved(second, tmp_path)):
        assert load_study(place).needed == first
        chain = pipeline(place, (), tmp_path).chain
        assert [each.name for each in chain] == ["first", "second"]


def _resolved(path: Path, root: Path) -> Path:
    place = load_study(path).directory(root)
    place.path.mkdir()
    place.study.write_text(load_study(path).to_yaml())
    return place.study


def test_studies_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "egg.yaml", name="egg", after="hen.yaml")
    hen = write(tmp_path / "hen.yaml", name="hen", after="egg.yaml")
    with pytest.raises(ConfigError, match="goes round in a circle"):
        pipeline(hen, (), tmp_path)


# Every small study trains and aggregates


@pytest.fixture(scope="module")
def trained(
    root: Path,
    mpirun: Callable[..., Any],
    tiny_logs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Study]]:
    """One seed of the first and last point of every small study, trained in one process."""
    place = tmp_path_factory.mktemp("studies")
    logs = tiny.share(tiny_logs, place / "logs")
    order = sorted(SMALL, key=lambda name: "after" in read_tree(SMALL[name])["study"])
    studies = {name: load_study(SMALL[name], SHRUNK) for name in order}
    items = []
    for name, study in studies.items():
        for label in dict.fromkeys((study.points[0].label, study.points[-1].label)):
            run = next(run for run in study.runs if run.point.label == label)
            items.append([str(SMALL[name]), run.name, "--logs", str(logs), *sets()])
    plan = place / "plan.json"
    plan.write_text(json.dumps(items))
    done = mpirun(1, root / "tests" / "drivers" / "sequence.py", plan, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return logs, studies


def sets() -> list[str]:
    return [word for assignment in SHRUNK for word in ("--set", assignment)]


@pytest.mark.slow
@pytest.mark.requires("mpi")
def test_all_use_one_data_set(trained: tuple[Path, dict[str, Study]]) -> None:
    logs, studies = trained
    places = {directory(p.settings, logs) for study in studies.values() for p in study.points}
    assert places == {directory(tiny.settings(), logs)}


@pytest.mark.slow
@pytest.mark.requires("mpi")
@pytest.mark.parametrize("name", SMALL)
def test_small_studies_run_and_aggregate(trained: tuple[Path, dict[str, Study]], name: str) -> None:
    logs, studies = trained
    study = studies[name]
    ends = {study.points[0].label, study.points[-1].label}
    assert run_main(aggregate.main, [str(SMALL[name]), "--logs", str(logs), *sets()]) == 0
    table = pl.read_parquet(study.directory(logs).summary)
    assert len(table) == len(study.runs)
    counted = table.filter(pl.col("counted"))
    assert set(counted["label"]) == ends
    assert set(counted["state"]) == {"complete"}
    assert len(counted) == len(ends)
