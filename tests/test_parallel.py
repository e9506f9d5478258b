"""One training on 1, 2, 3 and 4 ranks: the same samples, masks and, but for rounding, gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_cnn.training.division import portions
from hpc.world import share

pytestmark = pytest.mark.requires("mpi")
SIZES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Answer:
    found: dict[str, Any]
    arrays: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def start(
    mpirun: Callable[..., Any], tiny_logs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Answer]:
    """Start the driver on n ranks."""

    def run(ranks: int, what: str = "everything") -> Answer:
        out = tmp_path_factory.mktemp(f"ranks{ranks}-")
        driver = Path(__file__).parent / "drivers" / "parallel.py"
        done = mpirun(ranks, driver, tiny_logs, out, what, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        arrays = dict(np.load(out / "arrays.npz"))
        return Answer(json.loads((out / "answer.json").read_text()), arrays)

    return run


@pytest.fixture(scope="module")
def answers(start: Callable[..., Answer]) -> dict[int, Answer]:
    """What the driver found at every number of ranks."""
    return {ranks: start(ranks) for ranks in SIZES}


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["24", "25"])
def test_batches_are_the_same_on_any_number_of_ranks(
    answers: dict[int, Answer], batch: str
) -> None:
    """Order and augmentation, bit for bit."""
    alone = [digest for digest, _ in answers[1].found[batch]["batches"]]
    assert len(set(alone)) == len(alone)
    for ranks in SIZES:
        digests = [digest for digest, _ in answers[ranks].found[batch]["batches"]]
        assert digests == alone
        for _, sizes in answers[ranks].found[batch]["batches"]:
            assert sum(sizes) == int(batch)
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["24", "25"])
def test_batches_are_the_same_after_a_restart(answers: dict[int, Answer], batch: str) -> None:
    for ranks in SIZES:
        found = answers[ranks].found[batch]
        assert found["restarted"] == found["batches"][2:]


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["24", "25", "clipped"])
def test_gradients_are_those_of_one_rank(answers: dict[int, Answer], batch: str) -> None:
    """With dropout: masks that differed would show. Uneven shares (25) included.

    What is clipped is the norm of the whole batch's gradient.
    """
    assert any(name.startswith(f"{batch}/gradient/") for name in answers[1].arrays)
    for ranks in (2, 3, 4):
        for name, alone in answers[1].arrays.items():
            if name.startswith(f"{batch}/gradient/"):
                found = answers[ranks].arrays[name]
                tolerance = 1e-5 * abs(alone).max()
                np.testing.assert_allclose(found, alone, rtol=1e-4, atol=tolerance, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["24", "25"])
def test_several_steps_agree_but_for_rounding(answers: dict[int, Answer], batch: str) -> None:
    alone = answers[1]
    for ranks in (2, 3, 4):
        found = answers[ranks].found[batch]
        assert found["losses"] == pytest.approx(alone.found[batch]["losses"], rel=1e-4)
        assert found["corrects"] == alone.found[batch]["corrects"]
        for name, weights in alone.arrays.items():
            if name.startswith(f"{batch}/model/"):
                # Adam divides by the gradient's size: where that is rounding, its sign is
                # chance, so single weights may part by a few rates.
                distance = np.linalg.norm(answers[ranks].arrays[name] - weights)
                assert distance < 2e-3 * np.linalg.norm(weights), (ranks, name)


@pytest.mark.slow
def test_the_same_ranks_give_the_same_bits(
    answers: dict[int, Answer], start: Callable[..., Answer]
) -> None:
    """Within a process many steps apart, and from process to process (4 ranks)."""
    for ranks in SIZES:
        first, second = answers[ranks].found["long"]
        assert first == second, f"{ranks} ranks"
    assert start(4, "long").found["long"] == answers[4].found["long"]


@pytest.mark.slow
def test_an_evaluation_counts_every_example_once(answers: dict[int, Answer]) -> None:
    for ranks in SIZES:
        for size, found in answers[ranks].found["evaluations"].items():
            count = int(size.split("/")[0])
            assert found["seen"] == list(range(count))
            assert found["sums"]["examples"] == count
            assert len(set(found["slices"])) == 1, "ranks would wait for each other"
            alone = answers[1].found["evaluations"][size]["sums"]
            for key in ("glass", "examples"):
                assert found["sums"][key] == alone[key]
            for key in ("loss", "gap_squared"):
                assert found["sums"][key] == pytest.approx(alone[key], rel=1e-2)


@pytest.mark.slow
def test_ranks_agree_on_flags_errors_and_values(answers: dict[int, Answer]) -> None:
    for size in SIZES:
        for rank, found in enumerate(answers[size].found["world"]):
            assert found["agree"] == 7
            assert found["none"] == 0
            # An error is raised on all ranks and printed by one.
            assert found["everywhere"] == ["only the last rank sees this", rank > 0]
            assert found["on_root"] == ["only the first rank does this", rank > 0]
            assert found["fine"] == [rank, None]
            assert found["root_value"] == ["here" if rank == 0 else None, None]
            assert found["broadcast"] == {"from": 0}
            assert found["sum"] == [size * (size - 1) // 2, size]
            assert found["local_rank"] == rank
            assert found["hosts"] == size
            same = rank == size - 1 - rank  # ranks in the opposite order
            assert ("built for another MPI" in found["other_order"]) == (not same)


@dataclass(frozen=True)
class Rank:
    """The two numbers that dividing work needs."""

    rank: int
    size: int

    def share(self, count: int) -> slice:
        return share(count, self.rank, self.size)


@given(count=st.integers(0, 500), size=st.integers(1, 16), batch=st.integers(1, 300))
def test_shares_and_portions_cover_everything_once(count: int, size: int, batch: int) -> None:
    shares = [len(range(count)[share(count, rank, size)]) for rank in range(size)]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1
    slices = [list(portions(Rank(r, size), count, batch)) for r in range(size)]  # type: ignore[arg-type]
    assert len({len(s) for s in slices}) == 1
    seen = [i for mine in slices for s in mine for i in range(count)[s]]
    assert sorted(seen) == list(range(count))
    assert all(s.stop - s.start <= max(1, batch // size) for mine in slices for s in mine)
