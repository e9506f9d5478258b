"""A run's saved models, the optimal and the final one, on validation and test.

Prints accuracy, loss, confusion matrix, AUC and calibration, and writes them to evaluation.json in
the run's directory. Exit codes: 0 complete, 65 bad data or checkpoint, 78 bad configuration.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from glass_cnn import data_identity, numerics
from glass_cnn.paths import logs_root
from glass_cnn.records import trained_on
from glass_cnn.study import find_run
from hpc.commandline import Parser, run_main
from hpc.errors import ConfigError
from hpc.files import write_json

if TYPE_CHECKING:
    from glass_cnn.analysis.evaluation import Quality
    from glass_cnn.data.dataset import Dataset, Parts
    from glass_cnn.settings import RunSettings
    from glass_cnn.training.saved import SavedModel

PARTS = ("validation", "test")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("evaluate", __doc__)
    parser.add_run()
    parser.add_argument("--which", choices=("best", "latest"), help="one model (default: both)")
    parser.add_argument("--data", metavar="STUDY", help="on another study's data set")
    parser.add_logs("the one it lies in")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Evaluate what is kept of the run."""
    args = parse(argv)
    run, settings = find_run(args.run)
    numerics.choose(settings.launch)  # as it was trained; before TensorFlow loads
    from glass_cnn.data.dataset import load, split
    from glass_cnn.training.saved import open_all, open_model

    root = logs_root(args.logs or run.root)
    source = settings if args.data is None else other_data(args.data, root)
    data = load(source, root)
    if args.data is None:
        data_identity.check(run.path, trained_on(run), data.identity)
    data.verify()
    parts = split(data, source)
    models = (
        open_all(run, settings)
        if args.which is None
        else [(args.which, open_model(run, settings, args.which))]
    )
    tree: dict[str, Any] = {"run": run.name, "data": data.path.name, "models": {}}
    console = Console()
    console.print(f"{run.path}\n{data.describe()}", soft_wrap=True)
    for which, model in models:
        found = measure(model, data, parts)
        tree["models"][which] = {
            "step": model.saved.step, **{part: each.tree() for part, each in found.items()}
        }  # fmt: skip
        show(console, which, model, found)
    if args.data is None and args.which is None:
        write_json(run.evaluation, tree)
        console.print(run.evaluation, soft_wrap=True)


def other_data(config: str, root: Path) -> RunSettings:
    """Settings of the one data set of another study; raises ConfigError when it has several."""
    from glass_cnn.study import load_study

    found = load_study(config, (), root).datasets
    if len(found) != 1:
        raise ConfigError(
            f"--data {config}: the study has {len(found)} data sets; name a study of one."
        )
    return found[0]


def measure(model: SavedModel, data: Dataset, parts: Parts) -> dict[str, Quality]:
    """One model on validation and test."""
    from glass_cnn.analysis.evaluation import evaluate

    found = {}
    for name in PARTS:
        part = getattr(parts, name)
        logits = model.logits(data.images[part])
        confidence = model.settings.analysis.confidence
        found[name] = evaluate(logits, parts.labels[part], parts.trajectories[part], confidence)
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
