"""What a run's saved model sees: figures and one page, visualize.html, in the run's directory.

Exit codes: 0 complete, 65 bad data or checkpoint, 78 bad configuration.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from glass_cnn import data_identity, numerics
from glass_cnn.paths import logs_root
from glass_cnn.records import trained_on
from glass_cnn.study import find_run
from hpc.commandline import Parser, run_main

if TYPE_CHECKING:
    from glass_cnn.data.dataset import Dataset, Parts
    from glass_cnn.report.visualize import Seen
    from glass_cnn.training.saved import SavedModel, Which


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("visualize", __doc__)
    parser.add_run()
    parser.add_argument(
        "--which", choices=("best", "latest"), default="best", help="model (default: best)"
    )
    parser.add_logs("the one it lies in")
    return parser.parse_args(argv)


PROBE = 512
"""validation images that averages and extremes are taken from, at most"""


def main(argv: list[str]) -> None:
    """Draw what the model sees, and say where."""
    args = parse(argv)
    run, settings = find_run(args.run)
    numerics.choose(settings.launch)  # as it was trained; before TensorFlow loads
    from glass_cnn.data.dataset import load, split
    from glass_cnn.report.visualize import visualize
    from glass_cnn.training.saved import open_model

    model = open_model(run, settings, args.which)
    data = load(settings, logs_root(args.logs or run.root))
    data_identity.check(run.path, trained_on(run), data.identity)
    data.verify()
    for path in visualize(run, look(model, args.which, data, split(data, settings))):
        Console().print(path, soft_wrap=True)


def look(model: SavedModel, which: Which, data: Dataset, parts: Parts) -> Seen:
    """Everything that is shown of a model, measured on the first PROBE validation images."""
    from glass_cnn.data.batches import first_batch
    from glass_cnn.report.visualize import EXAMPLES, Probe, Seen
    from glass_cnn.training import attribution
    from glass_cnn.training.saved import WORDS

    part = parts.validation[:PROBE]  # in random order
    images = data.images[part]
    probe = Probe(images, parts.labels[part].astype(int), attribution.gaps(model, images))
    clearest = images[probe.clearest()]
    mean = images.mean(axis=0).astype(np.uint8)
    hidden = np.stack([attribution.occlusion(model, image, mean) for image in clearest])
    batch, versions, tried = first_batch(model.settings, data, parts, EXAMPLES)
    return Seen(
        run=model.run.name,
        model=WORDS[which],
        iteration=model.iteration,
        settings=model.settings,
        dataset=data.path.name,
        probe=probe,
        weights={name: value.numpy() for name, value in model.network.parameters.items()},
        typical_maps=attribution.feature_maps(model, images[probe.typical()]),
        added=attribution.contributions(model, images),
        clearest_maps=(*attribution.attribution(model, clearest), hidden),
        batch=batch,
        versions=versions,
        symmetries=[name for name, on in tried.model_dump().items() if on],
        augmented=tried == model.settings.train.augmentation,
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
