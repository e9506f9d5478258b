"""Names outlive the next version: what is in a digest, and that old directories stay valid."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from glass_cnn.analysis.rows import read_run
from glass_cnn.analysis.table import aggregate
from glass_cnn.paths import StudyDir
from glass_cnn.records import DataIdentity, Numerics
from glass_cnn.settings import Model, RunSettings, build_run
from glass_cnn.study import load_study
from hpc.checkpoint import newest
from hpc.checkpoint_writer import Checkpoints
from hpc.config import Identity, Settings, digest, identity_tree

BEFORE = Path(__file__).parent / "fixtures" / "version_1" / "before"
"""a study of the version that had no marks of identity: two of its runs, without checkpoints"""
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


@pytest.mark.parametrize("case", PINNED)
def test_names_are_those_of_the_first_version(case: str) -> None:
    changes, *wanted = PINNED[case]
    settings = build_run(changes, case)
    digests = (settings.run_digest(), settings.dataset_digest(), settings.simulation_digest())
    assert [found[:16] for found in digests] == wanted


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


@pytest.fixture
def before(tmp_path: Path) -> StudyDir:
    shutil.copytree(BEFORE, tmp_path / "before")
    return StudyDir(tmp_path / "before")


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


META = {
    "accuracy": 0.5, "best_accuracy": 0.5, "best_iteration": 1, "correct": 0, "diagnosis": {},
    "evaluated": 4, "loss_sum": 0.0, "rate_factor": 1.0, "rollbacks": [], "seconds": 0.5,
    "skipped": 0, "step": 20, "updates": 20,
}  # fmt: skip
"""`meta` of a checkpoint as the version before wrote it"""


def test_a_checkpoint_of_the_version_before_is_taken(tmp_path: Path, tensorflow: Numerics) -> None:
    from glass_cnn.training.engine import Engine
    from glass_cnn.training.state import State
    from hpc.world import world

    settings = build_run({"render": {"pixels": 24}}, "x")
    engine = Engine(settings, world())
    with Checkpoints(tmp_path, settings.run_digest(), 1, None, 1, on_event=print) as written:
        written.save(20, engine.snapshot(), META)
    found = newest(tmp_path, settings.run_digest())
    assert found is not None
    data = DataIdentity("x-0123abcd", "f00d")
    state = State(settings, engine, data, tensorflow, training_examples=100)
    change = state.restore(found)
    assert (state.progress.step, state.progress.evaluated, engine.optimizer.count) == (20, 4, 20)
    meta = {**state.meta(), "seconds": 0.5}
    assert {key: meta[key] for key in META} == META
    assert meta["data"] == msgspec.to_builtins(data)
    assert change is not None
    assert change.what.startswith("unknown before")
