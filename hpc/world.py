"""The MPI world. A process started without mpiexec or srun is rank 0 of 1, not a second case."""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from mpi4py import MPI

from hpc.environment import CORES
from hpc.errors import UserError

T = TypeVar("T")


class World:
    """A communicator and the few collective operations this project needs on the host.

    What a training adds at every step may have faster ways than these.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self._flag = np.zeros(1, dtype=np.int32)
        self._agreed = np.zeros(1, dtype=np.int32)

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, the only one that writes."""
        return self.rank == 0

    @property
    def library(self) -> str:
        """The MPI library and its version."""
        words = MPI.Get_library_version().replace("\0", "").splitlines()[0].split()
        return " ".join(words)

    @functools.cached_property
    def hosts(self) -> list[str]:
        """Host name of every rank. Collective at its first use."""
        return self.comm.allgather(socket.gethostname())

    @functools.cached_property
    def local_rank(self) -> int:
        """Number of this rank among those on its own node. Collective at its first use."""
        return self.comm.Split_type(MPI.COMM_TYPE_SHARED, key=self.rank).Get_rank()

    def agree(self, flag: int) -> int:
        """The largest `flag` of all ranks; the same answer on each."""
        if self.size == 1:
            return int(flag)
        self._flag[0] = flag
        self.comm.Allreduce(self._flag, self._agreed, op=MPI.MAX)
        return int(self._agreed[0])

    def pin(self) -> None:
        """Keep this rank on its own cores of those in $LAUNCH_CORES, set by the local launcher.

        Done here because every MPI's mpiexec has other options for it. Without the variable, as
        under srun, nothing changes. Collective.
        """
        cores = [int(core) for core in os.environ.get(CORES, "").split(",") if core]
        local_size = self.comm.Split_type(MPI.COMM_TYPE_SHARED).Get_size()
        each = len(cores) // local_size
        if each:
            first = self.local_rank * each
            os.sched_setaffinity(0, cores[first : first + each])

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """`value` of rank `root`, on every rank."""
        return self.comm.bcast(value, root=root)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Element-wise sum over ranks of an array of numbers, on every rank.

        In an order that depends on nothing but the number of ranks and the array's size, as MPI
        advises its implementations.
        """
        if self.size == 1:
            return values.copy()
        total = np.empty_like(values)
        self.comm.Allreduce(np.ascontiguousarray(values), total, op=MPI.SUM)
        return total

    def exchange(self, rows: np.ndarray) -> np.ndarray:
        """Row r is what rank r had in this rank's row; an array [ranks, …] of integers."""
        received = np.empty_like(rows)
        self.comm.Alltoall(np.ascontiguousarray(rows), received)
        return received

    def joined(self, part: np.ndarray) -> np.ndarray:
        """All ranks' rows one after the other, on every rank; equally many of integers on each."""
        whole = np.empty((self.size * part.shape[0], *part.shape[1:]), part.dtype)
        self.comm.Allgather(np.ascontiguousarray(part), whole)
        return whole

    def gather(self, value: Any) -> list[Any] | None:
        """Values of all ranks in rank order, on rank 0; None elsewhere."""
        return self.comm.gather(value, root=0)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.comm.Barrier()

    def check(self, error: UserError | None) -> None:
        """Raise the first rank's UserError on every rank, or return on all when nobody has one.

        Keeps a mistake that only one rank can see (a file, a device) from leaving the others
        waiting in the next collective.
        """
        found = [e for e in self.comm.allgather(error) if e is not None]
        if found:
            found[0].told = not self.is_root
            raise found[0]

    def on_root(self, action: Callable[[], T]) -> T | None:
        """Run `action` on rank 0 alone; its UserError is raised on every rank.

        Returns its answer on rank 0, None elsewhere.
        """
        return self.everywhere(action if self.is_root else lambda: None)

    def everywhere(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; the first rank's UserError is raised on all."""
        answer, error = None, None
        try:
            answer = action()
        except UserError as problem:
            error = problem
        self.check(error)
        return answer  # type: ignore[return-value]

    def share(self, count: int) -> slice:
        """This rank's contiguous part of `count` items, parts differing by at most one."""
        return share(count, self.rank, self.size)

    def abort(self, code: int) -> None:
        """End every rank of the job at once. For faults after which no agreement is possible."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self.size == 1:
            os._exit(code)
        self.comm.Abort(code)


def share(count: int, rank: int, size: int) -> slice:
    """Rank `rank`'s contiguous part of `count` items; parts differ by at most one."""
    return slice(count * rank // size, count * (rank + 1) // size)


@functools.cache
def world() -> World:
    """The world of this process."""
    return World(MPI.COMM_WORLD)
