"""Convolutions in pairs: the same sums as plain ones, at every border, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

from glass_cnn.tensorflow import tf
from glass_cnn.training import convolution

pytestmark = pytest.mark.usefixtures("tensorflow")

LAYERS = {"first": (10, 10, 3, 6), "second": (5, 5, 6, 16), "wide": (3, 3, 9, 12)}


def naive(x: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """The layer by its definition, in double precision."""
    height, width = weights.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(1, 2))
    sums = np.einsum("nhwcab,abco->nhwo", windows.astype(float), weights.astype(float))
    return np.maximum(sums + biases, 0)


def example(layer: str, rows: int, columns: int) -> list[tf.Tensor]:
    """An image, weights and biases."""
    shape = LAYERS[layer]
    rng = np.random.default_rng(rows * columns)
    shapes = (3, rows, columns, shape[2]), shape, shape[3:]
    return [tf.constant(rng.standard_normal(each), tf.float32) for each in shapes]


@pytest.mark.parametrize("kind", convolution.KINDS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (12, 13), (13, 12), (11, 19), (10, 10)])
def test_a_layer_is_what_its_definition_says(
    kind: str, layer: str, rows: int, columns: int
) -> None:
    parts = example(layer, rows, columns)
    found = convolution.KINDS[kind](*parts).numpy()
    assert (found > 1).any()
    np.testing.assert_allclose(found, naive(*(p.numpy() for p in parts)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("columns", [14, 15, 16, 17])
def test_gradients_in_pairs_are_those_of_plain_convolutions(
    precision: str, layer: str, columns: int
) -> None:
    x, weights, biases = example(layer, 13, columns)
    x = tf.cast(x, precision)
    found = {}
    for kind, convolve in convolution.KINDS.items():

        @tf.function(
            autograph=False, input_signature=[tf.TensorSpec((None, *x.shape[1:]), x.dtype)]
        )
        def gradients(x, convolve=convolve):  # type: ignore[no-untyped-def]
            with tf.GradientTape() as tape:
                tape.watch([x, weights, biases])
                loss = tf.reduce_sum(tf.sin(tf.cast(convolve(x, weights, biases), tf.float32)))
            return tape.gradient(loss, [x, weights, biases])

        found[kind] = gradients(x)
    bound = 1e-5 if precision == "float32" else 1e-2
    for paired, plain in zip(found["in pairs"], found["plain"], strict=True):
        assert paired.dtype == plain.dtype
        paired, plain = (tf.cast(g, tf.float32).numpy() for g in (paired, plain))
        assert np.abs(plain).max() > 1
        np.testing.assert_allclose(paired, plain, rtol=0, atol=bound * np.abs(plain).max())


def test_second_derivatives_in_pairs_are_those_of_plain_convolutions() -> None:
    x, *first = example("first", 20, 21)
    second = example("second", 9, 9)[1:]
    found = {}
    for kind, convolve in convolution.KINDS.items():
        with tf.GradientTape() as outer:
            outer.watch(first + second)
            with tf.GradientTape() as inner:
                inner.watch(first + second)
                middle = tf.sin(convolve(x, *first))
                loss = tf.reduce_sum(tf.sin(convolve(middle, *second)))
            slopes = inner.gradient(loss, first + second)
            along = tf.add_n([tf.reduce_sum(slope * slope) for slope in slopes])
        found[kind] = outer.gradient(along, first + second)
    for paired, plain in zip(found["in pairs"], found["plain"], strict=True):
        assert np.abs(plain).max() > 1
        np.testing.assert_allclose(paired, plain, rtol=0, atol=1e-4 * np.abs(plain).max())


@pytest.mark.parametrize(
    ("cap", "flags", "kind"),
    [
        (None, "avx512_core", "in pairs"),
        ("avx2", "avx512_core", "plain"),
        (None, "avx2", "plain"),
    ],
)
def test_vectors_of_sixteen_numbers_are_used_in_pairs(
    monkeypatch: pytest.MonkeyPatch, cap: str | None, flags: str, kind: str
) -> None:
    from glass_cnn import numerics

    has = set().union(*list(numerics.LEVELS.values())[: list(numerics.LEVELS).index(flags) + 1])
    monkeypatch.setattr(numerics, "_flags", lambda: has)
    monkeypatch.delenv(numerics.CAP, raising=False)
    if cap:
        monkeypatch.setenv(numerics.CAP, cap)
    assert convolution.kind() == kind
