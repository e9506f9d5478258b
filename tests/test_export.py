"""Models in forms of other programs: the same logits, preprocessing included."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_cnn.data.dataset import load
from glass_cnn.paths import RunDir
from glass_cnn.settings import load_run
from hpc.commandline import run_main
from hpc.errors import EXIT_COMPLETE, EXIT_CONFIG, EXIT_DATA, EXIT_INTERNAL
from jobs import export as export_job
from tests import saved_runs, tiny

pytestmark = [
    pytest.mark.usefixtures("tensorflow"),
    # Keras asks TensorFlow's variables for arrays as NumPy 1 did.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras"),
]

RECIPES = ("swanson2017", "modern")


@pytest.fixture(scope="module")
def logs(tiny_logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.share(tiny_logs, tmp_path_factory.mktemp("export") / "logs")


@pytest.fixture(scope="module", params=RECIPES)
def run(request: pytest.FixtureRequest, logs: Path) -> RunDir:
    return saved_runs.untrained(logs, model={"recipe": request.param})


def exported(run: RunDir, form: str) -> Path:
    assert run_main(export_job.main, [str(run.path), "--format", form]) == EXIT_COMPLETE
    (path,) = run.exported.glob(f"optimal.{form}")
    return path


def images_and_logits(run: RunDir, logs: Path) -> tuple[np.ndarray, np.ndarray]:
    from glass_cnn.training.saved import open_model

    settings = load_run(run.config)
    images = load(settings, logs).images[:100]
    return images, open_model(run, settings, "best").logits(images)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max()))


def test_keras_gives_the_same_logits(run: RunDir, logs: Path) -> None:
    from glass_cnn.tensorflow import tf

    images, logits = images_and_logits(run, logs)
    whole = tf.keras.models.load_model(exported(run, "keras"))
    assert close(whole.predict(images, verbose=0), logits)
    assert [layer.name for layer in whole.layers][1:3] == ["prepare", "conv1"]


def test_a_saved_model_gives_the_same_logits_and_probabilities(run: RunDir, logs: Path) -> None:
    from glass_cnn.tensorflow import tf

    images, logits = images_and_logits(run, logs)
    serve = tf.saved_model.load(str(exported(run, "savedmodel"))).signatures["serving_default"]
    found = serve(image=tf.constant(images))
    assert close(found["logits"].numpy(), logits)
    assert found["probabilities"].numpy().sum(axis=1) == pytest.approx(1, abs=1e-6)


def test_onnx_gives_the_same_logits(run: RunDir, logs: Path) -> None:
    import onnxruntime

    images, logits = images_and_logits(run, logs)
    session = onnxruntime.InferenceSession(str(exported(run, "onnx")))
    found, share = session.run(["logits", "probabilities"], {"image": images})
    assert close(found, logits)
    assert share.sum(axis=1) == pytest.approx(1, abs=1e-6)


def test_weights_alone_come_with_what_is_to_be_done(run: RunDir, logs: Path) -> None:
    """By nothing but NumPy and the description."""
    from safetensors.numpy import load_file

    images, logits = images_and_logits(run, logs)
    path = exported(run, "safetensors")
    told = json.loads(path.with_name(f"{path.name}.json").read_text())
    weights = load_file(path)
    assert sorted(f"{k} {list(v.shape)}" for k, v in weights.items()) == sorted(told["layers"])
    prepared = told["preparation"]["scale"] * images[:4].astype(float)
    x = prepared + told["preparation"]["offset"]
    for name in ("conv1", "conv2"):
        kernel = weights[f"{name}/weights"]
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
        x = np.einsum("nrcixy,xyio->nrco", windows, kernel, optimize=True)
        x = np.maximum(x + weights[f"{name}/biases"], 0)
    x = x.reshape(len(x), -1) @ weights["dense/weights"] + weights["dense/biases"]
    found = np.maximum(x, 0) @ weights["output/weights"] + weights["output/biases"]
    assert close(found, logits[:4])


def test_a_model_that_differs_is_not_kept(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from glass_cnn.training import export

    monkeypatch.setattr(export, "preparation", lambda _: (0.004, 0.0))
    words = [str(run.path), "--format", "keras", "--which", "latest"]
    assert run_main(export_job.main, words) == EXIT_INTERNAL
    assert "optimal" not in capsys.readouterr().err
    assert not list(run.exported.glob("*final*"))


def test_a_missing_library_is_told(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert run_main(export_job.main, [str(run.path), "--format", "onnx"]) == EXIT_CONFIG
    assert "FORMAT=onnx needs onnx" in capsys.readouterr().err


def test_without_its_data_nothing_can_be_compared(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    words = [str(tmp_path / "run"), "--format", "keras", "--logs", str(tmp_path)]
    assert run_main(export_job.main, words) == EXIT_DATA
    assert "there is no such data set" in capsys.readouterr().err
