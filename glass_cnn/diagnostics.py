"""What is measured of a run while it trains, beside loss and accuracy. Changes no bit of it.

Quantities and their reasons: dead units (dying ReLU), norms and update ratios (drift, L2
shrinkage), RMS of g²/v (Wortsman et al., arXiv 2304.13013), the largest m/√v
(Molybog et al., arXiv 2304.09871), the output's gap and spread (saturated against uninformative
constant predictors).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from glass_cnn.engine import COUNTS
from glass_cnn.model import Network, Optimizer
from glass_cnn.settings import Adam


def output_statistics(sums: np.ndarray) -> dict[str, float]:
    """Mean and standard deviation of the logit gap over the examples of an evaluation."""
    count = dict(zip(COUNTS, sums.tolist(), strict=True))
    mean = count["gap"] / count["examples"]
    variance = max(count["gap_squared"] / count["examples"] - mean * mean, 0.0)
    return {"logit_gap_mean": mean, "logit_gap_std": math.sqrt(variance)}


class Diagnostics:
    """Measurements on the weights, the last gradients, Adam's state and a fixed probe batch."""

    def __init__(self, network: Network, optimizer: Optimizer, probe: np.ndarray) -> None:
        """`probe`: uint8 images [n, pixels, pixels, 3], the same at every evaluation."""
        self.network = network
        self.optimizer = optimizer
        self.probe = tf.constant(probe)
        self._dead = tf.function(self._dead_fractions)
        self._moments = tf.function(self._adam_moments)

    def measure(self, gradients: dict[str, tf.Tensor] | None, rate: float) -> dict[str, Any]:
        """All quantities as nested plain numbers; `gradients` are those of the last step."""
        biases = self.network.parameters["output/biases"].numpy()
        found: dict[str, Any] = {
            "dead_fraction": {k: float(v) for k, v in self._dead().items()},
            "weight_norm": {k: _norm(v) for k, v in self.network.parameters.items()},
            "output_bias_gap": float(biases[1] - biases[0]),
        }
        if gradients is not None:
            found |= self._of_gradients(gradients, rate, found["weight_norm"])
        return found

    def _of_gradients(
        self, gradients: dict[str, tf.Tensor], rate: float, weight_norm: dict[str, float]
    ) -> dict[str, Any]:
        norms = {k: _norm(g) for k, g in gradients.items()}
        found: dict[str, Any] = {
            "gradient_norm": norms,
            "gradient_norm_global": math.sqrt(sum(n * n for n in norms.values())),
        }
        if isinstance(self.optimizer.settings, Adam) and self.optimizer.count:
            beta_1, beta_2 = self.optimizer.settings.beta_1, self.optimizer.settings.beta_2
            t = self.optimizer.count
            correction = math.sqrt(1 - beta_2**t) / (1 - beta_1**t)
            moments = {k: self._moments(k, g) for k, g in gradients.items()}
            found["adam_rms"] = {k: float(v[0]) for k, v in moments.items()}
            found["adam_ratio_max"] = {k: float(v[1]) * correction for k, v in moments.items()}
            found["update_ratio"] = {
                k: rate * correction * float(v[2]) / max(weight_norm[k], 1e-30)
                for k, v in moments.items()
            }
        return found

    def _dead_fractions(self) -> dict[str, tf.Tensor]:
        """Share of units that are zero for every image of the probe: channels of the
        convolutions, units of the dense layer."""
        conv1, conv2, dense = self.network.activations(self.probe)
        layers = {"conv1": conv1, "conv2": conv2, "dense": dense}
        return {
            name: tf.reduce_mean(
                tf.cast(tf.reduce_max(x, axis=list(range(x.shape.rank - 1))) <= 0, tf.float32)
            )
            for name, x in layers.items()
        }

    def _adam_moments(self, name: str, gradient: tf.Tensor) -> tf.Tensor:
        """√mean(g²/max(v, ε²)), max |m|/(√v+ε) and ‖m/(√v+ε)‖ of one tensor, after the update."""
        epsilon = self.optimizer.settings.epsilon  # type: ignore[union-attr]
        m, v = self.optimizer.slots[f"m/{name}"], self.optimizer.slots[f"v/{name}"]
        ratio = m / (tf.sqrt(v) + epsilon)
        rms = tf.sqrt(tf.reduce_mean(gradient * gradient / tf.maximum(v, epsilon**2)))
        return tf.stack([rms, tf.reduce_max(tf.abs(ratio)), tf.norm(ratio)])


def _norm(tensor: tf.Tensor) -> float:
    return float(tf.norm(tensor))
