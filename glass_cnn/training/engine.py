"""The compiled step: gradients of a rank's share, those of the whole, the update; evaluation."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from glass_cnn import numerics
from glass_cnn.records import Numerics
from glass_cnn.settings import RunSettings
from glass_cnn.tensorflow import onednn_is_on, prepare, tf
from glass_cnn.train_settings import Precision
from glass_cnn.training import convolution
from glass_cnn.training.division import Kind, Way, chosen, divide, is_large, way
from glass_cnn.training.model import Network, Optimizer, dropout_mask
from hpc import gpus
from hpc.tensorfile import InParts
from hpc.world import World


def set_up_tensorflow(
    threads: int,
    world: World,
    collectives: Way | None = None,
    precision: Precision = "float32",
) -> Numerics:
    """Threads, one GPU per local rank, and deterministic kernels; before anything is computed.

    Returns how it will round; of the division the engine decides. Collective; raises RuntimeError
    when TensorFlow has already started, ConfigError for a way to add over ranks that is not there,
    for ranks that see no GPU where they should, or share one, and for a precision that a rank's
    device would emulate.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # With one the dense layer's gradient would leave when the convolutions have gone backward, too.
    tf.config.threading.set_inter_op_parallelism_threads(1 if world.size == 1 else 2)
    mine = prepare(world.local_rank, precision)
    all_seen = tf.config.list_physical_devices("GPU")
    number = all_seen.index(mine) if mine else 0
    # Before NCCL is touched, which has no words for it.
    sights = world.comm.allgather(gpus.sight(number, len(all_seen)))
    world.everywhere(lambda: gpus.check(sights))
    world.everywhere(lambda: numerics.check(precision, capability(mine) if mine else None))
    several = world.size > 1
    return Numerics(
        tensorflow=tf.__version__,
        onednn=onednn_is_on(),
        isa=_by_rank(world, numerics.instruction_set(precision)),
        convolutions=_by_rank(world, convolution.kind()),
        processors=_by_rank(world, numerics.processor()),
        gpus=_by_rank(world, _kind(mine)) if mine else [],
        drivers=_by_rank(world, numerics.driver()) if mine else [],
        cuda=numerics.cuda(several) if mine else {},
        threads=threads,
        ranks=world.size,
        horovod=metadata.version("horovod") if several and way(collectives) == "horovod" else None,
        mpi=world.library if several else None,
        environment=numerics.variables(),
    )


def _by_rank(world: World, mine: str) -> list[str]:
    """What each rank has, or the one thing that all have. Collective."""
    found = world.comm.allgather(mine)
    return found if len(set(found)) > 1 else found[:1]


def _kind(gpu: Any) -> str:
    """Name of a GPU, and its compute capability, by which kernels are chosen."""
    details = tf.config.experimental.get_device_details(gpu)
    version = ".".join(map(str, capability(gpu))) or "?"
    return f"{details.get('device_name', 'GPU')} (compute capability {version})"


def capability(gpu: Any) -> tuple[int, ...]:
    """A GPU's compute capability; () where it is not told."""
    return tf.config.experimental.get_device_details(gpu).get("compute_capability", ())


@dataclass(frozen=True)
class Sums:
    """What is counted of a step, on its device; to read it is to wait for the step."""

    tensor: tf.Tensor
    """float32 [2], as `loss` and `correct` have them"""

    @functools.cached_property
    def _read(self) -> list[float]:
        read: list[float] = self.tensor.numpy().tolist()
        return read

    @property
    def loss(self) -> float:
        """Mean cross-entropy of the global batch, with dropout, without L2."""
        return self._read[0]

    @property
    def correct(self) -> int:
        """Examples of the global batch that were classified correctly."""
        return round(self._read[1])


@dataclass(frozen=True)
class StepResult:
    """What one step gives back, of the global batch."""

    sums: Sums
    gradients: dict[str, tf.Tensor]
    """gradients of the whole loss, L2 and clipping included, of what this rank has"""


class OnDevice:
    """A variable as checkpoints read it: on the host when it is copied, and not before.

    An `hpc.tensorfile.InParts`, so that on a GPU no second whole of the state is made.
    """

    def __init__(self, variable: tf.Variable) -> None:
        self._variable = variable
        self.shape: tuple[int, ...] = tuple(variable.shape)
        self.dtype = np.dtype(variable.dtype.as_numpy_dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def copy_to(self, memory: np.ndarray) -> None:
        """Put the values into a contiguous array of its shape and type."""
        np.copyto(memory, _view(self._variable), casting="equiv")

    def parts(self) -> Iterator[np.ndarray]:
        """The values, valid until the next step."""
        yield _view(self._variable)


COMPILING = 3600.0
"""seconds more that the first use of a GPU's kernels may take: for a card that is newer than they
are the driver compiles them, which TensorFlow calls half an hour or longer"""

COUNTS = ("examples", "correct", "loss", "glass", "predicted_glass", "gap", "gap_squared")


class Engine:
    """Network and optimizer of one run, and the division of their work over ranks.

    The global batch is `settings.train.batch_size` at any number of ranks; each rank computes
    the examples `share` of it, and of every image the rows of pixels `strip`, which is all that
    it is handed. `before` is the division of the checkpoint that it will go on from, see `chosen`.
    Raises ConfigError when there are more ranks than can be given a share.
    """

    def __init__(self, settings: RunSettings, world: World, before: Kind | None = None) -> None:
        train, pixels = settings.train, settings.render.pixels
        self.settings, self.world = settings, world
        kind, self.why = chosen(settings, world.size, before)
        self.division = divide(kind, settings, world)
        part = self.division.part
        self.share, self.strip = self.division.share(train.batch_size), part.pixels
        self.network = Network(
            settings.recipe, pixels, settings.seed, part, train.precision, convolution.chosen()
        )
        self.optimizer = Optimizer(train.optimizer, self.network)
        self._device = "GPU:0" if tf.config.get_visible_devices("GPU") else "CPU:0"
        self._used: set[str] = set()
        image = tf.TensorSpec((None, len(range(pixels)[self.strip]), pixels, 3), tf.uint8)
        # Not int32: TensorFlow compares those on the host, whatever the device.
        label = tf.TensorSpec((None,), tf.int64)
        scalar = tf.TensorSpec((), tf.float32)
        self._train_step = tf.function(
            self._train,
            autograph=False,  # nothing to convert; a rank that is killed would leave files behind
            input_signature=[
                image,
                label,
                tf.TensorSpec((), tf.int64),
                scalar,
                tf.TensorSpec((2,), tf.float32),
            ],
        )
        self._evaluate_batch = tf.function(
            self._evaluate, autograph=False, input_signature=[image, label]
        )

    @property
    def sends_gradients(self) -> bool:
        """Whether ranks send each other a gradient as `train.gradients` says."""
        large = any(map(is_large, self.network.parameters.values()))
        return self.world.size > 1 and self.division.kind == "data" and large

    def state(self) -> dict[str, tf.Variable]:
        """Every tensor that a restart needs, by name, as far as this rank has it."""
        model = {f"model/{k}": v for k, v in self.network.parameters.items()}
        return model | {f"optimizer/{k}": v for k, v in self.optimizer.slots.items()}

    def snapshot(self, prefix: str = "") -> dict[str, np.ndarray | InParts]:
        """The whole state, or what of it has that prefix; to be read until the next step.

        Nothing is copied before it is read. What ranks hold in parts can be read on rank 0 alone,
        within `gathering`.
        """
        return {
            name: self.division.shards.whole(name, OnDevice(variable))
            for name, variable in self.state().items()
            if name.startswith(prefix)
        }

    def gathering(self) -> AbstractContextManager[None]:
        """While rank 0 is in here it can read all of a `snapshot`; collective."""
        state = self.state()
        return self.division.shards.answered(lambda name: _view(state[name]))

    def assign(self, tensors: dict[str, np.ndarray]) -> None:
        """Set the named tensors of the state; ValueError where a shape differs.

        Whole tensors on any division. What ranks hold in parts, the others are given from rank 0
        by `broadcast`.
        """
        state = self.state()
        for name, value in tensors.items():
            state[name].assign(self.division.shards.own(name, value))

    def broadcast(self) -> None:
        """Give every rank rank 0's state, so that all start from the same bits."""
        state, shards = self.state(), self.division.shards
        self.division.broadcast([v for name, v in state.items() if not shards.divided(name)])
        shards.scatter(lambda name, rows: state[name].assign(rows))

    def compiling(self, what: str) -> float:
        """Seconds that `what` may take longer this time: the first time in a process, on a GPU."""
        first = what not in self._used
        self._used.add(what)
        return COMPILING if first and self._device != "CPU:0" else 0.0

    def hand_over(self, images: np.ndarray, labels: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        """Images and labels in the memory of the device that computes with them; by any thread.

        On a GPU this waits for the steps that it has been given before.
        """
        # By way of the host: straight to a GPU, other threads of Python would wait, too.
        with tf.device("CPU:0"):
            batch = tf.constant(images), tf.constant(labels, tf.int64)
        with tf.device(self._device):
            return tf.identity(batch[0]), tf.identity(batch[1])

    def train_step(
        self, images: np.ndarray | tf.Tensor, labels: np.ndarray | tf.Tensor, step: int, rate: float
    ) -> StepResult:
        """One update on the global batch, of which `images`, `labels` are this rank's share.

        Returns before a GPU has made it.

        Args:
            images: uint8 [share, strip, pixels, 3].
            labels: int [share], 0 liquid, 1 glass; both as they are read, or handed over.
            step: number that the dropout masks follow from.
            rate: learning rate of this update.
        """
        with tf.device("CPU:0"):  # straight to a GPU they would wait for the step before
            numbers = (
                tf.constant(step, tf.int64),
                tf.constant(rate, tf.float32),
                tf.constant(self.optimizer.powers()),
            )
        labels = tf.convert_to_tensor(labels, tf.int64)
        sums, gradients = self._train_step(tf.convert_to_tensor(images), labels, *numbers)
        self.optimizer.count += 1
        return StepResult(Sums(sums), gradients)

    def _train(self, images, labels, step, rate, powers):  # type: ignore[no-untyped-def]
        train = self.settings.train
        parameters = self.network.parameters
        mask = dropout_mask(self.settings.seed, step, train.batch_size, train.dropout)
        with tf.GradientTape() as tape:
            logits = self.network.logits(images, mask[self.share] if train.dropout else None)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_sum(losses) / train.batch_size
        gradients = tape.gradient(loss, list(parameters.values()))
        correct = tf.reduce_sum(tf.cast(predicted(logits) == labels, tf.float32))
        computed = dict(zip(parameters, gradients, strict=True))
        named = self.division.totals(computed | {"counts": tf.stack([loss, correct])})
        sums = named.pop("counts")
        # The gradient of L2 needs no communication: every rank has the weights that it updates.
        for name, weight in self.network.weights.items():
            named[name] += train.l2 * weight
        if (limit := train.optimizer.clip_norm) is not None:
            norm = self.network.norm(named)
            clipped, _ = tf.clip_by_global_norm(list(named.values()), limit, use_norm=norm)
            named = dict(zip(named, clipped, strict=True))
        self.optimizer.apply(named, rate, powers)
        return sums, named

    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> tf.Tensor:
        """Sums over a batch, float64 [7], in the order of COUNTS: exact counts, summed losses.

        Collective where ranks have parts of the network: all with the same examples.
        `gap` is the difference of the two logits, glass minus liquid.
        """
        return self._evaluate_batch(*self.hand_over(images, labels))

    def _evaluate(self, images, labels):  # type: ignore[no-untyped-def]
        logits = self.network.logits(images)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        guesses = predicted(logits)
        gap = logits[:, 1] - logits[:, 0]
        columns = [tf.ones_like(losses), guesses == labels, losses, labels, guesses, gap, gap * gap]
        return tf.stack([tf.reduce_sum(tf.cast(c, tf.float64)) for c in columns])


def predicted(logits: tf.Tensor) -> tf.Tensor:
    """Class of each row of logits: glass only where its logit is the larger one."""
    return tf.cast(logits[:, 1] > logits[:, 0], tf.int64)


def _view(variable: tf.Variable) -> np.ndarray:
    """A variable's memory, valid until it changes; a copy where it lies on a GPU."""
    return np.asarray(memoryview(variable.read_value()))
