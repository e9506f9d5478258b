"""Imports of pictures: of which kinds and sizes, and what is wrong with some of them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glass_cnn.data import dataset as data
from glass_cnn.data.pictures import look, picture_size, read_picture
from glass_cnn.settings import build_run
from hpc.errors import ConfigError, DataError
from tests.own_data import (
    UNSET_SIZE,
    nothing_is_stored,
    picture,
    store,
    with_changes,
    write_images,
    write_list,
)
from tests.test_formats_damage import WORDS_OF_LIBRARIES

COLOURS = picture(5, channels=3)


@pytest.mark.parametrize("channels", [3, 4])
def test_images_of_2017(tmp_path: Path, channels: int, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = write_images(tmp_path / "in", channels=channels)
    stored = store(source, tmp_path)
    assert stored.images.shape == (12, 20, 20, 3)
    for i in range(12):
        assert (stored.images[i] == picture(i, channels=channels)[..., :3]).all()
    assert stored.labels.tolist() == [0, 1] * 6
    assert stored.trajectories.tolist() == list(range(12))
    assert stored.column("images/path")[3] == "images/3.png"
    assert stored.record["source"] == str(source)
    told = capsys.readouterr().out
    assert "12 of 12 entries name no trajectory" in told
    assert ("12 of 12 pictures are transparent" in told) == (channels == 4)
    stored.verify()


def test_trajectories_of_images(tmp_path: Path) -> None:
    source, entries = write_images(tmp_path / "in")
    named = [{**entry, "trajectory": i // 2 % 3} for i, entry in enumerate(entries[:-1])]
    write_list(source, [*named, entries[-1]])
    assert store(source, tmp_path).trajectories.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 3]


def grey(seed: int = 5) -> np.ndarray:
    return picture(seed)[..., 0]


def as_colours(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[:, :, None], 3, axis=2)


def palette() -> Image.Image:
    image = Image.fromarray(grey() % 16, "P")
    image.putpalette(picture(1, size=(16, 1), channels=3).tobytes())
    return image


@pytest.mark.parametrize(
    ("name", "image", "wanted"),
    [
        ("grey.png", Image.fromarray(grey()), as_colours(grey())),
        ("grey.tif", Image.fromarray(grey()), as_colours(grey())),
        ("grey_alpha.png", Image.fromarray(picture(5)[..., :2].copy(), "LA"), as_colours(grey())),
        ("palette.png", palette(), picture(1, (16, 1), 3)[0][grey() % 16]),
        ("palette.tiff", palette(), picture(1, (16, 1), 3)[0][grey() % 16]),
        ("bits.png", Image.fromarray(grey() > 127), as_colours((grey() > 127) * np.uint8(255))),
        (
            "grey16.png",
            Image.fromarray(grey().astype(np.uint16) * 256 + 255),
            as_colours(grey()),
        ),
        ("grey16.tif", Image.fromarray(grey().astype(np.uint16) * 256 + 9), as_colours(grey())),
        ("big.tif", Image.fromarray(grey().astype(">u2") * 256 + 9), as_colours(grey())),
        ("colour.tif", Image.fromarray(COLOURS), COLOURS),
        ("alpha.tif", Image.fromarray(np.dstack([COLOURS, grey()])), COLOURS),
        ("wrong_ending.png", ("TIFF", Image.fromarray(COLOURS)), COLOURS),
        ("dump.7.png", Image.fromarray(COLOURS), COLOURS),
    ],
)
def test_pictures_of_other_kinds_become_colours(
    tmp_path: Path, name: str, image: Any, wanted: np.ndarray
) -> None:
    kind, image = image if isinstance(image, tuple) else (None, image)
    image.save(tmp_path / name, kind)
    assert picture_size(tmp_path / name) == (20, 20)
    assert (read_picture(tmp_path / name, 20) == wanted).all()
    assert read_picture(tmp_path / name, 20).dtype == np.uint8


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(tmp_path: Path, mode: str) -> None:
    smooth = np.add.outer(np.arange(20), np.arange(20)).astype(np.uint8) * 5
    Image.fromarray(as_colours(smooth)).convert(mode).save(tmp_path / "a.jpeg", quality=95)
    read = read_picture(tmp_path / "a.jpeg", 20).astype(int)
    assert np.abs(read - smooth[:, :, None]).max() <= 6


def test_a_transparent_colour_is_a_colour(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png", transparency=tuple(COLOURS[0, 0].tolist()))
    assert (read_picture(tmp_path / "a.png", 20) == COLOURS).all()
    assert look(tmp_path / "a.png", 20).transparent


# Sizes


def test_larger_images_are_cropped_where_a_size_is_set(tmp_path: Path) -> None:
    source, entries = write_images(tmp_path / "in", size=(31, 24))
    Image.fromarray(picture(0)).save(source / entries[0]["path"])
    stored = store(source, tmp_path)
    assert (stored.images[0] == picture(0)[..., :3]).all()
    assert (stored.images[1] == picture(1, size=(31, 24))[2:22, 5:25, :3]).all()


def with_render(**render: Any) -> Any:
    return with_changes(render=render)


@pytest.mark.parametrize(
    ("size", "render", "message"),
    [
        ((31, 24), {}, r"of other sizes than 250 × 250 pixels: 12 of 31 × 24\. Write render: "
            r"\{pixels: 24\} to take the centre of each, or render: \{pixels: 250, fit: resize\}"),
        ((20, 19), {"pixels": 20}, r"0\.png: is 20 × 19 pixels, smaller than render\.pixels 20\. "
            r"Write render\.pixels: 19 or less, or render\.fit: resize"),
        ((20, 19), {"pixels": 20, "fit": "crop"}, r"0\.png: is 20 × 19 pixels, smaller"),
        ((30, 27), {"pixels": 20}, r"0\.png: is 30 × 27 pixels: render\.pixels 20 takes its "
            r"centre, 49\.4% of it\. Write render: \{pixels: 20, fit: resize\} .* or fit: crop if"),
        ((60, 20), {"pixels": 20}, r"60 × 20 pixels: render\.pixels 20 takes its centre, 33\.3%"),
        ((60, 24), {"pixels": 20, "fit": "resize"}, r"its central square is 40\.0% of it\. Write "
            r"render\.fit: crop to take the centre"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused_with_the_line_to_write(
    tmp_path: Path,
    size: tuple[int, int],
    render: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, _ = write_images(tmp_path / "in", size=size)
    with pytest.raises(DataError, match=message):
        store(source, tmp_path, with_render(**render))
    assert "the central" not in capsys.readouterr().out
    assert nothing_is_stored(tmp_path)


def test_the_picture_that_would_lose_most_is_the_one_that_is_named(tmp_path: Path) -> None:
    source, _ = write_images(tmp_path / "in")
    Image.fromarray(picture(7, size=(200, 100))).save(source / "images/7.png")
    Image.fromarray(picture(3, size=(99, 99))).save(source / "images/3.png")
    with pytest.raises(DataError, match=r"images/7\.png: is 200 × 100 pixels: .* 2\.0% of it"):
        store(source, tmp_path)


def test_the_centre_is_taken_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_images(tmp_path / "in", size=(60, 50))
    stored = store(source, tmp_path, with_render(pixels=20, fit="crop"))
    assert (stored.images[3] == picture(3, size=(60, 50))[15:35, 20:40, :3]).all()
    told = "12 of 60 × 50; the central 20 × 20 of each is taken, at least 13% of it"
    assert told in capsys.readouterr().out


def test_whole_pictures_are_scaled_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A square of four times four pixels becomes one: their mean, to the filter's edges."""
    source, _ = write_images(tmp_path / "in")
    blocks = picture(3, size=(20, 20))
    large = blocks.repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray(np.pad(large, ((0, 0), (7, 7), (0, 0)))).save(source / "images/3.png")
    stored = store(source, tmp_path, with_render(pixels=20, fit="resize"))
    assert (stored.images[2] == picture(2)[..., :3]).all()
    inner = stored.images[3].astype(float)
    assert np.corrcoef(inner.ravel(), blocks[..., :3].ravel())[0, 1] > 0.9
    assert abs(inner.mean() - blocks[..., :3].mean()) < 2
    assert "the central square of each is scaled to 20 × 20" in capsys.readouterr().out


def test_small_pictures_are_enlarged_where_that_is_asked_for(tmp_path: Path) -> None:
    source, _ = write_images(tmp_path / "in", size=(10, 10))
    assert store(source, tmp_path, with_render(pixels=20, fit="resize")).images.shape[1] == 20


def test_how_pictures_fit_is_part_of_a_data_sets_name(tmp_path: Path) -> None:
    source, _ = write_images(tmp_path / "in")
    paths = {
        store(source, tmp_path, with_render(pixels=20, **fit)).path
        for fit in ({}, {"fit": "crop"}, {"fit": "resize"})
    }
    assert len(paths) == 3


def test_images_of_the_size_that_is_not_set(tmp_path: Path) -> None:
    source, _ = write_images(tmp_path / "in", count=2, size=(250, 250))
    assert store(source, tmp_path, UNSET_SIZE).images.shape == (2, 250, 250, 3)


@pytest.mark.parametrize(
    ("sections", "name"),
    [
        ({"render": {"pixels": 20, "window": 5.0}}, "render.window"),
        ({"data": {"name": "mine", "source": "import", "types": {"Ar": "A"}}}, "data.types"),
    ],
)
def test_settings_that_mean_nothing_for_pictures(
    tmp_path: Path, sections: dict[str, Any], name: str
) -> None:
    source, _ = write_images(tmp_path / "in")
    with pytest.raises(ConfigError, match=f"{name} has no meaning for imported pictures"):
        store(source, tmp_path, with_changes(**sections))


@pytest.mark.parametrize("sections", [{"render": {"fit": "crop"}}, {"data": {"types": {"a": "A"}}}])
def test_settings_of_imports_mean_nothing_for_simulations(sections: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"(fit|types) is for imported data, and data\.source is"):
        build_run(sections, "test")


# The same source, and another one


def test_same_source_again_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_images(tmp_path / "in")
    stored = store(source, tmp_path)
    before = stored.place.record.stat().st_mtime_ns
    moved = source.rename(tmp_path / "moved")
    again = store(moved, tmp_path)
    assert "imported already" in capsys.readouterr().out
    assert again.place.record.stat().st_mtime_ns == before


def test_another_source_under_the_same_name_is_refused(tmp_path: Path) -> None:
    source, _ = write_images(tmp_path / "in")
    stored = store(source, tmp_path)
    other = Path(shutil.copytree(source, tmp_path / "other"))
    Image.fromarray(picture(99)).save(other / "images/3.png")
    with pytest.raises(DataError, match=r"another data\.name") as error:
        store(other, tmp_path)
    for name in (source, other, stored.path):
        assert str(name) in str(error.value)
    assert (data.load(stored.place).images == stored.images).all()


def test_settings_that_ask_for_a_simulation(tmp_path: Path) -> None:
    source, _ = write_images(tmp_path / "in")
    with pytest.raises(ConfigError, match=r"data\.source is simulation: write data: {source: imp"):
        store(source, tmp_path, with_changes(data={"name": "mine"}))


# What is wrong with a picture


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-60] ^= 1
    path.write_bytes(content)


def in_alpha(path: Path) -> None:
    Image.fromarray(np.dstack([np.zeros((20, 20, 3), np.uint8), grey()])).save(path)


def grey_in_alpha(path: Path) -> None:
    white = np.full((20, 20), 255, np.uint8)
    Image.fromarray(np.dstack([white, grey()]), "LA").save(path)


def palette_in_alpha(path: Path) -> None:
    image = Image.fromarray(grey() % 2, "P")
    image.putpalette([7, 7, 7, 7, 7, 7])
    image.save(path, transparency=bytes([0, 255]))


def two_pages(path: Path) -> None:
    pages = [Image.fromarray(picture(seed)) for seed in (1, 2)]
    pages[0].save(path, "TIFF", save_all=True, append_images=pages[1:])


def animated(path: Path) -> None:
    pages = [Image.fromarray(picture(seed)) for seed in (1, 2)]
    pages[0].save(path, "PNG", save_all=True, append_images=pages[1:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"no image"), r"5\.png: is no PNG, JPEG or TIFF picture"),
        (lambda path: path.write_bytes(b""), r"5\.png: is no PNG, JPEG or TIFF picture"),
        (lambda path: Image.new("RGB", (20, 20)).save(path, "BMP"), "is no PNG, JPEG or TIFF"),
        (cut, r"5\.png: is a damaged picture, or cut"),
        (flip, r"5\.png: is a damaged picture, or cut"),
        *(
            (
                lambda path, mode=mode: Image.new(mode, (20, 20)).save(path, "TIFF"),
                rf"5\.png: is of mode {mode}, .* Convert it, .*: magick 5\.png -depth 8 PNG24:new",
            )
            for mode in ("F", "I", "LAB")
        ),
        (two_pages, r"5\.png: holds 2 pictures; save each"),
        (animated, r"5\.png: holds 2 pictures; save each"),
        (in_alpha, r"5\.png: its drawing lies in the alpha channel alone.*-background white"),
        (grey_in_alpha, r"alpha channel alone, .*: every pixel is 255, 255, 255"),
        (palette_in_alpha, r"alpha channel alone, .*: every pixel is 7, 7, 7"),
        (lambda path: Image.new("RGB", (20, 20), "white").save(path), r"5\.png: is blank"),
        (lambda path: Image.new("RGBA", (20, 20)).save(path), r"5\.png: is blank: .* 0, 0, 0"),
        (lambda path: Image.new("I;16", (20, 20), 40_000).save(path), r"5\.png: is blank"),
    ],
)
def test_bad_images(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    source, _ = write_images(tmp_path / "in")
    damage(source / "images/5.png")
    with pytest.raises(DataError, match=message) as error:
        store(source, tmp_path)
    assert not WORDS_OF_LIBRARIES.search(str(error.value))
    assert nothing_is_stored(tmp_path)


def test_no_bit_of_a_png_changes_unseen(tmp_path: Path) -> None:
    """Packed pixels of a few colours often unpack to others: their checksums tell."""
    path = tmp_path / "a.png"
    image = np.full((20, 20, 3), 255, np.uint8)
    image[4:9, 4:9] = (255, 127, 14)
    Image.fromarray(image).save(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 128):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with contextlib.suppress(DataError):
                assert np.array_equal(read_picture(path, 20), image), (place, bit)


def test_pictures_cut_anywhere_are_refused(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "TIFF"):
        path = tmp_path / "a.png"
        Image.fromarray(COLOURS).save(path, kind)
        whole = path.read_bytes()
        for end in range(0, len(whole) - 20, 41):
            path.write_bytes(whole[:end])
            with pytest.raises(DataError, match=r"a\.png: is (no PNG|a damaged)"):
                read_picture(path, 20)


def test_pictures_of_too_many_pixels_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their header, before memory is taken for them."""
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 199)
    with pytest.raises(DataError, match=r"a\.png: is a picture of too many pixels"):
        picture_size(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 201)  # Pillow would warn, in words of its own
    assert picture_size(tmp_path / "a.png") == (20, 20)


def test_pictures_that_are_blank_where_they_are_cropped(tmp_path: Path) -> None:
    framed = np.full((24, 24, 3), 255, np.uint8)
    framed[0] = 0
    Image.fromarray(framed).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="is blank: every pixel that is shown is 255, 255, 255"):
        look(tmp_path / "a.png", 20)


def test_dim_pictures_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as 12 bits in a file of 16."""
    source, _ = write_images(tmp_path / "in")
    for i in range(12):
        twelve_bits = grey(i).astype(np.uint16) * 16
        Image.fromarray(twelve_bits).save(source / f"images/{i}.png")
    store(source, tmp_path)
    assert "all colours lie between 0 and 15 of 0 to 255: the pictures" in capsys.readouterr().out
