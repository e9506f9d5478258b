"""The network against plain NumPy, its update rules against hand computations."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_cnn.settings import build_run
from glass_cnn.tensorflow import tf
from glass_cnn.train_settings import Adam, Recipe, Sgd
from glass_cnn.training.diagnostics import Diagnostics
from glass_cnn.training.engine import COUNTS, Engine
from glass_cnn.training.model import Network, Optimizer, dropout_mask
from hpc.world import world
from tests import tiny

PIXELS = 20
Arrays = dict[str, np.ndarray]


pytestmark = pytest.mark.usefixtures("tensorflow")


def recipe_of(name: str, **parts: Any) -> Recipe:
    """A recipe by name, for pictures on white."""
    return build_run({"model": {"recipe": name, **parts}}, "test").recipe


def engine(pixels: int = PIXELS, recipe: str = "modern", **train: Any) -> Engine:
    tree = {"render": {"pixels": pixels}, "model": {"recipe": recipe}, "train": train}
    return Engine(build_run({**tree, "launch": {"ranks": 1}}, "test"), world())


def pictures(count: int, pixels: int = PIXELS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, pixels, pixels, 3), dtype=np.uint8)
    return images, (rng.random(count) < 0.4).astype(np.uint8)


def values(network: Network) -> Arrays:
    return {name: v.numpy().astype(np.float64) for name, v in network.parameters.items()}


# Plain NumPy, in double precision, a loop for every pixel of the kernels


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """VALID cross-correlation of [n, h, w, c] with [kh, kw, c, d], then ReLU."""
    kh, kw, _, filters = kernel.shape
    n, height, width, _ = x.shape
    out = np.zeros((n, height - kh + 1, width - kw + 1, filters)) + bias
    for i in range(kh):
        for j in range(kw):
            patch = x[:, i : i + out.shape[1], j : j + out.shape[2], :]
            out += np.einsum("nhwc,cd->nhwd", patch, kernel[i, j])
    return np.maximum(out, 0)


def forward(images: np.ndarray, p: Arrays, recipe: str, mask: np.ndarray | float = 1) -> np.ndarray:
    x = images.astype(np.float64)
    x = x if recipe == "swanson2017" else 1 - x / 255
    x = convolve(x, p["conv1/weights"], p["conv1/biases"])
    x = convolve(x, p["conv2/weights"], p["conv2/biases"])
    dense = x.reshape(len(x), -1) @ p["dense/weights"] + p["dense/biases"]
    return np.maximum(dense, 0) * mask @ p["output/weights"] + p["output/biases"]


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1)
    total = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
    return total - logits[np.arange(len(labels)), labels]


# The network


def test_the_network_of_2017_has_71_900_784_parameters_at_250_px() -> None:
    with tf.Graph().as_default():  # shapes alone: nothing is computed
        network = Network(recipe_of("swanson2017"), 250, seed=0)
    shapes = {name: tuple(v.shape) for name, v in network.parameters.items()}
    assert shapes == {
        "conv1/weights": (10, 10, 3, 6),
        "conv1/biases": (6,),
        "conv2/weights": (5, 5, 6, 16),
        "conv2/biases": (16,),
        "dense/weights": (237 * 237 * 16, 80),
        "dense/biases": (80,),
        "output/weights": (80, 2),
        "output/biases": (2,),
    }
    assert sum(math.prod(s) for s in shapes.values()) == 71_900_784


@pytest.mark.parametrize("recipe", ["swanson2017", "modern"])
def test_forward_pass(recipe: str) -> None:
    network = Network(recipe_of(recipe), PIXELS, seed=3)
    images, _ = pictures(5)
    found = network.logits(tf.constant(images)).numpy()
    wanted = forward(images, values(network), recipe)
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5 * abs(wanted).max())
    mask = dropout_mask(1, tf.constant(7), 5, 0.5)
    with_dropout = network.logits(tf.constant(images), mask).numpy()
    wanted = forward(images, values(network), recipe, mask.numpy())
    assert with_dropout == pytest.approx(wanted, rel=1e-5, abs=1e-5 * abs(wanted).max())
    assert not np.allclose(found, with_dropout)


def test_inputs_of_the_recipes() -> None:
    images = tf.constant(np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1))
    raw = Network(recipe_of("swanson2017"), PIXELS, 0).prepare(images).numpy().ravel()
    assert raw.tolist() == [0.0, 51.0, 255.0]
    scaled = Network(recipe_of("modern"), PIXELS, 0).prepare(images).numpy().ravel()
    assert scaled == pytest.approx([1.0, 0.8, 0.0])
    black = build_run({"model": {"recipe": "modern"}, "render": {"background": "black"}}, "test")
    dark = Network(black.recipe, PIXELS, 0).prepare(images).numpy().ravel()
    assert dark == pytest.approx([0.0, 0.2, 1.0])
    unit = Network(recipe_of("modern", input="unit"), PIXELS, 0).prepare(images).numpy().ravel()
    assert unit == pytest.approx([0.0, 0.2, 1.0])


def test_initial_weights() -> None:
    """σ 0.1 cut at 2σ in 2017; He's √(2/fan-in) after the cut now; biases 0.1 in both."""
    cut = 0.87962566103423978
    for recipe in ("swanson2017", "modern"):
        network = Network(recipe_of(recipe), 32, seed=5)
        for name, weights in network.weights.items():
            w = weights.numpy()
            fan_in = math.prod(w.shape[:-1])
            sigma = 0.1 if recipe == "swanson2017" else math.sqrt(2 / fan_in) / cut
            assert abs(w).max() <= 2 * sigma * (1 + 1e-6)
            error = 4 / math.sqrt(2 * w.size)  # four standard errors of a standard deviation
            assert w.std() == pytest.approx(sigma * cut, rel=error), name
            assert abs(w.mean()) < 4 * sigma / math.sqrt(w.size)
        biases = set(network.parameters) - set(network.weights)
        assert len(biases) == 4
        for name in biases:
            assert (network.parameters[name].numpy() == np.float32(0.1)).all()


def test_initial_weights_follow_from_the_seed_alone() -> None:
    first, same, other = (values(Network(recipe_of("modern"), PIXELS, seed)) for seed in (1, 1, 2))
    assert all((first[name] == same[name]).all() for name in first)
    assert all((first[f"{k}/weights"] != other[f"{k}/weights"]).any() for k in ("conv1", "dense"))
    conv = first["conv1/weights"].ravel()
    assert not np.allclose(conv[:160] / conv.std(), first["output/weights"].ravel()[:160])


# Dropout


def test_dropout_masks_are_a_pure_function_of_seed_and_step() -> None:
    one = dropout_mask(3, tf.constant(10, tf.int64), 50, 0.3).numpy()
    assert set(np.unique(one)) == {0.0, np.float32(1 / 0.7)}
    assert (one == 0).mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / one.size))
    assert (one == dropout_mask(3, tf.constant(10, tf.int64), 50, 0.3).numpy()).all()
    for seed, step in ((3, 11), (4, 10)):
        assert (one != dropout_mask(seed, tf.constant(step, tf.int64), 50, 0.3).numpy()).any()
    assert (dropout_mask(3, tf.constant(10, tf.int64), 50, 0.0).numpy() == 1).all()


TWO_DEVICES = """
from glass_cnn.settings import build_run
from glass_cnn.tensorflow import tf
from glass_cnn.training.model import Network
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
draw, drawn = tf.random.stateless_truncated_normal, []
tf.random.stateless_truncated_normal = lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[-1]
with tf.device("CPU:1"):  # as a GPU takes what says nothing
    network = Network(build_run({"model": {"recipe": "modern"}}, "test").recipe, 20, seed=3)
print({x.device[-5:] for x in drawn}, {v.device[-5:] for v in network.parameters.values()})
"""


def test_initial_weights_are_drawn_on_the_host_and_lie_where_the_network_computes(
    root: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], cwd=root, capture_output=True, text=True
    )
    assert done.stdout == "{'CPU:0'} {'CPU:1'}\n", done.stderr


# Loss and gradients


def test_l2_is_half_the_squares_of_the_four_weight_tensors() -> None:
    network = Network(recipe_of("modern"), PIXELS, seed=1)
    p = values(network)
    names = ("conv1", "conv2", "dense", "output")
    assert set(network.weights) == {f"{n}/weights" for n in names}
    wanted = sum((p[f"{n}/weights"] ** 2).sum() / 2 for n in names)
    assert float(network.l2()) == pytest.approx(wanted, rel=1e-5)


def whole_loss(p: Arrays, images: np.ndarray, labels: np.ndarray, l2: float, recipe: str) -> float:
    """Mean cross-entropy + l2 · Σ ½‖W‖², in double precision."""
    weights = [v for name, v in p.items() if name.endswith("/weights")]
    penalty = sum((w**2).sum() / 2 for w in weights)
    return float(cross_entropies(forward(images, p, recipe), labels).mean() + l2 * penalty)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_gradients_are_those_of_the_whole_loss(l2: float) -> None:
    """Against central differences of the loss in double precision, along random directions."""
    e = engine(batch_size=6, dropout=0.0, l2=l2)
    images, labels = pictures(6)
    before = values(e.network)
    result = e.train_step(images, labels, 0, 1e-3)
    mean = cross_entropies(forward(images, before, "modern"), labels).mean()
    assert result.sums.loss == pytest.approx(mean, rel=1e-5)  # without L2
    guesses = forward(images, before, "modern").argmax(axis=1)
    assert result.sums.correct == (guesses == labels).sum()
    rng = np.random.default_rng(0)
    for name, gradient in result.gradients.items():
        direction = rng.normal(size=before[name].shape)
        direction /= np.linalg.norm(direction)
        h = 1e-5

        def along(t: float, name: str = name, d: np.ndarray = direction) -> float:
            moved = {**before, name: before[name] + t * d}
            return whole_loss(moved, images, labels, l2, "modern")

        slope = (along(h) - along(-h)) / (2 * h)
        found = float((gradient.numpy().astype(np.float64) * direction).sum())
        np.testing.assert_allclose(found, slope, rtol=2e-3, atol=2e-5, err_msg=name)


def test_the_gradient_of_l2_by_hand() -> None:
    images, labels = pictures(4)
    with_l2, without = (engine(batch_size=4, dropout=0.0, l2=l2) for l2 in (0.25, 0.0))
    weights = values(with_l2.network)
    a = with_l2.train_step(images, labels, 0, 1e-3).gradients
    b = without.train_step(images, labels, 0, 1e-3).gradients
    for name in a:
        wanted = 0.25 * weights[name] if name.endswith("/weights") else np.zeros_like(weights[name])
        np.testing.assert_allclose(
            (a[name] - b[name]).numpy(), wanted, rtol=1e-4, atol=1e-7, err_msg=name
        )


def test_dropout_reaches_loss_and_gradients() -> None:
    e = engine(batch_size=6, dropout=0.5, l2=0.0)
    images, labels = pictures(6)
    before = values(e.network)
    mask = dropout_mask(0, tf.constant(12, tf.int64), 6, 0.5).numpy()
    result = e.train_step(images, labels, 12, 1e-3)
    logits = forward(images, before, "modern", mask)
    assert result.sums.loss == pytest.approx(cross_entropies(logits, labels).mean(), rel=1e-5)


# Update rules


def adam(p: np.ndarray, gradients: list[np.ndarray], rates: list[float], s: Adam) -> np.ndarray:
    """Kingma and Ba's algorithm 1 in the order of computation of their section 2 (ε̂)."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = s.beta_1 * m + (1 - s.beta_1) * g
        v = s.beta_2 * v + (1 - s.beta_2) * g * g
        p = p * (1 - rate * s.weight_decay)
        step = rate * math.sqrt(1 - s.beta_2**t) / (1 - s.beta_1**t)
        p = p - step * m / (np.sqrt(v) + s.epsilon)
    return p


def sgd(p: np.ndarray, gradients: list[np.ndarray], rates: list[float], s: Sgd) -> np.ndarray:
    velocity = np.zeros_like(p)
    for g, rate in zip(gradients, rates, strict=True):
        p = p * (1 - rate * s.weight_decay)
        velocity = s.momentum * velocity - rate * g
        p = p + (s.momentum * velocity - rate * g if s.nesterov else velocity)
    return p


RULES: list[tuple[Callable[..., np.ndarray], Any]] = [
    (adam, Adam()),
    (adam, Adam(beta_1=0.5, beta_2=0.9, epsilon=1e-3)),
    (adam, Adam(weight_decay=0.1)),
    (sgd, Sgd(kind="sgd")),
    (sgd, Sgd(kind="sgd", momentum=0.9)),
    (sgd, Sgd(kind="sgd", momentum=0.9, nesterov=True, weight_decay=0.1)),
]


@pytest.mark.parametrize(
    ("rule", "settings"), RULES, ids=lambda x: getattr(x, "__name__", str(x)[:60])
)
def test_updates_over_several_steps(rule: Callable[..., np.ndarray], settings: Any) -> None:
    network = Network(recipe_of("modern"), 16, seed=0)
    optimizer = Optimizer(settings, network)
    update = tf.function(optimizer.apply)
    before = values(network)
    rng = np.random.default_rng(1)
    rates = [1e-2, 3e-3, 3e-3, 1e-2, 1e-3]
    gradients = [
        {k: rng.normal(size=v.shape).astype(np.float32) for k, v in before.items()} for _ in rates
    ]
    gradients[2] = {k: np.zeros_like(v) for k, v in gradients[2].items()}
    for g, rate in zip(gradients, rates, strict=True):
        update(
            {k: tf.constant(x) for k, x in g.items()},
            tf.constant(rate, tf.float32),
            tf.constant(optimizer.powers()),
        )
        optimizer.count += 1
    free = settings.model_copy(update={"weight_decay": 0.0})  # biases are not decayed
    for name, found in values(network).items():
        s = settings if name.endswith("/weights") else free
        wanted = rule(before[name], [g[name].astype(np.float64) for g in gradients], rates, s)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("settings", [Adam(weight_decay=0.1), Sgd(kind="sgd", momentum=0.9)])
def test_the_rate_of_the_dense_layer_may_have_a_factor(settings: Any) -> None:
    """It is as if that one tensor were trained at a rate of its own; all others are as without."""

    def after(factor: float, rate: float) -> Arrays:
        network = Network(recipe_of("modern", dense_rate=factor), 16, seed=0)
        optimizer = Optimizer(settings, network)
        rng = np.random.default_rng(1)
        gradients = {
            k: tf.constant(rng.normal(size=v.shape).astype(np.float32))
            for k, v in network.parameters.items()
        }
        optimizer.apply(gradients, tf.constant(rate, tf.float32), tf.constant(optimizer.powers()))
        return values(network)

    with_factor, slow, plain = after(0.25, 1e-2), after(1.0, 0.25e-2), after(1.0, 1e-2)
    for name, found in with_factor.items():
        wanted = slow if name == "dense/weights" else plain
        np.testing.assert_array_equal(found, wanted[name], err_msg=name)
    assert (slow["dense/weights"] != plain["dense/weights"]).any()


def test_reset_forgets_everything() -> None:
    e = engine(batch_size=4)
    images, labels = pictures(4)
    for step in range(3):
        e.train_step(images, labels, step, 1e-3)
    assert e.optimizer.count == 3
    e.optimizer.reset()
    assert e.optimizer.count == 0
    assert all((slot.numpy() == 0).all() for slot in e.optimizer.slots.values())


@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_clipping_bounds_the_global_norm_of_the_whole_gradient(limit: float) -> None:
    images, labels = pictures(5)
    free = engine(batch_size=5, l2=0.3).train_step(images, labels, 0, 1e-3).gradients
    e = engine(batch_size=5, l2=0.3, optimizer={"kind": "adam", "clip_norm": limit})
    clipped = e.train_step(images, labels, 0, 1e-3).gradients
    norm = math.sqrt(sum(float(tf.reduce_sum(g * g)) for g in free.values()))
    factor = min(1.0, limit / norm)
    for name, gradient in clipped.items():
        wanted = (free[name] * factor).numpy()
        np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-4, atol=1e-9, err_msg=name)


def test_training_lowers_the_loss() -> None:
    e = engine(batch_size=20, dropout=0.0, l2=0.0)
    images, labels = pictures(20)
    losses = [e.train_step(images, labels, step, 1e-3).sums.loss for step in range(30)]
    assert losses[-1] < 0.3 * losses[0]


# Evaluation, state, diagnostics


def test_evaluation_counts() -> None:
    e = engine(batch_size=4)
    images, labels = pictures(31)
    found = dict(zip(COUNTS, e.evaluate(images, labels).numpy(), strict=True))
    logits = forward(images, values(e.network), "modern")
    gap = logits[:, 1] - logits[:, 0]
    assert found["examples"] == 31
    assert found["correct"] == ((gap > 0) == labels).sum()
    assert found["glass"] == labels.sum()
    assert found["predicted_glass"] == (gap > 0).sum()
    assert found["loss"] == pytest.approx(cross_entropies(logits, labels).sum(), rel=1e-5)
    assert found["gap"] == pytest.approx(gap.sum(), rel=1e-4, abs=1e-4)
    assert found["gap_squared"] == pytest.approx((gap**2).sum(), rel=1e-4)


def test_equal_logits_count_as_liquid() -> None:
    e = engine(batch_size=4)
    for name in ("output/weights", "output/biases"):
        e.network.parameters[name].assign(tf.zeros_like(e.network.parameters[name]))
    images, labels = pictures(10)
    found = dict(zip(COUNTS, e.evaluate(images, labels).numpy(), strict=True))
    assert found["predicted_glass"] == 0
    assert found["correct"] == 10 - labels.sum()


def test_state_goes_out_and_back_in() -> None:
    images, labels = pictures(4)
    e = engine(batch_size=4)
    e.train_step(images, labels, 0, 1e-3)
    kept = tiny.arrays(e.snapshot())
    assert len(kept) == 8 + 16
    e.train_step(images, labels, 1, 1e-3)
    ended = tiny.arrays(e.snapshot("model/"))
    other = engine(batch_size=4)
    other.assign(kept)
    other.optimizer.count = 1
    other.train_step(images, labels, 1, 1e-3)
    again = tiny.arrays(other.snapshot("model/"))
    assert all((again[name] == value).all() for name, value in ended.items())
    with pytest.raises(ValueError, match="shape"):
        other.assign({"model/dense/biases": np.zeros(3, np.float32)})


def test_measuring_changes_no_bit_and_measures_what_it_says() -> None:
    images, labels = pictures(8)
    e = engine(batch_size=8)
    result = e.train_step(images, labels, 0, 1e-3)
    before = tiny.arrays(e.snapshot())
    found = Diagnostics(e.network, e.optimizer, images).measure(result.gradients, 1e-3)
    assert all((before[name] == value).all() for name, value in tiny.arrays(e.snapshot()).items())
    p = values(e.network)
    for name, value in p.items():
        assert found["weight_norm"][name] == pytest.approx(np.linalg.norm(value), rel=1e-5)
        g = result.gradients[name].numpy().astype(np.float64)
        assert found["gradient_norm"][name] == pytest.approx(np.linalg.norm(g), rel=1e-4)
        # After one step m/(1-β₁) = g and v/(1-β₂) = g²: the ratio is 1 wherever ε is small.
        assert found["adam_ratio_max"][name] == pytest.approx(1, rel=1e-2)
    gap = p["output/biases"][1] - p["output/biases"][0]
    assert found["output_bias_gap"] == pytest.approx(gap, rel=1e-4)
    dead = (e.network.activations(tf.constant(images))[2].numpy().max(axis=0) <= 0).mean()
    assert found["dead_fraction"]["dense"] == pytest.approx(dead)
