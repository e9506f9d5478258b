"""Arrays of which every rank holds some rows: read as a whole on rank 0, and given out from there.

Only rank 0 knows whether it is going to write a checkpoint, and it may fail before it does. So the
others wait for its questions as long as it may have any, and answer each with their rows, which
go straight to where rank 0 wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from hpc import tensorfile
from hpc.tensorfile import InParts
from hpc.world import World


class Sharded:
    """An array whose rows lie on several ranks, one rank's after another's, as rank 0 sees it.

    Its rows are asked of the ranks when they are read, which goes within `Shards.answered` only.
    """

    def __init__(
        self, world: World, name: str, own: np.ndarray | InParts, bounds: Sequence[slice]
    ) -> None:
        self._world, self._name, self._own, self._bounds = world, name, own, bounds
        self.shape: tuple[int, ...] = (bounds[-1].stop, *own.shape[1:])
        self.dtype = own.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def copy_to(self, memory: np.ndarray) -> None:
        """Put the whole into a contiguous array of its shape and type, on rank 0."""
        for rank, rows in enumerate(self._bounds):
            self._read(rank, memory[rows])

    def parts(self) -> Iterator[np.ndarray]:
        """One rank's rows after another's, on rank 0; each is valid until the next."""
        most = max(rows.stop - rows.start for rows in self._bounds)
        memory = np.empty((most, *self.shape[1:]), self.dtype)
        for rank, rows in enumerate(self._bounds):
            part = memory[: rows.stop - rows.start]
            self._read(rank, part)
            yield part

    def _read(self, rank: int, rows: np.ndarray) -> None:
        if not self._world.is_root:
            raise RuntimeError(f"{self._name} is whole on rank 0 alone")
        if rank == 0:
            tensorfile.copy(self._own, rows)
        else:
            self._world.comm.send(self._name, dest=rank)
            self._world.comm.Recv(rows, source=rank)


class Shards:
    """Which arrays ranks hold in parts, and the ways of their rows to rank 0 and back.

    Args:
        world: the ranks.
        divided: whether the array of a name is held in parts; the others every rank has whole.
        bounds: rows of each rank in those that are.
    """

    def __init__(
        self, world: World, divided: Callable[[str], bool], bounds: Sequence[slice]
    ) -> None:
        self.world, self.divided, self.bounds = world, divided, bounds
        self._given: dict[str, np.ndarray] = {}

    def whole(self, name: str, own: np.ndarray | InParts) -> np.ndarray | InParts:
        """An array as rank 0 sees it, from what this rank has of it."""
        return Sharded(self.world, name, own, self.bounds) if self.divided(name) else own

    def own(self, name: str, whole: np.ndarray) -> np.ndarray:
        """What this rank holds of an array; on rank 0 the next `scatter` gives out the rest.

        Raises ValueError for another number of rows.
        """
        if not self.divided(name):
            return whole
        if len(whole) != self.bounds[-1].stop:
            raise ValueError(f"{name} of shape {whole.shape}: {self.bounds[-1].stop} rows are held")
        if self.world.is_root:
            self._given[name] = whole
        return whole[self.bounds[self.world.rank]]

    def scatter(self, assign: Callable[[str, np.ndarray], None]) -> None:
        """Hand every other rank its rows of what rank 0 was given since the last time; collective.

        `assign` is called on those ranks, with a name and rows that are valid while it runs.
        """
        given, self._given = self._given, {}
        comm, rank = self.world.comm, self.world.rank
        for name, shape, dtype in self.world.broadcast(
            [(name, whole.shape[1:], whole.dtype) for name, whole in given.items()]
        ):
            if self.world.is_root:
                for other, rows in enumerate(self.bounds[1:], start=1):
                    comm.Send(np.ascontiguousarray(given[name][rows]), dest=other)
            else:
                own = np.empty((self.bounds[rank].stop - self.bounds[rank].start, *shape), dtype)
                comm.Recv(own, source=0)
                assign(name, own)

    @contextmanager
    def answered(self, own: Callable[[str], np.ndarray]) -> Iterator[None]:
        """While rank 0 is in here it can read what is divided; collective.

        The other ranks pass through what is in here, and then answer with their `own` rows until
        rank 0 leaves it, be it by an error.
        """
        if self.world.size == 1 or not self.bounds:
            yield
        elif self.world.is_root:
            try:
                yield
            finally:
                for other in range(1, self.world.size):
                    self.world.comm.send(None, dest=other)
        else:
            yield
            while (name := self.world.comm.recv(source=0)) is not None:
                self.world.comm.Send(own(name), dest=0)
