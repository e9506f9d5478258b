"""A run's saved model as a file of Keras, a TensorFlow SavedModel, ONNX, or weights alone.

What the network does to an image first is part of it (of weights alone it is described). The file
is read back, and its logits on 100 images of the run's data are compared with those of the model
before it counts as written. It lies in the run's directory, under exported/, with a description.
Exit codes: 0 complete, 65 bad data or checkpoint, 78 bad configuration or a library missing, 70 the
exported model is not the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from glass_cnn import numerics
from glass_cnn.paths import logs_root
from glass_cnn.study import find_run
from hpc.commandline import Parser, run_main
from hpc.files import make_directory, write_json

if TYPE_CHECKING:
    from glass_cnn.settings import RunSettings


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("export", __doc__)
    parser.add_run()
    parser.add_argument(
        "--format", choices=("keras", "savedmodel", "onnx", "safetensors"), required=True
    )
    parser.add_argument(
        "--which", choices=("best", "latest"), default="best", help="model (default: best)"
    )
    parser.add_logs("the one it lies in")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Export one model, and say where it is."""
    args = parse(argv)
    run, settings = find_run(args.run)
    numerics.choose(settings.launch)  # as it was trained; before TensorFlow loads
    from glass_cnn.training.export import ENDINGS, describe, export
    from glass_cnn.training.saved import WORDS, open_model

    # In float32, as other programs compute, whatever it was trained in.
    train = settings.train.model_copy(update={"precision": "float32"})
    settings = settings.model_copy(update={"train": train})
    model = open_model(run, settings, args.which)
    images = some_images(settings, logs_root(args.logs or run.root))
    word = WORDS[args.which]
    path = make_directory(run.exported) / (word + ENDINGS[args.format])
    different = export(model, args.format, path, images)
    told = path.with_name(f"{path.name}.json")
    write_json(told, describe(model, word))
    console = Console()
    console.print(
        f"{run.name}: {word} model, iteration {model.iteration}: logits on {len(images)} images "
        f"differ by {different:.1e} of the largest",
        soft_wrap=True,
    )
    console.print(path, told, sep="\n", soft_wrap=True)


def some_images(settings: RunSettings, root: Path) -> np.ndarray:
    """Images of the test part of the run's data, uint8 [n, pixels, pixels, 3]; raises DataError."""
    from glass_cnn.data.dataset import load, split
    from glass_cnn.training.export import CHECKED

    data = load(settings, root)
    parts = split(data, settings)
    chosen = np.concatenate([parts.test, parts.validation, parts.train])[:CHECKED]
    return np.asarray(data.images[np.sort(chosen)])


if __name__ == "__main__":
    sys.exit(run_main(main))
