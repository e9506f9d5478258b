"""Runs that are interrupted in every way end as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_cnn.paths import RunDir
from glass_cnn.study import load_study
from hpc import checkpoint
from hpc.files import read_json
from hpc.records import read_records
from tests import tiny
from tests.conftest import ONE_THREAD

# Many runs share an MPI start, in fixtures: these take minutes where cores are busy.
pytestmark = [pytest.mark.requires("mpi"), pytest.mark.slow, pytest.mark.timeout(1800)]
DRIVER = Path(__file__).parent / "drivers" / "training.py"
SIZES = (3, 1, 2)
"""in this order: a run that one leaves unfinished is finished by the next"""

Fault = dict[str, Any]


@dataclass
class Plan:
    """Starts of runs in one MPI world; each case has a logs directory of its own."""

    place: Path
    data: Path
    ranks: int
    items: list[dict[str, Any]] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    """case of each start"""
    codes: dict[str, list[list[int]]] = field(default_factory=dict)
    """exit codes of each start of a case, rank by rank"""
    said: dict[str, list[list[str]]] = field(default_factory=dict)
    """what was said at each start of a case, rank by rank"""
    errors: str = ""
    """what mpiexec handed on besides"""

    def logs(self, case: str) -> Path:
        return self.place / case

    def study(self, case: str, **sections: Any) -> Path:
        """The study file of a case, and its logs directory with the data."""
        if not self.logs(case).exists():
            tiny.share(self.data, self.logs(case))
        return tiny.write_study(self.place / f"{case}.yaml", tiny.tree(**sections))

    def add(
        self, case: str, fault: Fault | None = None, *words: str, config: Path | None = None
    ) -> None:
        """One start."""
        own = self.place / f"{case}.yaml"
        if not own.exists():
            self.study(case)
        arguments = [str(config or own), "--logs", str(self.logs(case)), *words]
        self.items.append({"train": arguments, "fault": fault})
        self.cases.append(case)

    def shell(self, *words: object) -> None:
        """A command between two starts."""
        self.items.append({"shell": [str(word) for word in words]})

    def carry_out(self, mpirun: Callable[..., Any], code: int | None = 0) -> Plan:
        """Start the world; `code` is mpiexec's, None for any but 0."""
        plan, number = self.place / "plan.json", len(list(self.place.glob("out-*")))
        out = self.place / f"out-{number}"
        out.mkdir()
        plan.write_text(json.dumps(self.items))
        done = mpirun(self.ranks, DRIVER, plan, out, timeout=400)
        self.errors = done.stdout + done.stderr
        assert done.returncode == code or (code is None and done.returncode), self.errors
        file = out / "codes.json"  # not there when the first start was the end of all ranks
        codes = json.loads(file.read_text()) if file.exists() else []
        for start, case in enumerate(self.cases):
            self.codes.setdefault(case, []).extend(codes[start : start + 1])
            said = [out / f"start-{start}-rank-{rank}.txt" for rank in range(self.ranks)]
            self.said.setdefault(case, []).append([path.read_text() for path in said])
        self.items, self.cases = [], []
        # mpiexec may be gone a moment before the last rank that it killed is.
        patience = time.monotonic() + 20
        while processes(str(plan)) and time.monotonic() < patience:
            time.sleep(0.1)
        assert not processes(str(plan)), "processes are left"
        return self

    def run(self, case: str) -> RunDir:
        return tiny.only_run(self.logs(case))


def processes(word: str) -> list[str]:
    """Command lines of living processes that contain a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = path.with_name("stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue  # it has just ended
        if word in line and state != "Z":
            found.append(line)
    return found


def fault(rank: int, before: str, call: int, do: str) -> Fault:
    return {"rank": rank, "before": before, "call": call, "do": do}


# What happens to the runs that are compared with an undisturbed one: lists of faults, one a start.
# An iteration evaluates 41 examples in portions of 10 over all ranks: 5 calls on 1 rank, 5 on 2 or
# 3; the test of the final and of the best weights has 42 examples.


def disturbances(ranks: int) -> dict[str, list[Fault]]:
    """Cases: every signal, any rank, at step boundaries, in evaluations, while starting, ending."""
    last = ranks - 1
    rng = random.Random(ranks)
    signals = ["SIGUSR1", "SIGTERM", "SIGINT", "SIGUSR2"]
    scattered = [
        fault(rng.randrange(ranks), "step", rng.randint(1, 3), rng.choice(signals))
        for _ in range(3)
    ]
    return {
        "steps": scattered,
        "evaluation": [
            fault(last, "evaluate", 2, "SIGTERM"),
            fault(0, "evaluate", 6, "SIGUSR1"),
        ],
        "edges": [
            fault(last, "restore", 1, "SIGINT"),
            fault(0, "record", 2, "SIGTERM"),
            fault(last, "finish", 1, "SIGUSR1"),
            fault(0, "compare weights", 1, "SIGTERM"),
        ],
        "tests": [
            fault(0, "test the best", 1, "SIGTERM"),
            fault(last, "evaluate", 5, "SIGINT"),
            fault(0, "evaluate", 10, "SIGUSR2"),
        ],
    }


@pytest.fixture(scope="module")
def plans(
    mpirun: Callable[..., Any], tiny_logs: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Plan]:
    """Everything that is compared between numbers of ranks; few MPI starts for many runs."""
    done: dict[int, Plan] = {}
    for before, ranks in zip((None, *SIZES), SIZES, strict=False):
        plan = done[ranks] = Plan(tmp_path_factory.mktemp(f"ranks{ranks}-"), tiny_logs, ranks)
        plan.add("undisturbed")
        for case, faults in disturbances(ranks).items():
            for each in faults:
                plan.add(case, each)
            plan.add(case)
        plan.add("too late", fault(0, "write the result", 1, "SIGTERM"))
        plan.add("left", fault(0, "step", 8, "SIGTERM"))
        if before is not None:
            shutil.copytree(done[before].logs("left"), plan.logs("taken over"), symlinks=True)
            shutil.copy(done[before].place / "left.yaml", plan.place / "taken over.yaml")
            plan.add("taken over")
        plan.add("killed", fault(ranks - 1, "step", 8, "SIGKILL"))
        plan.carry_out(mpirun, code=None)
        plan.add("killed", fault(-1, "evaluate", 2, "SIGKILL"))
        plan.carry_out(mpirun, code=None)
        plan.add("killed")
        plan.carry_out(mpirun)
    return done


every_size = pytest.mark.parametrize("ranks", SIZES)


@every_size
def test_interrupted_runs_end_with_the_same_bits(plans: dict[int, Plan], ranks: int) -> None:
    plan = plans[ranks]
    wanted = tiny.outcome(plan.run("undisturbed"))
    assert len(wanted["metrics"]) == 4
    for case, faults in disturbances(ranks).items():
        assert plan.codes[case] == [[75] * ranks] * len(faults) + [[0] * ranks], case
        assert tiny.outcome(plan.run(case)) == wanted, case
        result = read_json(plan.run(case).result)
        assert result["restarts"] == len(faults)


@every_size
def test_records_have_neither_gaps_nor_repeats(plans: dict[int, Plan], ranks: int) -> None:
    for case in ("undisturbed", *disturbances(ranks)):
        records = read_records(plans[ranks].run(case).metrics)
        assert [r["iteration"] for r in records] == [1, 2, 3, 4]
        assert [r["step"] for r in records] == [3, 6, 9, 12]
        assert [r["validation_examples"] for r in records] == [41] * 4
        seconds = [r["seconds"] for r in records]
        assert seconds == sorted(seconds)


@every_size
def test_each_start_says_where_it_began_and_why(plans: dict[int, Plan], ranks: int) -> None:
    plan = plans[ranks]
    for case, faults in disturbances(ranks).items():
        begins = read_records(plan.run(case).provenance)
        assert [b["ranks"] for b in begins] == [ranks] * (len(faults) + 1)
        assert begins[0]["reason"] == "new run"
        assert begins[0]["resumed_step"] == 0
        for each, begin in zip(faults, begins[1:], strict=True):
            assert begin["reason"] == f"resumed after {each['do']}"
            assert begin["versions"]["python"]
    steps = tiny.starts(plan.run("steps"))
    moved = [b - a for a, b in itertools.pairwise(steps)]
    assert moved == [each["call"] for each in disturbances(ranks)["steps"]]
    assert tiny.starts(plan.run("evaluation")) == [0, 3, 6]
    assert tiny.starts(plan.run("edges")) == [0, 0, 6, 12, 12]
    assert tiny.starts(plan.run("tests")) == [0, 12, 12, 12]


@every_size
def test_a_stop_during_the_last_writes_comes_too_late(plans: dict[int, Plan], ranks: int) -> None:
    plan = plans[ranks]
    assert plan.codes["too late"] == [[0] * ranks]
    run = plan.run("too late")
    assert tiny.outcome(run) == tiny.outcome(plan.run("undisturbed"))
    assert not run.events.exists(), "nothing was stopped"


@every_size
def test_undisturbed_records_are_what_the_design_says(plans: dict[int, Plan], ranks: int) -> None:
    run = plans[ranks].run("undisturbed")
    result, records = read_json(run.result), read_records(run.metrics)
    best = max(records, key=lambda r: r["validation_accuracy"])
    assert result["optimal"]["iteration"] == best["iteration"]
    assert result["optimal"]["validation_accuracy"] == best["validation_accuracy"]
    assert result["final"]["validation_accuracy"] == records[-1]["validation_accuracy"]
    assert result["final"]["iteration"] == 4
    assert (result["steps"], result["seed"], result["restarts"]) == (12, 0, 0)
    assert re.fullmatch("[0-9a-f]{64}", result["weights_sha256"])
    assert result["examples"] == {"train": 196, "validation": 42, "test": 42}
    for point in ("optimal", "final"):
        hits = result[point]["test_accuracy"] * 42
        assert hits == pytest.approx(round(hits))
    for record in records:
        correct = record["validation_accuracy"] * 41
        assert correct == pytest.approx(round(correct), abs=1e-9)
        assert record["epoch"] == pytest.approx(record["step"] * 25 / 196)
        assert record["finite"] is True
        assert 0 <= record["train_accuracy"] <= 1
        above = [r["validation_accuracy"] > 0.5 for r in records[: record["iteration"] - 1]]
        assert record["learning_rate"] == (5e-4 if above and above[-1] else 1e-3)
    assert run.log.read_text().count("\niteration ") == 4
    assert len(list(run.tensorboard.glob("events.out.tfevents.*"))) == 1
    assert not list(run.heartbeats.iterdir())


def test_ranks_change_nothing_beyond_rounding(plans: dict[int, Plan]) -> None:
    alone, *others = (tiny.outcome(plans[n].run("undisturbed"))["metrics"] for n in (1, 2, 3))
    for metrics in others:
        assert_close(metrics, alone)


def assert_close(metrics: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    for found, record in zip(metrics, wanted, strict=True):
        for key in ("train_loss", "validation_loss", "l2_loss"):
            assert found[key] == pytest.approx(record[key], rel=1e-2), key
        for key in ("iteration", "step", "epoch", "validation_examples", "validation_glass"):
            assert found[key] == record[key]


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 2)])
def test_a_run_goes_on_at_another_number_of_ranks(
    plans: dict[int, Plan], old: int, new: int
) -> None:
    run = plans[new].run("taken over")
    assert plans[old].codes["left"] == [[75] * old]
    assert plans[new].codes["taken over"] == [[0] * new]
    begins = read_records(run.provenance)
    assert [(b["ranks"], b["resumed_step"]) for b in begins] == [(old, 0), (new, 8)]
    before, after = (tiny.outcome(plans[n].run("undisturbed"))["metrics"] for n in (old, new))
    found = tiny.outcome(run)["metrics"]
    assert found[:2] == before[:2]
    assert_close(found, after)


@every_size
def test_killed_runs_end_with_the_same_bits(plans: dict[int, Plan], ranks: int) -> None:
    """One rank at a step, then all of them within an evaluation."""
    plan = plans[ranks]
    assert plan.codes["killed"] == [[0] * ranks]
    run = plan.run("killed")
    assert tiny.outcome(run) == tiny.outcome(plan.run("undisturbed"))
    begins = read_records(run.provenance)
    assert len(begins) == 3
    reasons = {0: "begun again without a checkpoint", 6: "resumed after an end without notice"}
    for begin in begins[1:]:  # at 0 when the kill was faster than the checkpoint of step 6
        assert begin["reason"] == reasons[begin["resumed_step"]]


# A done run


def test_a_done_run_ends_at_once_and_nothing_changes(plans: dict[int, Plan]) -> None:
    root, config = plans[1].logs("undisturbed"), plans[1].place / "undisturbed.yaml"
    before = tiny.fingerprint(root / "tiny")
    command = [sys.executable, "-m", "jobs.train", str(config), "--logs", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=DRIVER.parents[2])
    assert done.returncode == 0
    assert done.stdout.strip().endswith("complete; nothing to do.")
    assert done.stderr == ""
    assert tiny.fingerprint(root / "tiny") == before


# Mishaps


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

    def in_run(case: str, command: str) -> None:
        plan.shell("bash", "-c", f"cd '{plan.logs(case)}'/tiny/runs/* && {command}")

    plan.add("foreign", stop)
    in_run("foreign", "sed -i 's/l2: 0.01/l2: 0.02/' config.yaml && grep -q 'l2: 0.02' config.yaml")
    plan.add("foreign")

    plan.add("small batch", None, "--set", "train.batch_size=1")
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
    (images,) = data.glob("*/images.npy")
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


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    mishaps: Plan, plans: dict[int, Plan]
) -> None:
    assert mishaps.codes["damaged checkpoint"] == [[75, 75], [0, 0]]
    run = mishaps.run("damaged checkpoint")
    assert tiny.starts(run) == [0, 6]
    assert tiny.outcome(run) == tiny.outcome(plans[2].run("undisturbed"))
    refused = [r for r in read_records(run.events) if r["event"] == "checkpoint_refused"]
    assert [Path(r["path"]).name for r in refused] == ["step-000000008"]


def test_without_any_valid_checkpoint_the_run_stops_and_says_so(
    mishaps: Plan, plans: dict[int, Plan]
) -> None:
    assert mishaps.codes["no checkpoint"] == [[75, 75], [65, 65], [0, 0]]
    told_once(mishaps, "no checkpoint", 1, "none of the checkpoints can be used", "--start-over")
    run = mishaps.run("no checkpoint")
    assert tiny.outcome(run) == tiny.outcome(plans[2].run("undisturbed"))


def test_starting_over_forgets_the_run_and_repeats_it(
    mishaps: Plan, plans: dict[int, Plan]
) -> None:
    assert mishaps.codes["start over"] == [[0, 0], [0, 0]]
    run = mishaps.run("start over")
    assert tiny.starts(run) == [0, 0]
    assert tiny.outcome(run) == tiny.outcome(plans[2].run("undisturbed"))


@pytest.mark.parametrize("case", ["no best", "late best"])
def test_an_optimal_model_that_was_not_kept_is_not_tested(
    mishaps: Plan, plans: dict[int, Plan], case: str
) -> None:
    """Its accuracy on the test data is unknown then; that of the final weights is another."""
    assert mishaps.codes[case][-1] == [0, 0]
    run, wanted = mishaps.run(case), tiny.outcome(plans[2].run("undisturbed"))
    assert wanted["result"]["optimal"]["iteration"] < 2, "before it was kept"
    wanted["result"]["optimal"]["test_accuracy"] = None
    assert tiny.outcome(run) == wanted
    assert "not kept for the test" in run.log.read_text()


def test_a_full_then_read_only_disk_costs_nothing_once_there_is_space(
    mishaps: Plan, plans: dict[int, Plan], disk: Path | None
) -> None:
    if disk is None:
        pytest.skip("no small file system can be mounted here")
    assert mishaps.codes["full disk"] == [[70, 70], [70, 70], [0, 0]]
    told_once(mishaps, "full disk", 0, "no space left; free some or move the output")
    told_once(mishaps, "full disk", 1, "not writable; choose another place with LOGS=dir")
    run = mishaps.run("full disk")
    assert tiny.outcome(run) == tiny.outcome(plans[2].run("undisturbed"))


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


# Two processes for one run

TRAINS = """
import sys, time
from pathlib import Path
from hpc.checkpoint_writer import Checkpoints
run, go = Path(sys.argv[1]), Path(sys.argv[2])
with Checkpoints(run / "checkpoints", "", 1, None, 1, print):
    print("locked", flush=True)
    while not go.exists():
        time.sleep(0.05)
    (run / "result.json").write_text("{}")
"""


def test_a_run_that_another_process_trains_is_left_to_it(tiny_logs: Path, tmp_path: Path) -> None:
    """Neither begun anew under its hands, nor trained once more when it has just ended."""
    plan = Plan(tmp_path, tiny_logs, 1)
    study = plan.study("two", checkpoint={"after_end": "best"})
    run = load_study(study).run_dir(plan.logs("two"), load_study(study).runs[0])
    run.checkpoints.mkdir(parents=True)
    words = [sys.executable, "-m", "jobs.train", str(study), "--logs", str(plan.logs("two"))]
    options: Any = {"stdout": subprocess.PIPE, "text": True, "cwd": DRIVER.parents[2]}
    go = tmp_path / "go"
    with subprocess.Popen([sys.executable, "-c", TRAINS, run.path, go], **options) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        run.metrics.write_text("{}\n")
        over = subprocess.run([*words, "--start-over"], stderr=subprocess.PIPE, **options)
        assert over.returncode == 70
        assert "is writing this run's checkpoints" in over.stderr
        assert run.metrics.exists()
        with subprocess.Popen(words, **options) as second:
            while not run.config.exists():  # written just before it waits for the other
                time.sleep(0.02)
            go.touch()
            assert second.wait(timeout=100) == 0
    assert run.result.read_text() == "{}"
    assert not run.provenance.exists()


# Ranks that crash or hang


def test_a_crash_of_one_rank_ends_all_and_is_kept(
    mpirun: Callable[..., Any], tiny_logs: Path, tmp_path: Path
) -> None:
    plan = Plan(tmp_path, tiny_logs, 2)
    plan.add("crash", fault(1, "step", 4, "raise"))
    plan.carry_out(mpirun, code=70)
    (crash,) = plan.run("crash").path.glob("crashes/*")
    assert crash.name == "rank-1.txt"
    assert "RuntimeError: injected" in crash.read_text()
    assert "rank 1: internal error" in plan.said["crash"][0][1]


def test_ranks_that_end_with_different_weights_do_not_complete_a_run(
    mpirun: Callable[..., Any], tiny_logs: Path, tmp_path: Path
) -> None:
    plan = Plan(tmp_path, tiny_logs, 2)
    plan.add("flip", fault(1, "step", 4, "flip"))
    plan.carry_out(mpirun, code=70)
    assert "ranks ended with different weights" in "".join(plan.said["flip"][0])  # one is first
    assert not plan.run("flip").is_done()


def test_a_rank_that_hangs_is_named_and_nothing_is_left(
    mpirun: Callable[..., Any], tiny_logs: Path, tmp_path: Path
) -> None:
    plan = Plan(tmp_path, tiny_logs, 2)
    plan.study("hang", launch={"hang_seconds": 25})
    plan.add("hang", fault(1, "step", 4, "SIGSTOP"))
    plan.carry_out(mpirun, code=None)
    said = "".join(plan.said["hang"][0])
    assert said.count("error: no progress for") == 1
    assert re.search(r"s: rank 1 \(process \d+ on \S+, last seen [^)]+\) fell behind", said)
    assert "raise launch.hang_seconds (now 25)" in said


# Real processes, while they start


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_stop_while_libraries_load_is_heeded_and_ranks_have_cores_of_their_own(
    tiny_logs: Path, tmp_path: Path
) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    plan = Plan(tmp_path, tiny_logs, 2)
    study = plan.study("early")
    words = ["-m", "jobs.train", str(study), "--logs", str(plan.logs("early"))]
    with subprocess.Popen(
        ["mpiexec", "-n", "2", sys.executable, *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=DRIVER.parents[2],
        env={**os.environ, **ONE_THREAD, "GLASS_CORES": ",".join(map(str, cores))},
    ) as world:  # fmt: skip
        deadline = time.monotonic() + 60
        while pinned(str(study)) != [{core} for core in cores]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        world.send_signal(signal.SIGUSR1)  # which mpiexec hands on to every rank
        said = world.communicate(timeout=200)[0]
    assert world.returncode == 75, said
    assert "stopped: SIGUSR1 at step 0" in said
    (start,) = read_records(plan.run("early").provenance)
    assert (start["ranks"], start["resumed_step"]) == (2, 0)
    assert not processes(str(study))


def pinned(word: str) -> list[set[int]]:
    """Cores of each Python process whose command line contains a word, those on one core."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().split(b"\0")
            allowed = os.sched_getaffinity(int(path.parent.name))
        except OSError:
            continue
        if line[0] == sys.executable.encode() and word.encode() in line and len(allowed) == 1:
            found.append(allowed)
    return sorted(found, key=min)
