"""Adam's preconditioned curvature, against finite differences and a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from glass_cnn.settings import build_run
from glass_cnn.tensorflow import tf
from glass_cnn.train_settings import Adam
from glass_cnn.training.diagnostics import Diagnostics
from glass_cnn.training.model import Network, Optimizer
from hpc.errors import ConfigError
from hpc.records import read_records
from tests import tiny

pytestmark = pytest.mark.usefixtures("tensorflow")

PIXELS, UPDATES = 18, 5
SETTINGS = Adam(beta_1=0.8, beta_2=0.99, epsilon=1e-3)


@pytest.fixture
def measured() -> tuple[Diagnostics, np.ndarray]:
    """A small network, an Adam with a past, and labels of the probe.

    Every unit is on for every image, far from 0: across the kink of a ReLU the difference of two
    gradients is not what second derivatives say.
    """
    rng = np.random.default_rng(3)
    network = Network(build_run({"model": {"recipe": "modern"}}, "test").recipe, PIXELS, seed=5)
    for layer in ("conv1", "conv2", "dense"):
        network.parameters[f"{layer}/weights"].assign(network.parameters[f"{layer}/weights"] * 0.1)
        network.parameters[f"{layer}/biases"].assign(network.parameters[f"{layer}/biases"] * 10)
    optimizer = Optimizer(SETTINGS, network)
    optimizer.count = UPDATES
    for name, slot in optimizer.slots.items():
        if name.startswith("v/"):
            slot.assign(rng.uniform(1e-4, 1e-2, slot.shape))
    images = rng.integers(0, 256, (8, PIXELS, PIXELS, 3), dtype=np.uint8)
    return Diagnostics(network, optimizer, images), np.arange(8) % 2


def gradient(diagnostics: Diagnostics, labels: np.ndarray, l2: float) -> dict[str, np.ndarray]:
    """Of the whole loss on the probe, at the present weights."""
    network = diagnostics.network
    with tf.GradientTape() as tape:
        logits = network.logits(diagnostics.probe)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        loss += l2 * sum(tf.reduce_sum(w * w) / 2 for w in network.weights.values())
    return {
        name: g.numpy().astype(np.float64)
        for name, g in zip(
            network.parameters, tape.gradient(loss, list(network.parameters.values())), strict=True
        )
    }


def dot(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    return float(sum((a[name] * b[name]).sum() for name in a))


def factor() -> float:
    correction = math.sqrt(1 - 0.99**UPDATES) / (1 - 0.8**UPDATES)
    return 0.2 / 1.8 * correction


def over_root(diagnostics: Diagnostics, g: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    slots = diagnostics.optimizer.slots
    return {name: x / (np.sqrt(slots[f"v/{name}"].numpy()) + 1e-3) for name, x in g.items()}


def test_against_finite_differences_of_the_gradient(
    measured: tuple[Diagnostics, np.ndarray],
) -> None:
    diagnostics, labels = measured
    l2, rate = 0.02, 1e-3
    before = {k: v.numpy() for k, v in diagnostics.network.parameters.items()}
    found = diagnostics.curvature(labels, l2, rate)
    for name, value in diagnostics.network.parameters.items():
        assert np.array_equal(before[name], value.numpy())
    g = gradient(diagnostics, labels, l2)
    step = 3e-3 / math.sqrt(dot(g, g))
    sides = []
    assert all(tf.reduce_min(x) > 0.1 for x in diagnostics.network.activations(diagnostics.probe))
    for sign in (1, -1):
        for name, value in diagnostics.network.parameters.items():
            value.assign(before[name] + sign * step * g[name])
        sides.append(gradient(diagnostics, labels, l2))
    bent = {name: (sides[0][name] - sides[1][name]) / (2 * step) for name in g}
    wanted = factor() * dot(over_root(diagnostics, g), bent) / dot(g, g)
    assert found["curvature"] == pytest.approx(wanted, rel=0.01)
    assert found["curvature_ratio"] == pytest.approx(found["curvature"] * rate / 2)


def test_where_l2_is_all_the_hessian_is_known(measured: tuple[Diagnostics, np.ndarray]) -> None:
    diagnostics, labels = measured
    l2 = 1e5
    g = gradient(diagnostics, labels, l2)
    weights = {k: v for k, v in over_root(diagnostics, g).items() if k.endswith("weights")}
    wanted = factor() * l2 * dot(weights, {k: g[k] for k in weights}) / dot(g, g)
    assert diagnostics.curvature(labels, l2, 1.0)["curvature"] == pytest.approx(wanted, rel=1e-3)


def test_only_adam_has_it() -> None:
    with pytest.raises(ConfigError, match=r"curvature_every 2 needs optimizer\.kind adam"):
        tiny.settings(train={"curvature_every": 2, "optimizer": {"kind": "sgd"}})


def test_measuring_is_no_part_of_a_runs_identity() -> None:
    plain, watched = tiny.settings(), tiny.settings(train={"curvature_every": 2})
    assert plain.run_digest() == watched.run_digest()


@pytest.mark.requires("mpi")
def test_a_run_records_it_when_due_and_learns_the_same(
    mpirun: Callable[..., Any], tiny_logs: Any, tmp_path: Any
) -> None:
    plan = []
    for every in (0, 2):
        root = tiny.share(tiny_logs, tmp_path / f"logs{every}")
        tree = tiny.tree(train={"curvature_every": every})
        config = tiny.write_study(root / "study.yaml", tree)
        done = mpirun(1, "jobs.train", config, "--logs", root)
        assert done.returncode == 0, done.stdout + done.stderr
        plan.append(tiny.outcome(tiny.only_run(root)))
    plain, watched = plan
    assert plain["result"] == watched["result"]
    records = read_records(tiny.only_run(tmp_path / "logs2").metrics)
    found = [r["diagnostics"].get("curvature") for r in records]
    assert [value is not None for value in found] == [False, True, False, True]
    for record in records[1::2]:
        ratio = record["diagnostics"]["curvature"] * record["learning_rate"] / 2
        assert record["diagnostics"]["curvature_ratio"] == pytest.approx(ratio)
