"""The examples of docs/data.md are imported as they stand there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glass_cnn.data import dataset as data
from glass_cnn.data.formats import read_frames
from glass_cnn.data.imports import import_data
from glass_cnn.settings import RunSettings, build_run
from glass_cnn.study import load_study
from hpc.world import world
from hpc.yaml_files import parse_yaml
from tests.conftest import ROOT
from tests.own_data import dump_text, picture, write_gsd
from tests.test_docs import blocks

DOCUMENT = ROOT / "docs" / "data.md"
OWN_IMAGES = load_study(ROOT / "jobs" / "own_images.yaml")


def stored(source: Path, logs: Path, settings: RunSettings) -> data.Dataset:
    return data.load(import_data(source, settings, logs, world()))


def test_the_study_to_copy_imports_folders_of_pictures(tmp_path: Path) -> None:
    for seed in range(10):
        path = tmp_path / "in" / ("liquid", "glass")[seed % 2] / f"{seed // 2:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed, size=(300, 300))).save(path)
    (settings,) = OWN_IMAGES.datasets
    found = stored(tmp_path / "in", tmp_path, settings)
    assert found.images.shape == (10, 64, 64, 3)
    assert found.trajectories.tolist() == [0, 1, 2, 3, 4] * 2
    data.check_split((point.settings for point in OWN_IMAGES.points), tmp_path)
    assert parse_yaml(blocks(DOCUMENT, "yaml")[0], "data.md")["data"] == {
        "name": "own_images",
        "source": "import",
    }


def test_the_examples_of_lists_are_imported(tmp_path: Path) -> None:
    pictures, trajectories = (tmp_path / name for name in ("pictures", "trajectories"))
    for source, block in zip((pictures, trajectories), blocks(DOCUMENT, "json"), strict=True):
        source.mkdir()
        (source / "metadata.json").write_text(block)
    for seed, name in enumerate(("a.png", "b.png")):
        Image.fromarray(picture(seed)).save(pictures / name)
    (trajectories / "ramp.dump.gz").write_text(dump_text(1) + dump_text(2))
    write_gsd(trajectories / "quench.gsd", [3, 4])
    tree = {"data": {"name": "x", "source": "import"}, "render": {"pixels": 20}}
    settings = build_run(tree, "data.md")
    assert stored(pictures, tmp_path / "one", settings).trajectories.tolist() == [0, 0]
    found = stored(trajectories, tmp_path / "two", settings)
    assert found.labels.tolist() == [0, 1, 1, 1]
    assert found.trajectories.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["a.dump", "a.xyz"])
def test_the_examples_of_formats_are_read(tmp_path: Path, name: str) -> None:
    dump, xyz = blocks(DOCUMENT, "text")
    (tmp_path / name).write_text(dump if name == "a.dump" else xyz)
    [frame] = read_frames(tmp_path / name)
    assert frame.box.tolist() == [2.6, 2.6]
    assert frame.species.tolist() == [1, 1, 2, 1, 2, 1, 1]
    assert frame.positions[6] == pytest.approx([1.5, 2.3])
    assert np.isfinite(frame.positions).all()


@pytest.mark.parametrize("block", blocks(DOCUMENT, "yaml"))
def test_the_examples_of_settings_are_settings(block: str) -> None:
    tree = {"data": {"name": "x", "source": "import"}, **parse_yaml(block, "data.md")}
    assert build_run(tree, "data.md").data.source == "import"
