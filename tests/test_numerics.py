"""What decides rounding is chosen by settings, not by a shell, and compared field by field."""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec
import pytest

from glass_cnn import numerics
from glass_cnn.records import Numerics
from glass_cnn.settings import Launch

VARIABLES = (numerics.SWITCH, numerics.CAP, numerics.FORMER_CAP)
SAME = Numerics(tensorflow="2", onednn=True, isa=["avx2"], processors=["X"], threads=1, ranks=2)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing, of a process without TensorFlow; undone afterwards."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    return monkeypatch


def chosen() -> dict[str, str]:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        (Launch(), {numerics.SWITCH: "1"}),
        (Launch(onednn=False), {numerics.SWITCH: "0"}),
        (Launch(max_cpu_isa="avx2"), {numerics.SWITCH: "1", numerics.CAP: "avx2"}),
    ],
)
def test_settings_choose_and_say_nothing_where_nothing_was_said(
    environment: pytest.MonkeyPatch, launch: Launch, expected: dict[str, str]
) -> None:
    said: list[str] = []
    numerics.choose(launch, said.append)
    numerics.choose(launch, said.append)
    assert chosen() == expected
    assert said == []


def test_an_environment_that_says_otherwise_is_overruled_and_told(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv(numerics.SWITCH, "0")
    environment.setenv(numerics.FORMER_CAP, "AVX")
    said: list[str] = []
    numerics.choose(Launch(), said.append)
    assert chosen() == {numerics.SWITCH: "1"}
    assert len(said) == 1
    assert "TF_ENABLE_ONEDNN_OPTS=0, DNNL_MAX_CPU_ISA=AVX" in said[0]
    assert "launch.onednn and launch.max_cpu_isa" in said[0]


def test_the_case_of_an_instruction_set_is_no_difference(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(numerics.CAP, "AVX2")
    numerics.choose(Launch(max_cpu_isa="avx2"), pytest.fail)


def test_a_choice_that_comes_too_late_is_an_error(environment: pytest.MonkeyPatch) -> None:
    environment.setitem(sys.modules, "tensorflow", sys)
    with pytest.raises(RuntimeError, match="TensorFlow is loaded"):
        numerics.choose(Launch())


AVX512 = "avx512f avx512bw avx512vl avx512dq"


@pytest.mark.parametrize(
    ("flags", "cap", "expected"),
    [
        (f"sse4_1 avx avx2 {AVX512} avx512_bf16 amx_tile", None, "avx512_core"),
        (f"sse4_1 avx avx2 {AVX512}", "avx2", "avx2"),
        ("sse4_1 avx avx2 avx512f", None, "avx2"),  # Knights Landing has no more of it
        ("sse4_1 avx avx2", "avx512_core", "avx2"),
        ("sse4_1 avx", "avx512_core", "avx"),
        ("sse4_1", None, "sse41"),
        ("sse4_1 avx avx2", "avx2_vnni", "avx2"),  # not of LEVELS: no cap in float32
        ("fp asimd", None, None),
    ],
)
def test_the_highest_instruction_set_of_a_processor(
    flags: str, cap: str | None, expected: str | None
) -> None:
    assert numerics.highest(set(flags.split()), cap) == expected


def test_the_same_numerics_do_not_differ() -> None:
    assert numerics.changes(msgspec.structs.replace(SAME), SAME) is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"tensorflow": "1"}, "tensorflow 1, now 2"),
        ({"onednn": False}, "onednn False, now True"),
        ({"isa": ["avx2", "avx"]}, "isa avx2, avx, now avx2"),
        ({"gpus": ["H100, TF32"]}, "gpus H100, TF32, now none"),
        ({"threads": 2, "ranks": 1}, "threads 2, now 1; ranks 1, now 2"),
        ({"environment": {"XLA_FLAGS": "a"}}, "environment XLA_FLAGS=a, now none"),
    ],
)
def test_every_difference_is_told(other: dict[str, Any], words: str) -> None:
    assert numerics.changes(msgspec.structs.replace(SAME, **other), SAME) == words
