"""What sways a saved model, in numbers: where in an image its score comes from.

The score that is explained is the logit gap, glass minus liquid: positive says glass.

- gradient: |∂gap/∂pixel|, the largest of the three colours (Simonyan et al., arXiv 1312.6034);
- class activation: gradient × activation of the second convolution, summed over its channels
  (HiResCAM, Draelos and Carin, arXiv 2011.08891); unlike Grad-CAM's averaged gradients it keeps
  places apart, which a dense layer over all places needs, and it does not hide what speaks against;
- occlusion: how far the gap falls when a square is replaced by the mean validation image
  (Zeiler and Fergus, arXiv 1311.2901).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glass_cnn.tensorflow import tf
from glass_cnn.training.saved import SavedModel

Floats = NDArray[np.float32]


def gaps(model: SavedModel, images: np.ndarray) -> Floats:
    """Logit gap of each of the uint8 images [n, pixels, pixels, 3]."""
    logits = model.logits(images)
    return logits[:, 1] - logits[:, 0]


def feature_maps(model: SavedModel, images: np.ndarray) -> tuple[Floats, Floats]:
    """Outputs of both convolutions after ReLU, [n, side, side, 6] and [n, side, side, 16]."""
    conv1, conv2, _ = model.network.activations(tf.constant(images))
    return conv1.numpy(), conv2.numpy()


def attribution(model: SavedModel, images: np.ndarray) -> tuple[Floats, Floats]:
    """Gradient maps [n, pixels, pixels] and class-activation maps [n, side, side] of images."""
    network = model.network
    pixels = tf.cast(tf.constant(images), tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(pixels)
        conv2 = network.activations(pixels)[1]
        logits = _head(model, conv2)
        gap = logits[:, 1] - logits[:, 0]
    gradient = tf.reduce_max(tf.abs(tape.gradient(gap, pixels)), axis=-1)
    activation = tf.reduce_sum(tape.gradient(gap, conv2) * conv2, axis=-1)
    return gradient.numpy(), activation.numpy()


def _head(model: SavedModel, conv2: tf.Tensor) -> tf.Tensor:
    """Logits from the second convolution's output."""
    p = model.network.parameters
    flat = tf.reshape(conv2, [-1, p["dense/weights"].shape[0]])
    dense = tf.nn.relu(flat @ p["dense/weights"] + p["dense/biases"])
    return dense @ p["output/weights"] + p["output/biases"]


def occlusion(model: SavedModel, image: np.ndarray, filling: np.ndarray) -> Floats:
    """Fall of the gap, [pixels, pixels], when squares are replaced by those of `filling`.

    The squares are an eighth of the image wide and half overlap; a pixel gets the mean over the
    squares that cover it.
    """
    pixels = image.shape[0]
    size = max(2, pixels // 8)
    starts = np.unique(np.append(np.arange(0, pixels - size, max(1, size // 2)), pixels - size))
    squares = [np.s_[r : r + size, c : c + size] for r in starts for c in starts]
    hidden = np.repeat(image[None], len(squares) + 1, axis=0)
    for number, square in enumerate(squares):
        hidden[number][square] = filling[square]
    logits = model.logits(hidden)
    gap = logits[:, 1] - logits[:, 0]
    total, times = np.zeros((2, pixels, pixels), np.float32)
    for number, square in enumerate(squares):
        total[square] += gap[-1] - gap[number]
        times[square] += 1
    return total / times


def contributions(model: SavedModel, images: np.ndarray) -> Floats:
    """What each dense unit adds to the gap of each image, [n, 80]: activation × weight gap."""
    weights = model.network.parameters["output/weights"].numpy()
    size = model.settings.train.evaluation_batch
    dense = [
        model.network.activations(tf.constant(images[s : s + size]))[2].numpy()
        for s in range(0, len(images), size)
    ]
    return np.concatenate(dense) * (weights[:, 1] - weights[:, 0])
