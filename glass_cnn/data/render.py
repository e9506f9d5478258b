"""A configuration becomes an image. Pure functions: a configuration in, an array out.

Both styles put orange A particles first and blue B particles over them, on white or black:

- `scatter2017`: what matplotlib's `scatter(s=1)` drew for the results log. Every dot is the same
  stamp of `dot_pixels` pixels (9 in the log: 3×3, fading towards the corners), moved to the pixel
  that its particle lies in.
- `disc`: discs to scale of radius σ_AA/2 and σ_BB/2, anti-aliased, where they are.

Row 0 of an image is at the top, where y is greatest; x grows with the column. A window's corner is
its lower left one. The box is periodic: what hangs over one of its edges shows at the other.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from glass_cnn.configuration import Configuration
from glass_cnn.mixture import SIGMA, TYPE_A, TYPE_B
from glass_cnn.settings import Render
from hpc.errors import DataError

ORANGE, BLUE = (
    np.array(colour, dtype=np.float32)
    for colour in ((255, 127, 14), (31, 119, 180))  # matplotlib's C1 and C0
)
BACKGROUNDS = {"white": 255.0, "black": 0.0}
"""value of all three channels where no particle is"""
RADII = np.array([0, *(SIGMA[kind, kind] / 2 for kind in (TYPE_A, TYPE_B))], dtype=np.float32)
"""radius by species, σ: half of σ_AA and of σ_BB, so that like neighbours touch at contact"""
DOT_RADIUS = 1.4 / 3
"""radius of a dot over the root of its pixels: 1.4 px for the log's dots of 9"""

Image = np.ndarray[Any, np.dtype[np.uint8]]


def render(
    configuration: Configuration,
    settings: Render,
    corner: tuple[float, float] | np.ndarray = (0.0, 0.0),
) -> Image:
    """Draw one configuration as uint8 [pixels, pixels, 3].

    `corner` is the window's lower left corner in σ. Raises DataError when the window does not fit
    into the box, or when no window is set and the box is no square.
    """
    sides = configuration.box
    window = check_window(sides, settings.window)
    scale = settings.pixels / window
    draw = _dots if settings.style == "scatter2017" else _discs
    reach = _reach(settings, scale)
    places = configuration.positions.astype(np.float64) - corner
    index, x, y = _visible(places, sides, window, reach / scale)
    border = 2 * reach + 1  # centres lie up to `reach` outside, to rounding, marks once more
    columns, rows = border + x * scale, border + settings.pixels - y * scale
    cleared = np.ones((2, *[settings.pixels + 2 * border] * 2), dtype=np.float32)
    draw(cleared, rows, columns, configuration.species[index], settings, scale)
    inside = slice(border, border + settings.pixels)
    return _blend(
        BACKGROUNDS[settings.background], cleared[0, inside, inside], cleared[1, inside, inside]
    )


def check_window(sides: np.ndarray, window: float | None) -> float:
    """Side of the part of the box that is shown, σ; raises DataError when there is no such part."""
    if window is None:
        if abs(sides[0] - sides[1]) > 1e-6 * sides[0]:
            raise DataError(
                f"the box is {sides[0]:.4g} × {sides[1]:.4g} σ, and images are square: "
                f"set render.window to at most {sides.min():.4g} σ"
            )
        return float(sides[0])
    if window > sides.min() * (1 + 1e-9):
        raise DataError(
            f"render.window {window:g} σ is larger than the box, "
            f"{sides[0]:.4g} × {sides[1]:.4g} σ: set it to at most {sides.min():.4g}"
        )
    return window


def pixels_per_sigma(settings: Render, box: float) -> float:
    """Scale of the image: pixels for each σ."""
    return settings.pixels / (box if settings.window is None else settings.window)


def _reach(settings: Render, scale: float) -> int:
    """Pixels that a particle's mark may stick out of the pixel its centre lies in."""
    if settings.style == "scatter2017":
        return int(np.abs(dot_stamp(settings.dot_pixels)[0]).max())
    return int(np.ceil(RADII.max() * scale))


def _visible(
    positions: np.ndarray, sides: np.ndarray, window: float, margin: float
) -> tuple[np.ndarray, ...]:
    """Index, x and y of every periodic image of a particle within `margin` of the window."""
    index = np.arange(len(positions))
    coordinates: list[np.ndarray] = []
    for axis in (0, 1):
        near = (positions[index, axis] + margin) % sides[axis] - margin
        shown = [near + k * sides[axis] < window + margin for k in (0, 1)]
        chosen = np.concatenate([np.flatnonzero(s) for s in shown])
        coordinates = [c[chosen] for c in coordinates]
        wrapped = np.repeat([0.0, sides[axis]], [s.sum() for s in shown])
        coordinates.append(near[chosen] + wrapped)
        index = index[chosen]
    return index, *coordinates


@functools.cache
def dot_stamp(pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets [pixels, 2] of a dot's pixels from the one it is centred on, and their coverage.

    They are the pixels nearest to the centre, covered as far as a disc of area 0.68 · `pixels`
    covers them: at 9, matplotlib's dot of `scatter(s=1)` to within one per cent. A dot of 4 k
    pixels is centred on a corner between four pixels, any other on the middle of one.
    """
    centre = -0.5 if pixels % 4 == 0 else 0.0
    reach = np.arange(-6, 7)
    offsets = np.stack(np.meshgrid(reach, reach, indexing="ij"), axis=-1).reshape(-1, 2)
    distance = ((offsets - centre) ** 2).sum(axis=1)
    nearest = offsets[np.argsort(distance, kind="stable")[:pixels]]
    fine = (np.arange(64) + 0.5) / 64 - 0.5
    dr = (nearest[:, 0, None] - centre + fine)[:, :, None]
    dc = (nearest[:, 1, None] - centre + fine)[:, None, :]
    covered = (dr**2 + dc**2 <= DOT_RADIUS**2 * pixels).mean(axis=(1, 2))
    return nearest, covered.astype(np.float32)


def _dots(
    cleared: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    types: np.ndarray,
    settings: Render,
    scale: float,  # noqa: ARG001 - a dot's size is in pixels
) -> None:
    """Multiply `cleared` [type, row, column] by the share of the background that dots leave."""
    offsets, covered = dot_stamp(settings.dot_pixels)
    shift = 0.5 if settings.dot_pixels % 4 == 0 else 0.0
    r = np.floor(rows + shift).astype(np.intp)[:, None] + offsets[:, 0]
    c = np.floor(columns + shift).astype(np.intp)[:, None] + offsets[:, 1]
    layer = types.astype(np.intp)[:, None] - TYPE_A
    flat = np.ravel_multi_index((layer, r, c), cleared.shape)
    np.multiply.at(cleared.reshape(-1), flat.reshape(-1), np.tile(1 - covered, len(rows)))


def _discs(
    cleared: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    types: np.ndarray,
    settings: Render,
    scale: float,
) -> None:
    """Multiply `cleared` [type, row, column] by the share of the background that discs leave.

    A pixel whose centre is d away from that of a disc of radius r (pixels) is covered to the share
    1/2 + (r² − d²)/2r between 0 and 1: near the edge the distance to it, and π r² in all.
    """
    side = cleared.shape[1]
    offsets = np.arange(-(reach := _reach(settings, scale)), reach + 1)
    for kind in (TYPE_A, TYPE_B):
        mine = types == kind
        radius = RADII[kind] * scale
        r, c = np.floor(rows[mine]), np.floor(columns[mine])
        dr = (r - rows[mine] + 0.5).astype(np.float32)[:, None] + offsets.astype(np.float32)
        dc = (c - columns[mine] + 0.5).astype(np.float32)[:, None] + offsets.astype(np.float32)
        down, across = dr**2 / (2 * radius) + (1 - radius) / 2, dc**2 / (2 * radius)
        left = down[:, :, None] + across[:, None, :]
        np.clip(left, 0, 1, out=left)
        first = (r * side + c).astype(np.intp)
        flat = (first[:, None] + offsets * side)[:, :, None] + offsets
        np.multiply.at(cleared[kind - TYPE_A].reshape(-1), flat.reshape(-1), left.reshape(-1))


def _blend(background: float, clear_of_a: np.ndarray, clear_of_b: np.ndarray) -> Image:
    """Paint orange where A covers the background, then blue where B covers that."""
    image = np.empty((*clear_of_a.shape, 3), dtype=np.uint8)
    for channel in range(3):
        below = ORANGE[channel] + clear_of_a * (background - ORANGE[channel])
        below -= BLUE[channel]
        below *= clear_of_b
        below += BLUE[channel] + np.float32(0.5)
        image[..., channel] = below
    return image
