"""Pictures and frames without labels become images, drawn as a run's own data were.

A source is one file, or a directory whose pictures and trajectory files are all taken, also those
in folders inside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glass_cnn.data.formats import IMAGE, KNOWN, Frame, kind_of, read_trajectory
from glass_cnn.data.mdanalysis import describes_another
from glass_cnn.data.pictures import check_sizes, read_picture
from glass_cnn.data.render import Image, render
from glass_cnn.data.store import image_columns
from glass_cnn.settings import RunSettings
from hpc.errors import DataError
from hpc.words import plural

PORTION = 256
"""images in memory at a time"""
SAME_SCALE = 0.01
"""relative difference in scale from which frames look unlike those that were trained on"""


@dataclass(frozen=True)
class Origin:
    """Where an image comes from."""

    file: str
    """relative to the source"""
    frame: int | None = None
    """index in its trajectory file; None for a picture"""
    window: int | None = None
    """number of the window of that frame; None where the whole box is shown"""
    temperature: float | None = None
    """ε/k_B; None where it is not known"""


@dataclass(frozen=True)
class Unlabelled:
    """What a source holds."""

    top: Path
    pictures: list[str]
    trajectories: list[str]
    remarks: list[str]
    """what people should know of it"""

    def images(
        self,
        settings: RunSettings,
        span: tuple[float, float] | None = None,
        tell: Callable[[str], object] = print,
    ) -> Iterator[tuple[list[Origin], Image]]:
        """Portions of images uint8 [n, pixels, pixels, 3] with the origin of each.

        `span` are temperatures of the first and the last frame of files that tell none, between
        which the others are evenly spaced; `tell` is given what is odd about a file. Raises
        DataError for one that cannot be used.
        """
        for first in range(0, len(self.pictures), PORTION):
            some = self.pictures[first : first + PORTION]
            how = (settings.render.pixels, settings.render.fit == "resize")
            drawn = np.stack([read_picture(self.top / name, *how) for name in some])
            yield [Origin(name) for name in some], drawn
        for name in self.trajectories:
            frames = read_trajectory(self.top / name, settings.data.types)
            if told := _scale(frames, settings):
                tell(f"{name}: {told}")
            yield from _drawn(self.top, name, frames, settings, span)


def look_into(source: Path, settings: RunSettings) -> Unlabelled:
    """What a source holds that a network of these settings can look at; raises DataError."""
    top = source if source.is_dir() else source.parent
    files = [path for path in _files(source) if not describes_another(path)]
    kinds = {path: kind_of(path) for path in files}
    named = [str(path.relative_to(top)) for path in files if kinds[path] is not None]
    pictures = [name for name in named if kinds[top / name] == IMAGE]
    left = [str(path.relative_to(top)) for path in files if kinds[path] is None]
    if not named:
        raise DataError(f"{source}: holds nothing to look at; known are {KNOWN}.")
    remarks = (
        [f"left out, of no known kind: {plural(len(left), 'file')}: {left[0]}"] if left else []
    )
    if pictures and (cut := check_sizes(top, pictures, settings.render)):
        remarks.append(cut)
    return Unlabelled(top, pictures, [name for name in named if name not in pictures], remarks)


def _files(source: Path) -> list[Path]:
    """The visible files of a source, numbers in their names in order; raises DataError."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source}: no such file or directory.")
    found = [path for path in source.rglob("*") if path.is_file()]
    parts = {path: path.relative_to(source).parts for path in found}
    seen = [path for path in found if not any(part.startswith(".") for part in parts[path])]
    return sorted(seen, key=lambda path: _natural(str(path)))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which frame_2 comes before frame_10."""
    return [(int(d or 0), text) for d, text in re.findall(r"(\d+)|(\D+)", name)]


def _drawn(
    top: Path,
    name: str,
    frames: list[Frame],
    settings: RunSettings,
    span: tuple[float, float] | None,
) -> Iterator[tuple[list[Origin], Image]]:
    """Images of all windows of a file's frames."""
    nothing = np.zeros(len(frames), np.uint8)
    boxes = np.stack([frame.configuration.box for frame in frames])
    columns = image_columns(
        {"label": nothing, "trajectory": nothing, "box": boxes}, settings.render
    )
    temperatures = _temperatures(frames, span)
    places = list(zip(columns["configuration"].tolist(), columns["corner"], strict=True))
    per = settings.render.windows_per_configuration
    for first in range(0, len(places), PORTION):
        some = list(enumerate(places[first : first + PORTION], first))
        origins = [
            Origin(name, k, i % per if settings.render.window else None, temperatures[k])
            for i, (k, _) in some
        ]
        try:
            drawn = [render(frames[k].configuration, settings.render, at) for _, (k, at) in some]
        except DataError as error:
            raise DataError(f"{top / name}: {error}") from None
        yield origins, np.stack(drawn)


def _temperatures(frames: list[Frame], span: tuple[float, float] | None) -> list[float | None]:
    told = [frame.temperature for frame in frames]
    if span is None or any(value is not None for value in told):
        return told
    return [float(value) for value in np.linspace(*span, len(frames))]


def _scale(frames: list[Frame], settings: RunSettings) -> str | None:
    """What people should know where frames are drawn at another scale than the run's data."""
    if settings.data.source != "simulation" or settings.render.window is not None:
        return None
    box = float(frames[0].configuration.box[0])
    if abs(box / settings.simulation.box - 1) < SAME_SCALE:
        return None
    return (
        f"the box is {box:.4g} σ wide, and {settings.simulation.box:.4g} σ where the network was "
        "trained: particles are drawn at another size than it has seen"
    )
