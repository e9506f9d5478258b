"""What users and machines do to runs: it is told once, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_cnn.analysis.rows import read_run
from glass_cnn.lineage import read_digests
from glass_cnn.paths import DatasetDir
from hpc import checkpoint
from hpc.records import read_events, read_records
from tests import tiny
from tests.plans import Plan, fault

pytestmark = [pytest.mark.requires("mpi"), pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A directory that can be mounted as a small disk; None where that is not allowed."""
    place = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=11m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def branch(place: Path, with_state: bool) -> Path:
    """A study whose run starts from the weights of `tiny` and hardly moves."""
    source = {"run": "tiny/runs/base-s{seed}-*", "optimizer_state": with_state}
    rate = {"kind": "constant", "initial": 1e-12}
    train = {"iterations": 1, "learning_rate": rate, "restart_from": source}
    name = f"branch-{'with' if with_state else 'without'}-state"
    return tiny.write_study(place / f"{name}.yaml", tiny.tree(name, train=train))


@pytest.fixture(scope="module")
def mishaps(
    mpirun: Callable[..., Any],
    tiny_logs: Path,
    tmp_path_factory: pytest.TempPathFactory,
    disk: Path | None,
) -> Plan:
    """What users and machines do to runs, on 2 ranks in one MPI start."""
    plan = Plan(tmp_path_factory.mktemp("mishaps"), tiny_logs, 2)
    stop = fault(1, "step", 8, "SIGTERM")
    plan.add("undisturbed")

    def in_run(case: str, command: str) -> None:
        plan.shell("bash", "-c", f"cd '{plan.logs(case)}'/tiny/runs/* && {command}")

    plan.add("foreign", stop)
    in_run("foreign", "sed -i 's/l2: 0.01/l2: 0.02/' config.yaml && grep -q 'l2: 0.02' config.yaml")
    plan.add("foreign")

    by_examples = ("--set", "launch.division=data")
    plan.add("small batch", None, "--set", "train.batch_size=1", *by_examples)
    plan.add("unknown key", None, "--set", "trian.batch_size=1")
    plan.add("unknown run", None, "no-such-run")
    plan.add("index", None, "--index", "7")

    plan.study("no data")
    (plan.logs("no data") / "datasets").unlink()
    plan.add("no data")

    plan.study("damaged data")
    data = plan.logs("damaged data") / "datasets"
    data.unlink()
    shutil.copytree(tiny_logs / "datasets", data)
    images = DatasetDir(next(data.iterdir())).images
    os.truncate(images, images.stat().st_size - 1)
    plan.add("damaged data")

    plan.add("damaged checkpoint", stop)
    in_run("damaged checkpoint", "truncate -s -1 checkpoints/step-000000008/state.safetensors")
    in_run("damaged checkpoint", 'printf \'{"iteration": 9, "cut\' >> metrics.jsonl')
    plan.add("damaged checkpoint")

    plan.add("no checkpoint", stop)
    in_run("no checkpoint", "truncate -s 9 checkpoints/step-*/manifest.json")
    plan.add("no checkpoint")
    plan.add("no checkpoint", None, "--start-over")

    plan.study("line lost", checkpoint={"every_iterations": 1, "keep": 5})
    plan.add("line lost", stop)
    in_run("line lost", "sed -i 2d metrics.jsonl")
    plan.add("line lost")

    plan.add("emptied", stop)
    in_run("emptied", "truncate -s 0 metrics.jsonl")
    plan.add("emptied")

    plan.add("start over")
    plan.add("start over", None, "--start-over")

    plan.add("no best", None, "--set", "checkpoint.best=false")
    plan.add("late best", stop, "--set", "checkpoint.best=false")
    plan.add("late best")

    plan.add("branch")
    for with_state in (True, False):
        plan.add("branch", config=branch(plan.place, with_state))

    if disk is not None:
        root = plan.logs("full disk")
        root.symlink_to(disk)
        for name in ("datasets", "trajectories"):
            (disk / name).symlink_to(tiny_logs / name)
        plan.add("full disk")
        plan.shell("mount", "-o", "remount,ro,size=40m", disk)
        plan.add("full disk")
        plan.shell("mount", "-o", "remount,rw,size=40m", disk)
        plan.add("full disk")
    return plan.carry_out(mpirun)


def told_once(plan: Plan, case: str, start: int, *words: str) -> None:
    """One message on one rank, with these words, and no traceback."""
    said = plan.said[case][start]
    errors = [text for text in said if "error:" in text]
    assert len(errors) == 1, said
    message = errors[0][errors[0].index("error:") :]
    assert message.count("error:") == 1
    assert len(message.strip().splitlines()) == 1, message
    for word in words:
        assert word in message
    assert "Traceback" not in "".join(said)


@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        ("small batch", 78, ["train.batch_size 1 is smaller than the number of ranks 2"]),
        ("unknown key", 78, ["trian is no setting: did you mean 'train'?"]),
        ("unknown run", 78, ["'no-such-run' is no run of it; for example: base-s0-"]),
        ("index", 78, ["--index 7: tiny has 1 run"]),
        ("no data", 65, ["there is no such data set. Make it: make submit CONFIG="]),
        ("damaged data", 65, ["images.npy: is damaged or incomplete", "Remove", "made anew"]),
    ],
)
def test_a_mistake_is_told_once_on_all_ranks_together(
    mishaps: Plan, case: str, code: int, words: list[str]
) -> None:
    assert mishaps.codes[case] == [[code, code]]
    told_once(mishaps, case, 0, *words)


def test_a_directory_of_another_run_is_refused(mishaps: Plan) -> None:
    assert mishaps.codes["foreign"] == [[75, 75], [78, 78]]
    told_once(mishaps, "foreign", 1, "holds a run with other settings", "move it away")
    run = mishaps.run("foreign")
    assert len(read_records(run.provenance)) == 1
    assert "l2: 0.02" in run.config.read_text()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(mishaps: Plan) -> None:
    assert mishaps.codes["damaged checkpoint"] == [[75, 75], [0, 0]]
    run = mishaps.run("damaged checkpoint")
    assert tiny.starts(run) == [0, 6]
    assert tiny.outcome(run) == tiny.outcome(mishaps.run("undisturbed"))
    refused = [r for r in read_records(run.events) if r["event"] == "checkpoint_refused"]
    assert [Path(r["path"]).name for r in refused] == ["step-000000008"]


def test_without_any_valid_checkpoint_the_run_stops_and_says_so(mishaps: Plan) -> None:
    assert mishaps.codes["no checkpoint"] == [[75, 75], [65, 65], [0, 0]]
    told_once(mishaps, "no checkpoint", 1, "none of the checkpoints can be used", "--start-over")
    run = mishaps.run("no checkpoint")
    assert tiny.outcome(run) == tiny.outcome(mishaps.run("undisturbed"))


def test_a_run_goes_back_to_a_checkpoint_that_its_records_cover(mishaps: Plan) -> None:
    assert mishaps.codes["line lost"] == [[75, 75], [0, 0]]
    run = mishaps.run("line lost")
    assert tiny.starts(run) == [0, 3]
    undisturbed = mishaps.run("undisturbed")
    found, wanted = tiny.outcome(run), tiny.outcome(undisturbed)
    # It has more checkpoints, so its chain of digests has other links; they end in the same state.
    assert found["result"].pop("chain") != wanted["result"].pop("chain")
    assert found == wanted
    digests = read_digests(run.digests)
    assert [digest.step for digest in digests] == [3, 6, 9, 12]
    assert digests[-1] == read_digests(undisturbed.digests)[-1]
    (event,) = [e for e in read_events(run.events) if e.event == "records_missing"]
    assert (event.iteration, event.step) == (2, 3)
    assert "lacks evaluation 2" in run.log.read_text()


def test_a_run_whose_records_no_checkpoint_fits_goes_on_and_is_damaged(mishaps: Plan) -> None:
    assert mishaps.codes["emptied"] == [[75, 75], [0, 0]]
    run = mishaps.run("emptied")
    assert tiny.starts(run) == [0, 8], "what was trained is not thrown away unasked"
    (event,) = [e for e in read_events(run.events) if e.event == "records_missing"]
    assert (event.iteration, event.step) == (1, 8)
    assert "--start-over trains it again" in str(event.reason)
    row = read_run(run.path)
    assert row.state == "damaged"
    assert not row.reason or "metrics.jsonl" in row.reason


def test_starting_over_forgets_the_run_and_repeats_it(mishaps: Plan) -> None:
    assert mishaps.codes["start over"] == [[0, 0], [0, 0]]
    run = mishaps.run("start over")
    assert tiny.starts(run) == [0, 0]
    assert tiny.outcome(run) == tiny.outcome(mishaps.run("undisturbed"))


@pytest.mark.parametrize("case", ["no best", "late best"])
def test_an_optimal_model_that_was_not_kept_is_not_tested(mishaps: Plan, case: str) -> None:
    """Its accuracy on the test data is unknown then; that of the final weights is another."""
    assert mishaps.codes[case][-1] == [0, 0]
    run, wanted = mishaps.run(case), tiny.outcome(mishaps.run("undisturbed"))
    assert wanted["result"]["optimal"]["iteration"] < 2, "before it was kept"
    wanted["result"]["optimal"]["test_accuracy"] = None
    assert tiny.outcome(run) == wanted
    assert "not kept for the test" in run.log.read_text()


def test_a_full_then_read_only_disk_costs_nothing_once_there_is_space(
    mishaps: Plan, disk: Path | None
) -> None:
    if disk is None:
        pytest.skip("no small file system can be mounted here")
    assert mishaps.codes["full disk"] == [[70, 70], [70, 70], [0, 0]]
    told_once(mishaps, "full disk", 0, "no space left; free some or move the output")
    told_once(mishaps, "full disk", 1, "not writable; choose another place with LOGS=dir")
    run = mishaps.run("full disk")
    assert tiny.outcome(run) == tiny.outcome(mishaps.run("undisturbed"))


@pytest.mark.parametrize(("name", "updates"), [("with", 15), ("without", 3)])
def test_a_branch_starts_from_the_weights_of_another_run(
    mishaps: Plan, name: str, updates: int
) -> None:
    assert mishaps.codes["branch"] == [[0, 0]] * 3
    source = mishaps.run("branch")
    run = tiny.only_run(mishaps.logs("branch"), f"branch-{name}-state")
    old, new = checkpoint.newest(source.checkpoints), checkpoint.newest(run.checkpoints)
    assert old is not None
    assert new is not None
    assert (new.step, new.meta["updates"]) == (3, updates)
    weights = [key for key in old.tensors if key.startswith("model/")]
    assert len(weights) == 8
    for key in weights:
        np.testing.assert_allclose(new.tensors[key], old.tensors[key], rtol=0, atol=1e-8)
    (start,) = read_records(run.provenance)
    assert start["reason"] == f"branched from {old.path}"
    assert start["lineage"] == {
        "run": source.name,
        "checkpoint": str(old.path),
        "step": 12,
        "which": "latest",
        "optimizer_state": name == "with",
    }
