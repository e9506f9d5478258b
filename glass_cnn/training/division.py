"""How the work of one step is divided over ranks: each takes a share of the global batch.

Every rank's loss is already divided by the global batch, so the gradient of the whole batch is
the plain sum over ranks, exact for uneven shares too. This is the only room that knows Horovod.

What a way to add over ranks promises (`tests/test_division.py` holds every one to it):

- `sum` gives each rank the same bits, those of the element-wise sums of all ranks' tensors, and the
  same bits again whenever the same ranks add the same numbers, whatever else they did before;
- sums of numbers that float32 holds exactly are exact; what is not finite on one rank is not finite
  on all;
- `broadcast` gives every rank rank 0's bits;
- a rank that dies ends the others: none waits for ever, none goes on alone.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Literal, Protocol

from glass_cnn.tensorflow import tf
from hpc.errors import ConfigError
from hpc.world import World

ALONE_BYTES = 1 << 20
Way = Literal["horovod", "mpi"]


class Collectives(Protocol):
    """A way to add over ranks, inside a `tf.function`, and to give all what rank 0 has."""

    def sum(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Element-wise sums over ranks of float32 tensors, each by itself, in the same order."""

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
        import horovod.tensorflow as hvd

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

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """See `Collectives`."""
        self._hvd.broadcast_variables(variables, root_rank=0)


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
        for total, tensor in zip(sums, tensors, strict=True):
            total.set_shape(tensor.shape)
        return sums

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


class DataParallel:
    """Sums over ranks inside a `tf.function`, in the same order of additions at every step.

    Raises ConfigError, as `way` does, where there is more than one rank.
    """

    def __init__(self, world: World, wanted: Way | None = None) -> None:
        self.world = world
        self._collectives: Collectives | None = None
        if world.size > 1:
            self._collectives = WAYS[way(wanted)](world)

    def share(self, batch_size: int) -> slice:
        """This rank's rows of a global batch."""
        return self.world.share(batch_size)

    def sum(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Element-wise sums over ranks of float32 tensors, in the same order.

        Small tensors travel together, as one vector; each large one by itself, without a copy.
        """
        if self._collectives is None:
            return tensors
        small = [i for i, t in enumerate(tensors) if t.shape.num_elements() * 4 < ALONE_BYTES]
        large = [i for i in range(len(tensors)) if i not in small]
        packed = [tf.reshape(tensors[i], [-1]) for i in small]
        together = [tf.concat(packed, axis=0)] if small else []
        totals = self._collectives.sum([*together, *(tensors[i] for i in large)])
        sums = dict(zip(large, totals[len(together) :], strict=True))
        if small:
            sizes = [tensors[i].shape.num_elements() for i in small]
            for i, part in zip(small, tf.split(totals[0], sizes), strict=True):
                sums[i] = tf.reshape(part, tensors[i].shape)
        return [sums[i] for i in range(len(tensors))]

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Give every rank rank 0's values."""
        if self._collectives is not None:
            self._collectives.broadcast(variables)
