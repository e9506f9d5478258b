"""Names outlive the next version: what is in a digest, and that old directories stay valid."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import pytest

from glass_cnn.analysis import rows
from glass_cnn.analysis.rows import read_run
from glass_cnn.analysis.scan import code
from glass_cnn.analysis.table import aggregate
from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.records import DataIdentity, Numerics
from glass_cnn.settings import RunSettings, build_run, load_run
from glass_cnn.study import find_run, load_study
from glass_cnn.train_settings import Model, Rollback, Train
from hpc.checkpoint import InvalidCheckpoint, newest
from hpc.config import (
    Count,
    Identity,
    Settings,
    digest,
    identity_tree,
    to_tree,
    up_to_date,
    validate,
)
from hpc.errors import ConfigError
from tests import tiny

FIRST = Path(__file__).parent / "fixtures" / "version_1"
"""studies of the version that had no marks of identity"""
THRESHOLD = {"kind": "threshold", "initial": 1e-3, "levels": [{"above": 0.9, "rate": 1e-4}]}

PINNED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    # changes of the defaults, then the digests of run, data set and simulation
    "defaults": ({}, "25ed0c974114edd3", "4f6ec077525c2443", "abd6481272d2d78f"),
    "threshold": (
        {"train": {"learning_rate": THRESHOLD}, "seed": 7},
        "1c1a77537d1f5906",
        "4f6ec077525c2443",
        "abd6481272d2d78f",
    ),
    "rollback": (
        {"train": {"rollback": {"enabled": True}}, "analysis": {"learned_accuracy": 0.9}},
        "b7571b813bebe85f",
        "4f6ec077525c2443",
        "abd6481272d2d78f",
    ),
    "imported": (
        {"data": {"source": "import", "name": "mine"}, "render": {"pixels": 48}},
        "e4f763ea36e1b857",
        "990b76d830908f7c",
        "abd6481272d2d78f",
    ),
    "sgd": (
        {"train": {"optimizer": {"kind": "sgd", "momentum": 0.9}, "batch_size": 13}},
        "7718d9a47b7640d8",
        "4f6ec077525c2443",
        "abd6481272d2d78f",
    ),
    "windows": (
        {
            "render": {"style": "disc", "window": 6.0, "windows_per_configuration": 3},
            "data": {"glass": {"temperature": 0.1}, "form": "inherent", "permute_labels": True},
        },
        "15d00a0c9a883a02",
        "fac85b553f958301",
        "c29aab0623822bf5",
    ),
}


EXPONENTIAL = {"decay": 0.5, "decay_iterations": 9}
PINNED_RUNS: dict[str, tuple[dict[str, Any], str]] = {
    # every other kind of the settings of a training, and the digest of the run
    "linear": ({"kind": "linear", "initial": 1e-3, "final": 1e-5, "schedule_length": 9},
               "d0aa3a9709f23410"),
    "exponential": ({"kind": "exponential", "initial": 1e-3, **EXPONENTIAL}, "2247cb2487598267"),
    "warmup": ({"kind": "warmup_exponential", "peak": 1e-2, "warmup_iterations": 3, **EXPONENTIAL},
               "0aad21f3f5740fb8"),
    "cosine": ({"kind": "cosine", "initial": 1e-3, "schedule_length": 9}, "4b05c23dc95e179c"),
    "branch": ({"run": "other/runs/base-s{seed}-*", "which": "best"}, "1a6a77cf6ace010b"),
}  # fmt: skip
LATER: dict[str, tuple[dict[str, Any], str]] = {
    # settings that were added since, and the digest of the run
    "order": ({"train": {"order": "batch"}}, "1cd60dcc273c22f3"),
    "at_least": ({"train": {"learning_rate": {**THRESHOLD, "levels": [
        {"at_least": 0.9, "rate": 1e-4}]}}}, "98c3f2eaa0d85f9d"),
    "copy": ({"rounding": {"copy": 2, "step": 5}}, "bcf3e5e0c474e285"),
}  # fmt: skip


@pytest.mark.parametrize("case", PINNED)
def test_names_are_those_of_the_first_version(case: str) -> None:
    changes, *wanted = PINNED[case]
    settings = build_run(changes, case)
    digests = (settings.run_digest(), settings.dataset_digest(), settings.simulation_digest())
    assert [found[:16] for found in digests] == wanted


@pytest.mark.parametrize("case", PINNED_RUNS)
def test_runs_of_every_kind_have_the_names_of_the_first_version(case: str) -> None:
    part, wanted = PINNED_RUNS[case]
    train = {"restart_from" if case == "branch" else "learning_rate": part}
    assert build_run({"train": train}, case).run_digest()[:16] == wanted


@pytest.mark.parametrize("case", LATER)
def test_settings_that_were_added_since_have_names_of_their_own(case: str) -> None:
    changes, wanted = LATER[case]
    assert build_run(changes, case).run_digest()[:16] == wanted


@pytest.mark.parametrize(
    "changes",
    [
        {"launch": {"ranks": 3, "threads_per_rank": 2}},
        {"checkpoint": {"every_iterations": 1, "best": False}},
        {"simulation": {"style": "plain"}},
        {"train": {"evaluation_batch": 3, "diagnostics_every": 0, "curvature_every": 2}},
        {"analysis": {"learned_accuracy": 0.8}},
    ],
)
def test_what_changes_no_result_changes_no_name(changes: dict[str, Any]) -> None:
    assert build_run(changes, "x").run_digest() == RunSettings().run_digest()


def test_labels_belong_to_the_run_and_not_to_the_stored_data() -> None:
    shuffled = build_run({"data": {"permute_labels": True}}, "x")
    assert shuffled.dataset_digest() == RunSettings().dataset_digest()
    assert shuffled.run_digest() != RunSettings().run_digest()


# -- the next version ------------------------------------------------------------------------------


class LaterModel(Model):
    """The network in a version that has one more setting."""

    width: Annotated[int, Identity(since=2, before=80)] = 80
    """units of the dense layer"""


class LaterSettings(RunSettings):
    """Settings of that version."""

    model: LaterModel = LaterModel()
    """the network"""


def test_a_setting_added_with_a_default_changes_no_name() -> None:
    assert LaterSettings().run_digest() == RunSettings().run_digest()
    assert LaterSettings().dataset_digest() == RunSettings().dataset_digest()
    other = LaterSettings(model=LaterModel(width=40))
    assert other.run_digest() != RunSettings().run_digest()


class LatestModel(Model):
    """The same, once its default is another one."""

    width: Annotated[int, Identity(since=2, before=80)] = 120
    """units of the dense layer"""


class LatestSettings(RunSettings):
    """Settings of that version."""

    model: LatestModel = LatestModel()
    """the network"""


def test_a_default_that_changes_later_renames_what_it_changes_and_nothing_else() -> None:
    assert LatestSettings().run_digest() != RunSettings().run_digest()
    as_before = LatestSettings(model=LatestModel(width=80))
    assert as_before.run_digest() == RunSettings().run_digest()
    assert LatestSettings().run_digest() == LaterSettings(model=LaterModel(width=120)).run_digest()


def test_what_was_written_before_a_setting_was_added_is_read_as_what_was_done_then() -> None:
    written = to_tree(RunSettings(seed=3))
    assert "width" not in written["model"]
    read = validate(LatestSettings, up_to_date(LatestSettings, written), "config.yaml")
    assert read.model.width == 80
    assert read.run_digest() == RunSettings(seed=3).run_digest()
    again = to_tree(LatestSettings())
    assert validate(LatestSettings, up_to_date(LatestSettings, again), "x").model.width == 120


def test_settings_added_to_kinds_and_lists_are_read_as_what_was_done_before() -> None:
    class Handle(Settings):
        kind: Literal["handle"] = "handle"
        """handle or lid"""
        length: Annotated[int, Identity(since=3, before=10)] = 20
        """cm"""

    class Lid(Settings):
        kind: Literal["lid"]
        """lid"""

    class Lamp(Settings):
        width: Annotated[int, Identity(since=2, before=80)] = 120
        """cm"""

    class Kitchen(Settings):
        part: Annotated[Handle | Lid, pydantic.Field(discriminator="kind")] = Handle()
        """one of two kinds"""
        models: tuple[Lamp, ...] = ()
        """some"""
        free: dict[str, Any] = {}
        """anything"""

    written = {"part": {"kind": "handle"}, "models": [{}, {"width": 3}], "free": {"width": {}}}
    assert up_to_date(Kitchen, written) == {
        "part": {"kind": "handle", "length": 10},
        "models": [{"width": 80}, {"width": 3}],
        "free": {"width": {}},
    }
    assert up_to_date(Kitchen, {"part": {"kind": "lid"}})["part"] == {"kind": "lid"}


class Pan(Settings):
    """A setting, and the same once its values mean something else."""

    heat: float = 1.0
    """heat of the first version"""


class HotterPan(Settings):
    """As Pan."""

    heat: Annotated[float, Identity(meaning=2)] = 1.0
    """heat, on another scale"""


def test_a_default_that_comes_to_mean_something_else_renames_everything() -> None:
    old, new = identity_tree(Pan(), "pan"), identity_tree(HotterPan(), "pan")
    assert old == {"heat": 1.0}
    assert new == {"heat": {"meaning": 2, "value": 1.0}}
    assert digest(old) != digest(new)


def test_settings_inside_lists_have_marks_too() -> None:
    class Shelf(Settings):
        pans: tuple[LaterModel, ...] = (LaterModel(), LaterModel(width=3))
        """what stands on it"""

    first, second = identity_tree(Shelf(), "shelf")["pans"]
    assert "width" not in first
    assert second["width"] == 3


# -- directories of the version before -------------------------------------------------------------


@pytest.fixture(params=["before", "halfway"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> StudyDir:
    """Complete runs of the first version, and one that was stopped, with a checkpoint."""
    shutil.copytree(FIRST / request.param, tmp_path / request.param)
    return StudyDir(tmp_path / request.param)


@pytest.fixture
def before(tmp_path: Path) -> StudyDir:
    shutil.copytree(FIRST / "before", tmp_path / "before")
    return StudyDir(tmp_path / "before")


@pytest.fixture
def halfway(tmp_path: Path) -> RunDir:
    shutil.copytree(FIRST / "halfway", tmp_path / "halfway")
    (run,) = StudyDir(tmp_path / "halfway").runs.iterdir()
    return RunDir(run)


def test_runs_of_the_version_before_are_complete_and_rightly_named(before: StudyDir) -> None:
    study = load_study(before.study)
    names = {run.name for run in study.runs}
    for path in before.runs.iterdir():
        assert path.name in names
        row = read_run(path)
        assert (row.state, row.reason, row.well_named) == ("complete", None, True)
        assert (row.iteration, row.evaluations, row.starts) == (6, 6, 1)


def test_a_table_of_the_version_before_stays_what_it_was(before: StudyDir) -> None:
    table = aggregate(load_study(before.study), before).table
    complete = {
        row["run"]: row for row in table.iter_rows(named=True) if row["state"] == "complete"
    }
    assert {name: (row["final_validation_accuracy"], row["weights_sha256"][:8]) for name, row in
            complete.items()} == {
        "plain-s0-7895b0d6": (0.625, "80e0612d"),
        "swanson-s1-26c29530": (0.75, "0f25505f"),
    }  # fmt: skip
    assert table["state"].to_list().count("missing") == 6


def test_a_stopped_run_of_the_version_before_is_read_with_its_events(halfway: RunDir) -> None:
    row = read_run(halfway.path)
    assert (row.state, row.well_named, row.starts) == ("unfinished", True, 2)
    assert (row.iteration, row.evaluations, row.checkpoints_refused) == (64, 64, 1)


def test_a_checkpoint_of_the_version_before_is_taken(halfway: RunDir, tensorflow: Numerics) -> None:
    from glass_cnn.training.engine import Engine
    from glass_cnn.training.state import State
    from hpc.world import world

    settings = load_run(halfway.config)
    found = newest(halfway.checkpoints, settings.run_digest())
    assert found is not None
    engine = Engine(settings, world())
    state = State(settings, engine, DataIdentity("x", "f00d"), tensorflow, training_examples=34)
    change = state.restore(found)
    assert change is not None
    assert change.what.startswith("unknown before")
    assert (state.progress.step, state.progress.evaluated, engine.optimizer.count) == (64, 64, 64)
    weights = tiny.arrays(engine.snapshot("model/output/"))["model/output/biases"]
    assert np.array_equal(weights, found.tensors["model/output/biases"])


def test_a_checkpoint_of_other_settings_is_not_taken(halfway: RunDir) -> None:
    with pytest.raises(InvalidCheckpoint, match="made under other settings"):
        newest(halfway.checkpoints, RunSettings().run_digest())


def test_settings_of_a_newer_version_are_refused_by_name(halfway: RunDir) -> None:
    text = halfway.config.read_text().replace("model:\n", "model:\n  width: 80\n")
    halfway.config.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml: model\.width is no setting"):
        load_run(halfway.config)
    row = read_run(halfway.path)
    assert row.state == "damaged"
    assert "model.width is no setting" in str(row.reason)


# -- the same directories in later versions --------------------------------------------------------


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[type[RunSettings]], None]]:
    """Let the program have other settings, as a later version has."""

    def become(model: type[RunSettings]) -> None:
        rows._parsed.cache_clear()
        monkeypatch.setattr("glass_cnn.settings.RunSettings", model)

    yield become
    rows._parsed.cache_clear()


def states(place: StudyDir) -> list[str]:
    return sorted(set(aggregate(load_study(place.study), place).table["state"].to_list()))


class OtherRollback(Rollback):
    """Going back in a version that counts evaluations in another way."""

    chance_evaluations: Annotated[Count, Identity(meaning=2)] = 3
    """as before, counted otherwise"""


class OtherTrain(Train):
    """A training of that version."""

    rollback: OtherRollback = OtherRollback()
    """going back after a collapse"""


class OtherMeaning(RunSettings):
    """Settings of that version."""

    train: OtherTrain = OtherTrain()
    """the training"""


def test_runs_outlive_a_version_that_adds_a_setting(
    old: StudyDir, version: Callable[[type[RunSettings]], None]
) -> None:
    now = states(old)
    version(LaterSettings)
    assert states(old) == now
    assert now in (["complete", "missing"], ["unfinished"])


@pytest.mark.parametrize("later", [LatestSettings, OtherMeaning])
def test_runs_are_set_aside_by_a_version_whose_default_makes_other_results(
    old: StudyDir, version: Callable[[type[RunSettings]], None], later: type[RunSettings]
) -> None:
    version(later)
    table = aggregate(load_study(old.study), old).table
    aside = table.filter(table["run"].is_not_null())
    assert set(aside["state"]) == {"superseded"}
    assert not table["counted"].any()
    study = load_study(old.study)
    assert table.filter(table["state"] == "missing").height == len(study.runs)
    assert not {run.name for run in study.runs} & set(aside["run"])


def test_a_run_of_another_meaning_is_looked_at_with_a_word(
    halfway: RunDir,
    version: Callable[[type[RunSettings]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    find_run(halfway.path)
    assert capsys.readouterr().out == ""
    version(LatestSettings)  # the default is another one now: the run still is what it was
    assert find_run(halfway.path)[1].model.width == 80  # type: ignore[attr-defined]
    assert capsys.readouterr().out == ""
    version(OtherMeaning)
    find_run(halfway.path)
    assert "its name is not that of its settings" in capsys.readouterr().out


def test_a_summary_of_a_former_version_is_not_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before, read_bytes = code(), Path.read_bytes
    for name in ("settings.py", "train_settings.py", "config.py"):
        # The file of another version, as far as the checksum of the code sees it.
        monkeypatch.setattr(
            Path,
            "read_bytes",
            lambda path, name=name: read_bytes(path) + b"#" * (path.name == name),
        )
        assert code() != before
