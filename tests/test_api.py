"""The door for code of one's own, and the documents that are made from the code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import glass_cnn
from glass_cnn import records
from glass_cnn.analysis import table
from glass_cnn.analysis.rows import SCHEMA, Row
from glass_cnn.report import reference
from glass_cnn.report.results import COMPARISONS, CURVES, ESTIMATES, FACTORS, StudyResults
from hpc.errors import ConfigError
from hpc.records import read_records
from jobs.reference import documents
from tests import collapse_study, synthetic
from tests.conftest import ROOT
from tests.test_docs import blocks

DOCUMENT = ROOT / "docs" / "api.md"
FIXTURES = ROOT / "tests" / "fixtures" / "version_1"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("api") / "logs"
    study = synthetic.study("my_rates", 12, arms=collapse_study.ARMS)
    place = synthetic.directory(study, root)
    for run in study.runs:
        kind = collapse_study.FATES[run.point.label][run.seed]
        done = (run.point.label, run.seed) != ("threshold", 11)
        synthetic.write_run(place, run, kind, done=done)
    aggregated = table.aggregate(study, place)
    table.write(aggregated)
    return root


@pytest.fixture(scope="module")
def study(logs: Path) -> StudyResults:
    return glass_cnn.open_study(logs / "my_rates")


def test_the_examples_of_the_document_run(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(logs.parent)
    names: dict[str, Any] = {}
    for block in blocks(DOCUMENT, "python"):
        exec(block, names)
    assert len(names["curves"]) == len(names["study"].curves)
    assert list(names["curves"]) == names["study"].curves.columns
    assert names["runs"].columns == names["study"].runs.columns
    assert names["rates"].height == names["study"].estimates.height == 3
    assert (logs.parent / "survival.pdf").stat().st_size > 1000
    assert (logs.parent / "curves.png").stat().st_size > 1000


def test_the_line_for_editors_names_the_schema() -> None:
    line = blocks(DOCUMENT, "yaml")[0].splitlines()[0]
    assert (ROOT / "jobs" / line.partition("$schema=")[2]).exists()


def test_every_evaluation_of_every_run_stands_in_the_curves(study: StudyResults) -> None:
    curves = study.curves
    assert curves.columns == list(CURVES)
    begun = study.runs.filter(pl.col("state").is_in(["complete", "unfinished"]))
    counts = curves.group_by("run").len("evaluations").sort("run")
    expected = begun.select("run", pl.col("evaluations").cast(pl.UInt32)).sort("run")
    assert_frame_equal(counts, expected, check_dtypes=False)
    last = curves.group_by("run").agg(pl.col("validation_accuracy", "arm").last()).sort("run")
    assert last["arm"].to_list() == begun.sort("run")["label"].to_list()
    ends = begun.sort("run")["final_validation_accuracy"]
    np.testing.assert_array_equal(last["validation_accuracy"].to_numpy(), ends.to_numpy())


def test_estimates_are_those_of_the_report(study: StudyResults) -> None:
    rows = {row["arm"]: row for row in study.estimates.iter_rows(named=True)}
    assert {arm: (row["learned"], row["collapsed"]) for arm, row in rows.items()} == {
        "constant-1e-3": (12, 10),
        "constant-1e-4": (11, 0),
        "threshold": (11, 1),
    }
    first = rows["constant-1e-3"]
    assert first["collapse_rate"] == pytest.approx(10 / 12)
    assert first["collapse_low"] < 10 / 12 < first["collapse_high"]
    assert first["runs_transient_collapse"] == 4
    assert study.comparisons.columns == list(COMPARISONS)
    assert study.comparisons["difference"][0] == pytest.approx(10 / 12)


def test_a_study_without_runs_has_tables_without_numbers(tmp_path: Path) -> None:
    empty = synthetic.study("empty", 2)
    synthetic.directory(empty, tmp_path)
    study = glass_cnn.open_study("empty", logs=tmp_path)
    assert study.runs["state"].to_list() == ["missing", "missing"]
    assert study.curves.is_empty()
    assert study.estimates.row(0, named=True)["collapse_rate"] is None
    for which in ("rates", "survival", "curves"):
        study.figure(which)


def test_factors_of_a_grid_are_a_table(tmp_path: Path, study: StudyResults) -> None:
    assert study.factors.is_empty(), "arms are compared pair by pair"
    grid = {"train.dropout": [0.0, 0.5], "train.batch_size": [40, 80]}
    made = synthetic.study("grid", 4, grid=grid)
    place = synthetic.directory(made, tmp_path)
    for run in made.runs:
        falls = run.settings.train.dropout and run.seed
        synthetic.write_run(place, run, "permanent_collapse" if falls else "survived")
    factors = glass_cnn.open_study(place.path).factors
    assert factors.columns == list(FACTORS)
    assert factors.select("factor", "level", "learned", "collapsed").rows() == [
        ("dropout", "0", 8, 0),
        ("dropout", "0.5", 8, 6),
        ("batch size", "40", 8, 3),
        ("batch size", "80", 8, 3),
    ]
    assert factors["difference"].to_list() == [None, 0.75, None, 0.0]
    assert factors["p"][1] < 0.01 < factors["p"][3]
    assert factors["difference_low"][1] > 0


def test_mistakes_are_told(study: StudyResults, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rates, survival and curves"):
        study.figure("loss")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nor the name of a study"):
        glass_cnn.open_study("no_such", logs=tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'close_study'"):
        glass_cnn.close_study  # noqa: B018


def test_the_door_alone_loads_nothing() -> None:
    code = "import sys, glass_cnn; print(len({'numpy', 'polars', 'tensorflow'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert answer.stdout.split() == [b"0"]


# --- documents of reference ------------------------------------------------------------------


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_documents_of_reference_are_fresh(path: Path) -> None:
    assert path.read_text() == documents()[path], f"{path.name} is stale: run make reference"


def test_every_column_has_a_meaning(study: StudyResults) -> None:
    told = reference.runs_meanings()
    others = [name for name in study.runs.columns if name not in told]
    assert [name for name in others if "." not in name] == []
    assert all(told.values())
    assert reference.docstrings(Row).keys() >= SCHEMA.keys()
    assert study.estimates.columns == list(ESTIMATES)


def test_every_diagnostic_has_a_meaning() -> None:
    measured = {
        name
        for path in FIXTURES.rglob("metrics.jsonl")
        for record in read_records(path)
        for name in record["diagnostics"]
    }
    assert len(measured) > 5
    assert measured <= records.DIAGNOSTICS.keys()


def test_the_schema_in_jobs_is_json() -> None:
    assert json.loads((ROOT / "jobs" / "study.schema.json").read_text())["type"] == "object"
