"""How the work of one step is divided over ranks: by examples of the batch, or rows of images.

Every rank's loss is already divided by the global batch, so the gradient of the whole batch is
the plain sum over ranks, exact for uneven shares too. This is the only room that knows Horovod.

What a way to add over ranks promises (`tests/test_division.py` holds every one to it):

- `sum` gives each rank the same bits, those of the element-wise sums of all ranks' tensors, and the
  same bits again whenever the same ranks add the same numbers, whatever else they did before;
- sums of numbers that float32 holds exactly are exact; what is not finite on one rank is not finite
  on all;
- `broadcast` gives every rank rank 0's bits;
- `exchange` and `joined` move bits as they are;
- a rank that dies ends the others: none waits for ever, none goes on alone.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np

from glass_cnn.placement import division_of
from glass_cnn.settings import RunSettings
from glass_cnn.tensorflow import tf
from glass_cnn.train_settings import MARGIN
from glass_cnn.training.model import (
    DENSE_WEIGHTS,
    WHOLE,
    Part,
    is_of_rows,
    shard,
)
from hpc.errors import ConfigError
from hpc.shards import Shards
from hpc.world import World, share

ALONE_BYTES = 1 << 20
Way = Literal["horovod", "mpi"]
Kind = Literal["data", "rows"]
Sent = Literal["float32", "bfloat16"]


class Collectives(Protocol):
    """A way to add over ranks, inside a `tf.function`, and to give all what rank 0 has."""

    def sum(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Element-wise sums over ranks of float32 tensors, each by itself, in the same order."""

    def exchange(self, rows: tf.Tensor) -> tf.Tensor:
        """Row r is what rank r had in this rank's row; int16 [ranks, n]."""

    def joined(self, part: tf.Tensor) -> tf.Tensor:
        """All ranks' parts one after the other; int16 [ranks · n] from [n]."""

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Give every rank rank 0's values."""


class Horovod:
    """Horovod's collectives: on GPUs through NCCL, and beside the rest of the step.

    Raises ConfigError on GPUs where it was built without NCCL.
    """

    def __init__(self, world: World) -> None:
        # Horovod fuses whatever tensors are ready at the moment. With three or more ranks
        # that changes where a sum is cut into pieces, and so its rounding, from run to run.
        os.environ["HOROVOD_FUSION_THRESHOLD"] = "0"
        hvd = load_horovod()
        hvd.init()
        if (hvd.rank(), hvd.size()) != (world.rank, world.size):
            raise RuntimeError(
                f"Horovod sees rank {hvd.rank()} of {hvd.size()}, MPI rank {world.rank} of "
                f"{world.size}: it was built for another MPI; run 'make setup' again"
            )
        if tf.config.list_physical_devices("GPU") and not hvd.nccl_built():
            raise ConfigError(
                f"{world.size} ranks see GPUs, but this Horovod was built without NCCL and would "
                "sum in the memory of the hosts: 'make setup GPU=1', or take "
                "launch.collectives: mpi."
            )
        self._hvd = hvd

    def sum(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """See `Collectives`."""
        return [
            self._hvd.allreduce(tensor, op=self._hvd.Sum, name=f"sum/{number}")
            for number, tensor in enumerate(tensors)
        ]

    def exchange(self, rows: tf.Tensor) -> tf.Tensor:
        """See `Collectives`."""
        return self._hvd.alltoall(rows)

    def joined(self, part: tf.Tensor) -> tf.Tensor:
        """See `Collectives`."""
        return self._hvd.allgather(part)

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """See `Collectives`."""
        self._hvd.broadcast_variables(variables, root_rank=0)


def load_horovod() -> Any:
    """Horovod's operations, without its layer for Keras.

    That layer would load Keras and what Keras loads: 2 s of processor time at each rank's start.
    """
    layer = ModuleType("horovod.tensorflow.sync_batch_norm")
    layer.SyncBatchNormalization = None  # type: ignore[attr-defined]
    sys.modules.setdefault(layer.__name__, layer)
    import horovod.tensorflow as hvd

    return hvd


class HostMpi:
    """MPI's own collectives on buffers of the host: nothing to compile, a copy of every sum."""

    def __init__(self, world: World) -> None:
        self._world = world

    def sum(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """See `Collectives`. One operation for all: MPI needs the same order on every rank."""
        sums = tf.numpy_function(
            lambda *arrays: [self._world.sum(array) for array in arrays],
            tensors,
            [tensor.dtype for tensor in tensors],
        )
        sums = tf.nest.flatten(sums)  # outside of a function one sum comes without its list
        for total, tensor in zip(sums, tensors, strict=True):
            total.set_shape(tensor.shape)
        return sums

    def exchange(self, rows: tf.Tensor) -> tf.Tensor:
        """See `Collectives`."""
        return tf.numpy_function(self._world.exchange, [rows], rows.dtype)

    def joined(self, part: tf.Tensor) -> tf.Tensor:
        """See `Collectives`."""
        return tf.numpy_function(self._world.joined, [part], part.dtype)

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """See `Collectives`."""
        for variable in variables:
            variable.assign(self._world.broadcast(variable.numpy()))


WAYS: dict[Way, type[Horovod | HostMpi]] = {"horovod": Horovod, "mpi": HostMpi}


def way(wanted: Way | None) -> Way:
    """How ranks add: as wanted, else Horovod where it is installed.

    Raises ConfigError where Horovod is wanted and not installed.
    """
    installed = importlib.util.find_spec("horovod") is not None
    if wanted == "horovod" and not installed:
        raise ConfigError(
            "launch.collectives is horovod, and this environment has none (it was set up with "
            "HOROVOD=0): take launch.collectives: mpi, or 'make clean setup'."
        )
    return wanted or ("horovod" if installed else "mpi")


class Ranks:
    """The ranks of one training, and how they add; alone a rank adds nothing.

    Args:
        sent: the type in which large tensors travel; see `train.gradients`.

    Raises:
        ConfigError: as `way` does, where there is more than one.
    """

    def __init__(self, world: World, wanted: Way | None = None, sent: Sent = "float32") -> None:
        self.world, self._sent = world, sent
        self._collectives: Collectives | None = None
        if world.size > 1:
            self._collectives = WAYS[way(wanted)](world)

    def sum(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Element-wise sums over ranks of float32 tensors, in the same order.

        Small tensors travel together, as one vector; each large one by itself, without a copy.
        """
        if self._collectives is None:
            return tensors
        small = [i for i, t in enumerate(tensors) if not is_large(t)]
        large = [i for i in range(len(tensors)) if i not in small]
        packed = [tf.reshape(tensors[i], [-1]) for i in small]
        together = [tf.concat(packed, axis=0)] if small else []
        whole = large if self._sent == "float32" else []
        terms = [*together, *(tensors[i] for i in whole)]
        totals = self._collectives.sum(terms) if terms else []
        sums = dict(zip(whole, totals[len(together) :], strict=True))
        sums |= {i: self._sum_rounded(tensors[i]) for i in large if i not in whole}
        if small:
            sizes = [tensors[i].shape.num_elements() for i in small]
            for i, part in zip(small, tf.split(totals[0], sizes), strict=True):
                sums[i] = tf.reshape(part, tensors[i].shape)
        return [sums[i] for i in range(len(tensors))]

    def _sum_rounded(self, tensor: tf.Tensor) -> tf.Tensor:
        """Sum over ranks of which bfloat16 numbers travel: each rank's, and the sum's.

        A rank adds all ranks' numbers of its part, in float32 and in their order, and the sums go
        to all: 2 (N − 1) / N times the numbers of a tensor, as in a ring. (float16, which Horovod
        could add, has 0 for what is below 6e-8, and infinity above 65,504.)
        """
        assert self._collectives is not None
        ranks, numbers = self.world.size, tensor.shape.num_elements()
        bits = _bits(tf.reshape(tensor, [-1]))
        rows = tf.reshape(tf.pad(bits, [[0, -numbers % ranks]]), [ranks, -1])
        mine = tf.reduce_sum(_numbers(self._collectives.exchange(rows)), axis=0)
        whole = self._collectives.joined(_bits(mine))
        return tf.reshape(_numbers(whole)[:numbers], tensor.shape)

    def sum_one(self, tensor: tf.Tensor) -> tf.Tensor:
        """Element-wise sum over ranks of one float32 tensor, whose shape need not be known."""
        return tensor if self._collectives is None else self._collectives.sum([tensor])[0]

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Give every rank rank 0's values."""
        if self._collectives is not None:
            self._collectives.broadcast(variables)


def is_large(tensor: tf.Tensor | tf.Variable) -> bool:
    """Whether a float32 tensor travels by itself, and as `train.gradients` says."""
    return tensor.shape.num_elements() * 4 >= ALONE_BYTES


def _bits(numbers: tf.Tensor) -> tf.Tensor:
    """float32 numbers rounded to bfloat16, as int16: neither MPI nor Horovod knows the type."""
    return tf.bitcast(tf.cast(numbers, tf.bfloat16), tf.int16)


def _numbers(bits: tf.Tensor) -> tf.Tensor:
    """The float32 numbers of `_bits`."""
    return tf.cast(tf.bitcast(bits, tf.bfloat16), tf.float32)


class Division(Protocol):
    """Who has what of a step, and how the ranks' work becomes that of the global batch.

    At any number of ranks, and under any division, the results are the same but for rounding.
    """

    kind: Kind
    part: Part
    """what of the network this rank has"""
    shards: Shards
    """which tensors of the state ranks hold in parts, and how they are gathered"""
    measures: bool
    """whether this rank takes part where the whole network is measured on a few images"""

    def share(self, batch_size: int) -> slice:
        """The examples of a global batch that this rank computes; raises ConfigError for none."""

    def totals(self, computed: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Of the global batch: the gradients of what this rank has, and counts, from its own.

        Gradients are named as parameters; whatever else is named is a count.
        """

    def portions(self, count: int, batch: int) -> Iterable[slice]:
        """This rank's slices of `count` examples to evaluate, `batch` at a time on all ranks.

        Their number is the same on every rank, so that ranks can talk to each other after each.
        """

    def counted(self, sums: np.ndarray) -> np.ndarray:
        """Sums over all examples from those over this rank's portions; collective."""

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Give every rank rank 0's values of what all have."""


def chosen(settings: RunSettings, ranks: int, before: Kind | None = None) -> tuple[Kind, str]:
    """By what so many ranks divide the steps of a run, and why, in words.

    Under `launch.division: auto` a run goes on as it was: `before` says how the checkpoint was made
    that it goes on from, if that was on as many ranks. Else as `division_of` says.
    """
    wanted, batch = settings.launch.division, settings.train.batch_size
    rows = settings.render.pixels - MARGIN
    if ranks == 1:
        return "data", "one rank has everything"
    if wanted != "auto":
        return wanted, f"launch.division {wanted}"
    if before is not None:
        return before, "launch.division auto: as the checkpoint was made"
    why = f"launch.division auto: {rows} rows, {ranks} ranks, batch {batch}"
    return division_of(settings, ranks), why


def divide(kind: Kind, settings: RunSettings, world: World) -> Division:
    """A division; raises ConfigError where that many ranks cannot share.

    One rank has everything under either, and the same bits.
    """
    if kind == "rows" and world.size > 1:
        return Rows(world, settings.render.pixels, settings.launch.collectives)
    return DataParallel(world, settings.launch.collectives, settings.train.gradients)


class DataParallel(Ranks):
    """Each rank has the whole network, and takes its share of the global batch."""

    kind: Kind = "data"
    part: Part = WHOLE

    def __init__(self, world: World, wanted: Way | None = None, sent: Sent = "float32") -> None:
        super().__init__(world, wanted, sent)
        self.shards = Shards(world, lambda _: False, [])
        self.measures = world.is_root

    def share(self, batch_size: int) -> slice:
        """See `Division`."""
        if batch_size < self.world.size:
            raise ConfigError(
                f"train.batch_size {batch_size} is smaller than the number of ranks "
                f"{self.world.size}: every rank needs at least one example; start fewer ranks or "
                "set a larger batch."
            )
        return self.world.share(batch_size)

    def totals(self, computed: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """See `Division`."""
        return dict(zip(computed, self.sum(list(computed.values())), strict=True))

    def portions(self, count: int, batch: int) -> Iterable[slice]:
        """See `Division`. Each example is in one slice of one rank; slices may be empty."""
        return portions(self.world, count, batch)

    def counted(self, sums: np.ndarray) -> np.ndarray:
        """See `Division`."""
        return self.world.sum(sums)


def portions(world: World, count: int, batch: int) -> Iterable[slice]:
    """See `DataParallel.portions`."""
    mine = world.share(count)
    size = max(1, batch // world.size)
    longest = -(-count // world.size)
    for number in range(-(-longest // size)):
        start = min(mine.start + number * size, mine.stop)
        yield slice(start, min(start + size, mine.stop))


class Rows(Ranks):
    """Each rank takes some rows of every image of the global batch, and has their dense weights.

    What travels in a step are the dense layer's sums and the gradients of the convolutions: for
    the 2017 network thousands of times less than all gradients. Raises ConfigError for more ranks
    than the second convolution's image has rows.
    """

    kind: Kind = "rows"
    measures = True

    def __init__(self, world: World, pixels: int, wanted: Way | None = None) -> None:
        side = pixels - MARGIN
        if side < world.size:
            raise ConfigError(
                f"launch.division rows: images of {pixels} px leave {side} rows after the "
                f"convolutions, for {world.size} ranks; start at most {side} ranks, or take "
                "launch.division: data."
            )
        super().__init__(world, wanted)
        self.part: Part = Strip(self, world.share(side))
        rows = [shard(share(side, rank, world.size), side) for rank in range(world.size)]
        self.shards = Shards(world, lambda name: name.endswith(DENSE_WEIGHTS), rows)

    def share(self, batch_size: int) -> slice:
        """See `Division`: all, of which it sees a strip."""
        return slice(0, batch_size)

    def totals(self, computed: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """See `Division`. What follows on the dense layer's sums, all have computed alike: counts
        are not to be added, and rank 0's gradients are taken, lest rounding parts the ranks."""
        mine = {
            name: value if is_of_rows(name) or self.world.is_root else tf.zeros_like(value)
            for name, value in computed.items()
            if name != DENSE_WEIGHTS
        }
        totals = dict(zip(mine, self.sum(list(mine.values())), strict=True))
        return {name: totals.get(name, value) for name, value in computed.items()}

    def portions(self, count: int, batch: int) -> Iterable[slice]:
        """See `Division`. Every example is in one slice of every rank."""
        return (slice(start, min(start + batch, count)) for start in range(0, count, batch))

    def counted(self, sums: np.ndarray) -> np.ndarray:
        """See `Division`."""
        counted: np.ndarray = self.world.broadcast(sums)
        return counted


class Strip:
    """A rank's part of the network where ranks share the rows of images; see `Part`."""

    def __init__(self, ranks: Ranks, rows: slice) -> None:
        self.rows, self.pixels = rows, slice(rows.start, rows.stop + MARGIN)
        self._ranks = ranks

    def total(self, tensor: tf.Tensor) -> tf.Tensor:
        """See `Part`; can be differentiated, and its derivative again.

        All ranks compute the same loss from the sum, and it changes with each term as it changes
        with the sum: the gradient of a term is that of the sum, and nothing travels. (Horovod's own
        derivative would add N times the same.) What ranks compute from that gradient each for its
        rows, as in second derivatives, is added over them.
        """

        @tf.custom_gradient
        def add(term: tf.Tensor) -> Any:
            return self._ranks.sum_one(term), hand_out

        @tf.custom_gradient
        def hand_out(gradient: tf.Tensor) -> Any:
            return tf.identity(gradient), add

        return add(tensor)

    def largest(self, number: tf.Tensor) -> tf.Tensor:
        """See `Part`."""
        world = self._ranks.world
        every = tf.pad(tf.reshape(number, [1]), [[world.rank, world.size - world.rank - 1]])
        return tf.reduce_max(self._ranks.sum_one(every))
