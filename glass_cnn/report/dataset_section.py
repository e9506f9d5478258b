"""The data of a study on a page: pictures, counts, physics, and simple measures beside the network.

The same section stands first in report.html and alone in data_report.html.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from glass_cnn.analysis import statistics
from glass_cnn.analysis.best import Best
from glass_cnn.analysis.dataset_summary import BRIGHTNESS, ENERGY, Baseline, DatasetSummary
from glass_cnn.report import curves, words
from glass_cnn.report.curves import Frame
from glass_cnn.settings import CLASSES
from hpc.words import plural

PAIRS = ("AA", "AB", "BB")
PICTURE = 200
"""width of a picture on the page, px"""


class Data(NamedTuple):
    """One data set of a study, and what its networks came to."""

    summary: DatasetSummary
    best: Best | None


def section(data: Data) -> dict[str, Any]:
    """What the template shows of one data set."""
    summary = data.summary
    physics = dict(zip(CLASSES, summary.physics, strict=False))
    return {
        "name": summary.name,
        "what": describe(summary),
        "pictures": [
            (name, [_picture(image) for image in images])
            for name, images in zip(CLASSES, summary.samples, strict=True)
        ],
        "parts": summary.parts,
        "rows": _physics_rows(physics) if physics else [],
        "drawings": _drawings(summary, physics),
        "baselines": [_measure(each) for each in summary.measures.baselines],
        "without": summary.measures.without,
        "best": data.best,
        "verdict": verdict(summary, data.best),
    }


def describe(summary: DatasetSummary) -> str:
    """Where the data come from and how they are drawn, in words."""
    render, data = summary.settings["render"], summary.settings["data"]
    images = sum(sum(part.images) for part in summary.parts)
    origin = "imported"
    if not summary.imported:
        particles = summary.settings["simulation"]["particles"]
        origin = f"{data['form']} configurations of {particles:,d} particles, simulated"
    window = f"a window of {render['window']:g} σ" if render["window"] else "the whole box"
    drawn = "" if summary.imported and not summary.physics else f", each {window}"
    text = (
        f"{plural(images, 'picture')} of {render['pixels']} px{drawn}, from "
        f"{plural(summary.trajectories, 'trajectory')}: {origin}."
    )
    if summary.permuted:
        text += " Their labels are shuffled on purpose: nothing can be learned from them."
    return text


def _picture(image: np.ndarray) -> str:
    """A picture as a data address; small ones enlarged without smoothing."""
    drawn = Image.fromarray(image)
    if (times := round(PICTURE / drawn.width)) > 1:
        drawn = drawn.resize((drawn.width * times,) * 2, Image.Resampling.NEAREST)
    file = io.BytesIO()
    drawn.save(file, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# --- numbers ---------------------------------------------------------------------------------


def _physics_rows(physics: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Temperature, energy and order of both classes, mean ± standard deviation."""
    rows = (
        ("temperature", "Temperature (ε/k<sub>B</sub>)", 3),
        ("energy", "Potential energy (ε per particle)", 3),
        ("psi6", "Hexatic order, mean |ψ₆|", 3),
    )
    return [
        (Markup(title), [_spread(getattr(one, name), digits) for one in physics.values()])
        for name, title, digits in rows
    ]


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "not known"
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}".replace("-", "−")


def _measure(one: Baseline) -> dict[str, Any]:
    return {
        "name": one.name,
        "features": one.features,
        "right": f"{one.correct:,d}/{one.examples:,d}",
        "accuracy": words.percent(one.correct / one.examples),
        "auc": _auc(one.auc, one.low, one.high),
    }


def _auc(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f}–{high:.3f})"


def auc_of(best: Best) -> str:
    """The network's AUC with its interval; how to get it where it is not known."""
    return _auc(*best.auc) if best.auc else "after make evaluate"


def verdict(summary: DatasetSummary, best: Best | None) -> str:
    """Whether the network does better than the best single number, in one or two sentences."""
    single = [one for one in summary.measures.baselines if one.features == 1]
    rivals = single or summary.measures.baselines
    if not rivals:
        return f"No simple measure stands beside the network: {summary.measures.without}"
    rival = max(rivals, key=lambda one: (one.correct / one.examples, one.auc))
    of_pictures = not single or rival.name == BRIGHTNESS
    what = "pictures" if of_pictures else "configurations"
    alone = (
        f"{rival.name[0].upper()}{rival.name[1:]} alone tells {rival.correct:,d} of "
        f"{rival.examples:,d} {what} ({words.percent(rival.correct / rival.examples)}, AUC "
        f"{rival.auc:.3f})"
    )
    if best is None or best.test is None:
        return f"{alone}; there is no complete network to compare it with."
    thermal = not summary.imported and summary.settings["data"]["form"] == "thermal"
    name = "a thermometer" if rival.name == ENERGY and thermal else f"the {rival.name} alone"
    network = (
        f"the best network {best.test.k:,d} of {best.test.n:,d} test pictures "
        f"({words.percent(best.test.value)}, {words.interval(best.test)})"
    )
    return f"{alone}; {network}. It does {_compared(best, rival)} {name}."


def _compared(best: Best, rival: Baseline) -> str:
    assert best.test is not None
    simple = statistics.rate(rival.correct, rival.examples)
    _, low, high = statistics.difference(best.test, simple)
    if low > 0:
        return "better than"
    return "worse than" if high < 0 else "no better than"


# --- drawings --------------------------------------------------------------------------------


def _drawings(summary: DatasetSummary, physics: Mapping[str, Any]) -> list[tuple[Markup, str]]:
    """Energy against temperature, order, and g(r), each with its caption."""
    if not physics:
        return []
    drawn = []
    if all(one.energy and one.temperature for one in physics.values()):
        transition = float(summary.settings["data"]["transition_temperature"])
        caption = (
            "Potential energy of each configuration against the temperature that was set. The "
            f"dashed line is the assumed glass transition, T = {words.number(transition)} ε/k_B."
        )
        drawn.append((_energies(physics, transition), caption))
    drawn.append((_order(physics), "How ordered the configurations of each class are."))
    if summary.measures.correlations:
        drawn += _correlations(summary.measures.distance, summary.measures.correlations)
    return [(Markup(svg), caption) for svg, caption in drawn]


def _energies(physics: Mapping[str, Any], transition: float) -> str:
    energies = [value for one in physics.values() for value in one.energy]
    hottest = max(value for one in physics.values() for value in one.temperature)
    frame = _frame(40, 260, energies, end=1.05 * max(hottest, transition))
    place = float(frame.x(transition))
    parts = [curves.axes(frame), curves.rule(place, frame.top, place, frame.bottom, "onset")]
    for name, one in physics.items():
        parts.append(_dots(frame, one.temperature, one.energy, name))
    parts += [_key(frame), *_titles(frame, "temperature (ε/k_B)", "energy (ε per particle)")]
    return curves.drawing(320, 190, "Energy against temperature of both classes", parts)


def _order(physics: Mapping[str, Any]) -> str:
    values = [value for one in physics.values() for value in one.psi6]
    bins = np.linspace(min(values), max(values) + 1e-9, 25)
    shares = {name: _share(one.psi6, bins) for name, one in physics.items()}
    highest = max(float(share.max()) for share in shares.values())
    frame = Frame(40, 24, 260, 130, float(bins[-1]), 0, 1.05 * highest, float(bins[0]))
    parts = [curves.axes(frame)]
    for name, share in shares.items():
        x, y = np.repeat(bins, 2), np.concatenate([[0], np.repeat(share, 2), [0]])
        parts.append(curves.curve(frame, x, y, name))
    parts += [_key(frame), *_titles(frame, "mean |ψ₆|", "share of configurations")]
    return curves.drawing(320, 190, "Hexatic order of both classes", parts)


def _share(values: Sequence[float], bins: np.ndarray) -> np.ndarray:
    return np.histogram(values, bins)[0] / max(1, len(values))


def _correlations(
    distance: Sequence[float], found: Mapping[str, list[list[float]]]
) -> list[tuple[str, str]]:
    """A drawing for each pair of species, on one scale."""
    highest = max(max(line) for lines in found.values() for line in lines)
    drawn = []
    for index, pair in enumerate(PAIRS):
        frame = Frame(40, 24, 260, 130, distance[-1], 0, 1.05 * highest or 1)
        lines = [curves.curve(frame, distance, each[index], name) for name, each in found.items()]
        parts = [curves.axes(frame), *lines, _key(frame)]
        parts += _titles(frame, "distance (σ)", f"g(r) of {pair}")
        svg = curves.drawing(320, 190, f"Radial distribution function of {pair}", parts)
        caption = f"Where {pair[1]} particles are around {pair[0]}, averaged over each class."
        drawn.append((svg, caption))
    return drawn


def _frame(left: float, width: float, values: Sequence[float], end: float) -> Frame:
    """A panel that holds these values, with room above and below."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.5
    return Frame(left, 24, width, 130, end, low - room, high + room)


def _dots(frame: Frame, x: Sequence[float], y: Sequence[float], name: str) -> str:
    places = zip(frame.x(x).tolist(), frame.y(y).tolist(), strict=True)
    path = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in places if math.isfinite(b))
    return f'<path class="{name} dots" d="{path}"/>'


def _titles(frame: Frame, below: str, above: str) -> list[str]:
    middle = (frame.left + frame.right) / 2
    return [
        curves.text(middle, frame.bottom + 28, below, "", "middle"),
        curves.text(frame.left, 13, above),
    ]


def _key(frame: Frame) -> str:
    """Both classes with their colours, at the upper right."""
    parts = []
    for index, name in enumerate(CLASSES):
        left = frame.right - 92 + 48 * index
        parts.append(f'<path class="{name} key" d="M{left:g} 10h10"/>')
        parts.append(curves.text(left + 14, 13, name))
    return "".join(parts)
