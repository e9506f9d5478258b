"""Copies of seeds in a study: which runs there are, what they are called, what they count for."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from glass_cnn.analysis.arms import Copies, Estimates, estimate
from glass_cnn.analysis.rows import read_run
from glass_cnn.analysis.table import Aggregation, aggregate, combine
from glass_cnn.paths import RUN_NAME, RunDir, StudyDir
from glass_cnn.report.answers import rounding_answer
from glass_cnn.settings import build_run, load_run
from glass_cnn.study import Study, build_study
from hpc.config import to_tree
from hpc.errors import ConfigError
from tests import collapse_study, synthetic

SOME = {"count": 3, "seeds": [1]}
FATES = {
    (0, 0): "survived",
    (1, 0): "survived",
    (1, 1): "permanent_collapse",
    (1, 2): "survived",
    (2, 0): "permanent_collapse",
}


def study(copies: Any, **changes: Any) -> Study:
    return synthetic.study(seeds=3, copies=copies, **changes)


# What a study asks for


def test_copies_follow_the_run_of_their_seed() -> None:
    found = study(SOME).runs
    assert [(run.seed, run.copy) for run in found] == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert [RUN_NAME.fullmatch(run.name)["copy"] for run in found][:3] == [None, None, "1"]  # type: ignore[index]
    assert len({run.name for run in found}) == 5
    for run in found:
        assert run.digest == run.settings.run_digest()


def test_a_number_is_that_many_of_every_seed() -> None:
    found = study(2)
    assert [(r.seed, r.copy) for r in found.runs] == [(s, c) for s in (0, 1, 2) for c in (0, 1)]
    assert found.section.run_count == len(found.runs) == 6
    assert study(1).runs == synthetic.study(seeds=3).runs
    assert study(SOME).section.run_count == 5


def test_the_untouched_run_keeps_its_name_whatever_the_copies() -> None:
    (alone,) = synthetic.study(seeds=1).runs
    for copies in (2, {"count": 4, "step": 7}):
        first = synthetic.study(seeds=1, copies=copies).runs[0]
        assert (first.name, first.settings) == (alone.name, alone.settings)


def test_copies_at_another_step_are_other_runs() -> None:
    names = [study({**SOME, "step": step}).runs[2].name for step in (0, 1)]
    assert names[0] != names[1]


def test_settings_of_a_copy_say_so_and_are_read_back(tmp_path: Path) -> None:
    place = synthetic.directory(found := study(SOME), tmp_path)
    run = synthetic.write_run(place, found.runs[2], "survived")
    assert "rounding:\n  copy: 1\n  step: 0\n" in run.config.read_text()
    assert load_run(run.config) == found.runs[2].settings
    assert "rounding" not in to_tree(found.runs[0].settings) or found.runs[0].rounding is None


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"study": {"copies": 0}}, "study.copies = 0: must be greater than or equal to 1"),
        ({"study": {"copies": {"count": 2, "seeds": [5, 9]}}}, r"copies\.seeds: 5, 9: no seed of"),
        ({"study": {"copies": {"seeds": []}}}, r"copies\.seeds: is empty"),
        ({"study": {"copies": {"seeds": [0, 0]}}}, r"copies\.seeds: 0 stands there twice"),
        ({"study": {"copies": {"step": 600}}}, r"copies\.step 600: the run ends after 600 updates"),
        ({"study": {"copies": {"number": 3}}}, r"study\.copies\.number is no setting"),
        ({"study": {"copies": "many"}}, r'study\.copies = "many'),
        ({"rounding": {"copy": 1}}, r"rounding belongs into study\.copies"),
        ({"study": {"arms": {"a": {"rounding.copy": 1}}}}, r"cannot vary here; use study\.copies"),
        ({"study": {"copies": 200_000}}, "asks for 600,000 runs"),
    ],
)
def test_what_cannot_be_is_refused(tree: dict[str, Any], words: str) -> None:
    section = {"name": "x", "seeds": 3, **tree.pop("study", {})}
    with pytest.raises(ConfigError, match=words):
        build_study({"study": section, "train": {"iterations": 60}, **tree}, "x.yaml")


def test_a_copy_number_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"rounding\.copy = 0: must be greater"):
        build_run({"rounding": {"copy": 0}}, "x")


# What they count for


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Aggregation:
    """Three seeds, two copies of seed 1; all complete."""
    found = study(SOME)
    place = synthetic.directory(found, tmp_path_factory.mktemp("logs"))
    for run in found.runs:
        synthetic.write_run(place, run, FATES[run.seed, run.copy])
    return aggregate(found, place)


@pytest.fixture(scope="module")
def found(made: Aggregation) -> Estimates:
    return estimate(made)


def test_the_table_has_a_column_of_copies(made: Aggregation) -> None:
    columns = made.table.select("seed", "copy", "rounding_step", "counted")
    assert columns.rows() == [
        (0, 0, None, True),
        (1, 0, None, True),
        (1, 1, 0, True),
        (1, 2, 0, True),
        (2, 0, None, True),
    ]
    assert made.warnings == []


def test_copies_are_no_seeds_and_are_in_no_rate(found: Estimates) -> None:
    (arm,) = found.arms
    assert (arm.complete, arm.wanted) == (3, 3)
    assert (arm.collapsed.k, arm.collapsed.n) == (1, 3)
    assert len(arm.times) == len(arm.final) == len(arm.ends) == 3
    assert (found.complete, found.wanted) == (5, 5)


def copies_of(found: Estimates) -> Copies:
    copies = found.arms[0].copies
    assert copies is not None
    return copies


def test_the_spread_over_copies_is_set_beside_that_over_seeds(found: Estimates) -> None:
    copies = copies_of(found)
    assert (copies.wanted, copies.complete) == (2, 2)
    assert copies.outcome.within == pytest.approx(2 / 3), "two of three pairs end differently"
    assert copies.outcome.total == pytest.approx((1 / 3 + 1 + 2 / 3) / 3)
    assert copies.outcome.copied == 1
    assert (copies.curves, copies.courses) == (3, 3)


def test_the_answer_says_whose_the_spread_is(found: Estimates) -> None:
    told = rounding_answer(found.arms[0])
    assert told.startswith("2 of 2 copies are complete")
    assert "Of two copies of a seed 66.7 % end" not in told
    assert "Of two copies of a seed 67 % end with different outcomes" in told
    assert "100 % of the spread is rounding's" in told
    assert "One seed has copies; how much rounding does to others is not known." in told


def test_copies_that_never_differed_are_told_without_an_interval(found: Estimates) -> None:
    copies = copies_of(found)
    alike = copies.outcome._replace(within=0.0, share=0.0, low=math.nan, high=math.nan)
    arm = dataclasses.replace(found.arms[0], copies=dataclasses.replace(copies, outcome=alike))
    told = rounding_answer(arm)
    assert "0 % of the spread is rounding's (copies of a seed never differed, so how much" in told
    assert "nan" not in told


def test_the_pages_tell_copies_from_seeds(made: Aggregation) -> None:
    page, log = collapse_study.pages(made.study, made.directory)
    text = collapse_study.text_of(page)
    assert "seeds 0–2 (3 copies of 1)" in text
    assert "Seed and rounding" in text
    assert "5 of 5 runs complete" in text
    assert "seed 1, copy 2. Optimal" in log
    data = collapse_study.embedded(page)
    assert [band["runs"] for band in data["bands"]] == [3]


def test_a_study_without_copies_says_nothing_of_them(tmp_path: Path) -> None:
    plain = synthetic.study(seeds=2)
    place = synthetic.directory(plain, tmp_path)
    for run in plain.runs:
        synthetic.write_run(place, run, "survived")
    assert estimate(aggregate(plain, place)).arms[0].copies is None
    page, _ = collapse_study.pages(plain, place)
    assert "Seed and rounding" not in page
    assert "Copy" not in collapse_study.text_of(page)


def test_copies_that_the_study_no_longer_asks_for_are_set_aside(made: Aggregation) -> None:
    place = made.directory
    without = aggregate(study(1), place).table
    reasons = without.filter(pl.col("state") == "superseded")["reason"].unique().to_list()
    assert reasons == ["its copy is none of the study's"]
    assert without["counted"].sum() == 3
    later = aggregate(study({**SOME, "step": 4}), place).table
    assert later["state"].to_list().count("superseded") == 2
    assert later["state"].to_list().count("missing") == 2


def test_a_directory_that_holds_another_copy_is_damaged(tmp_path: Path) -> None:
    found = study(SOME)
    place = StudyDir(tmp_path / "synthetic")
    run = synthetic.write_run(place, found.runs[2], "survived")
    other = RunDir(run.path.with_name(run.name.replace("s1c1", "s1c2")))
    run.path.rename(other.path)
    row = read_run(other.path)
    assert row.state == "damaged"
    assert row.reason == "the name says seed 1, copy 2, config.yaml says seed 1, copy 1"


def test_runs_of_several_studies_are_told_apart_by_their_copies(made: Aggregation) -> None:
    table = combine([made, made])
    assert table["counted"].sum() == 5
