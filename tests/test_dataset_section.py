"""The data on a page: their numbers, the best network, and simple measures beside it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_cnn.analysis import best
from glass_cnn.analysis.arms import estimate
from glass_cnn.analysis.baselines import measures
from glass_cnn.analysis.best import Best
from glass_cnn.analysis.dataset_summary import (
    Baseline,
    DatasetSummary,
    Measures,
    Part,
    Physics,
    summarize,
)
from glass_cnn.analysis.statistics import rate
from glass_cnn.analysis.table import aggregate
from glass_cnn.data.dataset import load
from glass_cnn.report import page
from glass_cnn.report.dataset_section import Data, describe, section, verdict
from hpc.commandline import run_main
from hpc.errors import EXIT_COMPLETE
from hpc.files import write_json
from jobs import data_report
from jobs.report import data_of
from tests import synthetic, tiny
from tests.collapse_study import text_of

ENERGY = Baseline("pair energy", 1, 480, 480, 1, 1, 1)
BRIGHTNESS = Baseline("mean brightness", 1, 480, 470, 0.99, 0.98, 1)
SPECTRUM = Baseline("image power spectrum", 24, 480, 400, 0.9, 0.85, 0.94)


def summary(*baselines: Baseline, form: str = "thermal", **changes: Any) -> DatasetSummary:
    """A made-up data set, measured like this."""
    settings = {
        "simulation": {"particles": 400},
        "data": {"form": form, "transition_temperature": 0.21},
        "render": {"pixels": 16, "window": None},
    }
    picture = np.zeros((16, 16, 3), np.uint8)
    values: dict[str, Any] = {
        "name": "made-up", "settings": settings, "imported": False, "permuted": False,
        "trajectories": 240, "parts": [Part("train", (168, 160), 168)],
        "samples": [[picture], [picture]],
        "physics": [Physics([1.99] * 2, [-1.9, -2.1], [0.51, 0.5]),
                    Physics([0.05] * 2, [-3.7, -3.8], [0.52, 0.54])],
        "measures": Measures(list(baselines), "too few trajectories." if not baselines else ""),
    }  # fmt: skip
    return DatasetSummary(**{**values, **changes})


def network(right: int, of: int) -> Best:
    """The best network, right about so many test pictures."""
    return Best("base-s0-01234567", 2, 31, np.array([[30, 6], [0, 36]]), rate(right, of), None)


@pytest.mark.parametrize(
    ("baselines", "right", "told"),
    [
        ([ENERGY, SPECTRUM], 71, "Pair energy alone tells 480 of 480 configurations (100.0 %, AUC "
         "1.000); the best network 71 of 72 test pictures (98.6 %, 93–100 %). It does no better "
         "than a thermometer."),
        ([ENERGY, SPECTRUM], 50, "It does worse than a thermometer."),
        ([SPECTRUM], 72, "Image power spectrum alone tells 400 of 480 pictures (83.3 %"),
        ([SPECTRUM], 72, "It does better than the image power spectrum alone."),
        ([SPECTRUM, BRIGHTNESS], 72, "Mean brightness alone tells 470 of 480 pictures"),
        ([], 72, "No simple measure stands beside the network: too few trajectories."),
    ],
)  # fmt: skip
def test_whether_the_network_does_better_is_said(
    baselines: list[Baseline], right: int, told: str
) -> None:
    assert told in verdict(summary(*baselines), network(right, 72))


def test_energies_of_inherent_structures_are_no_thermometer() -> None:
    told = verdict(summary(ENERGY, form="inherent"), network(71, 72))
    assert told.endswith("It does no better than the pair energy alone.")


def test_without_a_complete_network_the_measures_stand_alone() -> None:
    told = verdict(summary(ENERGY), None)
    assert told.endswith("; there is no complete network to compare it with.")
    assert section(Data(summary(ENERGY), None))["best"] is None


def test_labels_shuffled_on_purpose_are_told() -> None:
    assert "shuffled on purpose" in describe(summary(permuted=True))


def test_what_is_not_known_of_imports_is_not_drawn() -> None:
    unknown = [Physics([], [], [0.5, 0.6]), Physics([], [], [0.5, 0.7])]
    shown = section(Data(summary(physics=unknown, imported=True), None))
    assert next(cells for _, cells in shown["rows"]) == ["not known"] * 2
    assert len(shown["drawings"]) == 1
    pictures = section(Data(summary(SPECTRUM, physics=[], imported=True), None))
    assert pictures["drawings"] == pictures["rows"] == []


def test_a_confusion_matrix_is_known_from_accuracy_and_share_called_glass() -> None:
    for a, b, c, d in itertools.product((0, 1, 7), (0, 3), (0, 2), (1, 5)):
        found = best.confusion((a + d) / (a + b + c + d), (b + d) / (a + b + c + d),
                               a + b + c + d, c + d)  # fmt: skip
        assert found.tolist() == [[a, b], [c, d]]


def test_the_best_network_is_the_run_with_the_highest_validation_accuracy(tmp_path: Path) -> None:
    study = synthetic.study(seeds=4)
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run, "never_learned" if run.seed < 2 else "survived")
    result = aggregate(study, place)
    found = best.best(result, ["base"])
    assert found is not None
    row = synthetic.row_of(result, found.run)
    highest = result.counted["optimal_validation_accuracy"].max()
    assert row["optimal_validation_accuracy"] == highest
    assert (found.runs, found.iteration, found.auc) == (4, row["optimal_iteration"], None)
    right = int(np.trace(found.validation))
    assert right / found.validation.sum() == pytest.approx(row["optimal_validation_accuracy"])
    assert found.validation.sum(axis=1).tolist() == [synthetic.EXAMPLES - 1457, 1457]
    assert found.test is not None
    assert found.test.value == pytest.approx(row["optimal_test_accuracy"], abs=1e-3)
    evaluated = {"models": {"best": {"test": {"auc": 0.99, "auc_interval": [0.98, 1.0]}}}}
    write_json(place.runs / found.run / "evaluation.json", evaluated)
    again = best.best(result, ["base"])
    assert again is not None
    assert again.auc == (0.99, 0.98, 1.0)
    assert best.best(result, ["other"]) is None


def test_data_that_are_not_here_are_told_on_the_page(tmp_path: Path) -> None:
    study = synthetic.study(seeds=1)
    place = synthetic.directory(study, tmp_path)
    synthetic.write_run(place, study.runs[0])
    result = aggregate(study, place)
    shown, without = data_of(result)
    assert shown == []
    page.write_report(result, estimate(result), shown, without)
    told = text_of(place.report.read_text())
    assert re.search(r"The data set endpoint-[0-9a-f]{8} is not here: its pictures", told)
    damaged = tmp_path / "datasets" / without[0].split(" ")[3]
    damaged.mkdir(parents=True)
    (damaged / "dataset.json").write_text("{}")
    shown, (told,) = data_of(result)
    assert shown == []
    assert "cannot be shown: datasets/endpoint-" in told
    assert str(tmp_path) not in told.replace(f"Remove {damaged}", "")


def test_real_data_stand_first_on_the_page_and_alone(
    tiny_logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tiny.share(tiny_logs, tmp_path / "logs")
    config = tiny.write_study(tmp_path / "study.yaml", tiny.tree())
    assert run_main(data_report.main, [str(config), "--logs", str(logs)]) == EXIT_COMPLETE
    shown = capsys.readouterr().out
    assert "Pair energy alone tells 40 of 40 configurations (100.0 %" in shown
    dataset = load(tiny.settings(), logs)
    alone = dataset.place.report.read_text()
    assert alone.count("<img src=") == 6
    for words in ("validation", "Potential energy (ε per particle)", "assumed glass transition",
                  "g(r) of AB", "image power spectrum", "280 pictures of"):  # fmt: skip
        assert words in text_of(alone) + " ".join(re.findall(r"<text[^>]*>([^<]*)", alone)), words
    assert str(logs) not in alone
    found = summarize(dataset, measures(dataset))
    assert [part.name for part in found.parts] == ["all"]
    assert sum(found.parts[0].images) == 280
    assert not found.permuted


def test_a_directory_of_data_needs_no_study(
    tiny_logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = load(tiny.settings(), tiny_logs).place
    assert run_main(data_report.main, [str(place.path)]) == EXIT_COMPLETE
    assert str(place.report) in capsys.readouterr().out
    assert "all" in text_of(place.report.read_text())
