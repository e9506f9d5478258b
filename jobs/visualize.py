"""What a run's saved model sees: figures and one page, visualize.html, in the run's directory.

Exit codes: 0 complete, 65 bad data or checkpoint, 78 bad configuration.
"""

from __future__ import annotations

import argparse
import os
import sys

from rich.console import Console

from glass_cnn.paths import logs_root
from hpc.commandline import Parser, run_main


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("visualize", __doc__)
    parser.add_run()
    parser.add_argument(
        "--which", choices=("best", "latest"), default="best", help="model (default: best)"
    )
    parser.add_logs("the one it lies in")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Draw what the model sees, and say where."""
    args = parse(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from glass_cnn.data.dataset import load, split
    from glass_cnn.report.visualize import visualize
    from glass_cnn.training.saved import find_run, open_model, outputs_of

    run, settings = find_run(args.run)
    model = open_model(run, settings, args.which)
    data = load(settings, logs_root(args.logs or outputs_of(run)))
    for path in visualize(run, model, args.which, data, split(data, settings)):
        Console().print(path, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_main(main))
