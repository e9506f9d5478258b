"""What a run's saved model says of pictures or trajectory frames without labels.

SOURCE is a file, or a directory whose pictures (PNG, JPEG, TIFF) and trajectory files (LAMMPS
dumps, extended XYZ, GSD) are all taken. Frames are drawn as the run's own data were. Writes a table
as CSV and Parquet, and p(glass) against temperature where the files tell temperatures
(`temperature=…` in the second line of an extended XYZ frame, a temperature in the log of a GSD
frame), or --temperatures does.
Exit codes: 0 complete, 65 bad data or checkpoint, 78 bad configuration.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from glass_cnn import numerics
from glass_cnn.study import find_run
from hpc.commandline import Parser, run_main
from hpc.files import make_directory, write_atomic
from hpc.words import plural

if TYPE_CHECKING:
    import polars as pl

    from glass_cnn.data.unlabelled import Unlabelled
    from glass_cnn.settings import RunSettings
    from glass_cnn.training.saved import SavedModel

SHOWN = 20
"""files that are told one by one"""


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("predict", __doc__)
    parser.add_run()
    parser.add_argument("source", metavar="SOURCE", type=source, help="file or directory")
    parser.add_argument(
        "--which", choices=("best", "latest"), default="best", help="model (default: best)"
    )
    parser.add_argument("--fit", choices=("crop", "resize"), help="what becomes of larger pictures")
    parser.add_argument(
        "--temperatures", metavar="FIRST:LAST", type=span,
        help="of the first and last frame of files that tell none, evenly spaced between",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="directory of the tables (default: the run's)"
    )
    return parser.parse_args(argv)


def source(text: str) -> Path:
    """SOURCE, which make passes on even where it is not given."""
    if not text:
        raise argparse.ArgumentTypeError("is not given; it names the file or directory to look at")
    return Path(text)


def span(text: str) -> tuple[float, float]:
    """Two temperatures with a colon between."""
    try:
        first, last = map(float, text.split(":"))
    except ValueError:
        first = last = math.nan
    if not (math.isfinite(first) and math.isfinite(last)):
        raise argparse.ArgumentTypeError(f"{text!r}: write FIRST:LAST in ε/k_B, such as 2.0:0.05")
    return first, last


def main(argv: list[str]) -> None:
    """Look at everything, then write what was seen."""
    args = parse(argv)
    run, settings = find_run(args.run)
    numerics.choose(settings.launch)  # as it was trained; before TensorFlow loads
    from glass_cnn.analysis.table import write_table
    from glass_cnn.data.unlabelled import look_into
    from glass_cnn.training.saved import open_model

    if args.fit is not None:
        render = settings.render.model_copy(update={"fit": args.fit})
        settings = settings.model_copy(update={"render": render})
    found = look_into(args.source, settings)
    console = Console()
    for remark in found.remarks:
        console.print(remark, soft_wrap=True)
    model = open_model(run, settings, args.which)
    table = predict(model, found, settings, args.temperatures)
    place = make_directory(args.output or run.predictions)
    name = args.source.resolve().name
    csv, parquet = place / f"{name}.csv", place / f"{name}.parquet"
    write_table(table, parquet, csv)
    tell(console, model, args.which, table)
    console.print(csv, parquet, sep="\n", soft_wrap=True)
    if table["temperature"].is_not_null().any():
        console.print(draw(table, settings, place / f"{name}.svg"), soft_wrap=True)


def predict(
    model: SavedModel,
    found: Unlabelled,
    settings: RunSettings,
    temperatures: tuple[float, float] | None,
) -> pl.DataFrame:
    """One row an image: where it comes from, both logits, the probability of glass."""
    import polars as pl

    schema = {
        "file": pl.String, "frame": pl.Int64, "window": pl.Int64, "temperature": pl.Float64,
        "logit_liquid": pl.Float64, "logit_glass": pl.Float64,
    }  # fmt: skip
    table = pl.DataFrame([*_rows(model, found, settings, temperatures)], schema, orient="row")
    gap = pl.col("logit_glass") - pl.col("logit_liquid")
    return table.with_columns(
        p_glass=1 / (1 + (-gap).exp()),
        predicted=pl.when(gap > 0).then(pl.lit("glass")).otherwise(pl.lit("liquid")),
    )


def _rows(
    model: SavedModel,
    found: Unlabelled,
    settings: RunSettings,
    temperatures: tuple[float, float] | None,
) -> Iterator[tuple[Any, ...]]:
    for origins, images in found.images(settings, temperatures, tell_note):
        for origin, logits in zip(origins, model.logits(images).tolist(), strict=True):
            place = (origin.file, origin.frame, origin.window, origin.temperature)
            yield (*place, *logits)


def tell_note(note: str) -> None:
    """What is odd about a file."""
    print(f"note: {note}", flush=True)


def tell(console: Console, model: SavedModel, which: str, table: pl.DataFrame) -> None:
    """How much of each file is called glass."""
    import polars as pl
    from rich.table import Table

    from glass_cnn.training.saved import WORDS

    title = f"{model.run.name}: {WORDS[which]} model, iteration {model.iteration}"
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    shown.add_column("file", overflow="fold")
    for heading in ("images", "called glass", "mean p(glass)"):
        shown.add_column(heading, justify="right", no_wrap=True)
    glass = (pl.col("predicted") == "glass").sum()
    files = table.group_by("file", maintain_order=True).agg(pl.len(), glass, pl.mean("p_glass"))
    for file, images, called, mean in files[:SHOWN].iter_rows():
        shown.add_row(file, f"{images:,d}", f"{called:,d}", f"{mean:.4f}")
    console.print(shown)
    if len(files) > SHOWN:
        console.print(f"and {plural(len(files) - SHOWN, 'file')} more")
    total = int((table["predicted"] == "glass").sum())
    console.print(f"{total:,d} of {plural(len(table), 'image')} are called glass")


def draw(table: pl.DataFrame, settings: RunSettings, path: Path) -> Path:
    """The figure along a cooling."""
    from glass_cnn.report.figures import as_svg, cooling_figure

    write_atomic(path, as_svg(cooling_figure(table, settings.data.transition_temperature)))
    return path


if __name__ == "__main__":
    sys.exit(run_main(main))
