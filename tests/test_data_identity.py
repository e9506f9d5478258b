"""What a run was trained on is known by its contents: other data under an old name are refused."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
from PIL import Image

from glass_cnn.analysis import scan
from glass_cnn.analysis.table import aggregate, write
from glass_cnn.data import dataset as data
from glass_cnn.data.imports import import_data
from glass_cnn.data_identity import of, of_settings
from glass_cnn.paths import DatasetDir, RunDir
from glass_cnn.records import DataIdentity, read_result, read_starts, trained_on
from glass_cnn.study import Study, load_study
from hpc.checkpoint import newest, read
from hpc.checkpoint_names import BEST
from hpc.commandline import run_main
from hpc.errors import DataError
from hpc.files import read_json
from hpc.world import world
from jobs import evaluate, submit, train, visualize
from jobs import import_data as import_job
from tests import synthetic, tiny
from tests.own_data import picture, write_images

TREE: dict[str, Any] = {
    "study": {"name": "own", "seeds": 1},
    "data": {"name": "mine", "source": "import"},
    "render": {"pixels": 20},
    "model": {"recipe": "modern"},
    "train": {"batch_size": 8, "iterations": 2, "batches_per_iteration": 2},
    "launch": {"ranks": 1},
}
LAST_YEAR = "2016-01-01T00:00:00+00:00"


def only_data(logs: Path) -> DatasetDir:
    """The one data set of a logs directory."""
    (path,) = (logs / "datasets").iterdir()
    return DatasetDir(path)


def with_date(place: Path, date: str) -> None:
    """Let a data set have been stored at another time."""
    record = only_data(place).record
    record.write_text(json.dumps({**read_json(record), "created": date}))


def import_into(logs: Path, source: Path, study: Study) -> data.Dataset:
    """Store a source as the data set of a study, and open it."""
    return data.load(import_data(source, study.datasets[0], logs, world()))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two directories of the same names and labels, and other pictures."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    write_images(first / "in", 24)
    write_images(second / "in", 24)
    for i in range(24):
        Image.fromarray(picture(100 + i)).save(second / f"in/images/{i}.png")
    return first / "in", second / "in"


@pytest.fixture(scope="module")
def trained(
    sources: tuple[Path, Path], mpirun: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A directory with study.yaml, and logs of a run that is complete, trained on the first."""
    place = tmp_path_factory.mktemp("trained")
    config = tiny.write_study(place / "study.yaml", TREE)
    import_into(place / "logs", sources[0], load_study(config))
    with_date(place / "logs", LAST_YEAR)
    done = mpirun(1, "jobs.train", config, "--logs", place / "logs")
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def replaced(trained: Path, sources: tuple[Path, Path], tmp_path: Path) -> Path:
    """The same with the data set removed, and the second imported under its name."""
    place = Path(shutil.copytree(trained, tmp_path / "replaced"))
    shutil.rmtree(place / "logs" / "datasets")
    import_into(place / "logs", sources[1], load_study(place / "study.yaml"))
    return place


def words(place: Path, *more: str) -> list[str]:
    """Command line of a job on the study."""
    return [str(place / "study.yaml"), "--logs", str(place / "logs"), *more]


def run_of(place: Path) -> RunDir:
    return tiny.only_run(place / "logs", "own")


def names_both(text: str, place: Path) -> bool:
    """Whether a message names both data sets by their dates, the run, and what to do."""
    now = of_settings(load_study(place / "study.yaml").datasets[0], place / "logs")
    assert now is not None
    wanted = (LAST_YEAR, now.created or "", "must not be mixed", "data.name of their own")
    return all(each in text for each in wanted)


# What is written down


def test_starts_checkpoints_and_result_say_what_the_run_was_trained_on(trained: Path) -> None:
    opened = data.load(load_study(trained / "study.yaml").datasets[0], trained / "logs")
    run = run_of(trained)
    (start,) = read_starts(run.provenance)
    result = read_result(run.result)
    assert result is not None
    assert start.data == result.data == trained_on(run) == opened.identity
    assert opened.identity.created == LAST_YEAR
    assert len(opened.identity.fingerprint) == 32
    assert start.data_verified is not None
    latest = newest(run.checkpoints, None)
    assert latest is not None
    best = read(run.checkpoints / BEST)
    expected = {"name": opened.place.name, "fingerprint": opened.identity.fingerprint}
    for checkpoint in (latest, best):
        assert checkpoint.meta["data"] == {**expected, "created": LAST_YEAR}
    assert f"stored {LAST_YEAR} (fingerprint" in run.log.read_text()
    assert "verified in" in run.log.read_text()


def test_the_same_data_stored_again_are_the_same(
    trained: Path, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    study = load_study(trained / "study.yaml")
    before = of_settings(study.datasets[0], trained / "logs")
    again = import_into(tmp_path, sources[0], study).identity
    assert before is not None
    assert again.fingerprint == before.fingerprint
    assert again.created != before.created


def test_contents_order_labels_and_groups_make_the_fingerprint() -> None:
    sums, labels, groups = ["0a", "0b"], np.array([0, 1], np.uint8), np.array([4, 5])
    base = data.fingerprint_of(sums, labels, groups)
    others = [
        data.fingerprint_of(["0a", "0c"], labels, groups),
        data.fingerprint_of(["0b", "0a"], labels, groups),
        data.fingerprint_of(sums, labels[::-1], groups),
        data.fingerprint_of(sums, labels, groups[::-1]),
        data.fingerprint_of(sums, labels, np.array([4, 4])),
    ]
    assert len({base, *others}) == 6
    assert base == data.fingerprint_of(sums, labels.astype(int), groups.astype(np.int32))


def test_a_data_set_of_the_version_before_has_the_same_fingerprint(
    trained: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "old"))
    study = load_study(place / "study.yaml")
    identity = data.load(study.datasets[0], place / "logs").identity
    record = only_data(place / "logs").record
    tree = read_json(record)
    assert tree.pop("data_fingerprint") == identity.fingerprint
    record.write_text(json.dumps(tree))
    assert data.load(study.datasets[0], place / "logs").identity == identity
    assert of_settings(study.datasets[0], place / "logs") is None
    assert run_main(train.main, words(place)) == 0


# Other data under an old name


def test_submit_does_not_call_a_run_of_other_data_complete(
    replaced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ((), ("--dry-run",)):
        assert run_main(submit.main, words(replaced, "--launcher", "local", *more)) == 65
        told = capsys.readouterr()
        assert names_both(told.err, replaced)
        assert str(run_of(replaced).path) in told.err
        assert "nothing to do" not in told.out


def test_submit_tells_that_runs_of_an_older_version_do_not_say(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "older"))
    run = run_of(place)
    for file in (run.provenance, run.result):
        tree = json.loads(file.read_text())
        assert tree.pop("data")
        file.write_text(json.dumps(tree) + "\n")
    assert run_main(submit.main, words(place, "--dry-run", "--launcher", "local")) == 0
    told = capsys.readouterr().out
    assert f"note: 1 run of an older version (such as {run.name}) did not write down" in told
    assert LAST_YEAR in told
    assert run_main(submit.main, words(trained, "--dry-run", "--launcher", "local")) == 0
    assert "note:" not in capsys.readouterr().out


def test_train_does_not_call_it_complete(
    replaced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(train.main, words(replaced)) == 65
    told = capsys.readouterr()
    assert names_both(told.err, replaced)
    assert "nothing to do" not in told.out


@pytest.mark.requires("mpi")
def test_a_run_does_not_go_on_with_other_data(replaced: Path, mpirun: Callable[..., Any]) -> None:
    run = run_of(replaced)
    run.result.unlink()
    before = kept(run)
    done = mpirun(2, "jobs.train", *words(replaced))
    assert done.returncode == 65
    assert names_both(done.stderr, replaced)
    assert done.stderr.count("error:") == 1
    assert kept(run) == before
    assert not run.result.exists()
    assert run_main(submit.main, words(replaced, "--dry-run")) == 65


def kept(run: RunDir) -> dict[str, str]:
    """What a run that is refused leaves as it was."""
    files = tiny.fingerprint(run.path)
    return {name: files[name] for name in files if "checkpoints/" in name and ".lock" not in name}


@pytest.mark.parametrize("job", [evaluate, visualize])
def test_models_are_not_measured_on_other_data(
    job: Any, replaced: Path, tensorflow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = str(replaced / "logs")
    assert run_main(job.main, [str(run_of(replaced).path), "--logs", logs]) == 65
    assert names_both(capsys.readouterr().err, replaced)
    assert not list(run_of(replaced).path.glob("evaluation.json"))


def test_a_run_of_other_data_is_superseded_in_the_table(replaced: Path) -> None:
    study = load_study(replaced / "study.yaml")
    (row,) = (
        aggregate(study, study.directory(replaced / "logs"))
        .table.filter(pl.col("state") != "missing")
        .to_dicts()
    )
    assert (row["state"], row["counted"]) == ("superseded", False)
    now = of_settings(study.datasets[0], replaced / "logs")
    assert now is not None
    assert row["reason"] == (
        f"was trained on the data stored {LAST_YEAR}; those under that name were stored "
        f"{now.created}"
    )


def test_import_says_what_it_supersedes(
    trained: Path, sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "copy"))
    source = str(sources[1])
    assert run_main(import_job.main, [source, *words(place)]) == 65
    refused = capsys.readouterr().err
    newest = max(path.stat().st_mtime for path in sources[1].glob("images/*.png"))
    changed = datetime.datetime.fromtimestamp(newest, datetime.UTC).isoformat(timespec="seconds")
    assert LAST_YEAR in refused
    assert f"last changed {changed}" in refused
    assert run_main(import_job.main, [str(sources[0]), *words(place)]) == 0
    assert "superseded" not in capsys.readouterr().out
    shutil.rmtree(place / "logs" / "datasets")
    assert run_main(import_job.main, [source, *words(place)]) == 0
    told = capsys.readouterr().out
    assert f"note: {run_of(place).path}: was trained" in told
    assert names_both(told, place)


def test_runs_of_the_data_that_are_there_are_counted(trained: Path) -> None:
    study = load_study(trained / "study.yaml")
    (row,) = aggregate(study, study.directory(trained / "logs")).table.to_dicts()
    assert (row["state"], row["counted"], row["data_stored"]) == ("complete", True, LAST_YEAR)


def test_seeds_of_two_data_sets_never_stand_in_one_arm(tmp_path: Path) -> None:
    """Even where neither is there any more: those that were stored last count."""
    study = synthetic.study(seeds=5)
    place = synthetic.directory(study, tmp_path)
    old = {"name": "x-0", "fingerprint": "a" * 32, "created": LAST_YEAR}
    new = {"name": "x-0", "fingerprint": "b" * 32, "created": "2017-01-01T00:00:00+00:00"}
    for run, told in zip(study.runs, (old, new, old, new, None), strict=True):
        synthetic.write_run(place, run, start={"data": told})
    found = aggregate(study, place).table.filter(pl.col("state") != "missing").sort("seed")
    states = found["state"].to_list()
    assert states == ["superseded", "complete", "superseded", "complete", "complete"]
    assert found["counted"].to_list() == [False, True, False, True, True]


def test_the_table_is_made_anew_when_the_data_change(
    trained: Path, sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "JUST_CHANGED", 0)  # else it is made anew in any case
    place = Path(shutil.copytree(trained, tmp_path / "copy"))
    study = load_study(place / "study.yaml")
    write(aggregate(study, study.directory(place / "logs")))
    shutil.rmtree(place / "logs" / "datasets")
    import_into(place / "logs", sources[1], study)
    again = aggregate(study, study.directory(place / "logs")).table
    assert "superseded" in again["state"].to_list()


def test_runs_that_do_not_say_are_taken_as_they_are(tmp_path: Path) -> None:
    """Those of older versions."""
    study = synthetic.study(seeds=2)
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run)
    assert aggregate(study, place).table["state"].to_list() == ["complete", "complete"]
    assert trained_on(RunDir(place.runs / study.runs[0].name)) is None


def test_an_unreadable_identity_in_a_checkpoint_is_none() -> None:
    assert of(None) is None
    assert of({"name": 3}) is None
    assert of({"name": "x", "fingerprint": "f"}) == DataIdentity("x", "f")


# Contents


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 images in this process."""
    monkeypatch.setattr(data, "BLOCK", 16)


@pytest.mark.requires("mpi")
def test_a_changed_byte_is_refused_at_a_start(
    trained: Path, mpirun: Callable[..., Any], tmp_path: Path
) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "changed"))
    images = only_data(place / "logs").images
    flip(images, images.stat().st_size - 1)
    shutil.rmtree(place / "logs" / "own")
    for ranks in (1, 2):
        done = mpirun(ranks, "jobs.train", *words(place))
        assert done.returncode == 65, done.stderr
        assert f"{images}: is damaged or incomplete: block 0 (images 0 to 23)" in done.stderr
        assert done.stderr.count("error:") == 1
    assert not run_of(place).provenance.exists()


def test_each_rank_verifies_its_share(
    two_blocks: None, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    study = load_study(tiny.write_study(tmp_path / "study.yaml", TREE))
    opened = import_into(tmp_path / "logs", sources[0], study)
    flip(opened.place.images, opened.place.images.stat().st_size - 1)
    changed = data.load(opened.place)
    assert changed.verify(slice(0, 1))
    with pytest.raises(DataError, match=r"images\.npy: .*block 1 \(images 16 to 23\)"):
        changed.verify(slice(1, 2))
    with pytest.raises(DataError, match="block 1"):
        changed.verify()
    assert not changed.verify(slice(1, 2), lambda: False)


def test_changed_labels_are_refused_when_the_data_set_is_opened(
    trained: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "labels"))
    columns = only_data(place / "logs").columns
    with h5py.File(columns, "r+") as file:
        file["images/label"][...] = file["images/label"][...][::-1]
    with pytest.raises(DataError, match="labels or trajectories are not those it was made with"):
        data.load(load_study(place / "study.yaml").datasets[0], place / "logs")


def test_a_record_without_checksums_is_damaged(trained: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "sums"))
    record = only_data(place / "logs").record
    whole, name = read_json(record), only_data(place / "logs").images.name
    damages: list[Any] = [None, [], {}, {name: 3}, {name: []}]
    for sums in damages:
        record.write_text(json.dumps({**whole, "checksums": sums}))
        with pytest.raises(DataError, match="a checksum for each"):
            data.load(load_study(place / "study.yaml").datasets[0], place / "logs")
