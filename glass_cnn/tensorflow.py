"""TensorFlow, loaded in this room only, with oneDNN on; and what all that compute with it set.

TensorFlow switches oneDNN on by itself only where the processor has AVX-512 VNNI, BF16 or AMX;
elsewhere training would be several times slower, and round otherwise. A process that has chosen
nothing (`glass_cnn.numerics.choose`) gets what a training gets by default, unless its environment
says otherwise.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from glass_cnn.numerics import DRIVER, SWITCH
from glass_cnn.train_settings import Precision
from hpc.gpus import VISIBLE

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
NOTICE = re.compile(rb"^(I0000 |WARNING: All log messages before absl::InitializeLog).*\n", re.M)
"""what TensorFlow says at every start, that oneDNN is on, before it heeds LOG_LEVEL"""
NO_GPU = re.compile(
    rb"^(E0000 .*failed call to cuInit|WARNING: All log messages before absl::InitializeLog).*\n",
    re.M,
)
"""what its build for GPUs says where there are none"""

os.environ.setdefault(SWITCH, "1")
os.environ.setdefault(LOG_LEVEL, "2")
# Kernels that the driver compiles, for cards newer than TensorFlow's, are kept in ~/.nv or
# CUDA_CACHE_PATH. By default less than they need; 4 GiB is the most that CUDA takes.
os.environ.setdefault("CUDA_CACHE_MAXSIZE", str(4 << 30))


@contextlib.contextmanager
def without_notice(notice: re.Pattern[bytes] = NOTICE) -> Iterator[None]:
    """Hold back what is written to stderr meanwhile, by C++ too; then say it without `notice`."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            said = held.read()
            os.write(2, said if os.environ[LOG_LEVEL] == "0" else notice.sub(b"", said))


class _Later:
    """A finder that says no to Keras' modules."""

    def find_spec(self, name: str, *_: Any) -> None:
        """Raises ImportError, which TensorFlow passes over: it loads Keras once it is asked for."""
        if name.startswith("keras."):
            raise ImportError(f"{name} is loaded when it is used")


@contextlib.contextmanager
def without_keras() -> Iterator[None]:
    """Leave Keras unloaded meanwhile, and what it loads: Matplotlib, scikit-learn, pandas.

    A third of what a start takes, and training needs none of them. `tf.keras` still loads it.
    """
    later = _Later()
    sys.meta_path.insert(0, later)
    try:
        yield
    finally:
        sys.meta_path.remove(later)


with without_notice(), without_keras():
    import tensorflow as tf

# What is loaded by now stays until the end, where Python would look through it once more: half a
# second of a core for each rank of each run. Of freud nothing may be among it, here or later: it
# complains at the end of objects that nobody has looked through. No training loads it.
if "freud" not in sys.modules:
    gc.freeze()

__all__ = ["onednn_is_on", "prepare", "tf"]


def prepare(number: int = 0, precision: Precision = "float32") -> Any | None:
    """Deterministic kernels, factors in all their bits but for tf32, one GPU that gives memory as
    it is needed.

    Before anything is computed; once more is no harm. Of the GPUs in sight it is number `number`,
    counted round and round. Returns it, None without any; raises RuntimeError once another one
    computes.
    """
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")  # on by itself
    wanted = DRIVER.exists() and os.environ.get(VISIBLE) != ""
    with contextlib.nullcontext() if wanted else without_notice(NO_GPU):
        gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return None
    mine = gpus[number % len(gpus)]
    tf.config.set_visible_devices([mine], "GPU")
    tf.config.experimental.set_memory_growth(mine, True)
    return mine


def onednn_is_on() -> bool:
    """Whether the TensorFlow that is loaded computes with oneDNN."""
    from tensorflow.python.util import _pywrap_util_port  # it tells nobody else

    return bool(_pywrap_util_port.IsMklEnabled())
