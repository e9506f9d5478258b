"""Steps divided by rows of images give what undivided ones give, on 2, 3 and 4 ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from glass_cnn.paths import RunDir
from glass_cnn.training.division import DataParallel, Kind, chosen, divide
from glass_cnn.training.resume import division_before
from hpc.checkpoint_names import MANIFEST
from hpc.errors import ConfigError
from hpc.files import read_json
from hpc.records import read_events, read_records
from hpc.world import world
from tests import tiny
from tests.checkpoints import Directory, state
from tests.conftest import MpiRun
from tests.plans import Plan, fault
from tests.test_rollback import COLLAPSING

DRIVER = Path(__file__).parent / "drivers" / "rows.py"
PAIRS = [
    ("swanson2017/2", "swanson2017/data"),
    ("swanson2017/3", "swanson2017/data"),
    ("swanson2017/4", "swanson2017/data"),
    ("modern/3", "modern/data"),
    ("goes on/4", "goes on/data"),
]
"""by rows, undivided; the last goes on from the state that two ranks by rows have left"""
BY_ROWS = {"division": "rows"}
TO_AND_FRO = ["data", "rows", "data"]
SMALL = 4464
"""parameters that are not dense weights"""

pytestmark = pytest.mark.timeout(1200)


# Single steps: 32 px leave 19 rows, which no number of ranks divides


@pytest.fixture(scope="module")
def steps(
    mpirun: MpiRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the driver found, and its arrays."""
    out = tmp_path_factory.mktemp("rows")
    done = mpirun(4, DRIVER, out, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "answer.json").read_text()), dict(np.load(out / "arrays.npz"))


def numbers(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Leaves of nested dictionaries."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{path}{key}/")
        else:
            yield path + key, value


both = pytest.mark.parametrize(("rows", "undivided"), PAIRS)


@pytest.mark.requires("mpi")
@pytest.mark.slow
@both
def test_gradients_losses_and_the_state_are_those_of_undivided_steps(
    steps: tuple[dict[str, Any], dict[str, np.ndarray]], rows: str, undivided: str
) -> None:
    """With dropout, L2 and clipping; weights, moments of Adam, momentum, decay of weights."""
    answer, arrays = steps
    assert answer[rows]["corrects"] == answer[undivided]["corrects"]
    assert answer[rows]["losses"] == pytest.approx(answer[undivided]["losses"], rel=1e-4)
    wanted = {k: v for k, v in arrays.items() if k.startswith(f"{undivided}/")}
    assert len(wanted) == 16 + (16 if undivided.startswith("modern") else 24)
    for name, value in wanted.items():
        found = arrays[rows + name.removeprefix(undivided)]
        assert np.linalg.norm(found - value) <= 1e-4 * np.linalg.norm(value), name


@pytest.mark.requires("mpi")
@pytest.mark.slow
@both
def test_measurements_are_those_of_the_whole_network(
    steps: tuple[dict[str, Any], dict[str, np.ndarray]], rows: str, undivided: str
) -> None:
    """Norms, dead units, Adam's ratios, curvature, the sum of squares that L2 weighs."""
    answer, _ = steps
    found, wanted = (dict(numbers(answer[name]["measured"])) for name in (rows, undivided))
    assert ("curvature" in wanted) == (undivided != "modern/data")
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-7)
    assert answer[rows]["l2"] == pytest.approx(answer[undivided]["l2"], rel=1e-5)


@pytest.mark.requires("mpi")
@pytest.mark.slow
@both
def test_an_evaluation_counts_every_example_once(
    steps: tuple[dict[str, Any], dict[str, np.ndarray]], rows: str, undivided: str
) -> None:
    answer, _ = steps
    assert answer[rows]["counts"][0] == 9
    assert answer[rows]["counts"] == pytest.approx(answer[undivided]["counts"], rel=1e-4)


@pytest.mark.requires("mpi")
@pytest.mark.slow
def test_what_travels_in_a_step_is_counted(
    steps: tuple[dict[str, Any], dict[str, np.ndarray]],
) -> None:
    """Bytes that each rank adds: sums of 10 images, small tensors, two counts, a norm."""
    answer, _ = steps
    for ranks in (2, 3):
        assert answer[f"swanson2017/{ranks}"]["bytes"] == 4 * (10 * 80 + SMALL + 2 + 1)
    assert answer["modern/3"]["bytes"] == 4 * (10 * 80 + SMALL + 2)
    assert answer["data of 2"]["bytes"] == 4 * (19 * 19 * 16 * 80 + SMALL + 2)


@pytest.mark.requires("mpi")
@pytest.mark.slow
def test_a_copy_of_a_run_moves_the_same_weight(
    steps: tuple[dict[str, Any], dict[str, np.ndarray]],
) -> None:
    answer, _ = steps
    for rows, undivided in PAIRS:
        assert answer[rows]["changed"] == 1
        moved, wanted = (answer[name]["moved"].split(" from ")[0] for name in (rows, undivided))
        assert moved == wanted


@pytest.mark.requires("mpi")
@pytest.mark.slow
def test_arrays_in_parts_come_to_rank_0_and_go_back(
    steps: tuple[dict[str, Any], dict[str, np.ndarray]],
) -> None:
    """Also after an error on rank 0 before it has read anything: nobody waits for ever."""
    found = steps[0]["handed over"]
    assert found["right"] == [True] * 4
    assert found["failed"] == 1
    assert "10 rows are held" in found["wrong"]


def test_more_ranks_than_rows_are_refused() -> None:
    crowd: Any = SimpleNamespace(rank=0, size=8)
    with pytest.raises(ConfigError, match=r"20 px leave 7 rows .* for 8 ranks; start at most 7"):
        divide("rows", tiny.settings(render={"pixels": 20}), crowd)


def test_one_rank_has_everything_under_either_division() -> None:
    assert isinstance(divide("rows", tiny.settings(), world()), DataParallel)


@pytest.mark.parametrize(
    ("pixels", "batch", "ranks", "kind"),
    [
        (250, 80, 2, "rows"),
        (48, 80, 2, "rows"),
        (250, 80, 64, "rows"),
        (40, 81, 2, "rows"),
        (40, 82, 2, "data"),  # 27 rows are less than a third
        (32, 80, 2, "data"),
        (32, 20, 19, "rows"),
        (32, 20, 20, "data"),  # one rank would have none
        (250, 80, 1, "data"),
    ],
)
def test_by_itself_a_run_takes_rows_where_they_are_worth_it(
    pixels: int, batch: int, ranks: int, kind: str
) -> None:
    render, train = {"pixels": pixels}, {"batch_size": batch}
    assert chosen(tiny.settings(render=render, train=train), ranks)[0] == kind


@pytest.mark.parametrize(("before", "other"), [("data", "rows"), ("rows", "data")])
def test_a_run_goes_on_as_its_checkpoint_was_made_unless_told_otherwise(
    before: Kind, other: Kind
) -> None:
    settings = tiny.settings(train={"batch_size": 20 if before == "data" else 200})
    assert chosen(settings, 2)[0] == other
    assert chosen(settings, 2, before)[0] == before
    told = tiny.settings(launch={"division": other})
    assert chosen(told, 2, before)[0] == other


def test_how_a_checkpoint_was_made_is_what_the_newest_readable_one_says(tmp_path: Path) -> None:
    """Older versions said nothing, and divided by examples; other ranks go on with other bits."""
    run = RunDir(tmp_path)
    assert division_before(run, 2) is None
    folder = Directory(run.checkpoints)
    folder.write(1)
    assert division_before(run, 2) == "data"
    with folder.open() as checkpoints:
        checkpoints.save(2, state(2), {"numerics": {"division": "rows"}})
    assert division_before(run, 2) == "rows"
    assert division_before(run, 3) is None
    (folder.kept()[-1] / MANIFEST).write_text("{")
    assert division_before(run, 2) == "data"


# Whole runs on 3 ranks


@pytest.fixture(scope="module")
def plan(mpirun: MpiRun, tiny_logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Runs of one world, all of the same seed and settings but for their division."""
    plan = Plan(tmp_path_factory.mktemp("runs-"), tiny_logs, 3)
    stop = fault(1, "step", 4, "SIGTERM")
    for case, kinds in {
        "rows": ["rows"],
        "stopped": ["auto"] * 2,
        "to and fro": TO_AND_FRO,
        "examples": ["data"],
        "begun by examples": ["data", "auto"],
    }.items():
        plan.study(case, train={"diagnostics_every": 4}, checkpoint={"after_end": "all", "keep": 9})
        for left, kind in zip(range(len(kinds) - 1, -1, -1), kinds, strict=True):
            plan.add(case, stop if left else None, "--set", f"launch.division={kind}")
    plan.verify("to and fro", "tiny/runs/*", "--count", "9")
    source = {"run": "tiny/runs/*", "which": "latest", "optimizer_state": True}
    still = {"iterations": 1, "l2": 0, "learning_rate": {"kind": "constant", "initial": 1e-12}}
    study = {"name": "branch", "seeds": 1}
    train = {**still, "restart_from": source, "gradients": "bfloat16"}
    branch = tiny.tree(launch=BY_ROWS, study=study, train=train)
    plan.add("rows", config=tiny.write_study(plan.place / "branch.yaml", branch))
    train = {"iterations": 12, "rollback": {"action": "fresh_optimizer"}}
    back = tiny.merge(COLLAPSING, {"launch": BY_ROWS, "train": train})
    plan.study("back", **back)
    plan.add("back")
    return plan.carry_out(mpirun)


def run_of(plan: Plan, case: str, study: str = "tiny") -> RunDir:
    return tiny.only_run(plan.logs(case), study)


@pytest.mark.requires("mpi")
@pytest.mark.slow
def test_a_stopped_run_by_rows_ends_with_the_same_bits(plan: Plan) -> None:
    """Rows are what its settings leave it to take; it says so."""
    assert "steps divided by rows (launch.division auto: 19 rows, 3" in plan.said["stopped"][0][0]
    assert plan.codes["stopped"] == [[75] * 3, [0] * 3]
    wanted = tiny.outcome(run_of(plan, "rows"))
    assert tiny.outcome(run_of(plan, "stopped")) == wanted
    assert wanted["metrics"][3]["diagnostics"]["weight_norm"]["dense/weights"] > 0


@pytest.mark.requires("mpi")
@pytest.mark.slow
def test_a_run_begun_by_examples_goes_on_by_them_with_the_same_bits(plan: Plan) -> None:
    assert plan.codes["begun by examples"] == [[75] * 3, [0] * 3]
    run = run_of(plan, "begun by examples")
    assert not [e for e in read_events(run.events) if e.event == "numerics_changed"]
    assert "by data (launch.division auto: as the" in plan.said["begun by examples"][1][0]
    assert tiny.outcome(run) == tiny.outcome(run_of(plan, "examples"))


@pytest.mark.requires("mpi")
@pytest.mark.slow
def test_a_run_goes_on_under_another_division_and_says_so(plan: Plan) -> None:
    """By examples up to step 4, by rows up to step 8, then by examples again."""
    assert plan.codes["to and fro"][:3] == [[75] * 3, [75] * 3, [0] * 3]
    run = run_of(plan, "to and fro")
    changes = [e for e in read_events(run.events) if e.event == "numerics_changed"]
    assert [(e.step, e.reason) for e in changes] == [
        (4, "division data, now rows"),
        (8, "division rows, now data"),
    ]
    starts = read_records(run.provenance)
    assert [s["numerics"]["division"] for s in starts] == TO_AND_FRO
    found, wanted = (tiny.outcome(r) for r in (run, run_of(plan, "rows")))
    for one, other in zip(found["metrics"], wanted["metrics"], strict=True):
        for key in ("train_loss", "validation_loss", "l2_loss"):
            assert one[key] == pytest.approx(other[key], rel=1e-2), key
        assert one["validation_examples"] == other["validation_examples"]
    assert found["result"]["examples"] == wanted["result"]["examples"]


@pytest.mark.requires("mpi")
@pytest.mark.slow
def test_an_audit_trains_each_part_again_as_it_was_divided(plan: Plan) -> None:
    assert plan.codes["to and fro"][3] == [0] * 3
    audit = plan.said["to and fro"][3][0]
    assert "steps 0 to 4, from the seed: trained again, every bit the same" in audit
    assert "steps 6 to 8" in audit
    assert "steps 8 to 12" in audit


@pytest.mark.requires("mpi")
@pytest.mark.slow
def test_another_run_can_begin_with_the_weights_of_one_by_rows(plan: Plan) -> None:
    """At a rate that keeps them. By rows no gradient is sent as bfloat16, and the log says so."""
    assert plan.codes["rows"] == [[0] * 3] * 2
    log = run_of(plan, "rows", "branch").log.read_text()
    assert "train.gradients bfloat16 rounds nothing: ranks send no large gradient" in log
    assert "train.gradients" not in run_of(plan, "rows").log.read_text()
    (record,) = read_records(run_of(plan, "rows", "branch").metrics)
    last = read_records(run_of(plan, "rows").metrics)[-1]
    assert record["validation_loss"] == pytest.approx(last["validation_loss"], rel=1e-5)


@pytest.mark.requires("mpi")
@pytest.mark.slow
def test_a_collapsed_run_by_rows_goes_back(plan: Plan) -> None:
    run = run_of(plan, "back")
    (event,) = [e for e in read_records(run.events) if e["event"] == "rollback"]
    assert event["action"] == "fresh_optimizer"
    assert read_json(run.result)["rollbacks"] == [event["iteration"]]
    assert [r["iteration"] for r in read_records(run.metrics)] == list(range(1, 13))
