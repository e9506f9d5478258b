"""The measures a physicist would try first, against what is known of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from glass_cnn.analysis import baselines
from glass_cnn.configuration import Configuration
from glass_cnn.data.dataset import Dataset, load
from glass_cnn.paths import DatasetDir
from hpc.commandline import run_main
from hpc.errors import EXIT_COMPLETE, EXIT_DATA, DataError, StorageError
from jobs import baselines as job
from tests import tiny

BOX = np.array([10.0, 10.0])


def test_smallest_distance_is_over_sigma_and_over_the_edge() -> None:
    positions = np.array([[0.1, 5.0], [9.5, 5.0], [5.0, 1.0], [5.0, 1.9]])
    species = np.array([1, 2, 1, 1])
    four = Configuration(positions, species, BOX)
    two = Configuration(positions[:2] * [[1, 1], [0.5, 1]], species[:2], BOX)
    # A and B are 0.6 apart over the edge, 0.75 σ_AB; the two A are 0.9 σ_AA apart.
    assert baselines.smallest_distance(four) == pytest.approx(0.6 / 0.8)
    assert baselines.smallest_distance(two) == np.inf


def test_pair_correlations_of_a_gas_are_one_and_of_a_pair_peak_at_its_distance() -> None:
    rng = np.random.default_rng(0)
    gas = Configuration(rng.uniform(0, 10, (2000, 2)), np.repeat([1, 2], 1000), BOX)
    found = baselines.pair_correlations(gas).reshape(3, -1)
    assert found[:, 15:].mean(axis=1) == pytest.approx(1, abs=0.02)
    places = np.array([[2.0, 2.0], [3.03, 2.0], [6.0, 6.0], [6.0, 8.17]])
    pairs = Configuration(places, np.array([1, 1, 2, 2]), BOX)
    like, unlike, other = baselines.pair_correlations(pairs).reshape(3, -1)
    width = baselines.R_MAX / baselines.BINS
    assert np.flatnonzero(like).tolist() == [int(1.03 / width)]
    assert np.flatnonzero(other).tolist() == [int(2.17 / width)]
    assert not unlike[: int(3 / width)].any()


def test_pair_correlations_of_a_species_that_is_not_there_are_zero() -> None:
    only_a = Configuration(np.array([[2.0, 2.0], [3.03, 2.0]]), np.array([1, 1]), BOX)
    like, unlike, other = baselines.pair_correlations(only_a).reshape(3, -1)
    assert like.any()
    assert not unlike.any()
    assert not other.any()


def test_power_spectrum_of_stripes_has_their_wave_number() -> None:
    columns = np.arange(64)
    stripes = 128 + 100 * np.sin(2 * np.pi * 9 * columns / 64)
    image = np.broadcast_to(stripes[None, :, None], (64, 64, 3)).astype(np.uint8)
    spectrum = baselines.power_spectrum(image)
    assert spectrum.shape == (32,)
    assert spectrum.argmax() == 9 - 1
    assert baselines.power_spectrum(np.rot90(image)) == pytest.approx(spectrum, abs=1e-6)


def test_scores_come_from_folds_that_keep_trajectories_whole() -> None:
    rng = np.random.default_rng(1)
    trajectories = np.repeat(np.arange(40), 8)
    labels = np.repeat(rng.permutation(np.repeat([0, 1], 20)), 8)
    # A fingerprint of each trajectory, and nothing of the class: worthless for a new trajectory.
    features = np.eye(40)[trajectories]
    found = baselines.score("fingerprint", features, labels, trajectories, 0.95)
    assert found.auc < 0.7
    told = baselines.score("class", labels[:, None] + 0.0, labels, trajectories, 0.95)
    assert (told.auc, told.low, told.high) == pytest.approx((1, 1, 1))


def test_a_real_data_set(
    tiny_logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tiny.share(tiny_logs, tmp_path / "logs")
    config = tiny.write_study(tmp_path / "study.yaml", tiny.tree())
    assert run_main(job.main, [str(config), "--logs", str(logs)]) == EXIT_COMPLETE
    shown = capsys.readouterr().out
    named = {one.name: one for one in baselines.measures(load(tiny.settings(), logs)).baselines}
    for name, one in named.items():
        assert name in shown
        assert one.low <= one.auc <= one.high
        assert 0 <= one.correct <= one.examples
    # Thermal snapshots: energy alone is a thermometer.
    assert named["pair energy"].auc == 1
    assert named["pair energy"].correct == named["pair energy"].examples == 40
    assert named["image power spectrum"].examples == 280
    assert named["mean brightness"].examples == 280
    assert named["mean brightness"].features == 1


def test_brightness_alone_tells_pictures_of_which_more_is_covered(tiny_logs: Path) -> None:
    """As discs to scale do, which overlap in a hot liquid; the power spectrum does not see it."""
    dataset = load(tiny.settings(), tiny_logs)
    flat = np.repeat(dataset.labels[:, None, None, None] * 9 + 100, 16, axis=1)
    flat = np.broadcast_to(flat, (len(flat), 16, 16, 3)).astype(np.uint8)
    found = baselines.baselines(dataclasses.replace(dataset, images=flat))
    named = {one.name: one for one in found}
    assert named["mean brightness"].auc == 1
    assert named["image power spectrum"].auc == 0.5


def test_measures_are_those_of_the_simulation(tiny_logs: Path) -> None:
    dataset = load(tiny.settings(), tiny_logs)
    measures = baselines.configuration_measures(dataset, np.arange(6))
    assert {len(values) for values in measures.values()} == {6}
    smallest = measures["smallest distance / σ"]
    assert ((smallest > 0.6) & (smallest < 1.1)).all()


def elsewhere(dataset: Dataset, path: Path) -> Dataset:
    """The same files in a directory that no other test looks into."""
    for name in ("dataset.h5", "images.npy", "dataset.json"):
        (path / name).symlink_to(dataset.path / name)
    return dataclasses.replace(dataset, place=DatasetDir(path))


def refused(*_: object) -> None:
    raise StorageError("read-only")


def test_what_was_measured_is_kept_and_read_again(
    tiny_logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = elsewhere(load(tiny.settings(), tiny_logs), tmp_path)
    monkeypatch.setattr(baselines, "baselines", lambda *_: [])
    found = baselines.measures(dataset)
    assert list(found.correlations) == ["liquid", "glass"]
    for lines in found.correlations.values():
        assert [len(line) for line in lines] == [len(found.distance)] * 3
        assert np.mean([line[-10:] for line in lines]) == pytest.approx(1, abs=0.25)
    monkeypatch.setattr(baselines, "_measure", None)
    assert baselines.measures(dataset) == found
    for other in (
        dataclasses.replace(dataset, labels=1 - dataset.labels),
        dataclasses.replace(dataset, record={**dataset.record, "data_fingerprint": "other"}),
    ):
        with pytest.raises(TypeError):  # is measured
            baselines.measures(other)
    (kept,) = tmp_path.glob("baselines-*.json")
    kept.write_text("{")
    with pytest.raises(TypeError):
        baselines.measures(dataset)


def test_measures_of_data_where_nothing_can_be_written(
    tiny_logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = elsewhere(load(tiny.settings(), tiny_logs), tmp_path)
    monkeypatch.setattr(baselines, "FOLDS", 21)
    monkeypatch.setattr(baselines, "write_json", refused)
    found = baselines.measures(dataset)
    assert found.baselines == []
    assert found.without == "has 20 trajectories; 21 are needed, one for each fold."


def by_class(dataset: Dataset) -> Dataset:
    """The images without their configurations, liquids before glasses, as imports may be."""
    order = np.argsort(dataset.labels, kind="stable")
    return dataclasses.replace(
        dataset,
        images=dataset.images[order],
        labels=dataset.labels[order],
        trajectories=dataset.trajectories[order],
        record={**dataset.record, "psi6": None},
    )


def test_some_of_many_images_are_of_both_classes(
    tiny_logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "MOST", 100)
    brightness, found = baselines.baselines(by_class(load(tiny.settings(), tiny_logs)))
    assert brightness.examples == 100
    assert (found.name, found.examples) == ("image power spectrum", 100)
    assert found.auc > 0.5
    chosen = baselines.some_of(280)
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, baselines.some_of(280))
    assert baselines.some_of(100).tolist() == list(range(100))


def test_a_class_of_one_trajectory_is_refused(tiny_logs: Path) -> None:
    dataset = by_class(load(tiny.settings(), tiny_logs))
    one = np.where(dataset.labels == 1, 0, dataset.trajectories)
    with pytest.raises(DataError, match="all its glass images are of one trajectory; 2 are"):
        baselines.baselines(dataclasses.replace(dataset, trajectories=one))


def test_too_few_trajectories_are_refused(
    tiny_logs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(baselines, "FOLDS", 21)
    monkeypatch.setattr(baselines, "FORMAT", 0)  # what is kept beside them is of another
    monkeypatch.setattr(baselines, "write_json", refused)
    config = tiny.write_study(tmp_path / "study.yaml", tiny.tree())
    assert run_main(job.main, [str(config), "--logs", str(tiny_logs)]) == EXIT_DATA
    assert "has 20 trajectories; 21 are needed" in capsys.readouterr().err
