"""The study files in jobs/: each is valid in both sizes, and each small one really runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from glass_cnn.data.dataset import directory
from glass_cnn.pipeline import Pipeline, pipeline
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
SCAN = {path.stem: path for path in sorted((JOBS / "scan").glob("*.yaml"))}
FILES = [JOBS / "quickstart.yaml", *FULL.values(), *SMALL.values(), *SCAN.values()]
NAMES = [str(path.relative_to(JOBS)) for path in FILES]


@dataclass(frozen=True)
class Line:
    """What the log says of an experiment, or what was inferred for it (`docs/studies.md`)."""

    data: str
    batch: tuple[int, ...] = (80,)
    dropout: tuple[float, ...] = (0.5,)
    rates: tuple[dict[str, Any], ...] = ({"kind": "constant", "initial": 1e-3},)
    iterations: int = 1500
    augmented: tuple[bool, ...] = (False,)


ENDPOINT, NEAR_TG = "endpoint", "near_tg"
FRAMES = {ENDPOINT: (0, 199), NEAR_TG: (171, 195)}
TEMPERATURES = {ENDPOINT: (1.990, 0.050), NEAR_TG: (0.323, 0.089)}
BATCHES = (10, 15, 20, 25, 30, 50, 80, 100, 150, 200, 250)
AT_90 = {"kind": "threshold", "initial": 1e-3, "levels": ({"at_least": 0.9, "rate": 1e-4},)}
LINE = {"kind": "linear", "initial": 1e-3, "schedule_length": 550}
LOG = {
    "repeats": Line(ENDPOINT),
    "batch_grid": Line(
        NEAR_TG,
        batch=BATCHES,
        rates=tuple({"kind": "constant", "initial": rate} for rate in (1e-4, 1e-3)),
    ),
    "dropout_grid": Line(NEAR_TG, batch=(200,), dropout=(0.1, 0.2, 0.3, 0.4, 0.5)),
    "linear_550": Line(ENDPOINT, rates=({**LINE, "final": 1e-3}, {**LINE, "final": 1e-4})),
    "augmentation": Line(ENDPOINT, augmented=(False, True)),
    "threshold_90": Line(
        ENDPOINT,
        rates=(
            AT_90,
            {**AT_90, "levels": (*AT_90["levels"], {"at_least": 0.99, "rate": 1e-5})},  # type: ignore[misc]
        ),
    ),
    "exponential": Line(
        ENDPOINT,
        rates=({"kind": "exponential", "initial": 1e-3, "decay": 0.1, "decay_iterations": 750},),
    ),
    "january_2018": Line(NEAR_TG, (200,), (0.4,), iterations=3000, augmented=(True,)),
    "january_2018_restart": Line(NEAR_TG, (200,), (0.4,), (AT_90,), augmented=(True,)),
    "collapse": Line(
        ENDPOINT,
        rates=(*({"kind": "constant", "initial": rate} for rate in (1e-3, 1e-4)), AT_90),
    ),
}  # fmt: skip
"""experiments of the results log, and its conjecture; the other studies are this project's own"""
LONG = {"batch_grid_samples"}
"""their lengths are their own: too much for a test, and trained like `batch_grid`"""


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
    assert set(FULL) > set(LOG)


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


@pytest.mark.parametrize("file", [*FULL.values(), SCAN["recipe_250"]], ids=lambda file: file.stem)
def test_full_sizes_are_the_logs(file: Path) -> None:
    for point in load_study(file).points:
        settings = point.settings
        assert (settings.render.pixels, settings.render.style) == (250, "scatter2017")
        assert settings.model.recipe == "modern"  # with that of 2017 nothing is learned: jobs/scan
        assert settings.simulation.trajectories == 10_000
        assert settings.render.windows_per_configuration == 1


def points(name: str) -> dict[str, RunSettings]:
    return {point.label: point.settings for point in load_study(FULL[name]).points}


def plain(settings: RunSettings) -> dict[str, Any]:
    """The schedule of the rate, without what is not set."""
    rate = settings.train.learning_rate.model_dump(exclude_none=True)
    return {key: value for key, value in rate.items() if value}


@pytest.mark.parametrize("name", LOG)
def test_a_study_has_the_logs_numbers(name: str) -> None:
    """Every cell of the log once, and no other."""
    line, found = LOG[name], list(points(name).values())
    for settings in found:
        train = settings.train
        frames = [settings.frame(side) for side in ("liquid", "glass")]
        assert settings.data.name == line.data
        assert tuple(frames) == FRAMES[line.data]
        temperatures = map(settings.simulation.temperature, frames)
        assert tuple(round(t, 3) for t in temperatures) == TEMPERATURES[line.data]
        assert (train.l2, train.iterations, train.order) == (0.01, line.iterations, "batch")
        assert (train.optimizer.kind, train.batches_per_iteration) == ("adam", 10)
    axes = (
        ("batch", line.batch, [s.train.batch_size for s in found]),
        ("dropout", line.dropout, [s.train.dropout for s in found]),
        ("rate", [*map(repr, map(ordered, line.rates))], [repr(ordered(plain(s))) for s in found]),
        ("augmentation", line.augmented, [s.train.augmentation.rotations for s in found]),
    )
    wanted = itertools.product(*(values for _, values, _ in axes))
    assert sorted(zip(*(there for *_, there in axes), strict=True)) == sorted(wanted)
    assert all(s.train.augmentation.rotations == s.train.augmentation.flips for s in found)


def ordered(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: tree[key] for key in sorted(tree)}


def test_equal_samples_beside_equal_steps() -> None:
    steps, samples = points("batch_grid"), points("batch_grid_samples")
    assert len(samples) == len(steps) == 22
    assert {s.train.steps for s in steps.values()} == {15_000}
    offered = {s.train.steps * s.train.batch_size for s in samples.values()}
    assert offered == {15_000 * 80}
    cells = [
        sorted((s.train.batch_size, plain(s)["initial"]) for s in grid.values())
        for grid in (steps, samples)
    ]
    assert cells[0] == cells[1]


def test_the_12_steps_data_around_another_transition() -> None:
    first, second = points("transition").values()
    for settings, frames in ((first, (171, 195)), (second, (154, 178))):
        assert (settings.frame("liquid"), settings.frame("glass")) == frames
    assert first.dataset_digest() != second.dataset_digest()


def test_repeats_have_seeds_and_copies_of_one() -> None:
    runs = load_study(FULL["repeats"]).runs
    assert [run.seed for run in runs if not run.copy] == list(range(12))
    assert [(run.seed, run.copy) for run in runs if run.copy] == [(0, n) for n in range(1, 12)]


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


def chained(tmp_path: Path, *sets: str) -> Pipeline:
    """A study that goes on from another, with assignments."""
    write(tmp_path / "first.yaml", name="first", seeds=5)
    second = write(tmp_path / "second.yaml", name="second", seeds=5, after="first.yaml")
    return pipeline(second, sets, tmp_path)


def lengths(whole: Pipeline) -> list[tuple[int, int]]:
    """Seeds and iterations of each study."""
    trains = [study.points[0].settings.train for study in whole.chain]
    seeds = [len(study.section.seed_list) for study in whole.chain]
    return list(zip(seeds, (train.iterations for train in trains), strict=True))


def test_seeds_reach_the_study_that_is_gone_on_from(tmp_path: Path) -> None:
    whole = chained(tmp_path, "study.seeds=2")
    assert lengths(whole) == [(2, 4), (2, 4)]
    assert whole.notes == ()


def test_how_the_other_study_trains_is_set_after_after(tmp_path: Path) -> None:
    sets = ("train.iterations=9", "after.train.iterations=7", "after.study.seeds=[0, 1, 2]")
    whole = chained(tmp_path, *sets, "study.seeds=2")
    assert lengths(whole) == [(3, 7), (2, 9)]
    assert whole.notes == ()


def test_what_does_not_reach_the_other_study_is_told(tmp_path: Path) -> None:
    whole = chained(tmp_path, "train.iterations=9", "analysis.learned_accuracy=0.8")
    assert lengths(whole) == [(5, 4), (5, 9)]
    (note,) = whole.notes
    assert note == (
        "train.iterations is set for second alone; for first, from which it goes on, say "
        'SET="after.train.iterations=…"'
    )


def test_after_needs_a_study_to_go_on_from(tmp_path: Path) -> None:
    path = write(tmp_path / "alone.yaml", name="alone")
    with pytest.raises(ConfigError, match=r"goes on from none \(study\.after\); leave it out"):
        pipeline(path, ("after.train.iterations=7",), tmp_path)


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
    order = sorted(
        set(SMALL) - LONG, key=lambda name: ("after" in read_tree(SMALL[name])["study"], name)
    )
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
@pytest.mark.parametrize("name", [name for name in SMALL if name not in LONG])
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
