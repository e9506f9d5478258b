"""TensorBoard's event files of a run: what metrics.jsonl holds, made anew at every start."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from glass_cnn.records import SERIES, Evaluation
from glass_cnn.tensorflow import tf
from hpc.files import storage_errors


class EventFiles:
    """The curves of one run; raises StorageError where they cannot be written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writer: Any = None

    def begin(self, evaluations: Iterable[Evaluation]) -> None:
        """Replace what is there by these evaluations."""
        self.close()
        with _event_errors(self.directory):
            for old in self.directory.glob("events.out.tfevents.*"):
                old.unlink()
            self._writer = tf.summary.create_file_writer(str(self.directory))
        for evaluation in evaluations:
            self.add(evaluation)

    def add(self, evaluation: Evaluation) -> None:
        """One more evaluation."""
        with _event_errors(self.directory), self._writer.as_default(step=evaluation.step):
            for name in SERIES:
                if (value := getattr(evaluation, name)) is not None:
                    tf.summary.scalar(name, value)
            self._writer.flush()

    def close(self) -> None:
        """Let go of the file."""
        if self._writer is not None:
            with contextlib.suppress(tf.errors.OpError):  # everything in it has been flushed
                self._writer.close()
            self._writer = None


@contextlib.contextmanager
def _event_errors(path: Path) -> Iterator[None]:
    """`storage_errors` for files whose errors are TensorFlow's."""
    with storage_errors(path):
        try:
            yield
        except tf.errors.OpError as error:
            full = isinstance(error, tf.errors.ResourceExhaustedError)
            number = errno.ENOSPC if full else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from error
