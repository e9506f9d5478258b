"""TensorFlow, loaded in this room only, with oneDNN on.

TensorFlow switches oneDNN on by itself only where the processor has AVX-512 VNNI, BF16 or AMX;
elsewhere training would be several times slower, and round otherwise. A process that has chosen
nothing (`glass_cnn.numerics.choose`) gets what a training gets by default, unless its environment
says otherwise.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator

from glass_cnn.numerics import SWITCH

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
NOTICE = re.compile(rb"^(I0000 |WARNING: All log messages before absl::InitializeLog).*\n", re.M)
"""what TensorFlow says at every start, that oneDNN is on, before it heeds LOG_LEVEL"""

os.environ.setdefault(SWITCH, "1")
os.environ.setdefault(LOG_LEVEL, "2")


@contextlib.contextmanager
def without_notice() -> Iterator[None]:
    """Hold back what is written to stderr meanwhile, by C++ too; then say it without NOTICE."""
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
            os.write(2, said if os.environ[LOG_LEVEL] == "0" else NOTICE.sub(b"", said))


with without_notice():
    import tensorflow as tf

__all__ = ["onednn_is_on", "tf"]


def onednn_is_on() -> bool:
    """Whether the TensorFlow that is loaded computes with oneDNN."""
    from tensorflow.python.util import _pywrap_util_port  # it tells nobody else

    return bool(_pywrap_util_port.IsMklEnabled())
