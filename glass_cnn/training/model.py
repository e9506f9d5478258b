"""The convolutional network of 2017 and its update rules, in TensorFlow's own operations.

Variables are plain `tf.Variable`s with fixed names, so that checkpoints, gradients and
diagnostics all speak of the same eight tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from glass_cnn.streams import TrainingStream, training_key
from glass_cnn.tensorflow import tf
from glass_cnn.train_settings import MARGIN, Adam, Precision, Recipe, Sgd
from glass_cnn.training.convolution import Layer, plain

CLASSES = 2
DENSE = 80
CHANNELS = 16
DENSE_WEIGHTS = "dense/weights"
"""all but a few thousand of the parameters"""


class Part(Protocol):
    """Which part of a network a rank has, and how sums and maxima over all parts are made of it.

    A part belongs to some rows of the second convolution's image: it is the convolutions, the
    dense weights of those rows, and all that follows on the dense layer's sums.
    """

    @property
    def rows(self) -> slice:
        """Rows of that image."""

    @property
    def pixels(self) -> slice:
        """Rows of the network's input that they are computed from."""

    def total(self, tensor: tf.Tensor) -> tf.Tensor:
        """Element-wise sum over all parts. Everything behind it is computed on every rank."""

    def largest(self, number: tf.Tensor) -> tf.Tensor:
        """The largest of the numbers of all parts."""


class Whole:
    """All of a network; see `Part`."""

    rows = pixels = slice(None)

    def total(self, tensor: tf.Tensor) -> tf.Tensor:
        return tensor

    def largest(self, number: tf.Tensor) -> tf.Tensor:
        return number


WHOLE = Whole()


class Network(tf.Module):
    """Image → two logits: conv 10×10 3→6, ReLU, conv 5×5 6→16, ReLU, dense 80, ReLU, dense 2.

    Convolutions are VALID with stride 1. The initial weights are a pure function of the seed.

    Args:
        recipe: input, spread of the initial weights and rate of the dense layer, for pictures of
            one background (`RunSettings.recipe`). Biases start at 0.1 in all.
        pixels: side of the square image.
        seed: seed of the initial weights.
        part: what of it this rank has; images are then the rows of pixels that it is computed from.
        precision: bfloat16 rounds what the convolutions and the dense layer multiply, and gives
            their results so, forward and backward; parameters, their gradients, sums over parts,
            logits and all behind them are float32 in any.
        convolve: one of `convolution.KINDS`, which compute the same sums.
    """

    def __init__(
        self,
        recipe: Recipe,
        pixels: int,
        seed: int,
        part: Part = WHOLE,
        precision: Precision = "float32",
        convolve: Layer = plain,
    ) -> None:
        super().__init__(name="network")
        self.recipe, self.part, self._convolve = recipe, part, convolve
        self._factors = tf.bfloat16 if precision == "bfloat16" else tf.float32
        side = pixels - MARGIN
        shapes = {
            "conv1": (10, 10, 3, 6),
            "conv2": (5, 5, 6, CHANNELS),
            "dense": (side * side * CHANNELS, DENSE),
            "output": (DENSE, CLASSES),
        }
        self.parameters: dict[str, tf.Variable] = {}
        key = training_key(TrainingStream.WEIGHTS, seed)
        for number, (layer, shape) in enumerate(shapes.items()):
            with tf.device("CPU:0"):  # the kernel of a GPU would round to other last bits
                weights = tf.random.stateless_truncated_normal(
                    shape, seed=(key, number), stddev=self._spread(shape), alg="philox"
                )
            if layer == "dense" and part is not WHOLE:
                # By way of NumPy, for a slice would keep the whole in memory.
                weights = tf.constant(weights[shard(part.rows, side)].numpy())
            self._add(f"{layer}/weights", weights)
            self._add(f"{layer}/biases", tf.fill(shape[-1:], 0.1))

    def _spread(self, shape: tuple[int, ...]) -> float:
        if self.recipe.weights == "sigma_0.1":
            return 0.1
        fan_in = math.prod(shape[:-1])
        truncation = 0.87962566103423978  # standard deviation of a normal cut at ±2σ
        return math.sqrt(2.0 / fan_in) / truncation

    def _add(self, name: str, value: tf.Tensor) -> None:
        self.parameters[name] = tf.Variable(value, name=name.replace("/", "_"))

    @property
    def weights(self) -> dict[str, tf.Variable]:
        """The four weight tensors, which L2 and weight decay act on; biases are free."""
        return {k: v for k, v in self.parameters.items() if k.endswith("/weights")}

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        """uint8 images [n, pixels, pixels, 3] as the float32 input of this recipe."""
        values = tf.cast(images, tf.float32)
        if self.recipe.input == "raw":
            return values
        return (255.0 - values if self.recipe.input == "inverted" else values) / 255.0

    def activations(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """ReLU outputs, float32, of the convolutions and of the dense layer, before dropout."""
        x = self._rounded(self.prepare(images))
        conv1 = self._convolution("conv1", x)
        conv2 = self._convolution("conv2", conv1)
        weights = self.parameters["dense/weights"]
        flat = tf.reshape(conv2, [-1, weights.shape[0]])
        sums = self.part.total(tf.cast(flat @ self._rounded(weights), tf.float32))
        dense = tf.nn.relu(sums + self.parameters["dense/biases"])
        return tf.cast(conv1, tf.float32), tf.cast(conv2, tf.float32), dense

    def _convolution(self, name: str, x: tf.Tensor) -> tf.Tensor:
        of = self.parameters
        return self._convolve(x, of[f"{name}/weights"], of[f"{name}/biases"])

    def _rounded(self, tensor: tf.Tensor) -> tf.Tensor:
        """As a factor in the network's precision; the same tensor in float32."""
        return tf.cast(tensor, self._factors)

    def logits(self, images: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Logits [n, 2] of uint8 images; `mask` [n, 80] is the dropout factor, None for none."""
        dense = self.activations(images)[2]
        if mask is not None:
            dense = dense * mask
        return dense @ self.parameters["output/weights"] + self.parameters["output/biases"]

    def l2(self) -> tf.Tensor:
        """Σ ½‖W‖² over the four weight tensors, float32 scalar."""
        return tf.add_n([self.added(name, tf.nn.l2_loss(w)) for name, w in self.weights.items()])

    def norm(self, tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """√Σx² over all elements of tensors that are named and divided as the parameters are."""
        halves = [self.added(name, tf.nn.l2_loss(tensor)) for name, tensor in tensors.items()]
        return tf.sqrt(tf.reduce_sum(tf.stack(halves)) * 2.0)

    def added(self, name: str, number: tf.Tensor) -> tf.Tensor:
        """A sum over all elements of a parameter, from that over those which this rank has."""
        return self.part.total(number) if name == DENSE_WEIGHTS else number

    def gradients(self, of_part: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Gradients of what this rank has, from those by the way of its own rows alone."""
        return {k: self.part.total(g) if is_of_rows(k) else g for k, g in of_part.items()}


def is_of_rows(name: str) -> bool:
    """Whether a parameter is used on all rows of an image, and so adds up its gradient over them.

    The dense weights have rows of their own, and what follows on them sees no rows.
    """
    return name.startswith(("conv1/", "conv2/"))


def shard(rows: slice, side: int) -> slice:
    """Rows of the dense weights that belong to some rows of an image [side, side, CHANNELS]."""
    start, stop, _ = rows.indices(side)
    return slice(start * side * CHANNELS, stop * side * CHANNELS)


def dropout_mask(seed: int, step: tf.Tensor, batch_size: int, rate: float) -> tf.Tensor:
    """Dropout factors [batch_size, 80] of the whole global batch: 0, or 1/(1−rate).

    A pure function of seed, step and place in the batch; each rank takes its own rows, so the
    masks are the same at any number of ranks.
    """
    first = training_key(TrainingStream.DROPOUT, seed)
    key = tf.stack([tf.constant(first, tf.int64), tf.cast(step, tf.int64)])
    uniform = tf.random.stateless_uniform((batch_size, DENSE), seed=key, alg="philox")
    return tf.cast(uniform >= rate, tf.float32) / (1.0 - rate)


class Optimizer:
    """Adam or SGD through TensorFlow's fused update kernels, one call a tensor.

    Slots are `tf.Variable`s named like the parameters they belong to; together with `count`, the
    number of updates they have seen, they are the whole state.
    """

    def __init__(self, settings: Adam | Sgd, network: Network) -> None:
        self.settings = settings
        self.network = network
        self.count = 0
        names = ("m", "v") if isinstance(settings, Adam) else ("momentum",)
        self.slots: dict[str, tf.Variable] = {
            f"{slot}/{name}": tf.Variable(tf.zeros_like(value), trainable=False)
            for slot in names
            for name, value in network.parameters.items()
        }

    def reset(self) -> None:
        """Forget all state."""
        self.count = 0
        for slot in self.slots.values():
            slot.assign(tf.zeros_like(slot))

    def factor(self, name: str) -> float:
        """Factor on the learning rate of a parameter."""
        return self.network.recipe.dense_rate if name == DENSE_WEIGHTS else 1.0

    def powers(self) -> np.ndarray:
        """β₁ᵗ and β₂ᵗ of the coming update t = count + 1, float32 [2]; zeros for SGD."""
        if not isinstance(self.settings, Adam):
            return np.zeros(2, np.float32)
        t = self.count + 1
        return np.array([self.settings.beta_1**t, self.settings.beta_2**t], np.float32)

    def apply(self, gradients: dict[str, tf.Tensor], rate: tf.Tensor, powers: tf.Tensor) -> None:
        """One update, inside a `tf.function`. `count` is advanced by the caller."""
        s = self.settings
        rates = {name: rate * f if (f := self.factor(name)) != 1 else rate for name in gradients}
        if s.weight_decay:
            for name, weight in self.network.weights.items():
                weight.assign_sub(rates[name] * s.weight_decay * weight)
        for name, gradient in gradients.items():
            variable = self.network.parameters[name]
            if isinstance(s, Adam):
                tf.raw_ops.ResourceApplyAdam(
                    var=variable.handle,
                    m=self.slots[f"m/{name}"].handle,
                    v=self.slots[f"v/{name}"].handle,
                    beta1_power=powers[0],
                    beta2_power=powers[1],
                    lr=rates[name],
                    beta1=s.beta_1,
                    beta2=s.beta_2,
                    epsilon=s.epsilon,
                    grad=gradient,
                )
            else:
                tf.raw_ops.ResourceApplyKerasMomentum(
                    var=variable.handle,
                    accum=self.slots[f"momentum/{name}"].handle,
                    lr=rates[name],
                    grad=gradient,
                    momentum=s.momentum,
                    use_nesterov=s.nesterov,
                )
