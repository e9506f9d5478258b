"""What the network of one run sees: figures of its weights, its channels, and what sways it.

Everything is measured on validation images, by `glass_cnn.training.attribution`, which also says
how; here it is drawn. The score that is explained is the logit gap, glass minus liquid: positive
says glass.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from glass_cnn.paths import RunDir
from glass_cnn.report import palette
from glass_cnn.report.figures import STYLE
from glass_cnn.settings import CLASSES, RunSettings
from hpc.files import make_directory, write_atomic

COLORS = (palette.BLUE, palette.VERMILION)
"""of liquid and glass, distinct with any colour vision"""
SIGNED, UNSIGNED = "PuOr", "cividis"
"""colour maps for any colour vision: of signed values (0 is white), of values from 0 up"""
INPUTS = {
    "raw": "The input is the raw colour, 0–255.",
    "unit": "The input is the colour, 0–1.",
    "inverted": "The input is 1 − colour, so white is 0 and a positive weight answers to the "
    "absence of that colour.",
}
"""what the first layer's weights act on"""
EVIDENCE = LinearSegmentedColormap.from_list("evidence", [COLORS[0], "white", COLORS[1]])
"""from evidence for liquid to evidence for glass"""
EXAMPLES = 6
"""images in a row of examples"""
WIDTH = 9.6
"""width of a figure, inches"""

Floats = NDArray[np.float32]


class Plate(NamedTuple):
    """One figure with its words."""

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Probe:
    """Validation images and what the model says of them."""

    images: np.ndarray
    """uint8 [n, pixels, pixels, 3]"""
    labels: np.ndarray
    """0 liquid, 1 glass [n]"""
    gap: Floats
    """logit gap [n]"""

    def typical(self) -> list[int]:
        """Index of the liquid and of the glass whose gap is the median of its class."""
        found = []
        for label in (0, 1):
            mine = np.flatnonzero(self.labels == label)
            found.append(int(mine[np.argsort(self.gap[mine], kind="stable")[len(mine) // 2]]))
        return found

    def margin(self) -> Floats:
        """Gap towards the true class; negative is wrong."""
        return np.where(self.labels == 1, self.gap, -self.gap)

    def verdict(self, index: int) -> str:
        """True class, and the probability given to glass."""
        probability = 1 / (1 + np.exp(-float(self.gap[index])))
        return f"{CLASSES[self.labels[index]]}\np(glass) {probability:.3f}"

    def clearest(self) -> list[int]:
        """Of each class the image with the clearest right answer, and one of median clearness."""
        order = np.argsort(self.margin(), kind="stable")
        return [
            int(order[self.labels[order] == label][place])
            for label in (0, 1)
            for place in (-1, (self.labels == label).sum() // 2)
        ]


@dataclass(frozen=True)
class Seen:
    """Everything that the page shows of one model."""

    run: str
    model: str
    """which model of the run, in words"""
    iteration: int
    settings: RunSettings
    dataset: str
    """name of the data set"""
    probe: Probe
    weights: Mapping[str, np.ndarray]
    """the network's parameters by name"""
    typical_maps: tuple[Floats, Floats]
    """outputs of both convolutions for `probe.typical()`"""
    added: Floats
    """what each dense unit adds to the gap of each image of the probe [n, 80]"""
    clearest_maps: tuple[Floats, Floats, Floats]
    """gradient, class activation and occlusion maps of `probe.clearest()`"""
    batch: np.ndarray
    """images of the first training batch as they are stored"""
    versions: Sequence[np.ndarray]
    """the same as the first steps see them"""
    symmetries: Sequence[str]
    """what these versions differ by"""
    augmented: bool
    """whether the run trains with them"""


# --- figures ------------------------------------------------------------------------------------


def filters(seen: Seen) -> Plate:
    """Weights of both convolutions."""
    first, second = (seen.weights[f"conv{k}/weights"] for k in (1, 2))
    figure = _figure(WIDTH, 8.6)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.15])[:, 0]
    for part, weights, kinds in (
        (top, first, ["red", "green", "blue"]),
        (bottom, second, [f"from {k}" for k in range(1, 7)]),
    ):
        limit = _limit(weights)
        axes = np.asarray(part.subplots(weights.shape[2], weights.shape[3], squeeze=False))
        for (row, column), ax in np.ndenumerate(axes):
            drawn = ax.imshow(weights[:, :, row, column], SIGNED, vmin=-limit, vmax=limit)
            _bare(ax)
            if row == 0:
                ax.set_title(f"{column + 1}", fontsize=8, pad=2)
            if column == 0:
                ax.set_ylabel(kinds[row], rotation=0, ha="right", va="center", fontsize=8)
        part.colorbar(drawn, ax=axes, shrink=0.8, pad=0.01, label="weight")
    top.suptitle("first convolution: 6 filters of 10 × 10 × 3", fontsize=9)
    bottom.suptitle("second convolution: 16 filters of 5 × 5 × 6", fontsize=9)
    meaning = INPUTS[seen.settings.recipe.input]
    caption = (
        "Columns are filters, rows their input channels; each convolution has its own scale. "
        f"{meaning}"
    )
    return Plate("filters", "Filters of both convolutions", caption, figure)


def channels(seen: Seen) -> Plate:
    """Feature maps of both convolutions for a typical liquid and a typical glass."""
    probe, chosen = seen.probe, seen.probe.typical()
    conv1, conv2 = seen.typical_maps
    figure = _figure(WIDTH, 7.4)
    halves = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for k, (index, part) in enumerate(zip(chosen, halves, strict=True)):
        grid = part.add_gridspec(3, 10)
        picture = part.add_subplot(grid[:, :2])
        picture.imshow(probe.images[index])
        picture.set_title(probe.verdict(index), fontsize=9, color=COLORS[k])
        _bare(picture)
        for c in range(6):
            _map(part.add_subplot(grid[0, 2 + c]), conv1[..., c], k, f"1·{c + 1}")
        for c in range(16):
            place = grid[1 + c // 8, 2 + c % 8]
            _map(part.add_subplot(place), conv2[..., c], k, f"2·{c + 1}")
    caption = (
        "What the channels see in the validation liquid and glass whose score is the median of "
        "their class. Above, the 6 channels of the first convolution (1·…), below them the 16 of "
        "the second (2·…), after ReLU. Each channel has one scale for both images, from 0 (dark) "
        "to its largest value; “silent” channels are 0 everywhere in both."
    )
    return Plate("channels", "What the channels see", caption, figure)


def _map(ax: Axes, pair: Floats, k: int, title: str) -> None:
    top = float(pair.max())
    ax.imshow(pair[k], UNSIGNED, vmin=0, vmax=top or 1)
    ax.set_title(title if top > 0 else f"{title} silent", fontsize=7, pad=2)
    _bare(ax)


def dense_units(seen: Seen) -> Plate:
    """Mean contribution of each dense unit to the gap, for liquids and for glasses."""
    added, probe = seen.added, seen.probe
    means = np.stack([added[probe.labels == label].mean(axis=0) for label in (0, 1)])
    alive = np.flatnonzero((added != 0).any(axis=0))
    ranked = alive[np.argsort((means[1] - means[0])[alive], kind="stable")]
    biases = seen.weights["output/biases"]
    glasses = int(probe.labels.sum())
    dead = added.shape[1] - len(alive)
    figure = _figure(WIDTH, 3.2)
    ax = figure.subplots()
    places = np.arange(len(ranked))
    for label in (0, 1):
        ax.bar(
            places + 0.4 * label - 0.2, means[label, ranked], 0.4,
            color=COLORS[label], label=CLASSES[label],
        )  # fmt: skip
    ax.axhline(0, color=palette.LIGHT["ink"], lw=0.6)
    ax.set(xlabel="dense units that answer to any image, by difference", xticks=[])
    ax.set_ylabel("mean added to gap")
    figure.legend(loc="outside upper center", ncols=2)
    if not len(alive):
        ax.text(0.5, 0.5, "every unit is dead", transform=ax.transAxes, ha="center", va="center")
    caption = (
        f"What each of the {added.shape[1]} dense units adds to the logit gap (its activation "
        f"times its output weights' gap), averaged over the {len(probe.labels) - glasses} "
        f"liquids and {glasses} glasses of the probe. Up speaks for glass. {dead} units are "
        f"zero for every image; the output biases add {biases[1] - biases[0]:+.3g} to all."
    )
    return Plate("dense_units", "What the dense units add", caption, figure)


def saliency(seen: Seen) -> Plate:
    """Where the gap of two liquids and two glasses comes from."""
    probe, chosen = seen.probe, seen.probe.clearest()
    gradient, activation, hidden = seen.clearest_maps
    figure = _figure(WIDTH, 9.9)
    grid = figure.add_gridspec(len(chosen) + 1, 4, height_ratios=[*[1] * len(chosen), 0.05])
    axes = np.array([[figure.add_subplot(grid[r, c]) for c in range(4)] for r in range(4)])
    for row, index in enumerate(chosen):
        label = probe.labels[index]
        axes[row, 0].set_ylabel(probe.verdict(index), fontsize=9, color=COLORS[label])
        axes[row, 0].imshow(probe.images[index])
        axes[row, 1].imshow(gradient[row], UNSIGNED, vmin=0, vmax=np.quantile(gradient, 0.999))
        for column, maps in ((2, activation), (3, hidden)):
            limit = _limit(maps)
            drawn = axes[row, column].imshow(maps[row], EVIDENCE, vmin=-limit, vmax=limit)
            if row == 0:
                bar = figure.add_subplot(grid[-1, column])
                figure.colorbar(drawn, cax=bar, orientation="horizontal")
                bar.set_xticks([-limit, 0, limit], labels=["liquid", "0", "glass"])
    for ax, title in zip(
        axes[0], ("image", "gradient", "class activation", "occlusion"), strict=True
    ):
        ax.set_title(title, fontsize=9)
    for ax in axes.flat:
        _bare(ax)
    caption = (
        "For each class the validation image with the clearest right answer, and one of median "
        "clearness. Gradient: how much the gap answers to a change of each pixel (bright is "
        "more). Class activation: gradient times activation of the second convolution; its pixels "
        "are those of the valid convolutions, 13 fewer across. Occlusion: fall of the gap when a "
        "square an eighth of the image wide is replaced by the mean image. Blue is evidence "
        "for liquid and orange-red for glass; each column has one scale."
    )
    return Plate("saliency", "Where the answer comes from", caption, figure)


def examples(seen: Seen) -> Plate:
    """The clearest right answers and the worst mistakes."""
    probe = seen.probe
    order = np.argsort(probe.margin(), kind="stable")
    rows = [
        order[probe.labels[order] == 0][::-1][:EXAMPLES],
        order[probe.labels[order] == 1][::-1][:EXAMPLES],
        order[:EXAMPLES],
    ]
    wrong = int((probe.margin() <= 0).sum())
    figure = _figure(WIDTH, 6.3)
    axes = figure.subplots(3, EXAMPLES, squeeze=False)
    names = ("surest liquids", "surest glasses", "worst answers")
    for line, chosen, name in zip(axes, rows, names, strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for ax in line[1:]:
            ax.set_visible(False)
        for ax, index in zip(line, chosen, strict=False):
            ax.set_visible(True)
            ax.imshow(probe.images[index])
            right = probe.margin()[index] > 0
            title = probe.verdict(int(index)) + ("" if right else "  wrong")
            ax.set_title(title, fontsize=8, color=COLORS[probe.labels[index]])
            _bare(ax)
    caption = (
        "Validation images: liquids (first row) and glasses (second row) that the network is "
        f"surest of, and the {EXAMPLES} with the worst answers (third row). The title is the true "
        f"class. {wrong} of {len(probe.labels)} are wrong."
    )
    return Plate("examples", "Surest answers and worst mistakes", caption, figure)


def augmented(seen: Seen) -> Plate:
    """Images of the first training batch beside what augmentation makes of them."""
    figure = _figure(WIDTH, 6.9)
    axes = figure.subplots(4, EXAMPLES, squeeze=False)
    names = ["stored", "as in step 1", "as in step 2", "as in step 3"]
    for line, images, name in zip(axes, [seen.batch, *seen.versions], names, strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for ax in line[len(images) :]:
            ax.set_visible(False)
        for ax, image in zip(line, images, strict=False):
            ax.imshow(image)
        for ax in line:
            _bare(ax)
    state = (
        f"This run trains with {' and '.join(seen.symmetries)}."
        if seen.augmented
        else "This run trains without augmentation; so would rotations and flips change images."
    )
    caption = (
        f"{state} First row: images of its first batch as they are stored. Second row: the same "
        "as step 1 sees them; below, the symmetries that steps 2 and 3 draw for these places."
    )
    return Plate("augmentation", "Originals and their augmented versions", caption, figure)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _bare(ax: Axes) -> None:
    """An image without ticks, in a thin frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=True, color=palette.LIGHT["line"], linewidth=0.6)


def _limit(values: np.ndarray) -> float:
    """End of a symmetric colour scale: the largest magnitude but for one value in a thousand."""
    return float(np.quantile(np.abs(values), 0.999)) or 1.0


# --- the page -----------------------------------------------------------------------------------


def visualize(run: RunDir, seen: Seen) -> list[Path]:
    """Write all figures under the run's figures/ and visualize.html, which holds them all.

    Returns the files written. Raises StorageError when they cannot be.
    """
    drawers = (examples, channels, filters, saliency, dense_units, augmented)
    folder = make_directory(run.figures)
    written, figures = [], []
    for draw in drawers:
        with matplotlib.rc_context(STYLE):
            shown = draw(seen)
            png = _png(shown.figure)
        path = folder / f"{shown.name}.png"
        write_atomic(path, png)
        written.append(path)
        figures.append({**shown._asdict(), "data": base64.b64encode(png).decode()})
    write_atomic(run.pictures, _page(seen, figures))
    return [run.pictures, *written]


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()


def _page(seen: Seen, figures: list[dict[str, Any]]) -> str:
    right = float((seen.probe.margin() > 0).mean())
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("glass_cnn.report"), autoescape=True, trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("visualize.html.j2").render(
        run=seen.run,
        word=seen.model,
        iteration=seen.iteration,
        accuracy=f"{right:.2%}",
        images=len(seen.probe.labels),
        dataset=seen.dataset,
        render=seen.settings.render,
        recipe=seen.settings.model.recipe,
        figures=figures,
        colors=Markup(palette.variables()),
    )
