"""Saved models: what jobs.evaluate and jobs.visualize say of them."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import special, stats

from glass_cnn.analysis import evaluation
from glass_cnn.analysis.evaluation import auc, auc_interval, calibration, evaluate
from glass_cnn.data.dataset import load, split
from glass_cnn.data.unseen import unseen
from glass_cnn.paths import RunDir
from glass_cnn.settings import load_run
from hpc.commandline import run_main
from hpc.errors import EXIT_COMPLETE, EXIT_CONFIG, EXIT_DATA, DataError
from hpc.files import read_json
from jobs import evaluate as evaluate_job
from jobs import visualize as visualize_job
from tests import small_data, tiny

pytestmark = pytest.mark.usefixtures("tensorflow")

FIGURES = {"examples", "channels", "filters", "saliency", "dense_units", "augmentation"}


# Numbers, against hand and library


def test_an_evaluation_by_hand() -> None:
    probability = np.array([0.2, 0.6, 0.9, 0.9, 0.3])
    labels = np.array([0, 0, 1, 1, 1])
    logits = np.stack([np.zeros(5), special.logit(probability)], axis=1)
    found = evaluate(logits, labels, np.arange(5))
    assert found.confusion.tolist() == [[1, 1], [1, 2]]
    assert (found.accuracy.k, found.accuracy.n) == (3, 5)
    of_truth = [0.8, 0.4, 0.9, 0.9, 0.3]
    assert found.loss == pytest.approx(-np.log(of_truth).mean())
    assert found.auc == pytest.approx(5 / 6)  # 0.3 against 0.6 is the one pair that is wrong
    assert found.brier == pytest.approx(np.mean([0.04, 0.36, 0.01, 0.01, 0.49]))
    bins = [(1, 0.2, 0.0), (1, 0.3, 1.0), (1, 0.6, 0.0), (2, 0.9, 1.0)]
    assert np.array(found.bins) == pytest.approx(np.array(bins))
    assert found.calibration_error == pytest.approx((0.2 + 0.7 + 0.6 + 2 * 0.1) / 5)
    assert json.loads(json.dumps(found.tree()))["confusion"] == [[1, 1], [1, 2]]


def test_loss_stays_finite_where_the_network_is_sure_and_wrong() -> None:
    logits = np.array([[0, 900], [0, -900]], np.float32)
    found = evaluate(logits, np.array([0, 1]), np.arange(2))
    assert found.loss == pytest.approx(900)


def test_auc_is_the_share_of_pairs_in_order_ties_half() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 5, 80).astype(float), rng.integers(0, 2, 80)
    statistic = stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
    assert auc(scores, labels) == pytest.approx(statistic / (labels.sum() * (1 - labels).sum()))
    assert math.isnan(auc(scores, np.ones(80, int)))


def test_many_weighted_aucs_are_those_of_the_library() -> None:
    rng = np.random.default_rng(5)
    scores, labels = rng.integers(0, 12, 60).astype(float), rng.integers(0, 2, 60)
    weights = rng.multinomial(60, np.full(60, 1 / 60), size=20)
    weights[-1] = labels  # no liquid is left
    found = evaluation._weighted_aucs(scores, labels, weights)
    expected = [auc(scores, labels, row.astype(float)) for row in weights]
    assert found == pytest.approx(np.array(expected), nan_ok=True)
    assert math.isnan(found[-1])


def test_auc_interval_knows_that_images_of_one_trajectory_are_alike() -> None:
    rng = np.random.default_rng(2)
    labels = np.tile([0, 1], 40)
    scores = rng.normal(size=80) + labels
    low, high = auc_interval(scores, labels, np.repeat(np.arange(40), 2), 0.95)
    assert low < auc(scores, labels) < high
    assert (low, high) == auc_interval(scores, labels, np.repeat(np.arange(40), 2), 0.95)
    # Each image eight times over is no more information, if it is known to be the same.
    eight = np.repeat(np.arange(80), 8)
    groups = np.repeat(np.arange(40), 16)
    assert auc_interval(scores[eight], labels[eight], groups, 0.95) == pytest.approx((low, high))
    apart = auc_interval(scores[eight], labels[eight], np.arange(640), 0.95)
    assert apart[1] - apart[0] < 0.6 * (high - low)


def test_calibration_counts_the_ends_too() -> None:
    bins = calibration(np.array([0.0, 1.0, 1.0]), np.array([0, 1, 0]))
    assert bins == ((1, 0.0, 0.0), (2, 1.0, 0.5))


# A real run


@pytest.fixture(scope="module")
def run(
    root: Path,
    tiny_logs: Path,
    mpirun: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> RunDir:
    """A whole tiny run, whose evaluations count all of validation."""
    place = tmp_path_factory.mktemp("saved")
    logs = tiny.share(tiny_logs, place / "logs")
    tree = tiny.tree(train={"evaluation_examples": None})
    config = tiny.write_study(place / "study.yaml", tree)
    done = mpirun(1, "jobs.train", config, "--logs", logs)
    assert done.returncode == EXIT_COMPLETE, done.stdout + done.stderr
    return tiny.only_run(logs)


needs_mpi = pytest.mark.requires("mpi")


def test_other_trajectories_all_count_and_trained_ones_never(small_logs: Path) -> None:
    data = load(small_data.SETTINGS, small_logs)
    parts = split(data, small_data.SETTINGS)
    left, told = unseen(data, data, parts)
    assert set(left) == set(parts.test)
    assert "left out" in told
    nothing = dataclasses.replace(parts, train=parts.train[:0], validation=parts.train[:0])
    assert len(unseen(data, data, nothing)[0]) == len(data)
    everything = dataclasses.replace(parts, train=np.arange(len(data)))
    with pytest.raises(DataError, match="nothing is left to test it on"):
        unseen(data, data, everything)


@needs_mpi
def test_evaluate_counts_what_the_result_says(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(evaluate_job.main, [str(run.path)]) == EXIT_COMPLETE
    shown = capsys.readouterr().out
    result, found = read_json(run.result), read_json(run.path / "evaluation.json")
    for which, word in (("best", "optimal"), ("latest", "final")):
        model = found["models"][which]
        for part in ("validation", "test"):
            assert model[part]["accuracy"] == result[word][f"{part}_accuracy"]
            assert model[part]["examples"] == result["examples"][part]
            correct = model[part]["correct"]
            assert np.trace(model[part]["confusion"]) == correct
            assert f"({correct}/{model[part]['examples']})" in shown
        assert "95 % interval over trajectories" in shown
        assert model["step"] == result[word]["iteration"] * 3
        assert f"{word} model, iteration {result[word]['iteration']}" in shown
    metrics = tiny.outcome(run)["metrics"][-1]
    loss = found["models"]["latest"]["validation"]["loss"]
    assert loss == pytest.approx(metrics["validation_loss"], rel=1e-5)


@needs_mpi
def test_evaluate_on_another_studys_data(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = run.path.parents[2]
    same = tiny.write_study(tmp_path / "same.yaml", tiny.tree(name="same", split={"seed": 2}))
    words = [str(run.path), "--data", str(same), "--which", "latest", "--logs", str(root)]
    before = tiny.fingerprint(run.path)
    assert run_main(evaluate_job.main, words) == EXIT_COMPLETE
    shown = capsys.readouterr().out
    assert "optimal" not in shown
    assert "left out: 17 trajectories of it that the run has learned from" in shown
    tested = read_json(run.result)["final"]["test_accuracy"]
    assert f"accuracy {tested:.3%}" in " ".join(shown.split())  # what is left is its own test part
    assert tiny.fingerprint(run.path) == before
    missing = tiny.tree(name="big", render={"pixels": 40})
    words[2] = str(tiny.write_study(tmp_path / "big.yaml", missing))
    assert run_main(evaluate_job.main, words) == EXIT_DATA
    assert "there is no such data set" in capsys.readouterr().err


@needs_mpi
@pytest.mark.parametrize("job", [evaluate_job, visualize_job])
def test_what_is_no_run_is_said(
    job: Any, run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(job.main, [str(tmp_path)]) == EXIT_CONFIG
    assert "is no run's directory" in capsys.readouterr().err
    untrained = shutil.copytree(run.path, tmp_path / "run")
    shutil.rmtree(untrained / "checkpoints")
    words = [str(untrained), "--logs", str(run.path.parents[2])]
    assert run_main(job.main, words) == EXIT_DATA
    assert "model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "root"),
    [("/a/logs/study/runs/x-s0", "/a/logs"), ("/tmp/x-s0", None), ("/x", None), ("/runs/x", None)],
)
def test_a_run_that_was_put_elsewhere_has_no_data_beside_it(path: str, root: str | None) -> None:
    assert RunDir(Path(path)).root == (root and Path(root))


class Page(HTMLParser):
    """Pictures of a page and everything it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.pictures.append(str(values["src"]))
            assert values["alt"]
        elif tag in ("script", "link", "iframe"):
            self.fetched.append(tag)


@needs_mpi
def test_visualize_draws_figures_and_one_page(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(visualize_job.main, [str(run.path)]) == EXIT_COMPLETE
    named = {Path(line) for line in capsys.readouterr().out.split()}
    figures = {path.stem: path for path in (run.path / "figures").iterdir()}
    assert set(figures) == FIGURES
    assert named == {run.path / "visualize.html", *figures.values()}
    text = (run.path / "visualize.html").read_text()
    page = Page(text)
    assert len(page.pictures) == len(FIGURES)
    assert not page.fetched
    assert not re.search(r"https?://", text)
    for picture in page.pictures:
        image = Image.open(io.BytesIO(base64.b64decode(picture.split(",", 1)[1])))
        assert min(image.size) > 300
        colours = np.asarray(image.convert("L"))
        assert colours.std() > 5  # not empty


@needs_mpi
def test_maps_say_what_the_network_does(run: RunDir) -> None:
    from glass_cnn.training.attribution import attribution, contributions, gaps, occlusion
    from glass_cnn.training.saved import open_model

    settings = load_run(run.config)
    model = open_model(run, settings, "latest")
    dataset = load(settings, run.path.parents[2])
    images = dataset.images[split(dataset, settings).validation[:3]]
    # What the dense units and the output biases add is the whole gap.
    biases = model.network.parameters["output/biases"].numpy()
    total = contributions(model, images).sum(axis=1) + biases[1] - biases[0]
    assert total == pytest.approx(gaps(model, images), abs=1e-4)
    # The gradient map is the change of the gap for a change of one pixel.
    gradient, activation = attribution(model, images)
    assert gradient.shape == (3, 32, 32)
    assert activation.shape == (3, 19, 19)
    row, column = np.unravel_index(gradient[0].argmax(), gradient[0].shape)
    changed = []
    for channel in range(3):
        nudged = np.stack([images[0], images[0]]).astype(np.int16)
        middle = int(np.clip(nudged[0, row, column, channel], 1, 254))
        nudged[:, row, column, channel] = [middle - 1, middle + 1]
        logits = model.logits(nudged.astype(np.uint8))
        gap = logits[:, 1] - logits[:, 0]
        changed.append(abs(gap[1] - gap[0]) / 2)
    assert max(changed) == pytest.approx(gradient[0, row, column], rel=0.1)
    # Nothing is hidden where the filling is the image itself.
    assert occlusion(model, images[0], images[0]) == pytest.approx(0, abs=1e-5)
    assert np.abs(occlusion(model, images[0], images[1])).max() > 0
