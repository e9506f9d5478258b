"""Pictures of others become arrays of 8-bit colours: PNG, JPEG and TIFF of the usual kinds.

Grey levels and palettes become colours, of 16 bits the upper 8 are taken, and alpha is dropped, as
in 2017. Whatever is wrong with a file is a DataError that names it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from glass_cnn.data.render import Image
from glass_cnn.settings import Render
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


def read_picture(path: Path, pixels: int, resize: bool = False) -> Image:
    """A picture as uint8 [pixels, pixels, 3]: its centre, or its central square scaled.

    Scaled, each pixel is the mean of what it covers (a triangle filter; linear if enlarged).
    Raises DataError for a file that is no picture, is damaged, or of a kind without colours.
    """
    return _fitted(_colours(path)[0], pixels, resize)


def look(path: Path, pixels: int, resize: bool = False) -> Look:
    """Read a picture as `read_picture` does; raises DataError also where nothing is drawn on it."""
    colours, alpha = _colours(path)
    seen, opacity = (_fitted(channels, pixels, resize) for channels in (colours, alpha))
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


def _fitted(colours: np.ndarray, pixels: int, resize: bool) -> np.ndarray:
    """The part of [height, width, …] that is trained on, [pixels, pixels, …]."""
    square = _centre(colours, min(colours.shape[:2]) if resize else pixels)
    if len(square) == pixels:
        return square
    scaled = Pillow.fromarray(np.ascontiguousarray(square)).resize(
        (pixels, pixels), Pillow.Resampling.BILINEAR
    )
    return np.asarray(scaled)


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


# --- Sizes --------------------------------------------------------------------------------------


def check_sizes(source: Path, paths: Sequence[str], render: Render) -> str | None:
    """What part of pictures in a directory is used; None where that is all of each.

    Raises DataError where `render` does not say how pictures of other sizes are to fit.
    """
    pixels = render.pixels
    size_of = {path: picture_size(source / path) for path in paths}
    sizes = Counter(size_of.values())
    if set(sizes) == {(pixels, pixels)}:
        return None
    text = ", ".join(f"{n:,d} of {w} × {h}" for (w, h), n in sizes.most_common(4))
    smallest = min(map(min, sizes))
    if "pixels" not in render.model_fields_set and render.fit is None:
        raise DataError(
            f"{source}: has pictures of other sizes than {pixels} × {pixels} pixels: {text}. Write "
            f"render: {{pixels: {smallest}}} to take the centre of each, or "
            f"render: {{pixels: {pixels}, fit: resize}} to scale them."
        )
    if render.fit != "resize" and smallest < pixels:
        path = next(path for path, size in size_of.items() if min(size) < pixels)
        raise DataError(
            f"{source / path}: is {_size(size_of[path])}, smaller than render.pixels {pixels}. "
            f"Write render.pixels: {smallest} or less, or render.fit: resize to scale it."
        )
    kept = {path: _kept(size, render) for path, size in size_of.items()}
    path = min(kept, key=lambda path: kept[path])
    if kept[path] < 0.5 and render.fit != "crop":
        raise DataError(
            f"{source / path}: is {_size(size_of[path])}: {_too_little(kept[path], render)}"
        )
    text = f"pictures: {text}; the central "
    if render.fit == "resize":
        return f"{text}square of each is scaled to {pixels} × {pixels}"
    return f"{text}{pixels} × {pixels} of each is taken, at least {kept[path]:.0%} of it"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]} pixels"


def _kept(size: tuple[int, int], render: Render) -> float:
    """The share of a picture of this size that is used."""
    side = min(size) if render.fit == "resize" else render.pixels
    return side**2 / (size[0] * size[1])


def _too_little(kept: float, render: Render) -> str:
    if render.fit == "resize":
        return (
            f"images are square, and its central square is {kept:.1%} of it. Write render.fit: "
            "crop to take the centre, or cut the pictures up."
        )
    return (
        f"render.pixels {render.pixels} takes its centre, {kept:.1%} of it. Write render: "
        f"{{pixels: {render.pixels}, fit: resize}} to scale the whole, or fit: crop if the centre "
        "is what you want."
    )
