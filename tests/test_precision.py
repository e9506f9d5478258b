"""train.precision: what is rounded and what is not, and where it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glass_cnn import numerics
from glass_cnn.records import Numerics
from glass_cnn.settings import RunSettings, build_run
from glass_cnn.train_settings import Precision
from hpc.errors import ConfigError
from hpc.world import world
from tests import tiny

PIXELS = 64
AVX512 = "avx512f avx512bw avx512vl avx512dq"

LAYERS = {
    "BiasAdd", "Cast", "Conv2D", "Conv2DBackpropFilter", "Conv2DBackpropInput", "Identity",
    "IdentityN", "MatMul", "Pad", "Relu", "ReluGrad", "Reshape", "Slice", "ZerosLike",
}  # fmt: skip
"""operations of layers and of their gradients that add nothing up, or do so in float32 inside"""


def settings(precision: Precision) -> RunSettings:
    return build_run(
        {
            "render": {"pixels": PIXELS},
            "model": {"recipe": "modern"},
            "train": {"precision": precision, "batch_size": 16, "dropout": 0.0},
        },
        "test",
    )


def engine(precision: Precision) -> Any:
    from glass_cnn.training.engine import Engine

    return Engine(settings(precision), world())


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, PIXELS, PIXELS, 3), dtype=np.uint8)
    return images, np.arange(count) % 2


def test_bfloat16_is_what_layers_multiply_and_everything_else_is_float32(
    tensorflow: Numerics,
) -> None:
    e = engine("bfloat16")
    graph = e._train_step.get_concrete_function().graph
    kinds: dict[str, set[str]] = {}
    for op in graph.get_operations():
        if op.outputs:
            kinds.setdefault(op.type, set()).add(op.outputs[0].dtype.base_dtype.name)
    convolutions = [name for name in kinds if name.startswith("Conv2D")]
    assert {"Conv2D", "Conv2DBackpropFilter"} <= set(convolutions)
    assert all(kinds[name] == {"bfloat16"} for name in convolutions)
    assert kinds["MatMul"] == {"bfloat16", "float32"}  # dense layer, output
    rounded = {name for name, types in kinds.items() if "bfloat16" in types}
    assert rounded <= LAYERS, "no loss, no update, no sum over ranks or over an image"
    result = e.train_step(*pictures(16), 0, 1e-3)
    assert {g.dtype.name for g in result.gradients.values()} == {"float32"}
    assert {v.dtype.name for v in e.state().values()} == {"float32"}
    assert e.network.logits(pictures(8)[0]).dtype.name == "float32"


def test_float32_casts_nothing_but_pixels_and_counts(tensorflow: Numerics) -> None:
    graph = engine("float32")._train_step.get_concrete_function().graph
    assert all(
        tensor.dtype.name != "bfloat16" for op in graph.get_operations() for tensor in op.outputs
    )


def test_a_step_in_bfloat16_is_near_the_one_in_float32_and_not_the_same(
    tensorflow: Numerics,
) -> None:
    images, labels = pictures(16)
    exact, rounded, again = (engine(p) for p in ("float32", "bfloat16", "bfloat16"))
    results = [e.train_step(images, labels, 0, 1e-3) for e in (exact, rounded, again)]
    assert results[0].sums.loss != results[1].sums.loss == results[2].sums.loss
    assert results[1].sums.loss == pytest.approx(results[0].sums.loss, rel=0.02)
    for name in results[0].gradients:
        a, b, c = (np.asarray(r.gradients[name]).ravel() for r in results)
        assert np.linalg.norm(a - b) <= 0.05 * np.linalg.norm(a), name
        np.testing.assert_array_equal(b, c, err_msg=name)


def test_a_run_in_bfloat16_goes_on_from_its_state_with_the_same_bits(
    tensorflow: Numerics,
) -> None:
    images, labels = pictures(16)
    whole, first, second = (engine("bfloat16") for _ in range(3))
    for step in range(4):
        whole.train_step(images, labels, step, 1e-3)
    for step in range(2):
        first.train_step(images, labels, step, 1e-3)
    second.assign(tiny.arrays(first.snapshot()))
    second.optimizer.count = 2
    for step in range(2, 4):
        second.train_step(images, labels, step, 1e-3)
    wanted, found = (tiny.arrays(e.snapshot()) for e in (whole, second))
    assert {array.dtype for array in wanted.values()} == {np.dtype("float32")}
    assert all((found[name] == array).all() for name, array in wanted.items())
    assert any(
        (array != tiny.arrays(first.snapshot())[name]).any() for name, array in wanted.items()
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what Linux says of the processor, and no choice of the environment's."""
    monkeypatch.delenv(numerics.CAP, raising=False)
    monkeypatch.setenv(numerics.SWITCH, "1")

    def pretend(flags: str) -> pytest.MonkeyPatch:
        facts = {"model name": "Some Processor", "cpu family": "6", "model": "85", "flags": flags}
        monkeypatch.setattr(numerics, "_cpuinfo", lambda: facts)
        return monkeypatch

    return pretend


@pytest.mark.parametrize(
    ("precision", "flags", "gpu"),
    [
        ("float32", "avx2", None),
        ("float32", "avx2", (6, 1)),
        ("bfloat16", f"avx2 {AVX512} avx512_bf16", None),
        ("bfloat16", f"avx2 {AVX512} amx_tile amx_bf16", None),
        ("bfloat16", "avx2", (8, 0)),  # the processor beside a GPU does not matter
        ("tf32", "avx2", (9, 0)),
    ],
)
def test_what_a_device_has_is_taken(
    machine: Any, precision: Precision, flags: str, gpu: tuple[int, int] | None
) -> None:
    machine(flags)
    numerics.check(precision, gpu)


@pytest.mark.parametrize(
    ("precision", "flags", "gpu", "words"),
    [
        ("bfloat16", f"avx2 {AVX512}", None, "Some Processor (6/85), which has none of amx_bf16"),
        ("bfloat16", "avx2 avx512_bf16", (7, 5), "capability 7.5, and 8.0 is the first"),
        ("tf32", "avx2 amx_bf16", None, "a processor: only NVIDIA GPUs have it"),
        ("tf32", "avx2", (7, 0), "capability 7.0"),
        ("tf32", "avx2", (), "capability unknown"),
    ],
)
def test_what_would_be_emulated_is_refused(
    machine: Any, precision: Precision, flags: str, gpu: tuple[int, ...] | None, words: str
) -> None:
    machine(flags)
    with pytest.raises(ConfigError) as refused:
        numerics.check(precision, gpu)
    assert f"train.precision {precision}" in str(refused.value)
    assert words in str(refused.value)
    assert "train.precision: float32" in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        (numerics.CAP, "avx512_core", "launch.max_cpu_isa avx512_core"),
        (numerics.SWITCH, "0", "launch.onednn: false"),
    ],
)
def test_settings_that_leave_bfloat16_out_are_named(
    machine: Any, variable: str, value: str, words: str
) -> None:
    machine("avx512_bf16").setenv(variable, value)
    with pytest.raises(ConfigError, match=words):
        numerics.check("bfloat16", None)


def test_the_instruction_set_on_record_is_the_one_that_rounds(machine: Any) -> None:
    machine(f"sse4_1 avx avx2 {AVX512} avx512_bf16 amx_bf16")
    assert numerics.instruction_set() == "avx512_core"
    assert numerics.instruction_set("bfloat16") == "amx_bf16"
    machine(f"sse4_1 avx avx2 {AVX512} avx512_bf16")
    assert numerics.instruction_set("bfloat16") == "avx512_bf16"
