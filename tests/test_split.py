"""The split: by trajectory, with exact shares, every class in every part."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_cnn.data import dataset as data
from glass_cnn.paths import DatasetDir
from glass_cnn.settings import Split
from hpc.errors import DataError
from jobs import submit
from tests.small_data import SETTINGS, TREE, with_changes


@pytest.fixture(scope="module")
def tiny(small_logs: Path) -> data.Dataset:
    return data.load(SETTINGS, small_logs)


def test_split_keeps_trajectories_together(tiny: data.Dataset) -> None:
    parts = data.split(tiny, SETTINGS)
    chosen = [parts.train, parts.validation, parts.test]
    assert sorted(np.concatenate(chosen)) == list(range(len(tiny)))
    groups = [set(tiny.trajectories[part]) for part in chosen]
    assert [len(g) for g in groups] == [6, 2, 1]  # 9 × 0.7 / 0.15 / 0.15 = 6.3 / 1.35 / 1.35
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    again = data.split(tiny, SETTINGS)
    assert all(
        (a == b).all()
        for a, b in zip(chosen, (again.train, again.validation, again.test), strict=True)
    )
    other = data.split(tiny, with_changes(split={"seed": 2}))
    assert set(tiny.trajectories[other.train]) != groups[0]
    assert (
        "480 images of      6 trajectories: 240 liquid, 240 glass (50.0% glass)" in parts.describe()
    )


def test_first_examples_of_a_part_are_a_fair_sample(tiny: data.Dataset) -> None:
    first = data.split(tiny, SETTINGS).validation[:80]
    assert 20 < tiny.labels[first].sum() < 60
    groups, counts = np.unique(tiny.trajectories[first], return_counts=True)
    assert len(groups) == 2
    assert min(counts) > 20


def test_split_does_not_depend_on_the_seed_of_the_run(tiny: data.Dataset) -> None:
    one, two = (data.split(tiny, with_changes(seed=seed)) for seed in (1, 2))
    assert (one.test == two.test).all()


@given(
    count=st.integers(5, 400),
    shares=st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.1, 0.1), (0.34, 0.33, 0.33)]),
    pure=st.integers(0, 400),
)
def test_shares_are_exact(count: int, shares: tuple[float, ...], pure: int) -> None:
    """`pure` trajectories hold one class only, the others both."""
    settings = Split(train=shares[0], validation=shares[1], test=shares[2])
    trajectories = np.repeat(np.arange(count), 2)
    labels = np.tile([0, 1], count)
    for k in range(min(pure, count)):
        labels[2 * k : 2 * k + 2] = k % 2
    try:
        part = data.assign(trajectories, labels, settings)[::2]
    except DataError:
        rarest = min(len(np.unique(trajectories[labels == k])) for k in (0, 1))
        assert rarest * min(shares) < 2
        return
    sizes = np.bincount(part, minlength=3)
    assert np.abs(sizes - np.array(shares) * count).max() < 1
    assert sizes.sum() == count
    for k in (0, 1):  # trajectories of one class are divided like all of them
        of_class = part[: min(pure, count)][k::2]
        expected = len(of_class) * sizes / count
        assert np.abs(np.bincount(of_class, minlength=3) - expected).max() < 2


def test_too_few_trajectories() -> None:
    with pytest.raises(
        DataError, match=r"4 trajectories cannot be split.*At least 5 traj"
    ) as error:
        data.assign(np.repeat(np.arange(4), 2), np.tile([0, 1], 4), Split(), "here")
    assert str(error.value).startswith("here: ")


def test_part_without_a_class() -> None:
    labels = np.array([0] * 19 + [1], np.uint8)
    lonely = data.Dataset(DatasetDir(Path("here")), {}, np.zeros(20), labels, np.arange(20))
    for seed in range(20):  # none helps, and the message says so
        message = r"here: 20 .*part would have \d+ with liquids and 0 with glasses.*seed"
        with pytest.raises(DataError, match=message):
            data.split(lonely, with_changes(split={"seed": seed}))


@given(
    kinds=st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40)).filter(any),
    shares=st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.9, 0.05, 0.05)]),
)
def test_so_many_as_are_said_to_be_needed_are_enough(
    kinds: tuple[int, int, int], shares: tuple[float, ...]
) -> None:
    """And with one less of the rarer class there are too few."""
    settings = Split(train=shares[0], validation=shares[1], test=shares[2])
    try:
        data.assign(*of_kinds(*kinds), settings)
        return
    except DataError as error:
        message = str(error)
    liquids, glasses, both = kinds
    if said := re.search(r"At least (\d+) with liquids and (\d+) with glasses are", message):
        liquids, glasses = (int(n) - both for n in said.groups())
        fewer = (liquids - (liquids <= glasses), glasses - (glasses < liquids), both)
    else:
        both = int(re.search(r"At least (\d+) trajectories are needed", message)[1])  # type: ignore[index]
        fewer = (0, 0, both - 1)
    data.assign(*of_kinds(liquids, glasses, both), settings)
    with pytest.raises(DataError):
        data.assign(*of_kinds(*fewer), settings)


def of_kinds(liquids: int, glasses: int, both: int) -> tuple[np.ndarray, np.ndarray]:
    """Trajectories and labels of so many trajectories of only liquids, only glasses, and both."""
    single = liquids + glasses
    trajectories = np.concatenate([np.arange(single), np.repeat(np.arange(both) + single, 2)])
    labels = np.concatenate([np.repeat([0, 1], [liquids, glasses]), np.tile([0, 1], both)])
    return trajectories, labels


def test_a_study_that_cannot_be_split_is_refused_before_it_is_simulated(tmp_path: Path) -> None:
    """Whether its data are there or not; each data set and split is looked at once."""
    few = with_changes(simulation={**TREE["simulation"], "trajectories": 4})
    with pytest.raises(DataError, match=r"simulation\.trajectories: 4 .*At least 5 trajectories"):
        data.check_split([SETTINGS, few], tmp_path)
    even = Split(train=0.34, validation=0.33, test=0.33)
    data.check_split([SETTINGS, SETTINGS.model_copy(update={"split": even})], tmp_path)


def test_data_that_are_there_are_split_as_each_point_says(small_logs: Path) -> None:
    data.check_split([SETTINGS], small_logs)
    unfair = SETTINGS.model_copy(update={"split": Split(train=0.96, validation=0.02, test=0.02)})
    with pytest.raises(
        DataError, match=r"datasets/.*: 9 trajectories cannot be split 0\.96 / 0\.02"
    ):
        data.check_split([SETTINGS, unfair], small_logs)


def test_a_study_is_looked_at_before_anything_of_it_is_started(tmp_path: Path) -> None:
    """Also one that must be complete before the one that is asked for."""
    tree = {"simulation": {"trajectories": 4, "frames": 2, "cooling_steps": 100}}
    first = tmp_path / "first.yaml"
    first.write_text(json.dumps({"study": {"name": "first", "seeds": 1}, **tree}))
    second = tmp_path / "second.yaml"
    second.write_text(json.dumps({"study": {"name": "second", "seeds": 1, "after": "first.yaml"}}))
    for study in (first, second):
        for words in ([], ["--dry-run"]):
            logs = tmp_path / "logs"
            with pytest.raises(DataError, match=r"4 trajectories cannot be split"):
                submit.main([str(study), "--launcher", "local", "--logs", str(logs), *words])
            assert not logs.exists()
    wide = ["--set", "split={train: 0.5, validation: 0.25, test: 0.25}", "--dry-run"]
    assert submit.main([str(first), "--launcher", "local", "--logs", str(logs), *wide]) == 0


def test_nothing_is_known_of_imports_that_are_not_there(tmp_path: Path) -> None:
    data.check_split([with_changes(data={"name": "mine", "source": "import"})], tmp_path)


def test_permuted_labels(small_logs: Path, tiny: data.Dataset) -> None:
    permuted = data.load(with_changes(data={**TREE["data"], "permute_labels": True}), small_logs)
    assert permuted.path == tiny.path
    assert permuted.labels.sum() == tiny.labels.sum()
    assert 0.4 < (permuted.labels == tiny.labels).mean() < 0.6
    parts = data.split(permuted, SETTINGS)
    assert (parts.labels == permuted.labels).all()
