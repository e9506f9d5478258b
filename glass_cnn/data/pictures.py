"""Pictures of others become arrays of 8-bit colours: PNG, JPEG and TIFF of the usual kinds.

Grey levels and palettes become colours, of 16 bits the upper 8 are taken, and alpha is dropped, as
in 2017. Whatever is wrong with a file is a DataError that names it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from glass_cnn.data.render import Image
from hpc.errors import DataError

FORMATS = ("PNG", "JPEG", "TIFF")
CONVERTED = {"1": "L", "L": "L", "LA": "RGBA", "P": "RGB", "PA": "RGBA", "CMYK": "RGB"} | {
    mode: mode for mode in ("RGB", "RGBA", "I;16", "I;16B", "I;16L", "I;16N")
}
"""Pillow's name of a kind of picture: the kind that it is read as"""


@dataclass(frozen=True)
class Look:
    """What a picture looks like as it is trained on."""

    digest: str
    """of its pixels"""
    darkest: int
    brightest: int
    """of all its colours, 0 to 255"""
    transparent: bool
    """whether alpha was dropped that is not opaque everywhere"""


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture from its header; raises DataError."""
    with _opened(path) as image:
        return image.size


def read_picture(path: Path, pixels: int) -> Image:
    """The centre of a picture that is large enough, uint8 [pixels, pixels, 3].

    Raises DataError for a file that is no picture, is damaged, or of a kind without colours.
    """
    return _centre(_colours(path)[0], pixels)


def look(path: Path, pixels: int) -> Look:
    """Read a picture as `read_picture` does; raises DataError also where nothing is drawn on it."""
    colours, alpha = _colours(path)
    seen, opacity = _centre(colours, pixels), _centre(alpha, pixels)
    if (seen == seen[0, 0]).all():
        colour = ", ".join(map(str, seen[0, 0]))
        if np.ptp(opacity):
            raise DataError(
                f"{path}: its drawing lies in the alpha channel alone, which is dropped as in "
                f"2017: every pixel is {colour}. Put it on a background, for example: "
                f"magick {path.name} -background white -alpha remove -alpha off PNG24:new.png"
            )
        raise DataError(f"{path}: is blank: every pixel that is shown is {colour}.")
    digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(seen).data)
    return Look(digest, int(seen.min()), int(seen.max()), bool((opacity < 255).any()))


def _centre(colours: np.ndarray, pixels: int) -> np.ndarray:
    height, width = colours.shape[:2]
    top, left = (height - pixels) // 2, (width - pixels) // 2
    return colours[top : top + pixels, left : left + pixels]


def _colours(path: Path) -> tuple[Image, np.ndarray]:
    """Colours uint8 [height, width, 3] and alpha uint8 [height, width] of a picture."""
    with _opened(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise DataError(f"{path}: holds {frames} pictures; save each as a file of its own.")
        kind = CONVERTED.get(image.mode)
        if kind is None:
            raise DataError(
                f"{path}: is of mode {image.mode}, whose numbers are no colours from black to "
                f"white. Convert it, for example: magick {path.name} -depth 8 PNG24:new.png"
            )
        if image.has_transparency_data:
            kind = "RGBA"
        values = np.asarray(image if image.mode == kind else image.convert(kind))
    if values.ndim == 2:
        grey = values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8)
        values = np.repeat(grey[:, :, None], 3, axis=2)
    if values.shape[2] == 4:
        return values[..., :3], values[..., 3]
    return values, np.full(values.shape[:2], 255, np.uint8)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Pillow.Image]:
    """An open picture; whatever goes wrong while it is used is a DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Pillow thinks of a size or of metadata
            content = path.read_bytes()
            if content.startswith(b"\x89PNG"):
                Pillow.open(io.BytesIO(content), formats=FORMATS).verify()  # its checksums
            with Pillow.open(io.BytesIO(content), formats=FORMATS) as image:
                yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{path}: is no PNG, JPEG or TIFF picture, or its beginning is damaged."
        ) from None
    except Pillow.DecompressionBombError:
        raise DataError(
            f"{path}: is a picture of too many pixels to be one of particles."
        ) from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
        raise DataError(f"{path}: is a damaged picture, or cut.") from None
    except Exception:  # decoders of damaged files raise nearly everything
        raise DataError(f"{path}: is a damaged picture, or cut.") from None
