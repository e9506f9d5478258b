"""Trainings on real cards: skipped without them, failed without them where GLASS_REQUIRE=gpu.

All other tests see none (tests/conftest.py); here each rank is given one of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc.environment import GPUS
from hpc.gpus import VISIBLE
from hpc.records import read_records
from tests import tiny
from tests.conftest import CARDS, MpiRun
from tests.plans import Plan, fault

pytestmark = [pytest.mark.gpu(1), pytest.mark.lasting, pytest.mark.requires("mpi")]

LOSSES = Path(__file__).parent / "drivers" / "losses.py"


def given(cards: int) -> dict[str, str]:
    """What a launcher gives a task of so many ranks."""
    return {VISIBLE: ",".join(CARDS[:cards]), GPUS: "1"}


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.gpu(2))])
def plan(
    request: pytest.FixtureRequest,
    mpirun: MpiRun,
    tiny_logs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Plan:
    """The same run twice without a disturbance, and killed and resumed."""
    cards = request.param
    plan = Plan(tmp_path_factory.mktemp(f"gpus{cards}-"), tiny_logs, cards)
    plan.add("once")
    plan.add("again")
    plan.add("killed", fault(cards - 1, "step", 8, "SIGKILL"))
    plan.carry_out(mpirun, code=None, env=given(cards))
    plan.add("killed")
    return plan.carry_out(mpirun, env=given(cards))


def test_a_run_trains_on_a_card_for_each_rank(plan: Plan) -> None:
    (start,) = read_records(plan.run("once").provenance)
    assert start["numerics"]["gpus"], start["numerics"]
    assert start["numerics"]["drivers"]
    assert start["ranks"] == plan.ranks


def test_the_same_run_repeated_on_cards_has_the_same_bits(plan: Plan) -> None:
    assert tiny.outcome(plan.run("again")) == tiny.outcome(plan.run("once"))


def test_a_run_that_is_killed_and_resumed_on_cards_has_the_same_bits(plan: Plan) -> None:
    killed = plan.run("killed")
    assert len(tiny.starts(killed)) == 2
    assert read_records(killed.provenance)[-1]["numerics_changes"] == []
    assert tiny.outcome(killed) == tiny.outcome(plan.run("once"))


def test_a_card_trains_as_a_processor_does(mpirun: MpiRun) -> None:
    """Other kernels, other rounding, the same mathematics: 50 steps within 1e-4."""
    answers = []
    for environment in ({VISIBLE: ""}, given(1)):
        done = mpirun(1, LOSSES, env=environment)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    processor, card = answers
    assert (processor["gpus"], bool(card["gpus"])) == ([], True)
    assert card["losses"] == pytest.approx(processor["losses"], abs=1e-4)
