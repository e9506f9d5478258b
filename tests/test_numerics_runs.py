"""Runs record what decides their rounding, and say where they went on under something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from glass_cnn import numerics
from glass_cnn.analysis.rows import read_run
from glass_cnn.records import Start
from glass_cnn.report.run_table import RunLine, cells
from hpc.checkpoint import manifest_text, read_manifest
from hpc.checkpoint_names import MANIFEST, saved
from hpc.files import read_json
from hpc.records import read_events, read_records
from tests import tiny
from tests.plans import Plan, fault

pytestmark = [pytest.mark.requires("mpi"), pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def plan(
    mpirun: Callable[..., Any], tiny_logs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Plan:
    """Runs that stop at step 8 and go on under other numerics, and one that is not disturbed."""
    plan = Plan(tmp_path_factory.mktemp("numerics"), tiny_logs, 1)
    plan.add("undisturbed")
    for case in ("capped", "unknown"):
        plan.add(case, fault(0, "step", 8, "SIGTERM"))
    plan.carry_out(mpirun)
    plan.add("capped", None, "--set", "launch.max_cpu_isa=sse41")
    plan.carry_out(mpirun)
    for entry in saved(plan.run("unknown").checkpoints):
        forget_numerics(entry.path)
    plan.add("unknown")
    plan.add("environment")
    plan.carry_out(mpirun, env={numerics.SWITCH: "0", numerics.CAP: "SSE41"})
    return plan


def forget_numerics(checkpoint: Path) -> None:
    """As the version before wrote it."""
    content = read_manifest(checkpoint)
    del content["meta"]["numerics"], content["meta"]["numerics_changes"]
    (checkpoint / MANIFEST).write_bytes(manifest_text(content))


def test_a_shell_that_switches_onednn_off_changes_nothing_and_is_told(plan: Plan) -> None:
    runs = plan.run("undisturbed"), plan.run("environment")
    assert tiny.outcome(runs[1]) == tiny.outcome(runs[0])
    starts = [msgspec.convert(read_records(run.provenance)[0], Start) for run in runs]
    assert starts[0].numerics is not None
    assert starts[1].numerics == starts[0].numerics
    assert starts[0].numerics.onednn
    assert (starts[0].numerics.ranks, starts[0].numerics.threads) == (1, 1)
    assert "TF_ENABLE_ONEDNN_OPTS=0" in "".join(plan.said["unknown"][1])


def test_a_run_that_goes_on_under_other_numerics_says_so_everywhere(plan: Plan) -> None:
    run = plan.run("capped")
    (event,) = [e for e in read_events(run.events) if e.event == "numerics_changed"]
    assert event.step == 8
    assert "now sse41" in str(event.reason)
    assert "numerics_changed: step 8" in run.log.read_text()
    row = read_run(run.path)
    assert (row.numerics_changed, row.numerics_change) == (1, f"at step 8: {event.reason}")
    facts = {**vars(row), "train.iterations": 4}
    assert "numerics changed at step 8" in cells(RunLine("complete", "", facts))[-1]
    digests = [
        read_json(plan.run(case).result)["weights_sha256"] for case in ("capped", "undisturbed")
    ]
    assert digests[0] != digests[1]


def test_a_checkpoint_of_an_earlier_version_leaves_it_unknown_and_is_no_error(plan: Plan) -> None:
    assert plan.codes["unknown"] == [[75], [0]]
    run = plan.run("unknown")
    assert tiny.outcome(run) == tiny.outcome(plan.run("undisturbed"))
    (event,) = [e for e in read_events(run.events) if e.event == "numerics_changed"]
    assert str(event.reason).startswith("unknown before")


def test_a_run_in_one_piece_is_exact(plan: Plan) -> None:
    row = read_run(plan.run("undisturbed").path)
    assert (row.numerics_changed, row.numerics_change) == (0, None)
