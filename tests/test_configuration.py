"""Configurations: every border says what it expected and what it found."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from glass_cnn import mixture
from glass_cnn.configuration import Configuration, hexatic_order
from hpc.errors import DataError

PLACES = [[0.5, 1.0], [2.0, 3.0]]
BOX = [4.0, 4.0]


def test_a_configuration_holds_positions_species_and_both_sides() -> None:
    made = Configuration(np.array(PLACES), np.array([1, 2]), np.array([4.0, 4.0]))
    assert made.positions.tolist() == PLACES
    assert made.species.tolist() == [1, 2]
    assert made.species.dtype == np.uint8
    assert made.box.tolist() == [4.0, 4.0]
    assert len(made) == 2
    assert made.density == 2 / 16


def test_positions_keep_their_precision() -> None:
    for precision in (np.float32, np.float64):
        made = Configuration(np.array(PLACES, precision), np.array([1, 2]), np.array([4.0, 8.0]))
        assert made.positions.dtype == precision
    whole = Configuration(np.array([[1, 2], [3, 0]]), np.array([1, 2]), np.array([4, 8]))
    assert whole.positions.dtype == np.float64
    assert whole.box.dtype == np.float64


@pytest.mark.parametrize(
    ("positions", "species", "box", "said"),
    [
        (np.zeros((5, 3)), np.ones(5, int), BOX, "positions: expected shape [N, 2]; found [5, 3]"),
        (np.zeros(5), np.ones(5, int), BOX, "positions: expected shape [N, 2]; found [5]"),
        (np.zeros((0, 2)), np.ones(0, int), BOX, "positions: expected shape [N, 2]; found [0, 2]"),
        ([[1.0, 2.0], [3.0]], [1, 1], BOX, "positions: expected an array of numbers"),
        ([["x", "y"]], [1], BOX, "positions: expected numbers; found <U1"),
        ([[1.0, np.nan]], [1], BOX, "particle 0 (from 0) is at [1.0, nan]"),
        ([[0.0, 1.0], [-np.inf, 1.0]], [1, 2], BOX, "particle 1 (from 0) is at [-inf, 1.0]"),
        (PLACES, [1, 1, 2], BOX, "species: expected shape [2]; found [3]"),
        (PLACES, [[1, 2]], BOX, "species: expected shape [2]; found [1, 2]"),
        (PLACES, [1, 3], BOX, "species: expected 1 (A) and 2 (B); found [3]"),
        (PLACES, [0, 257], BOX, "species: expected 1 (A) and 2 (B); found [0, 257]"),
        (PLACES, [1.0, 2.0], BOX, "species: expected whole numbers; found float64"),
        (PLACES, ["A", "B"], BOX, "species: expected whole numbers; found <U1"),
        (PLACES, [1, 2], 4.0, "box: expected shape [2]; found []"),
        (PLACES, [1, 2], [4.0, 4.0, 1.0], "box: expected shape [2]; found [3]"),
        (PLACES, [1, 2], [[4.0, 4.0]], "box: expected shape [2]; found [1, 2]"),
        (PLACES, [1, 2], [0.0, 4.0], "box: expected sides greater than 0, in σ; found [0.0, 4.0]"),
        (PLACES, [1, 2], [4.0, -1.0], "box: expected sides greater than 0, in σ; found [4.0, -1"),
        (PLACES, [1, 2], [4.0, np.nan], "box: expected sides greater than 0, in σ; found [4.0, n"),
    ],
)
def test_what_cannot_be_a_configuration_is_refused(
    positions: Any, species: Any, box: Any, said: str
) -> None:
    with pytest.raises(DataError) as refused:
        Configuration(positions, species, box)
    assert said in str(refused.value)


def test_wrapped_positions_lie_in_the_box_also_after_rounding() -> None:
    side = 1 + 2.0**-30  # as float32 it is 1
    just_below = np.nextafter(side, 0)
    made = Configuration(
        np.array([[just_below, -0.25], [side, 7.5]]), np.array([1, 2]), np.array([side, side])
    )
    wrapped = made.wrapped()
    assert wrapped.dtype == np.float32
    assert wrapped[:, 0].tolist() == [0.0, 0.0]
    assert wrapped[:, 1] == pytest.approx([0.75, 0.5], abs=1e-6)


def test_a_triangular_lattice_is_perfectly_ordered_and_few_particles_are_refused() -> None:
    rows, columns, step = 6, 6, 3**0.5 / 2
    places = np.array([[i + j % 2 / 2, j * step] for i in range(columns) for j in range(rows)])
    lattice = Configuration(places, np.ones(len(places), int), np.array([columns, rows * step]))
    assert hexatic_order(lattice) == pytest.approx(1, abs=1e-4)
    few = Configuration(places[:6], np.ones(6, int), lattice.box)
    with pytest.raises(DataError, match=r"at least 7 particles.*found 6"):
        hexatic_order(few)


def test_hexatic_order_is_the_mean_over_six_nearest_neighbours() -> None:
    rng, box = np.random.default_rng(3), 9.0
    positions = rng.uniform(0, box, (60, 2))
    across = positions[None] - positions[:, None]
    across -= box * np.round(across / box)
    nearest = np.argsort((across**2).sum(axis=-1), axis=1)[:, 1:7]
    bonds = np.take_along_axis(across, nearest[..., None], axis=1)
    angles = np.arctan2(bonds[..., 1], bonds[..., 0])
    expected = np.abs(np.exp(6j * angles).mean(axis=1)).mean()
    species = np.ones(60, np.uint8)
    random = Configuration(positions, species, np.array([box, box]))
    assert hexatic_order(random) == pytest.approx(expected, rel=1e-5)


def test_the_mixture_is_that_of_kob_and_andersen() -> None:
    assert list(mixture.EPSILON.values()) == [1.0, 1.5, 0.5]
    assert list(mixture.SIGMA.values()) == [1.0, 0.8, 0.88]
    assert list(mixture.EPSILON) == list(mixture.SIGMA) == [(1, 1), (1, 2), (2, 2)]
    assert (mixture.CUTOFF, mixture.FRACTION_A, mixture.MASS) == (2.5, 0.65, 1.0)


def test_measuring_order_does_not_load_matplotlib_and_leaves_it_to_be_loaded() -> None:
    code = """
import sys
import numpy as np
from glass_cnn.configuration import Configuration, hexatic_order

places = np.random.default_rng(0).random((20, 2)) * 5
hexatic_order(Configuration(places, np.ones(20, np.uint8), np.array([5.0, 5.0])))
assert "matplotlib" not in sys.modules
import matplotlib.pyplot
"""
    subprocess.run([sys.executable, "-c", code], check=True)
