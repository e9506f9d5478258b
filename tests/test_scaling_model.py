"""The scaling model against what can be counted by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scaling_model import CORE, MACHINES, Work, allreduce, compare, divisions, step

WORK = Work()
FREE = replace(CORE, inside=1e30, between=1e30, latency_inside=0.0, latency_between=0.0)


def test_the_networks_size_and_arithmetic_are_those_of_250_pixels() -> None:
    assert WORK.dense_bytes == 898_704 * 80 * 4
    assert WORK.arithmetic(WORK.rows) == pytest.approx(1.66e9, rel=0.01)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_one_rank_is_the_same_step_in_every_division(machine: object) -> None:
    assert isinstance(machine, type(CORE))
    assert len(set(divisions(WORK, machine, 1).values())) == 1


def test_a_ring_sends_twice_the_bytes_but_for_a_part() -> None:
    machine = replace(CORE, latency_inside=0.0)
    assert allreduce(288e6, 2, 2, machine) * machine.inside == pytest.approx(288e6)
    assert allreduce(288e6, 8, 8, machine) * machine.inside == pytest.approx(504e6)
    assert allreduce(288e6, 1, 1, machine) == 0.0


def test_ranks_of_a_node_bring_their_parts_of_its_cards_together() -> None:
    machine = replace(CORE, inside=1e30, between=1e9, latency_between=0.0)
    assert allreduce(1e9, 16, 8, machine) == pytest.approx(2 * 15 / 16 / 8)


def test_where_nothing_travels_data_parallel_divides_all_but_the_update() -> None:
    one, four = step(WORK, FREE, 1, 1), step(WORK, FREE, 1, 4)
    assert four.computation == pytest.approx(one.computation / 4)
    assert four.update == one.update
    assert four.communication == pytest.approx(0, abs=1e-12)


def test_rows_divide_the_update_too_and_pay_for_the_rows_between_them() -> None:
    one, four = step(WORK, FREE, 1, 1), step(WORK, FREE, 4, 1)
    assert four.update == pytest.approx(one.update * 60 / 237)
    assert one.computation / 4 < four.computation < one.computation / 4 * 1.06


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ValueError, match="238 strips of 237 rows"):
        step(WORK, CORE, 238, 1)
    assert divisions(WORK, CORE, 1024) == {
        "data": None, "rows": None, "rows in a node, data between": None,
    }  # fmt: skip


def test_measured_ratios_stand_beside_computed_ones(tmp_path: Path) -> None:
    rows = [
        {"pixels": 250, "layout": "one core", "side": "ours", "images_per_second": 30.0},
        {"pixels": 250, "layout": "two ranks of one core", "side": "ours",
         "images_per_second": 45.0},
    ]  # fmt: skip
    (tmp_path / "measured.json").write_text(json.dumps({"rows": rows}))
    line = compare(tmp_path / "measured.json").splitlines()[-1]
    assert line.startswith("| 250 px, data | 1.50 | 1.")
