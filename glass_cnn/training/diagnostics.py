"""What is measured of a run while it trains, beside loss and accuracy. Changes no bit of it.

Quantities and their reasons: dead units (dying ReLU), norms and update ratios (drift, L2
shrinkage), RMS of g²/v (Wortsman et al., arXiv 2304.13013), the largest m/√v
(Molybog et al., arXiv 2304.09871), the output's gap and spread (saturated against uninformative
constant predictors), and on request the curvature that Adam's preconditioner makes of the loss's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from glass_cnn.tensorflow import tf
from glass_cnn.train_settings import Adam
from glass_cnn.training.engine import COUNTS
from glass_cnn.training.model import DENSE_WEIGHTS, Network, Optimizer


def output_statistics(sums: np.ndarray) -> dict[str, float]:
    """Mean and standard deviation of the logit gap over the examples of an evaluation."""
    count = dict(zip(COUNTS, sums.tolist(), strict=True))
    mean = count["gap"] / count["examples"]
    variance = max(count["gap_squared"] / count["examples"] - mean * mean, 0.0)
    return {"logit_gap_mean": mean, "logit_gap_std": math.sqrt(variance)}


class Diagnostics:
    """Measurements on the weights, the last gradients, Adam's state and a fixed probe batch.

    Of the whole network: where ranks have parts of it, all measure together, each on its strip of
    the probe.
    """

    def __init__(self, network: Network, optimizer: Optimizer, probe: np.ndarray) -> None:
        """`probe`: uint8 images [n, strip, pixels, 3], the same at every evaluation."""
        self.network = network
        self.optimizer = optimizer
        self.probe = tf.constant(probe)
        self._measure = tf.function(self._all, autograph=False)
        self._curvature = tf.function(self._preconditioned_quotient, autograph=False)

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

    def curvature(self, labels: np.ndarray, l2: float, rate: float) -> dict[str, float]:
        """Curvature along the gradient as Adam's coming update sees it, on the probe.

        λ = gᵀĤg/‖g‖² of the loss without dropout, cross-entropy + l2 · Σ ½‖W‖², with Adam's
        preconditioned Hessian Ĥ = (1−β₁)/(1+β₁) · diag(c/(√v+ε)) H, c the correction of bias. With
        the factor of momentum steps are stable while λ < 2/η (Cohen et al., arXiv 2207.14484);
        loss spikes follow λ > 2/η for several steps (Bai et al., arXiv 2506.04805). A layer's own
        factor on the rate is a part of its preconditioner.

        Args:
            labels: classes of the probe's images, int [n].
            l2: coefficient of the L2 term.
            rate: learning rate η.

        Returns:
            `curvature` λ and `curvature_ratio` λη/2, which is stable below 1.
        """
        settings = self.optimizer.settings
        assert isinstance(settings, Adam), "settings refuse curvature_every for other rules"
        quotient = self._curvature(tf.constant(labels, tf.int32), tf.constant(l2, tf.float32))
        momentum = (1 - settings.beta_1) / (1 + settings.beta_1)
        value = momentum * _bias_correction(self.optimizer) * float(quotient.numpy())
        return {"curvature": value, "curvature_ratio": value * rate / 2}

    def _preconditioned_quotient(self, labels: tf.Tensor, l2: tf.Tensor) -> tf.Tensor:
        """gᵀ diag(1/(√v+ε)) H g / ‖g‖² with one Hessian–vector product."""
        names, variables = zip(*self.network.parameters.items(), strict=True)
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                logits = self.network.logits(self.probe)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
                loss = tf.reduce_mean(losses)
            own = dict(zip(names, inner.gradient(loss, variables), strict=True))
            g = self._with_l2(own, self.network.parameters, l2)
            along = tf.add_n([tf.reduce_sum(own[k] * tf.stop_gradient(g[k])) for k in names])
        bent = dict(zip(names, outer.gradient(along, variables), strict=True))
        h = self._with_l2(bent, g, l2)  # H g
        epsilon = self.optimizer.settings.epsilon  # type: ignore[union-attr]
        root = {k: tf.sqrt(self.optimizer.slots[f"v/{k}"]) + epsilon for k in names}
        factor = self.optimizer.factor
        quotient = [factor(k) * self._sum(k, g[k] / root[k] * h[k]) for k in names]
        return tf.add_n(quotient) / tf.add_n([self._sum(k, g[k] * g[k]) for k in names])

    def _with_l2(
        self, own: dict[str, tf.Tensor], at: Mapping[str, tf.Tensor], l2: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Derivatives through all parts of the network from this rank's; L2's are l2 · `at`."""
        whole = self.network.gradients(own)
        weights = self.network.weights
        return {k: g + l2 * at[k] if k in weights else g for k, g in whole.items()}

    def _sum(self, name: str, tensor: tf.Tensor) -> tf.Tensor:
        """Sum over all elements of a tensor that is divided as its parameter is."""
        return self.network.added(name, tf.reduce_sum(tensor))

    def _norm(self, name: str, tensor: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(self._sum(name, tensor * tensor))

    def _all(self, gradients: dict[str, tf.Tensor], rate: tf.Tensor) -> dict[str, Any]:
        parameters = self.network.parameters
        biases = parameters["output/biases"]
        found: dict[str, Any] = {
            "dead_fraction": self._dead_fractions(),
            "weight_norm": {k: self._norm(k, v) for k, v in parameters.items()},
            "gradient_norm": {k: self._norm(k, g) for k, g in gradients.items()},
            "output_bias_gap": biases[1] - biases[0],
        }
        if isinstance(self.optimizer.settings, Adam):
            moments = {k: self._adam_moments(k, g) for k, g in gradients.items()}
            found["adam_rms"] = {k: v[0] for k, v in moments.items()}
            found["adam_ratio_max"] = {k: v[1] for k, v in moments.items()}
            norms = found["weight_norm"]
            found["update_ratio"] = {
                k: rate * self.optimizer.factor(k) * v[2] / tf.maximum(norms[k], 1e-30)
                for k, v in moments.items()
            }
        return found

    def _dead_fractions(self) -> dict[str, tf.Tensor]:
        """Share of units that are zero for every image of the probe: channels of the
        convolutions, units of the dense layer."""
        conv1, conv2, dense = self.network.activations(self.probe)
        total = self.network.part.total  # a channel is dead where it is in every rank's rows
        alive = {
            "conv1": total(_alive(conv1)),
            "conv2": total(_alive(conv2)),
            "dense": _alive(dense),
        }
        return {k: tf.reduce_mean(tf.cast(a <= 0, tf.float32)) for k, a in alive.items()}

    def _adam_moments(self, name: str, gradient: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """√mean(g²/max(v, ε²)), max |m|/(√v+ε) and ‖m/(√v+ε)‖ of one tensor, after the update."""
        epsilon = self.optimizer.settings.epsilon  # type: ignore[union-attr]
        m, v = self.optimizer.slots[f"m/{name}"], self.optimizer.slots[f"v/{name}"]
        ratio = m / (tf.sqrt(v) + epsilon)
        squares = self._sum(name, gradient * gradient / tf.maximum(v, epsilon**2))
        rms = tf.sqrt(squares / self.network.added(name, tf.cast(tf.size(v), tf.float32)))
        largest = tf.reduce_max(tf.abs(ratio))
        if name == DENSE_WEIGHTS:
            largest = self.network.part.largest(largest)
        return rms, largest, self._norm(name, ratio)


def _alive(layer: tf.Tensor) -> tf.Tensor:
    """1 for every unit (last axis) that is above zero anywhere, else 0."""
    largest = tf.reduce_max(layer, axis=list(range(layer.shape.rank - 1)))
    return tf.cast(tf.logical_not(largest <= 0), tf.float32)  # what is no number is not dead


def _bias_correction(optimizer: Optimizer) -> float:
    """Adam's √(1−β₂ᵗ)/(1−β₁ᵗ) after t updates; 1 for other rules."""
    settings, t = optimizer.settings, optimizer.count
    if not isinstance(settings, Adam):
        return 1.0
    return math.sqrt(1 - settings.beta_2**t) / (1 - settings.beta_1**t)
