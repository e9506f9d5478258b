"""How the work of one step is divided over ranks: each takes a share of the global batch.

Every rank's loss is already divided by the global batch, so the gradient of the whole batch is
the plain sum over ranks, exact for uneven shares too. This is the only room that knows Horovod.
"""

from __future__ import annotations

import os

from glass_cnn.tensorflow import tf
from hpc.world import World

ALONE_BYTES = 1 << 20


class DataParallel:
    """Sums over ranks inside a `tf.function`, in the same order of additions at every step."""

    def __init__(self, world: World) -> None:
        self.world = world
        if world.size > 1:
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
            self._hvd = hvd

    def share(self, batch_size: int) -> slice:
        """This rank's rows of a global batch."""
        return self.world.share(batch_size)

    def sum(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Element-wise sums over ranks of float32 tensors, in the same order.

        Small tensors travel together, as one vector; each large one by itself, without a copy.
        """
        if self.world.size == 1:
            return tensors
        small = [i for i, t in enumerate(tensors) if t.shape.num_elements() * 4 < ALONE_BYTES]
        sums = dict.fromkeys(range(len(tensors)))
        if small:
            packed = tf.concat([tf.reshape(tensors[i], [-1]) for i in small], axis=0)
            total = self._allreduce(packed, "small")
            sizes = [tensors[i].shape.num_elements() for i in small]
            for i, part in zip(small, tf.split(total, sizes), strict=True):
                sums[i] = tf.reshape(part, tensors[i].shape)
        for i, tensor in enumerate(tensors):
            if i not in small:
                sums[i] = self._allreduce(tensor, f"tensor{i}")
        return [sums[i] for i in range(len(tensors))]

    def _allreduce(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return self._hvd.allreduce(tensor, op=self._hvd.Sum, name=f"sum/{name}")

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Give every rank rank 0's values."""
        if self.world.size > 1:
            self._hvd.broadcast_variables(variables, root_rank=0)
