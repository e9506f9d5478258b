"""Rendering: invariants, a slow reference beside the fast code, matplotlib beside scatter2017."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_cnn.configuration import Configuration
from glass_cnn.data.render import RADII, Image, dot_stamp, pixels_per_sigma, render
from glass_cnn.mixture import TYPE_A, TYPE_B
from glass_cnn.settings import Render
from hpc.errors import DataError

BOX = 10.0
Style = Literal["scatter2017", "disc"]
WHITE, ORANGE, BLUE = (255, 255, 255), (255, 127, 14), (31, 119, 180)
STYLES = [
    Render(style="scatter2017", pixels=80),
    Render(style="scatter2017", pixels=80, dot_pixels=4),
    Render(style="scatter2017", pixels=80, dot_pixels=21),
    Render(style="disc", pixels=80),
]


def draw(
    positions: np.ndarray,
    types: np.ndarray,
    box: float | np.ndarray,
    settings: Render,
    corner: tuple[float, float] | np.ndarray = (0.0, 0.0),
) -> Image:
    """The image of such particles in a box of this side, or of these sides."""
    sides = np.array(np.broadcast_to(box, 2))
    return render(Configuration(positions, types, sides), settings, corner)


def configuration(count: int, seed: int = 0, box: float = BOX) -> tuple[np.ndarray, np.ndarray]:
    """Random particles, a third of them B, none within rounding of a pixel's edge."""
    generator = np.random.default_rng(seed)
    pixel = box / 80
    cells = generator.integers(0, 80, (count, 2))
    positions = (cells + generator.uniform(0.1, 0.4, (count, 2))) * pixel
    return positions, np.where(np.arange(count) % 3 == 2, TYPE_B, TYPE_A).astype(np.uint8)


def sparse(box: float = BOX) -> tuple[np.ndarray, np.ndarray]:
    """16 particles on a loose lattice, none touching another, some over the edges."""
    places = (np.arange(4) + 0.013) * box / 4
    x, y = np.meshgrid(places, places)
    positions = np.stack([x.ravel(), y.ravel()], axis=1) + 0.021
    return positions, np.where(np.arange(16) % 3 == 2, TYPE_B, TYPE_A).astype(np.uint8)


def ink(image: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Area covered by one colour on white, pixels, from the channel that differs most."""
    channel = int(np.argmax(255 - np.array(colour)))
    return float((255.0 - image[..., channel]).sum() / (255 - colour[channel]))


@pytest.mark.parametrize("settings", STYLES)
@given(shift=st.tuples(st.integers(-90, 90), st.integers(-90, 90)))
def test_translation_by_whole_pixels(settings: Render, shift: tuple[int, int]) -> None:
    positions, types = configuration(40)
    pixel = BOX / settings.pixels
    image = draw(positions, types, BOX, settings)
    moved = draw(positions + np.array(shift) * pixel, types, BOX, settings)
    across, up = shift
    expected = np.roll(image, (-up, across), axis=(0, 1)).astype(int)
    assert np.abs(moved - expected).max() <= 1  # rounding of the coordinates may show in a level


@pytest.mark.parametrize("settings", STYLES)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns(settings: Render, turns: int) -> None:
    positions, types = configuration(40)
    angle = turns * math.pi / 2
    rotation = np.round([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned = draw(positions @ rotation.T, types, BOX, settings)
    expected = np.rot90(draw(positions, types, BOX, settings), turns).astype(int)
    assert np.abs(turned - expected).max() <= 1


@pytest.mark.parametrize("settings", STYLES)
def test_mirror(settings: Render) -> None:
    positions, types = configuration(40)
    mirrored = draw(positions * [-1, 1], types, BOX, settings)
    expected = draw(positions, types, BOX, settings)[:, ::-1].astype(int)
    assert np.abs(mirrored - expected).max() <= 1


@pytest.mark.parametrize("settings", STYLES)
def test_rows_run_from_top_to_bottom(settings: Render) -> None:
    high = draw(np.array([[2.51, 9.01]]), np.array([TYPE_A]), BOX, settings)
    rows, columns = np.nonzero((high < 255).any(axis=2))
    assert rows.mean() == pytest.approx(80 * (1 - 0.901) - 0.5, abs=1)
    assert columns.mean() == pytest.approx(80 * 0.251 - 0.5, abs=1)


@pytest.mark.parametrize("settings", [STYLES[0], STYLES[3]])
def test_species_have_their_colours_and_b_lies_over_a(settings: Render) -> None:
    place = np.array([[5.06, 5.06]])
    row, column = 80 - 1 - 40, 40
    a = draw(place, np.array([TYPE_A]), BOX, settings)
    b = draw(place, np.array([TYPE_B]), BOX, settings)
    assert tuple(a[row, column]) == ORANGE
    assert tuple(b[row, column]) == BLUE
    assert tuple(a[0, 0]) == WHITE
    on_black = settings.model_copy(update={"background": "black"})
    night = draw(place, np.array([TYPE_A]), BOX, on_black)
    assert tuple(night[row, column]) == ORANGE
    assert tuple(night[0, 0]) == (0, 0, 0)
    for types in ([TYPE_A, TYPE_B], [TYPE_B, TYPE_A]):  # whatever the order of the particles
        both = draw(np.repeat(place, 2, axis=0), np.array(types), BOX, settings)
        assert tuple(both[row, column]) == BLUE


@pytest.mark.parametrize("dot_pixels", [1, 4, 5, 9, 12, 13, 21, 64])
def test_dots_ink(dot_pixels: int) -> None:
    settings = Render(style="scatter2017", pixels=80, dot_pixels=dot_pixels)
    positions, types = sparse()
    image = draw(positions, types, BOX, settings)
    _, covered = dot_stamp(dot_pixels)
    assert len(covered) == dot_pixels
    assert (image < 255).any(axis=2).sum() == len(types) * (covered > 0.01).sum()
    for kind, colour in ((TYPE_A, ORANGE), (TYPE_B, BLUE)):
        alone = draw(positions[types == kind], types[types == kind], BOX, settings)
        expected = (types == kind).sum() * covered.sum()
        assert ink(alone, colour) == pytest.approx(expected, rel=0.01)


def test_every_dot_of_the_log_has_nine_pixels() -> None:
    positions, types = sparse()
    image = draw(positions, types, BOX, Render(style="scatter2017", pixels=80))
    assert (image < 255).any(axis=2).sum() == 9 * len(types)


@pytest.mark.parametrize("pixels", [40, 80, 250])
def test_discs_ink(pixels: int) -> None:
    settings = Render(style="disc", pixels=pixels)
    positions, types = sparse()
    scale = pixels_per_sigma(settings, BOX)
    for kind, colour in ((TYPE_A, ORANGE), (TYPE_B, BLUE)):
        chosen = types == kind
        image = draw(positions[chosen], types[chosen], BOX, settings)
        expected = chosen.sum() * math.pi * (RADII[kind] * scale) ** 2
        assert ink(image, colour) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("settings", [STYLES[0], STYLES[3]])
@pytest.mark.parametrize(("x", "y"), [(0.01, 5.0), (9.99, 5.0), (5.0, 0.01), (0.01, 9.99)])
def test_what_hangs_over_an_edge_shows_at_the_other(settings: Render, x: float, y: float) -> None:
    middle = draw(np.array([[x, y]]) + 5.0, np.array([TYPE_A]), BOX, settings)
    edge = draw(np.array([[x, y]]), np.array([TYPE_A]), BOX, settings)
    assert np.abs(np.roll(middle, (40, 40), axis=(0, 1)) - edge.astype(int)).max() <= 1
    sides = [edge[0], edge[-1]] if x == 5.0 else [edge[:, 0], edge[:, -1]]
    assert all((side < 255).any() for side in sides)


@pytest.mark.parametrize("style", ["scatter2017", "disc"])
@pytest.mark.parametrize("corner", [(0, 0), (13, 40), (70, 70), (79, 3), (-5, 200)])
def test_windows_are_crops_of_the_whole_box(style: Style, corner: tuple[int, int]) -> None:
    positions, types = configuration(60)
    whole = draw(positions, types, BOX, Render(style=style, pixels=80))
    window = Render(style=style, pixels=32, window=4.0)
    image = draw(positions, types, BOX, window, np.array(corner) * BOX / 80)
    column, row = corner[0], 80 - corner[1] - 32
    crop = np.roll(whole, (-row, -column), axis=(0, 1))[:32, :32]
    assert np.abs(image - crop.astype(int)).max() <= 1


@pytest.mark.parametrize("pixels", [80, 100])
@pytest.mark.parametrize("style", ["scatter2017", "disc"])
def test_a_mark_that_only_just_does_not_show(pixels: int, style: Style) -> None:
    """It is as far outside as marks reach; with 9.1 σ rounding takes it a little further."""
    settings = Render(style=style, pixels=pixels, dot_pixels=27, window=9.1)
    scale = pixels / 9.1
    reach = 3 if style == "scatter2017" else math.ceil(0.5 * scale)
    place = np.array([[-reach / scale, 4.0]])
    assert (draw(place, np.array([TYPE_A]), 30.0, settings) == 255).all()
    assert (draw(place, np.array([TYPE_A]), 9.1, settings) < 255).any()


def test_discs_of_like_particles_touch_at_contact() -> None:
    """σ_AA = 1 and σ_BB = 0.88, from the published table."""
    settings = Render(style="disc", pixels=250)
    for kind, sigma, colour in ((TYPE_A, 1.0, ORANGE), (TYPE_B, 0.88, BLUE)):
        image = draw(np.array([[5.0, 5.0]]), np.array([kind]), BOX, settings)
        assert ink(image, colour) == pytest.approx(math.pi * (12.5 * sigma) ** 2, rel=0.01)


def test_positions_need_not_be_wrapped() -> None:
    positions, types = configuration(40)
    away = positions + BOX * np.random.default_rng(1).integers(-3, 4, positions.shape)
    for settings in STYLES:
        expected = draw(positions, types, BOX, settings).astype(int)
        assert np.abs(draw(away, types, BOX, settings) - expected).max() <= 1


def test_oblong_box_needs_a_window_that_fits() -> None:
    positions, types = configuration(40)
    with pytest.raises(DataError, match=r"images are square.*render\.window to at most 8"):
        draw(positions, types, np.array([10.0, 8.0]), Render(pixels=80))
    with pytest.raises(DataError, match=r"render\.window 9 σ is larger than the box"):
        draw(positions, types, np.array([10.0, 8.0]), Render(pixels=80, window=9.0))
    window = Render(pixels=80, window=8.0)
    assert draw(positions, types, np.array([10.0, 8.0]), window).shape == (80, 80, 3)


def slow_render(
    positions: np.ndarray, types: np.ndarray, settings: Render, box: float, corner: tuple
) -> np.ndarray:
    """The definition in loops over particles, periodic images and pixels, in painter's order."""
    side, window = settings.pixels, settings.window or box
    scale = side / window
    image = np.full((side, side, 3), 255.0)
    for kind, colour in ((TYPE_A, ORANGE), (TYPE_B, BLUE)):
        for (x, y), _ in (p for p in zip(positions, types, strict=True) if p[1] == kind):
            for nx in (-1, 0, 1):
                for ny in (-1, 0, 1):
                    column = ((x - corner[0]) % box + nx * box) * scale
                    row = side - ((y - corner[1]) % box + ny * box) * scale
                    for r, c, opacity in covered_pixels(row, column, kind, scale, settings):
                        if 0 <= r < side and 0 <= c < side:
                            image[r, c] += opacity * (np.array(colour) - image[r, c])
    return np.floor(image + 0.5).astype(np.uint8)


def covered_pixels(
    row: float, column: float, kind: int, scale: float, settings: Render
) -> Iterator[tuple[int, int, float]]:
    if settings.style == "scatter2017":
        offsets, opacity = dot_stamp(settings.dot_pixels)
        for (dr, dc), share in zip(offsets, opacity, strict=True):
            yield math.floor(row) + dr, math.floor(column) + dc, share
        return
    radius = float(RADII[kind]) * scale
    reach = math.ceil(radius) + 2
    for r in range(math.floor(row) - reach, math.floor(row) + reach):
        for c in range(math.floor(column) - reach, math.floor(column) + reach):
            squared = (r + 0.5 - row) ** 2 + (c + 0.5 - column) ** 2
            yield r, c, min(1.0, max(0.0, 0.5 + (radius**2 - squared) / (2 * radius)))


@pytest.mark.parametrize("style", ["scatter2017", "disc"])
@pytest.mark.parametrize(("window", "corner"), [(None, (0.0, 0.0)), (6.0, (7.3, 1.9))])
def test_equals_the_definition(style: Style, window: float | None, corner: tuple) -> None:
    settings = Render(style=style, pixels=48, window=window)
    positions, types = configuration(30, seed=3)
    expected = slow_render(positions, types, settings, BOX, corner).astype(int)
    assert np.abs(draw(positions, types, BOX, settings, corner) - expected).max() <= 1


def test_scatter2017_is_what_matplotlib_draws() -> None:
    """Positions lie where matplotlib's rounding and ours agree on the pixel."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    generator = np.random.default_rng(5)
    cells = generator.permutation(60 * 60)[:300]
    positions = np.stack([cells % 60, cells // 60], axis=1) * 4 + 5 + [0.25, 0.75]
    types = np.where(np.arange(300) % 3 == 2, TYPE_B, TYPE_A)
    figure = plt.figure(figsize=(2.5, 2.5), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 250), ylim=(0, 250))
    axes.axis("off")
    for kind, colour in ((TYPE_A, "C1"), (TYPE_B, "C0")):
        x, y = positions[types == kind].T
        axes.scatter(x, y, s=1, c=colour)
    figure.canvas.draw()
    theirs = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)  # type: ignore[attr-defined]
    plt.close(figure)
    ours = draw(positions, types, 250.0, Render(style="scatter2017", pixels=250))
    assert ((ours < 255).any(axis=2) == (theirs < 255).any(axis=2)).all()
    assert np.abs(ours - theirs).max() <= 4
