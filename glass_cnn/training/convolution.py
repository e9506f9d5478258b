"""Convolutional layers of few channels, in pairs where a processor's vectors have room for two.

A vector of AVX-512 holds sixteen numbers; oneDNN lays output channels along it, and six of them
leave most of it empty. Two neighbouring outputs at once are twelve channels: of weights that stand
side by side, the second one column further on, over every second column of the image. The price is
one column of weights in ten, or in five, that meets zeros. It is the same sum, in two thirds of the
time (docs/performance.md). Six channels fill vectors of eight as they are, so there, and on GPUs,
nothing is paired.

A layer is the ReLU of a VALID convolution with stride 1 and one bias a channel: of x [n, h, w, in],
float32 or bfloat16, float32 weights [a, b, in, out] and float32 biases [out]. It multiplies and
gives its results in the type of x; gradients of weights and biases are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glass_cnn import numerics
from glass_cnn.tensorflow import tf

FEW = 8
"""channels that fill no more than half of a vector of sixteen numbers"""

Layer = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def kind() -> str:
    """How this process convolves: `in pairs`, or `plain`. By its device and instruction set alone.

    To be asked once devices are chosen (`engine.set_up_tensorflow`).
    """
    wide = numerics.instruction_set() == "avx512_core"
    return "in pairs" if wide and not tf.config.get_visible_devices("GPU") else "plain"


def plain(x: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor) -> tf.Tensor:
    """A layer in TensorFlow's own operations."""
    sums = tf.nn.conv2d(x, tf.cast(weights, x.dtype), 1, "VALID")
    return tf.nn.relu(with_biases(sums, biases))


def paired(x: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor) -> tf.Tensor:
    """A layer, with every product of few output channels in pairs, forward and backward."""
    inputs, outputs = weights.shape[2:]
    if outputs <= FEW:  # and so is the gradient of its weights

        def finish(sums: tf.Tensor) -> tf.Tensor:
            return tf.nn.relu(with_biases(sums, tf.tile(biases, [2])))

        return _in_pairs(x, weights, 0, 0, finish)
    if inputs <= FEW:
        return _with_paired_gradient(x, tf.convert_to_tensor(weights), tf.convert_to_tensor(biases))
    return plain(x, weights, biases)


KINDS: dict[str, Layer] = {"plain": plain, "in pairs": paired}


def chosen() -> Layer:
    """What this process convolves with, see `kind`."""
    return KINDS[kind()]


def _in_pairs(
    x: tf.Tensor,
    weights: tf.Tensor,
    above: int,
    beside: int,
    finish: Callable[[tf.Tensor], tf.Tensor] = lambda sums: sums,
) -> tf.Tensor:
    """Convolution of x with `above` and `beside` rows and columns of zeros around it, in pairs.

    `finish` is given the sums of two neighbours as channels of one: what directly follows a
    convolution is computed with it in one go.
    """
    height, width, inputs, outputs = weights.shape
    columns = x.shape[2] + 2 * beside - width + 1
    odd = columns % 2  # one column of zeros more, and of outputs that are cut off
    zeros: Any = [[0, 0], [above, above], [beside, beside + odd], [0, 0]]
    if not (above or beside):  # where a convolution pads, its weights' gradient is far slower
        x, zeros = tf.pad(x, zeros), "VALID"
    first = tf.pad(weights, [[0, 0], [0, 1], [0, 0], [0, 0]])
    second = tf.pad(weights, [[0, 0], [1, 0], [0, 0], [0, 0]])
    both = tf.reshape(tf.stack([first, second], axis=3), [height, width + 1, inputs, 2 * outputs])
    pairs = finish(tf.nn.conv2d(x, tf.cast(both, x.dtype), [1, 1, 2, 1], zeros))
    sums = tf.reshape(pairs, [-1, pairs.shape[1], columns + odd, outputs])
    # tf.slice, for the gradient of an index with colons is many times slower.
    return tf.slice(sums, [0, 0, 0, 0], [-1, -1, columns, -1]) if odd else sums


@tf.custom_gradient
def _with_paired_gradient(
    x: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor
) -> tuple[tf.Tensor, Any]:
    """A plain layer; the gradient of x, which has few channels, is computed in pairs."""
    rounded = tf.cast(weights, x.dtype)
    sums = tf.nn.conv2d(x, rounded, 1, "VALID")
    result = tf.nn.relu(tf.nn.bias_add(sums, tf.cast(biases, x.dtype)))

    def gradients(of_result: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        height, width = weights.shape[:2]
        of_sums = tf.raw_ops.ReluGrad(gradients=of_result, features=result)
        of_weights = tf.raw_ops.Conv2DBackpropFilter(
            input=x, filter_sizes=weights.shape, out_backprop=of_sums,
            strides=[1, 1, 1, 1], padding="VALID",
        )  # fmt: skip
        turned = tf.transpose(weights[::-1, ::-1], [0, 1, 3, 2])
        of_x = _in_pairs(of_sums, turned, height - 1, width - 1)
        return of_x, tf.cast(of_weights, tf.float32), _of_biases(of_sums)

    return result, gradients


def with_biases(sums: tf.Tensor, biases: tf.Tensor) -> tf.Tensor:
    """`sums` [n, h, w, channels] with one float32 bias a channel, whose gradient is float32, too.

    TensorFlow's own adds up bfloat16 in bfloat16: 2,064 where 1.2 million terms make 58,100.
    """
    if sums.dtype == tf.float32:
        return tf.nn.bias_add(sums, biases)

    @tf.custom_gradient
    def add(sums: tf.Tensor, biases: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradients(above: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return above, _of_biases(above)

        return tf.nn.bias_add(sums, tf.cast(biases, sums.dtype)), gradients

    return add(sums, tf.convert_to_tensor(biases))


def _of_biases(of_sums: tf.Tensor) -> tf.Tensor:
    if of_sums.dtype == tf.float32:
        return tf.raw_ops.BiasAddGrad(out_backprop=of_sums)
    return tf.reduce_sum(tf.cast(of_sums, tf.float32), axis=[0, 1, 2])
