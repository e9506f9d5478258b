"""MPI_Init in a program whose heap holds no zeros between its holes, as after real imports."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import mpi4py

mpi4py.rc.initialize = False
from mpi4py import MPI  # noqa: E402 # it is to be initialised later


def crowd_memory() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [(libc.malloc(size), size) for size in range(32, 2048, 16) for _ in range(1000)]
    for address, size in blocks:
        ctypes.memset(address, 0x41, size)
    for address, _ in blocks[::2]:
        libc.free(address)


if __name__ == "__main__":
    crowd_memory()
    MPI.Init()
    ranks = MPI.COMM_WORLD.allreduce(1)
    if MPI.COMM_WORLD.rank == 0:
        netmod = os.environ.get("MPIR_CVAR_CH4_NETMOD")
        Path(sys.argv[1]).write_text(f"{ranks} ranks over {netmod}\n")
