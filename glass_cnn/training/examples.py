"""What a training is handed of a data set; the data wing makes it, which training does not see."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

import numpy as np

from glass_cnn.records import DataIdentity

HandOver = Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]
"""takes images and labels of a batch to where they are used"""


class Part(Protocol):
    """The division of the examples; all arrays hold indices but `labels`."""

    @property
    def train(self) -> np.ndarray:
        """Examples that are trained on."""

    @property
    def validation(self) -> np.ndarray:
        """Those of the validation, in random order."""

    @property
    def test(self) -> np.ndarray:
        """Those of the test."""

    @property
    def labels(self) -> np.ndarray:
        """Class of every example, 0 liquid, 1 glass."""

    def describe(self) -> str:
        """The division in words."""


class Examples(Protocol):
    """Images with their classes and division, and the batches of one run in their order."""

    @property
    def identity(self) -> DataIdentity:
        """Which data these are."""

    @property
    def images(self) -> np.ndarray:
        """uint8 [examples, pixels, pixels, 3]."""

    @property
    def parts(self) -> Part:
        """Which of them are for what."""

    @property
    def blocks(self) -> int:
        """Number of blocks that can be verified by themselves."""

    def verify(self, share: slice, go_on: Callable[[], bool]) -> bool:
        """Compare blocks with their checksums; False where `go_on` said no; raises DataError."""

    def batches(
        self, share: slice, strip: slice, first_step: int, hand_over: HandOver
    ) -> Generator[tuple[Any, Any], None, None]:
        """What `hand_over` makes of a share of the global batch, step after step, for ever.

        Of the images, the rows of pixels in `strip`. It is called ahead, by another thread.
        """
