"""GPUs without a GPU: what nvidia-smi says, who is lent which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc import gpus
from hpc.environment import GPUS
from hpc.errors import ConfigError
from hpc.gpus import Loans, Sight, check, chosen, listed, sight

LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa1111-d33d)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-aabb2222-d33d)
GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-cccc3333-d33d)
"""
A, B, C = "GPU-aaaa1111-d33d", "GPU-aabb2222-d33d", "GPU-cccc3333-d33d"

Smi = Callable[..., None]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Smi]:
    """`nvidia_smi("what it says", code)`: one that says so, the only program in PATH."""

    def make(text: str, code: int = 0) -> None:
        gpus.here.cache_clear()
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && printf '%s' '{text}'\nexit {code}\n")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    gpus.here.cache_clear()
    yield make
    gpus.here.cache_clear()


def test_gpus_are_those_that_nvidia_smi_lists(nvidia_smi: Smi) -> None:
    nvidia_smi(LISTED)
    assert gpus.here() == ((A, B, C), "")


def test_an_outer_choice_is_respected(nvidia_smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(LISTED)
    monkeypatch.setenv(gpus.VISIBLE, "2,0")
    assert gpus.here().uuids == (C, A)


def test_no_nvidia_smi_and_no_gpu_are_no_complaint(nvidia_smi: Smi) -> None:
    assert gpus.here() == ((), "")
    nvidia_smi("No devices were found", 6)
    assert gpus.here() == ((), "")


def test_a_driver_that_does_not_answer_is_one(nvidia_smi: Smi) -> None:
    nvidia_smi("NVIDIA-SMI has failed because it could not\nreach the driver.", 9)
    complaint = "NVIDIA-SMI has failed because it could not reach the driver."
    assert gpus.here() == ((), complaint)


def test_parts_stand_for_the_gpu_that_is_cut_up() -> None:
    text = (
        "GPU 0: NVIDIA A100 (UUID: GPU-aaaa)\n"
        "GPU 1: NVIDIA A100 (UUID: GPU-bbbb)\n"
        "  MIG 3g.20gb     Device  0: (UUID: MIG-GPU-bbbb/1/0)\n"
        "  MIG 3g.20gb     Device  1: (UUID: MIG-2222)\n"
        "GPU 2: NVIDIA A100 (UUID: GPU-cccc)\n"
    )
    assert listed(text) == ("GPU-aaaa", "MIG-GPU-bbbb/1/0", "MIG-2222", "GPU-cccc")


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        (None, (A, B, C)),
        ("1", (B,)),
        ("2, 0", (C, A)),
        (C, (C,)),
        ("GPU-c,GPU-aab", (C, B)),
        ("GPU-aa", ()),  # of two
        ("0,-1,1", (A,)),  # what is none ends the list
        ("0,7,1", (A,)),
        ("", ()),
        ("NoDevFiles", ()),
    ],
)
def test_a_choice_is_read_as_cuda_reads_it(choice: str | None, left: tuple[str, ...]) -> None:
    assert chosen((A, B, C), choice) == left


def test_gpus_are_lent_to_one_task_at_a_time_and_come_back() -> None:
    loans = Loans((A, B, C), 1)
    assert loans.take(2) == [A, B]
    assert loans.take(2) is None
    assert loans.take(1) == [C]
    loans.give_back([B])
    assert loans.take(1) == [B]


def test_tasks_that_share_gpus_are_spread_over_them() -> None:
    loans = Loans((A, B), 2)
    taken = [loans.take(1) for _ in range(4)]
    assert taken == [[A], [B], [A], [B]]
    assert loans.take(1) is None
    loans.give_back([A])
    assert loans.take(2) is None, "a task has two different ones"


# What ranks see


def test_a_rank_says_which_gpu_it_takes(nvidia_smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(LISTED)
    monkeypatch.setenv(gpus.VISIBLE, f"{C},{A}")
    assert sight(1, 2)[1:] == (A, 2, False)
    monkeypatch.setenv(GPUS, "1")
    assert sight(0, 0)[1:] == (None, 2, True)


def test_gpus_without_nvidia_smi_are_nobody_elses(nvidia_smi: Smi) -> None:
    check([sight(0, 1)] * 1)
    assert sight(0, 1).gpu is not None


def ranks(*seen: tuple[str, str | None], promised: bool = False, listed: int = 0) -> list[Sight]:
    return [Sight(host, gpu, listed, promised) for host, gpu in seen]


@pytest.mark.parametrize(
    "seen",
    [
        [("n1", A), ("n1", B)],
        [("n1", A), ("n2", A)],  # other nodes of a cloud may count theirs alike
        [("n1", None), ("n2", None)],
        [("n1", A)],
    ],
)
def test_ranks_with_gpus_of_their_own_or_none_at_all_are_right(
    seen: list[tuple[str, str | None]],
) -> None:
    check(ranks(*seen))


def test_more_ranks_than_gpus_are_told_with_both_numbers() -> None:
    seen = [("n1", A), ("n1", B), ("n1", A), ("n2", C)]
    with pytest.raises(ConfigError, match=f"4 ranks see 3 GPUs.* 0, 2 on n1 would share {A}.*=3 "):
        check(ranks(*seen))


@pytest.mark.parametrize(("listed", "remedy"), [(0, "driver"), (2, "make clean setup GPU=1")])
def test_a_promised_gpu_that_is_not_there_ends_the_job(listed: int, remedy: str) -> None:
    words = f"rank 1 on n2 was to have a GPU.* shows it {listed}: .*{remedy}.*Nothing is trained"
    with pytest.raises(ConfigError, match=words):
        check(ranks(("n1", A), ("n2", None), promised=True, listed=listed))


def test_ranks_with_and_without_gpus_do_not_train_together() -> None:
    with pytest.raises(ConfigError, match="rank 1 on n2 sees no GPU, and rank 0 on n1 does"):
        check(ranks(("n1", A), ("n2", None)))
