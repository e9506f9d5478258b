"""Imports of the same content under several names, which the split might part."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpc.errors import DataError
from tests.own_data import (
    dump_text,
    nothing_is_stored,
    picture,
    store,
    write_images,
    write_list,
    write_trajectories,
    xyz_text,
)

# Pictures


def copies(source: Path, *pairs: tuple[int, int], changed: Any = None) -> Path:
    """Pictures of which some are copies of others, packed in another way."""
    _, entries = write_images(source)
    for original, copy in pairs:
        Image.fromarray(picture(original)).save(source / f"images/{copy}.png", compress_level=1)
    for entry, change in zip(entries, changed or (), strict=False):
        entry.update(change)
    return write_list(source, entries)


def test_equal_pictures_that_count_as_independent_are_refused(tmp_path: Path) -> None:
    source = copies(tmp_path / "in", (0, 2), (0, 4), (1, 3))
    with pytest.raises(
        DataError, match="in: 3 of 12 entries repeat others and count as independent"
    ) as error:
        store(source, tmp_path)
    for words in (
        r"images/2\.png is images/0\.png, images/3\.png is images/1\.png",
        r'{"path": "images/0\.png", "label": "liquid", "trajectory": "images/0\.png"}, {"path',
    ):
        assert re.search(words, str(error.value))
    assert nothing_is_stored(tmp_path)


def test_equal_pictures_differ_where_only_the_edge_that_is_cut_off_does(tmp_path: Path) -> None:
    source = copies(tmp_path / "in")
    for i in range(12):
        framed = np.full((26, 26, 3), i, np.uint8)
        framed[3:23, 3:23] = picture(i % 2, channels=3)
        Image.fromarray(framed).save(source / f"images/{i}.png")
    with pytest.raises(DataError, match="10 of 12 entries repeat others"):
        store(source, tmp_path)


def test_pictures_that_differ_in_alpha_alone_are_equal(tmp_path: Path) -> None:
    source = copies(tmp_path / "in")
    for i in (0, 2):
        Image.fromarray(np.dstack([picture(5, channels=3), picture(i)[..., 0]])).save(
            source / f"images/{i}.png"
        )
    with pytest.raises(
        DataError, match=r"1 of 12 .* images/2\.png is images/0\.png.* Alpha, in wh"
    ):
        store(source, tmp_path)


def test_equal_pictures_of_both_classes_are_refused(tmp_path: Path) -> None:
    together = [{"trajectory": 1}] * 12
    source = copies(tmp_path / "in", (0, 3), changed=together)
    message = r"images/0\.png \(liquid\) and images/3\.png \(glass\) are the same"
    with pytest.raises(DataError, match=message):
        store(source, tmp_path)


def test_equal_pictures_of_one_trajectory_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copies(tmp_path / "in", (0, 2), changed=[{"trajectory": i // 4} for i in range(12)])
    assert len(store(source, tmp_path)) == 12
    told = capsys.readouterr().out
    assert "repeat another one of the same trajectory: 1 of 12, such as images/2.png" in told


# Configurations

SHUFFLED = "\n".join([*xyz_text(1).splitlines()[:2], *xyz_text(1).splitlines()[:1:-1], ""])
LATER = dump_text(1).replace("TIMESTEP\n100", "TIMESTEP\n200")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (dump_text(1), dump_text(1)),
        (dump_text(1), LATER),
        (dump_text(1), dump_text(1, "type mass x y")),
        (xyz_text(1), SHUFFLED),
        (xyz_text(1), xyz_text(1).replace(" 0.0\n", " 0.00\n").replace("\n", "\r\n")),
        (xyz_text(1), dump_text(1)),
        (xyz_text(1), xyz_text(1, names=("1", "2"))),
    ],
)
def test_equal_configurations_that_count_as_independent_are_refused(
    tmp_path: Path, one: str, other: str
) -> None:
    """Whatever the order of their particles, their times and their formats."""
    texts = {"liquid_1": one, "liquid_2": other, "glass_1": dump_text(3), "glass_2": dump_text(4)}
    source = write_trajectories(tmp_path / "in", **texts)
    with pytest.raises(DataError, match="1 of 4 entries repeat others") as error:
        store(source, tmp_path)
    assert re.search(r"frame 0 of liquid_2\.\w+ is frame 0 of liquid_1\.\w+", str(error.value))
    assert nothing_is_stored(tmp_path)


def test_equal_configurations_of_both_classes_are_refused(tmp_path: Path) -> None:
    """Even of one trajectory: it may be liquid or glass."""
    source = write_trajectories(tmp_path / "in", liquid_1=dump_text(1), glass_1=LATER)
    with pytest.raises(DataError, match=r"glass_1.* \(glass\) and .*liquid_1.* are the same: one"):
        store(source, tmp_path)


ONE_TYPE_CHANGED = re.sub(r"x y\n.", "x y\n1", dump_text(1, "type x y"), count=1)
ANOTHER_BOX = dump_text(1).replace("0.0 6.0 ", "0.0 6.1 ")


@pytest.mark.parametrize("nearly", [ONE_TYPE_CHANGED, ANOTHER_BOX])
def test_configurations_that_differ_a_little_are_no_copies(tmp_path: Path, nearly: str) -> None:
    assert nearly not in (dump_text(1), dump_text(1, "type x y"))
    texts = {"liquid_1": dump_text(1), "liquid_2": nearly, "glass_1": dump_text(3)}
    assert len(store(write_trajectories(tmp_path / "in", **texts), tmp_path)) == 3
