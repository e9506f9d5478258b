"""Which weights a branch starts from, and what it says when they are not there or do not fit."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_cnn.paths import StudyDir
from glass_cnn.records import Evaluation
from glass_cnn.settings import RunSettings
from glass_cnn.training.branch import Branch, open_branch
from glass_cnn.training.engine import Engine
from glass_cnn.training.recorder import Recorder
from glass_cnn.training.tensorboard import EventFiles
from hpc.checkpoint_writer import Checkpoints
from hpc.errors import ConfigError, DataError, StorageError
from hpc.preempt import StopFlag
from hpc.records import Event, as_dict, read_records
from hpc.world import world
from tests import tiny

SMALL = {"pixels": 20, "window": 5.0}


def branching(run: str, pixels: int = 20, seed: int = 3, **more: Any) -> RunSettings:
    train = {"restart_from": {"run": run, **more.pop("source", {})}, **more}
    return tiny.settings(seed=seed, render={**SMALL, "pixels": pixels}, train=train)


pytestmark = pytest.mark.usefixtures("tensorflow")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny.settings(render=SMALL), world())


@pytest.fixture
def logs(tmp_path: Path, engine: Engine) -> Path:
    """Two runs; each has a best model of ones and checkpoints of step 10 (tens) and 20."""
    for seed in (3, 4):
        place = StudyDir(tmp_path / "old").run("base", seed, "0123456789")
        with Checkpoints(
            place.checkpoints, "settings", 2, None, ranks=1, on_event=lambda _: None
        ) as store:
            ones = {k: np.ones(v.shape, np.float32) for k, v in state(engine) if "model" in k}
            store.save_best(10, ones, {"updates": 9})
            for step in (10, 20):
                filled = {k: np.full(v.shape, step + seed, np.float32) for k, v in state(engine)}
                store.save(step, filled, {"updates": step - 1})
    return tmp_path


def state(engine: Engine) -> list[tuple[str, Any]]:
    return list(engine.state().items())


def opened(settings: RunSettings, logs: Path, engine: Engine) -> Branch:
    branch = open_branch(settings, logs, engine.state())
    assert branch is not None
    return branch


def test_nothing_is_restarted_without_being_asked_for(tmp_path: Path, engine: Engine) -> None:
    assert open_branch(tiny.settings(), tmp_path, engine.state()) is None


def test_latest_weights_of_the_run_with_the_same_seed(logs: Path, engine: Engine) -> None:
    branch = opened(branching("old/runs/base-s{seed}-01234567"), logs, engine)
    assert set(branch.tensors) == {k for k, _ in state(engine) if k.startswith("model/")}
    assert all((v == 23).all() for v in branch.tensors.values())
    assert branch.updates == 0
    assert as_dict(branch.lineage) == {
        "run": "base-s3-01234567",
        "checkpoint": str(logs / "old/runs/base-s3-01234567/checkpoints/step-000000020"),
        "step": 20,
        "which": "latest",
        "optimizer_state": False,
    }


def test_the_optimizers_state_comes_along_when_asked_for(logs: Path, engine: Engine) -> None:
    settings = branching("old/runs/base-s{seed}-*", seed=4, source={"optimizer_state": True})
    branch = opened(settings, logs, engine)
    assert set(branch.tensors) == set(engine.state())
    assert all((v == 24).all() for v in branch.tensors.values())
    assert branch.updates == 19


def test_best_weights(logs: Path, engine: Engine) -> None:
    settings = branching("old/runs/base-s3-*", source={"which": "best"})
    branch = opened(settings, logs, engine)
    assert all((v == 1).all() for v in branch.tensors.values())
    assert (branch.lineage.which, branch.lineage.step) == ("best", 10)
    assert branch.lineage.run == "base-s3-01234567"


def test_one_checkpoint_by_name(logs: Path, engine: Engine) -> None:
    settings = branching("old/runs/base-s3-01234567/checkpoints/step-000000010")
    branch = opened(settings, logs, engine)
    assert all((v == 13).all() for v in branch.tensors.values())
    assert (branch.lineage.run, branch.lineage.step) == ("base-s3-01234567", 10)
    best = opened(branching("old/runs/base-s3-*/checkpoints/best"), logs, engine)
    assert best.lineage.step == 10


def test_an_absolute_path(logs: Path, engine: Engine) -> None:
    settings = branching(str(logs / "old" / "runs" / "base-s3-01234567"))
    assert opened(settings, logs / "elsewhere", engine).lineage.step == 20


def test_logs_with_a_name_that_looks_like_a_pattern(logs: Path, engine: Engine) -> None:
    root = logs / "[a] *"
    root.mkdir()
    (logs / "old").rename(root / "old")
    assert opened(branching("old/runs/base-s{seed}-*"), root, engine).lineage.step == 20


def test_a_damaged_newest_checkpoint_is_passed_over(
    logs: Path, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = logs / "old/runs/base-s3-01234567/checkpoints/step-000000020"
    (newest / "manifest.json").write_text("{}")
    assert opened(branching("old/runs/base-s3-*"), logs, engine).lineage.step == 10
    assert "step-000000020 is no usable checkpoint" in capsys.readouterr().out
    assert newest.is_dir(), "another run's files are not touched"
    (newest.with_name("step-000000010") / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"none of .* can be used .*Train that run again, or use"):
        open_branch(branching("old/runs/base-s3-*"), logs, engine.state())
    with pytest.raises(DataError, match=r"manifest\.json is damaged\. .*name another run"):
        open_branch(branching(str(newest)), logs, engine.state())


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("old/runs/base-s9-*", "nothing is there; exactly one run or checkpoint must be named"),
        ("old/runs/base-s{seed}-x", "Train it first, or name it more exactly ({seed} stands for"),
        ("old/runs/*", "2 directories fit, base-s3-01234567, base-s4-01234567; exactly one"),
        ("old/runs/*", "name the one that is meant, or move the others elsewhere"),
        ("old/empty", "has no latest checkpoint; train it first"),
    ],
)
def test_what_is_not_there_is_said(logs: Path, engine: Engine, run: str, words: str) -> None:
    (logs / "old" / "empty").mkdir()
    with pytest.raises(ConfigError, match=re.escape(words)):
        open_branch(branching(run), logs, engine.state())


def test_weights_of_another_size_are_refused(logs: Path) -> None:
    settings = branching("old/runs/base-s3-*", pixels=24)
    other = Engine(settings, world())
    with pytest.raises(ConfigError, match=r"has shape \[784, 80\], this run needs \[1936, 80\]"):
        open_branch(settings, logs, other.state())


def test_the_state_of_another_optimizer_is_refused(logs: Path) -> None:
    sgd = {"kind": "sgd", "momentum": 0.9}
    settings = branching("old/runs/base-s3-*", optimizer=sgd, source={"optimizer_state": True})
    other = Engine(settings, world())
    with pytest.raises(ConfigError, match=r"needs none of it; .*train\.optimizer\.kind must be"):
        open_branch(settings, logs, other.state())
    without = branching("old/runs/base-s3-*", optimizer=sgd)
    assert opened(without, logs, other).updates == 0


def test_a_best_model_has_no_state_to_take(logs: Path, engine: Engine) -> None:
    best = "old/runs/base-s3-01234567/checkpoints/best"
    settings = branching(best, source={"optimizer_state": True})
    with pytest.raises(ConfigError, match="holds weights only; take a latest checkpoint"):
        open_branch(settings, logs, engine.state())


# What rank 0 records, when the disk is full


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(path: Path) -> None:
    """Take the last byte of a file system."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(256))


def test_event_files_that_do_not_fit_are_a_message(small: Path) -> None:
    run = StudyDir(small / "s").run("base", 0, "0123456789")
    stop = StopFlag()
    evaluation = Evaluation(
        iteration=1,
        step=1,
        learning_rate=1,
        train_accuracy=1,
        train_loss=1,
        validation_accuracy=1,
        validation_loss=1,
        predicted_glass_fraction=1,
        validation_examples=1,
        validation_glass=1,
    )
    with Recorder(tiny.settings(), run, world(), stop) as recorder:
        curves = EventFiles(run.tensorboard)
        curves.begin([])
        fill(small / "filler")

        def add_many() -> None:
            for _ in range(200):
                curves.add(evaluation)

        with pytest.raises(StorageError, match="no space left; free some"):
            add_many()
        curves.close()
        (small / "filler").unlink()
        recorder.event(Event(event="space again"))
        assert stop.error is None
    assert [r["event"] for r in read_records(run.events)] == ["space again"]
