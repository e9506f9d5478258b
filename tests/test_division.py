"""What every way to add over ranks promises (glass_cnn/training/division.py), on 1 to 4 ranks."""

from __future__ import annotations

import importlib.util
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from glass_cnn.training.division import WAYS, way
from hpc.errors import ConfigError
from tests.conftest import MpiRun

DRIVER = Path(__file__).parent / "drivers" / "division.py"
SIZES = (1, 2, 3, 4)

pytestmark = pytest.mark.requires("mpi")


def start(mpirun: MpiRun, ranks: int, out: Path) -> dict[str, Any]:
    done = mpirun(ranks, DRIVER, out, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((out / "answer.json").read_text())
    return found


@pytest.fixture(scope="module")
def answers(mpirun: MpiRun, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What the driver found at every number of ranks, by way."""
    return {n: start(mpirun, n, tmp_path_factory.mktemp(f"division{n}-")) for n in SIZES}


both = pytest.mark.parametrize("name", WAYS)


@pytest.mark.slow
@both
def test_sums_are_those_of_all_ranks(answers: dict[int, dict[str, Any]], name: str) -> None:
    """Exact where float32 is; elsewhere within an addition's rounding of the sum in float64."""
    for ranks in SIZES:
        found = answers[ranks][name]
        assert found["exact"]
        assert found["error"] <= ranks * 2**-24


@pytest.mark.slow
@both
def test_the_same_sums_have_the_same_bits(
    answers: dict[int, dict[str, Any]], mpirun: MpiRun, tmp_path: Path, name: str
) -> None:
    """On all ranks, in the middle of other sums, and in another process."""
    for ranks in SIZES:
        assert len(set(answers[ranks][name]["digests"])) == 1
    if name == "mpi":  # tests/test_parallel.py starts a second world with Horovod
        assert start(mpirun, 3, tmp_path)[name]["digests"] == answers[3][name]["digests"]


@pytest.mark.slow
@both
def test_what_is_not_finite_on_one_rank_is_not_on_all(
    answers: dict[int, dict[str, Any]], name: str
) -> None:
    for ranks in SIZES:
        wanted = [[[1, 2]], [[77]], [], [], []]
        assert answers[ranks][name]["not finite"] == [wanted] * ranks


@pytest.mark.slow
@both
def test_a_broadcast_gives_rank_0s_bits(answers: dict[int, dict[str, Any]], name: str) -> None:
    assert all(answers[ranks][name]["broadcast"] for ranks in SIZES)


@pytest.mark.slow
def test_a_training_is_the_same_whichever_way_is_taken(answers: dict[int, dict[str, Any]]) -> None:
    """Bit for bit on up to two ranks, where a sum has one order; elsewhere but for rounding."""
    alone = answers[1]["horovod"]["trained"]
    for ranks in SIZES:
        found = {name: answers[ranks][name]["trained"] for name in WAYS}
        for name in WAYS:
            assert found[name]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        if ranks <= 2:
            assert found["mpi"]["digest"] == found["horovod"]["digest"]


@pytest.mark.slow
@both
def test_a_sum_that_travels_as_bfloat16_is_rounded_twice(
    answers: dict[int, dict[str, Any]], name: str
) -> None:
    """Each rank's numbers and the sum's, by half a unit of 8 bits each; alone nothing travels."""
    for ranks in SIZES:
        found, plain = answers[ranks]["bfloat16"][name], answers[ranks][name]
        assert found["exact"]
        assert found["broadcast"]
        assert found["not finite"] == plain["not finite"]
        assert len(set(found["digests"])) == 1
        if ranks == 1:
            assert found["large"] == plain["large"]
            assert found["trained"] == plain["trained"]
        else:
            assert 2**-9 < found["error"] <= 2**-7 + 2**-16 + ranks * 2**-24
            assert found["trained"]["losses"] == pytest.approx(plain["trained"]["losses"], rel=1e-2)
            assert found["trained"]["digest"] != plain["trained"]["digest"]


@pytest.mark.slow
def test_what_travels_as_bfloat16_has_one_order(answers: dict[int, dict[str, Any]]) -> None:
    """The sum is made here, in the order of ranks: the same bits whichever way takes it there."""
    for ranks in SIZES:
        found = answers[ranks]["bfloat16"]
        assert found["mpi"]["large"] == found["horovod"]["large"]


@pytest.mark.slow
def test_the_dense_gradient_leaves_while_the_convolutions_go_backward(
    mpirun: MpiRun, tmp_path: Path
) -> None:
    """As Horovod notes it, in µs: long before the small gradients, of which theirs are the last."""
    timeline = tmp_path / "timeline.json"
    done = mpirun(2, DRIVER, tmp_path, "steps", env={"HOROVOD_TIMELINE": str(timeline)})
    assert done.returncode == 0, done.stdout + done.stderr
    noted = timeline.read_text()
    events = json.loads(noted[: noted.rindex("},") + 1] + "]")  # the last may be cut short
    names = {e["pid"]: e["args"].get("name") for e in events if e.get("name") == "process_name"}
    asked: dict[str, list[int]] = {"sum/0": [], "sum/1": []}
    for event in events:
        if event.get("name") == "NEGOTIATE_ALLREDUCE" and event["ph"] == "B":
            asked[names[event["pid"]]].append(event["ts"])
    small, large = asked["sum/0"][2:11], asked["sum/1"][2:11]
    assert len(small) == len(large) == 9
    ahead = statistics.median(s - b for s, b in zip(small, large, strict=True))
    assert ahead > 0.1 * statistics.median(b - a for a, b in itertools.pairwise(large))


@pytest.mark.slow
@both
def test_a_rank_that_dies_ends_the_others(mpirun: MpiRun, tmp_path: Path, name: str) -> None:
    done = mpirun(2, DRIVER, tmp_path, name, timeout=100)
    assert done.returncode != 0
    assert "went on alone" not in done.stdout


def test_horovod_is_taken_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (way(None), way("mpi"), way("horovod")) == ("horovod", "mpi", "horovod")
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "horovod" else there(name, *rest),
    )
    assert (way(None), way("mpi")) == ("mpi", "mpi")
    with pytest.raises(ConfigError, match=r"launch\.collectives is horovod, and this environment"):
        way("horovod")
