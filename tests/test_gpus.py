"""GPUs without a GPU: what nvidia-smi says, who is lent which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc import gpus
from hpc.gpus import Loans, chosen, listed

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
