"""What decides rounding is chosen by settings, not by a shell, and compared field by field."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
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
        ({"gpus": ["A100 (8.0)"]}, "gpus A100 (8.0), now none"),
        ({"drivers": ["580.65"]}, "drivers 580.65, now none"),
        ({"cuda": {"cudnn": "9.1", "nccl": "2.2"}}, "cuda cudnn=9.1 nccl=2.2, now none"),
        ({"threads": 2, "ranks": 1}, "threads 2, now 1; ranks 1, now 2"),
        ({"environment": {"XLA_FLAGS": "a"}}, "environment XLA_FLAGS=a, now none"),
    ],
)
def test_every_difference_is_told(other: dict[str, Any], words: str) -> None:
    assert numerics.changes(msgspec.structs.replace(SAME, **other), SAME) == words


def test_libraries_of_gpus_are_known_by_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"nvidia-cudnn-cu12": "9.1", "nvidia-nccl-cu12": "2.2"}

    def version(package: str) -> str:
        if package not in installed:
            raise metadata.PackageNotFoundError
        return installed[package]

    monkeypatch.setattr(metadata, "version", version)
    assert numerics.cuda(several=True) == {"cudnn": "9.1", "nccl": "2.2"}
    assert numerics.cuda(several=False) == {"cudnn": "9.1"}


def test_the_driver_is_the_one_that_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(numerics, "DRIVER", tmp_path / "version")
    assert numerics.driver() == "unknown"
    (tmp_path / "version").write_text("580.65.06\n")
    assert numerics.driver() == "580.65.06"
