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
        self._measure = tf.function(self._all)

    def measure(self, gradients: dict[str, tf.Tensor], rate: float) -> dict[str, Any]:
        """All quantities as nested plain numbers; `gradients` are those of the last step."""
        correction = _bias_correction(self.optimizer)
        tensors = self._measure(gradients, tf.constant(rate * correction, tf.float32))
        found: dict[str, Any] = tf.nest.map_structure(lambda t: float(t.numpy()), tensors)
        found["gradient_norm_global"] = math.sqrt(
            sum(n * n for n in found["gradient_norm"].values())
        )
        if "adam_ratio_max" in found:
            ratios = found["adam_ratio_max"]
            found["adam_ratio_max"] = {k: v * correction for k, v in ratios.items()}
        return found

    def _all(self, gradients: dict[str, tf.Tensor], rate: tf.Tensor) -> dict[str, Any]:
        parameters = self.network.parameters
        biases = parameters["output/biases"]
        found: dict[str, Any] = {
            "dead_fraction": self._dead_fractions(),
            "weight_norm": {k: tf.norm(v) for k, v in parameters.items()},
            "gradient_norm": {k: tf.norm(g) for k, g in gradients.items()},
            "output_bias_gap": biases[1] - biases[0],
        }
        if isinstance(self.optimizer.settings, Adam):
            moments = {k: self._adam_moments(k, g) for k, g in gradients.items()}
            found["adam_rms"] = {k: v[0] for k, v in moments.items()}
            found["adam_ratio_max"] = {k: v[1] for k, v in moments.items()}
            found["update_ratio"] = {
                k: rate * v[2] / tf.maximum(found["weight_norm"][k], 1e-30)
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

    def _adam_moments(self, name: str, gradient: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """√mean(g²/max(v, ε²)), max |m|/(√v+ε) and ‖m/(√v+ε)‖ of one tensor, after the update."""
        epsilon = self.optimizer.settings.epsilon  # type: ignore[union-attr]
        m, v = self.optimizer.slots[f"m/{name}"], self.optimizer.slots[f"v/{name}"]
        ratio = m / (tf.sqrt(v) + epsilon)
        rms = tf.sqrt(tf.reduce_mean(gradient * gradient / tf.maximum(v, epsilon**2)))
        return rms, tf.reduce_max(tf.abs(ratio)), tf.norm(ratio)


def _bias_correction(optimizer: Optimizer) -> float:
    """Adam's √(1−β₂ᵗ)/(1−β₁ᵗ) after t updates; 1 for other rules."""
    settings, t = optimizer.settings, optimizer.count
    if not isinstance(settings, Adam):
        return 1.0
    return math.sqrt(1 - settings.beta_2**t) / (1 - settings.beta_1**t)
