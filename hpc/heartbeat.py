"""Finding the rank that hangs. Ranks march in step, so the one that fell behind is the culprit.

Every rank counts its beats and writes the count into a small file of its own about once a second
(the one thing that ranks other than 0 write; MPI itself is of no use when a rank is stuck in it).
A rank whose count stands still for too long looks at the others' files, names those with the
lowest count, and ends; the launcher then ends the rest. Time in which a rank's own watcher did not
run does not count: a job that was suspended as a whole and goes on has not hung.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

from hpc.errors import EXIT_INTERNAL
from hpc.files import make_directory

WRITE_EVERY = 1.0


class Heartbeat:
    """One rank's beats, and the thread that watches them.

    Args:
        directory: shared by all ranks of the run.
        rank, size: this rank and the number of them.
        limit: seconds without a beat after which the run is ended.

    Raises StorageError when the directory cannot be made.
    """

    def __init__(self, directory: Path, rank: int, size: int, limit: float) -> None:
        self.directory = directory
        self.rank = rank
        self.size = size
        self.limit = limit
        self._count = 0
        self._patience = 0.0
        self._where = "starting"
        self._closed = threading.Event()
        make_directory(directory)
        self._write()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    def beat(self, where: str, patience: float = 0.0) -> None:
        """Say that this rank is alive and about to do `where`; every rank beats in step.

        It may take `patience` seconds more than the limit.
        """
        self._where, self._patience = where, patience
        self._count += 1  # last: by it the thread sees that there are others

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._file(self.rank).unlink()

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _file(self, rank: int) -> Path:
        return self.directory / f"rank-{rank}.json"

    def _write(self) -> None:
        beat = {
            "count": self._count,
            "where": self._where,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        aside = self.directory / f".rank-{self.rank}"
        # A full disk must not end a run that only wants to say that it is alive.
        with contextlib.suppress(OSError):
            aside.write_text(json.dumps(beat))
            os.replace(aside, self._file(self.rank))

    def _watch(self) -> None:
        every = min(WRITE_EVERY, self.limit / 4)
        written, silent, looked, allowed = -1, 0.0, time.monotonic(), self.limit
        while not self._closed.wait(every):
            before, looked = looked, time.monotonic()
            silent += min(looked - before, 2 * every)  # a leap: this process was stopped itself
            if self._count != written:
                written, silent, allowed = self._count, 0.0, self.limit + self._patience
                self._write()
            if silent > allowed:
                self._end(silent)

    def _end(self, silent: float) -> None:
        beats = [self._read(rank) for rank in range(self.size)]
        lowest = min(beat["count"] for beat in beats)
        behind = [rank for rank, beat in enumerate(beats) if beat["count"] == lowest]
        speaker = next((r for r in range(self.size) if r not in behind), 0)
        if self.rank == speaker:
            names = ", ".join(
                f"rank {r} (process {beats[r]['pid']} on {beats[r]['host']}, "
                f"last seen {beats[r]['where']})"
                for r in behind
            )
            what = "fell behind the others" if len(behind) < self.size else "came no further"
            print(
                f"error: no progress for {silent:.0f} s: {names} {what}. The run "
                "ends; start it again to go on from its newest checkpoint. If a step can really "
                f"take so long, raise launch.hang_seconds (now {self.limit:g}).",
                file=sys.stderr,
                flush=True,
            )
        else:
            time.sleep(min(2.0, self.limit / 2))  # let the speaker speak before all are ended
        os._exit(EXIT_INTERNAL)

    def _read(self, rank: int) -> dict:
        try:
            return json.loads(self._file(rank).read_text())
        except (OSError, ValueError):
            return {"count": -1, "where": "never", "host": "an unknown host", "pid": "?"}
