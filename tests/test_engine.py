"""What a device computes stays there until it is asked for: a GPU need not wait for the host."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from glass_cnn.records import DataIdentity, Numerics
from glass_cnn.tensorflow import tf
from glass_cnn.training import engine as room
from glass_cnn.training.engine import COMPILING, Engine
from glass_cnn.training.loop import TrainingJob, evaluate, take_step
from glass_cnn.training.state import State
from hpc.tensorfile import lay_out
from hpc.world import world
from tests import synthetic, tiny
from tests.conftest import leave_out

BATCH = 6


@pytest.fixture
def job(tensorflow: Numerics) -> TrainingJob:
    """The parts of a run that a step and an evaluation are made with; its data are noise."""
    settings = tiny.settings(train={"batch_size": BATCH, "evaluation_batch": 4})
    engine = Engine(settings, world())
    rng, pixels = np.random.default_rng(0), settings.render.pixels
    images = rng.integers(0, 256, (10, pixels, pixels, 3), dtype=np.uint8)
    labels = rng.integers(0, 2, 10).astype(np.uint8)
    parts: dict[str, Any] = {
        "settings": settings,
        "world": world(),
        "stop": SimpleNamespace(agreed=lambda _: 0),
        "examples": SimpleNamespace(images=images, parts=SimpleNamespace(labels=labels)),
        "engine": engine,
        "state": State(settings, engine, DataIdentity("x", "f00d"), tensorflow, 100),
        "feed": SimpleNamespace(batch=lambda _: engine.hand_over(images[:BATCH], labels[:BATCH])),
        "heart": SimpleNamespace(beat=lambda *_: None),
        "say": print,
    }
    return cast(TrainingJob, SimpleNamespace(**parts))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Tensors that are brought to the host from now on."""
    found: list[Any] = []
    kind = next(k for k in type(tf.constant(0)).__mro__ if "_numpy" in vars(k))
    plain = kind._numpy  # type: ignore[attr-defined]

    def watched(tensor: Any) -> Any:
        found.append(tensor)
        return plain(tensor)

    monkeypatch.setattr(kind, "_numpy", watched)
    return found


def test_of_a_step_the_sums_alone_are_read_and_when_the_next_one_is_under_way(
    job: TrainingJob, reads: list[Any]
) -> None:
    results = []
    for step in range(4):
        results.append(take_step(job)[0])
        assert [id(t) for t in reads] == [id(result.sums.tensor) for result in results[:-1]], step
        assert job.state.progress.step == step + 1
    job.state.count()
    assert [id(t) for t in reads] == [id(result.sums.tensor) for result in results]


def test_progress_holds_the_sums_of_every_step_wherever_it_is_looked_at(job: TrainingJob) -> None:
    losses, corrects = 0.0, 0
    for _ in range(3):
        result, _ = take_step(job)
        losses, corrects = losses + result.sums.loss, corrects + result.sums.correct
        meta = job.state.meta()  # as for a checkpoint in between
        assert (meta["loss_sum"], meta["correct"]) == (losses, corrects)
    evaluation = job.state.take_evaluation(np.ones(7))
    assert evaluation.train_loss == losses / job.settings.train.batches_per_iteration


def test_an_evaluation_is_read_when_all_of_it_is_under_way(
    job: TrainingJob, reads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = []
    plain = job.engine.evaluate

    def watched(*batch: np.ndarray) -> tf.Tensor:
        before.append(len(reads))
        return plain(*batch)

    monkeypatch.setattr(job.engine, "evaluate", watched)
    counts = evaluate(job, np.arange(10))
    assert counts is not None
    assert counts[0] == 10
    assert before == [0, 0, 0]  # portions of 4
    assert len(reads) == 3


def test_a_snapshot_copies_nothing_before_it_is_copied(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = job.engine.snapshot("model/output/")
    job.engine.assign({"model/output/biases": np.array([3.0, 4.0], np.float32)})
    assert tiny.arrays(snapshot)["model/output/biases"].tolist() == [3.0, 4.0]
    monkeypatch.setattr(room, "_view", lambda _: pytest.fail("brought to the host"))
    assert lay_out(job.engine.snapshot()).size > lay_out(snapshot).size


def test_kernels_of_a_gpu_have_time_to_be_compiled_once(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job.engine.compiling("a step") == 0
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind])
    engine = Engine(job.settings, world())
    asked = [engine.compiling(what) for what in ("a step", "a step", "an evaluation", "a step")]
    assert asked == [COMPILING, 0, COMPILING, 0]


def test_on_a_gpu_no_step_waits_for_the_host_in_the_middle(job: TrainingJob) -> None:
    """By what TensorFlow's own kernels for GPUs say of their arguments; needs its build for them,
    and no GPU: every operation of the step finds its arguments where the one before left them."""
    if not tf.test.is_built_with_cuda():
        leave_out("gpu", "requires TensorFlow for GPUs: make setup GPU=1")
    context = inside("eager.context")
    context.enable_run_metadata()
    take_step(job)
    ran = context.export_run_metadata()
    context.disable_run_metadata()
    graph = max((g.post_optimization_graph for g in ran.function_graphs), key=lambda g: len(g.node))
    assert len(graph.node) > 100
    assert list(crossings(graph)) == []


def inside(module: str) -> Any:
    """A part of TensorFlow that it tells nobody of."""
    return importlib.import_module(f"tensorflow.python.{module}")


def crossings(graph: Any) -> Iterator[str]:
    """Operations that would find an argument on the other side than where it was made."""
    places: dict[str, list[bool]] = {}
    for node in graph.node:
        _, places[node.name] = on_host(node)
    for node in graph.node:
        expected, _ = on_host(node)
        inputs = [name.partition(":") for name in node.input if not name.startswith("^")]
        for (name, _, number), wanted in zip(inputs, expected, strict=False):
            if places[name] and places[name][int(number or 0)] != wanted:
                yield f"{node.op} {node.name} of {name}"


def on_host(node: Any) -> tuple[list[bool], list[bool]]:
    """Whether a GPU's kernel has each argument and each result in the memory of the host.

    Nothing for what the processor's own optimisation has made, and for what hands values on.
    """
    if node.op.startswith("_") or node.op in ("Placeholder", "VarHandleOp", "NoOp"):
        return [], []
    kernel = next(filter(functools.partial(fits, node), kernels(node.op)), None)
    held = set(kernel.host_memory_arg) if kernel else None
    definition = inside("framework.op_def_registry").get(node.op)
    arguments, results = (
        [held is None or name in held for name in names(node, named)]
        for named in (definition.input_arg, definition.output_arg)
    )
    return arguments, results


@functools.cache
def kernels(operation: str) -> list[Any]:
    """Those that GPUs can be given an operation with."""
    found = inside("framework.kernels").get_registered_kernels_for_op(operation).kernel
    return [kernel for kernel in found if kernel.device_type in ("GPU", "DEFAULT")]


def fits(node: Any, kernel: Any) -> bool:
    """Whether a kernel is for the types of an operation."""
    for constraint in kernel.constraint:
        value, allowed = node.attr[constraint.name], constraint.allowed_values.list.type
        if allowed and not {*value.list.type, value.type} - {0} <= set(allowed):
            return False
    return True


def names(node: Any, arguments: Any) -> Iterator[str]:
    """The name of every argument, as often as there are tensors in it."""
    for argument in arguments:
        types = node.attr[argument.type_list_attr].list.type if argument.type_list_attr else [0]
        count = node.attr[argument.number_attr].i if argument.number_attr else len(types)
        yield from [argument.name] * count


def test_the_pace_after_a_restart_is_that_of_the_steps_that_were_made() -> None:
    from glass_cnn.training.recorder import line

    train = tiny.settings(
        train={"iterations": 6, "batches_per_iteration": 10, "batch_size": 80}
    ).train
    evaluations = synthetic.evaluations(
        synthetic.MadeUpCourse(), 4, 0, synthetic.study().points[0].settings
    )
    told = line(evaluations[-1], train, took=10.0, made=4)
    assert (evaluations[-1].step, train.batch_size) == (40, 80)
    assert told.endswith("  32 img/s  ETA 0:50")
    assert line(evaluations[-1], train, took=10.0, made=10).endswith("  80 img/s  ETA 0:20")
    assert "img/s" not in line(evaluations[-1], train, took=0.1, made=0), "no step was made"
