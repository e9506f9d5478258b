"""A run's saved models, the optimal and the final one, on validation and test.

Prints accuracy, loss, confusion matrix, AUC and calibration, and writes them to evaluation.json in
the run's directory. On another data set (--data) all images count but those of trajectories that
the run was trained on or its optimal model chosen by. Intervals of the AUC are percentiles of a
bootstrap that draws whole trajectories. Exit codes: 0 complete, 65 bad data or checkpoint, 78 bad
configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from glass_cnn import data_identity, numerics
from glass_cnn.paths import DatasetDir, logs_root
from glass_cnn.records import trained_on
from glass_cnn.study import find_run
from hpc.commandline import Parser, run_main
from hpc.errors import ConfigError
from hpc.files import write_json

if TYPE_CHECKING:
    import numpy as np

    from glass_cnn.analysis.evaluation import Quality
    from glass_cnn.data.dataset import Dataset
    from glass_cnn.training.saved import SavedModel

PARTS = ("validation", "test")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("evaluate", __doc__)
    parser.add_run()
    parser.add_argument("--which", choices=("best", "latest"), help="one model (default: both)")
    parser.add_argument("--data", help="another data set: its directory, or a study of one")
    parser.add_logs("the one it lies in")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Evaluate what is kept of the run."""
    args = parse(argv)
    run, settings = find_run(args.run)
    numerics.choose(settings.launch)  # as it was trained; before TensorFlow loads
    from glass_cnn.data.dataset import load, split
    from glass_cnn.data.unseen import unseen
    from glass_cnn.training.saved import open_all, open_model

    root = logs_root(args.logs or run.root)
    own = load(settings, root)
    data_identity.check(run.path, trained_on(run), own.identity)
    split_of_own = split(own, settings)
    data = own if args.data is None else other_data(args.data, root)
    data.verify()
    parts = {name: getattr(split_of_own, name) for name in PARTS}
    note = ""
    if args.data is not None:
        rest, note = unseen(data, own, split_of_own)
        parts = {"unseen": rest}
    models = (
        open_all(run, settings)
        if args.which is None
        else [(args.which, open_model(run, settings, args.which))]
    )
    tree: dict[str, Any] = {"run": run.name, "data": data.path.name, "models": {}}
    console = Console()
    console.print(f"{run.path}\n{data.describe()}", soft_wrap=True)
    if note:
        console.print(note, soft_wrap=True)
    for which, model in models:
        found = measure(model, data, parts)
        tree["models"][which] = {
            "step": model.saved.step, **{part: each.tree() for part, each in found.items()}
        }  # fmt: skip
        show(console, which, model, found)
    if args.which is None:
        place = run.evaluation if args.data is None else run.evaluation_on(data.path.name)
        write_json(place, tree)
        console.print(place, soft_wrap=True)


def other_data(given: str, root: Path) -> Dataset:
    """A data set by its directory, or the one of a study; raises ConfigError, DataError."""
    from glass_cnn.data.dataset import load
    from glass_cnn.study import load_study

    place = DatasetDir(Path(given).absolute())
    if place.is_done():
        return load(place)
    found = load_study(given, (), root).datasets
    if len(found) != 1:
        raise ConfigError(
            f"--data {given}: the study has {len(found)} data sets; name the directory of one."
        )
    return load(found[0], root)


def measure(
    model: SavedModel, data: Dataset, parts: Mapping[str, np.ndarray]
) -> dict[str, Quality]:
    """One model on parts of a data set, each told by the indices of its images."""
    from glass_cnn.analysis.evaluation import evaluate

    found = {}
    for name, part in parts.items():
        logits = model.logits(data.images[part])
        confidence = model.settings.analysis.confidence
        found[name] = evaluate(logits, data.labels[part], data.trajectories[part], confidence)
    return found


def show(console: Console, which: str, model: SavedModel, found: dict[str, Quality]) -> None:
    """Two compact tables: the numbers, and predicted against observed probability."""
    from glass_cnn.training.saved import WORDS

    title = f"{WORDS[which]} model, iteration {model.iteration}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    level = f"{100 * model.settings.analysis.confidence:g} % interval"
    for heading, cells in rows(list(found.values()), level):
        table.add_row(heading, *cells)
    console.print(table)
    console.print(reliability(found))


def rows(found: list[Quality], level: str) -> list[tuple[str, list[str]]]:
    """Lines of the first table."""
    return [
        ("accuracy", [f"{e.accuracy.value:.3%} ({e.accuracy.k}/{e.examples})" for e in found]),
        (f"  {level}", [f"{e.accuracy.low:.2%} to {e.accuracy.high:.2%}" for e in found]),
        ("cross-entropy", [f"{e.loss:.4f}" for e in found]),
        ("AUC", [f"{e.auc:.4f}" for e in found]),
        (f"  {level} over trajectories", [f"{e.auc_low:.4f} to {e.auc_high:.4f}" for e in found]),
        ("liquid taken for liquid / glass", [_pair(e.confusion[0]) for e in found]),
        ("glass taken for liquid / glass", [_pair(e.confusion[1]) for e in found]),
        ("Brier score", [f"{e.brier:.4f}" for e in found]),
        ("calibration error", [f"{e.calibration_error:.4f}" for e in found]),
    ]


def _pair(row: Any) -> str:
    return f"{row[0]:,d} / {row[1]:,d}"


def reliability(found: dict[str, Quality]) -> Table:
    """Calibration: of the images that were given a probability, how many are glass."""
    table = Table(box=None, pad_edge=False)
    for heading in ("calibration", "images", "predicted glass", "observed glass"):
        table.add_column(heading, justify="left" if heading == "calibration" else "right")
    for name, each in found.items():
        for i, one in enumerate(each.bins):
            cells = (f"{one.examples:,d}", f"{one.predicted:.3f}", f"{one.observed:.3f}")
            table.add_row(name if i == 0 else "", *cells)
    return table


if __name__ == "__main__":
    sys.exit(run_main(main))
