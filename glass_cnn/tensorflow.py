"""TensorFlow, loaded in this room only, with oneDNN on.

TensorFlow switches oneDNN on by itself only where the processor has AVX-512 VNNI, BF16 or AMX;
elsewhere training would be several times slower, and round otherwise. A process that has chosen
nothing (`glass_cnn.numerics.choose`) gets what a training gets by default, unless its environment
says otherwise.
"""

from __future__ import annotations

import os

from glass_cnn.numerics import SWITCH

os.environ.setdefault(SWITCH, "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

__all__ = ["onednn_is_on", "tf"]


def onednn_is_on() -> bool:
    """Whether the TensorFlow that is loaded computes with oneDNN."""
    from tensorflow.python.util import _pywrap_util_port  # it tells nobody else

    return bool(_pywrap_util_port.IsMklEnabled())
