"""What an import takes from metadata.json, and from names of folders and files without it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glass_cnn.data.listing import plain, read_listing
from hpc.errors import DataError
from tests.own_data import (
    dump_text,
    nothing_is_stored,
    picture,
    store,
    write_images,
    write_list,
    xyz_text,
)

# metadata.json

GOOD = {"path": "images/0.png", "label": "liquid"}
OTHER = {"path": "images/1.png", "label": "glass"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": 1}, r"holds dict where a list .*\[{\"path\": \"a.png\", \"label\": \"glass\"}\]"),
        ("text", "holds str where a list"),
        ([], "empty list"),
        ([3], "entry 1: 3 must be a mapping"),
        ([GOOD, {"path": "images/1.png"}], 'entry 2: .*"path" and "label"'),
        ([{**GOOD, "label": "gas"}], "label 'gas' is unknown; allowed: glass, liquid"),
        ([{**GOOD, "label": ["glass"]}], r"label \['glass'\] is unknown"),
        ([{**GOOD, "label": 1}], "label 1 is unknown"),
        ([{**GOOD, "path": "images/99.png"}], r"images/99\.png: no such file"),
        ([{**GOOD, "path": "images"}], "'images' is a directory; list its files one by one"),
        ([{**GOOD, "path": "../in/images/../../secret.png"}], "leads out of"),
        ([{**GOOD, "path": "/etc/passwd"}], "leads out of"),
        ([{**GOOD, "path": "outside.png"}], "leads out of"),
        ([{**GOOD, "path": 5}], "must be the name of a file"),
        ([{**GOOD, "path": ""}], "must be the name of a file"),
        ([{**GOOD, "path": float("nan")}], "must be the name of a file"),
        ([{**GOOD, "path": "a\0.png"}], "names no file"),
        ([{**GOOD, "path": "\ud800.png"}], "names no file"),
        ([{**GOOD, "path": "loop.png"}], "names no file|no such file"),
        ([{**GOOD, "path": "x" * 300 + ".png"}], "names no file|no such file"),
        ([{**GOOD, "path": "metadata.json"}], "entry 1: .*no known kind; known are PNG, JPEG"),
        ([GOOD, {**GOOD, "path": "empty"}], "entry 2: 'empty' is of no known kind"),
        ([{**GOOD, "trajectory": [1]}], r"trajectory \[1\] must be"),
        ([{**GOOD, "trajectory": True}], "trajectory True must be"),
        ([{**GOOD, "trajectory": ""}], "trajectory '' must be"),
        ([{**GOOD, "frame": 1.5}], "frame 1.5 must be"),
        ([{**GOOD, "frame": True}], "frame True must be"),
        ([GOOD, {**OTHER, "frame": 0}], r"entry 2: images/1\.png is a picture and has no frames"),
        ([GOOD, {**OTHER, "Trajectory": 3}], 'entry 2: the key "Trajectory" .*write "trajectory"'),
        ([{**GOOD, "trajectories": 3}], 'the key "trajectories" is unknown; write "trajectory"'),
        ([{"file": "a", "labels": "glass"}], 'the key "labels" is unknown; write "label"'),
        ([GOOD, OTHER, GOOD], r"images/0\.png is listed twice"),
        ([GOOD, OTHER, {**GOOD, "path": "./images/../images/0.png"}], "is listed twice"),
        ([GOOD, OTHER, {**GOOD, "path": "again.png"}], "is listed twice"),
        ([GOOD], "all labelled liquid"),
        ([GOOD, OTHER, {**OTHER, "path": "a.xyz"}], r"pictures .images/0.*files .a\.xyz.*one or"),
    ],
)
def test_bad_lists(tmp_path: Path, entries: Any, message: str) -> None:
    source, _ = write_images(tmp_path / "in", count=4)
    (tmp_path / "secret.png").write_bytes(b"")
    (source / "outside.png").symlink_to(tmp_path / "secret.png")
    (source / "loop.png").symlink_to("loop.png")
    (source / "again.png").symlink_to("images/0.png")
    (source / "a.xyz").write_text("")
    (source / "empty").write_text("")
    write_list(source, entries)
    with pytest.raises(DataError, match=message):
        store(source, tmp_path)
    assert nothing_is_stored(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"path": ', r"metadata\.json: is no JSON at line 1, column 11\. Mend it"),
        (b'[\n{"path": 1},\n]', "is no JSON at line 3, column 1"),
        (b'[{"path": "a.png", "label": "glass"}] []', "is no JSON at line 1, column 39"),
        (b"", "is no JSON at line 1, column 1"),
        (b"\xff\xfe[\0]\0", "is no JSON in UTF-8"),
        (b"[" * 100_000, "is no JSON in UTF-8"),
        (b'[{"path": "a", "label": "glass", "label": "liquid"}]', "has the key 'label' twice"),
    ],
)
def test_lists_that_are_no_json(tmp_path: Path, content: bytes, message: str) -> None:
    source = write_list(tmp_path / "in", [])
    (source / "metadata.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        store(source, tmp_path)
    assert "Expecting" not in str(error.value)
    (source / "metadata.json").unlink()
    (source / "metadata.json").mkdir()
    with pytest.raises(DataError, match=r"metadata\.json: cannot be read: Is a directory"):
        store(source, tmp_path)


def test_list_with_a_byte_order_mark_and_names_of_all_kinds(tmp_path: Path) -> None:
    """As other systems' editors write it; endings in capitals, spaces, other alphabets."""
    source = tmp_path / "in"
    source.mkdir()
    names = ["ein Bild.PNG", "стекло 1.png"]
    for seed, name in enumerate(names):
        Image.fromarray(picture(seed)).save(source / name, "PNG")
    labels = ("liquid", "glass")
    entries = [{"path": n, "label": k} for n, k in zip(names, labels, strict=True)]
    text = json.dumps(entries, ensure_ascii=False)
    (source / "metadata.json").write_text(text, encoding="utf-8-sig")
    stored = store(source, tmp_path)
    assert stored.column("images/path").tolist() == names
    assert all((stored.images[i] == picture(i)[..., :3]).all() for i in range(2))


def test_what_a_list_leaves_out_is_told(tmp_path: Path) -> None:
    source, entries = write_images(tmp_path / "in", count=6)
    write_list(source, [{**entry, "temperature": 0.4, "file": "x"} for entry in entries[:4]])
    unused, beside = read_listing(source).remarks
    assert unused == "metadata.json: keys without use here: file, temperature"
    assert "does not list 2 files beside others: images/4.png, images/5.png" in beside
    write_list(source, entries)
    assert read_listing(source).remarks == []


def test_trajectories_that_differ_in_zeros_are_one(tmp_path: Path) -> None:
    source, entries = write_images(tmp_path / "in", count=4)
    names = ["003", 3, "T0.05", "T0.5"]
    write_list(source, [{**e, "trajectory": n} for e, n in zip(entries, names, strict=True)])
    assert "one trajectory under several names: 003, 3" in read_listing(source).remarks[0]
    assert store(source, tmp_path).trajectories.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("007", "7"), ("000", "0"), ("T0.050", "T0.050"), ("run_01_02", "run_1_2"), ("a.03", "a.3")],
)
def test_zeros_before_a_number_say_nothing(name: str, wanted: str) -> None:
    assert plain(name) == wanted


# Names


def write_files(source: Path, *names: str) -> Path:
    """Files of different content, of the kind that their endings say."""
    for seed, name in enumerate(names):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(picture(seed)).save(path)
        else:
            path.write_text(xyz_text(seed) if path.suffix == ".xyz" else dump_text(seed))
    return source


def told(source: Path) -> dict[str, tuple[int, str | None]]:
    return {entry.path: (entry.label, entry.trajectory) for entry in read_listing(source).entries}


def test_names_tell_labels_and_trajectories(tmp_path: Path) -> None:
    names = ("liquid_7.xyz", "Glass-7.xyz", "glass_8.dump", "liquid.9.dump", "liquid.xyz")
    source = write_files(tmp_path / "in", *names)
    assert told(source) == {
        "liquid_7.xyz": (0, "7"),
        "Glass-7.xyz": (1, "7"),
        "glass_8.dump": (1, "8"),
        "liquid.9.dump": (0, "9"),
        "liquid.xyz": (0, "liquid.xyz"),
    }
    assert len(store(source, tmp_path)) == 5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("liquid_003.png", "glass_3.png"),
        ("liquid 003.png", "glass-3.png"),
        ("liquid3.png", "glass_03.png"),
        ("Liquid_T0.05_run012.png", "GLASS-T0.05-run12.png"),
        ("run_01_liquid.png", "run_1_glass.png"),
        ("dump.liquid.0100", "dump.glass.100"),
        ("liquids_3.png", "glasses_3.png"),
        ("liquid/003.png", "glass/3.png"),
        ("Liquid/a 3.png", "glasses/a_03.png"),
        ("liquid/liquid_3.png", "glass/3.png"),
        ("liquid/run3/frame_1.png", "glass/run03/frame_9.png"),
        ("liquid_3.png", "glass/3.png"),
    ],
)
def test_files_of_one_trajectory_pair_by_their_names(tmp_path: Path, one: str, other: str) -> None:
    source = write_files(tmp_path / "in", one, other)
    (label, trajectory), (other_label, other_trajectory) = told(source)[one], told(source)[other]
    assert (label, other_label) == (0, 1)
    assert trajectory == other_trajectory
    assert read_listing(source).remarks == ["names of 2 files tell 1 trajectory"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("liquid_3.png", "glass_4.png"),
        ("liquid_T0.05.png", "glass_T0.5.png"),
        ("liquid_10.png", "glass_1.png"),
        ("liquid_0.png", "glass_00a.png"),
        ("liquid.png", "glass.png"),
    ],
)
def test_names_that_differ_are_of_two_trajectories(tmp_path: Path, one: str, other: str) -> None:
    source = write_files(tmp_path / "in", one, other)
    assert told(source)[one][1] != told(source)[other][1]
    [remark] = read_listing(source).remarks
    assert remark.startswith("names of 2 files tell 2 trajectories, 2 of them of one class only")


def test_folders_of_pictures_are_enough(tmp_path: Path) -> None:
    names = [f"{kind}/{i:02d}.png" for kind in ("glass", "liquid") for i in range(4)]
    stored = store(write_files(tmp_path / "in", *names), tmp_path)
    assert stored.labels.tolist() == [1] * 4 + [0] * 4
    assert stored.trajectories.tolist() == [0, 1, 2, 3] * 2


def test_what_names_leave_out_is_told(tmp_path: Path) -> None:
    names = ("liquid_1.xyz", "glass_1.xyz", "notes.xyz", "liquid_or_glass.xyz", "glassy_1.xyz")
    source = write_files(tmp_path / "in", *names, "liquid/.thumb.png", "hidden/liquid_9.png")
    (source / "readme.txt").write_text("of liquids and glasses")
    (source / "liquid.txt").write_text("of liquids")
    (source / ".liquid_2.xyz").write_text(xyz_text(2))
    _, left = read_listing(source).remarks
    assert left == (
        "left out, for their names or kinds say nothing: "
        "glassy_1.xyz, liquid.txt, liquid_or_glass.xyz, notes.xyz"
    )
    assert set(told(source)) == {"liquid_1.xyz", "glass_1.xyz"}


def test_a_folder_of_one_class_holds_no_other(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", "liquid/glass_3.png", "glass/3.png")
    with pytest.raises(DataError, match=r"liquid/glass_3\.png: is it liquid, as its folder says"):
        read_listing(source)


def test_pictures_beside_the_trajectory_files_they_show(tmp_path: Path) -> None:
    names = ("liquid_1.xyz", "glass_1.xyz", "liquid_1.png", "glass_1.png")
    with pytest.raises(DataError, match=r"pictures \(glass_1\.png\) and trajectory files"):
        read_listing(write_files(tmp_path / "in", *names))


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", "glass_1.xyz")
    (source / "liquid_1.xyz").write_text(xyz_text(1))
    (source / "liquid_1.xyz").rename(os.fsdecode(os.fsencode(source) + b"/liquid_\xff.xyz"))
    with pytest.raises(DataError, match=r"path 'liquid_.udcff\.xyz' names no file"):
        store(source, tmp_path)


def test_no_directory_and_nothing_to_import(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no directory"):
        store(tmp_path / "nowhere", tmp_path)
    source = tmp_path / "in"
    source.mkdir()
    with pytest.raises(
        DataError, match=r'has neither .* Write metadata\.json: \[{"path": "a\.png"'
    ):
        store(source, tmp_path)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(source / "x 1.png")
    with pytest.raises(DataError, match=r'\[{"path": "x 1\.png", "label": "glass"}, …\]'):
        store(source, tmp_path)
