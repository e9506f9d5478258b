"""A saved model in forms that other programs read, with its preprocessing; each checked.

Every form takes images as they are stored, uint8 [n, pixels, pixels, 3] with row 0 at the top, and
gives logits [n, 2], liquid and glass. What `Network.prepare` does to an image is a scale and an
offset; it is measured there, so that a recipe is known in one place. Weights alone (safetensors)
come with a description of what is to be done with them.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from glass_cnn.settings import CLASSES
from glass_cnn.tensorflow import tf
from glass_cnn.training.model import CLASSES as OUTPUTS
from glass_cnn.training.model import Network
from glass_cnn.training.saved import SavedModel
from hpc import tensorfile
from hpc.errors import ConfigError, UserError
from hpc.files import storage_errors

Format = Literal["keras", "savedmodel", "onnx", "safetensors"]
ENDINGS: dict[Format, str] = {
    "keras": ".keras", "savedmodel": ".savedmodel", "onnx": ".onnx", "safetensors": ".safetensors",
}  # fmt: skip
TOLERANCE = 1e-5
"""largest difference of a logit, over the largest logit where that exceeds 1"""
CHECKED = 100
"""images on which logits are compared"""
PORTION = 20
"""images at a time"""
OPSET = 17
"""of ONNX; what every runtime since 2022 reads"""

Logits = Callable[[np.ndarray], np.ndarray]
Write = Callable[[SavedModel, Path], None]
Read = Callable[[SavedModel, Path], Logits]


def export(model: SavedModel, form: Format, path: Path, images: np.ndarray) -> float:
    """Write a model, read it back, and return by how much its logits differ on `images`.

    The difference is over the largest logit where that exceeds 1. Raises UserError, and leaves
    nothing, where it is above TOLERANCE; ConfigError where a library is missing; StorageError.
    """
    write, read = FORMS[form]
    aside = path.with_name(f".writing-{path.name}")
    _remove(aside)
    try:
        with storage_errors(path):
            write(model, aside)
        different = difference(read(model, aside), model.logits, images)
        if not different <= TOLERANCE:
            raise UserError(
                f"{path}: not written: read back, its logits on {len(images)} images differ by "
                f"{different:.2g}, and {TOLERANCE:g} is allowed."
            )
        with storage_errors(path):
            _remove(path)
            aside.rename(path)
    finally:
        _remove(aside)
    return different


def difference(one: Logits, other: Logits, images: np.ndarray) -> float:
    """Largest difference of two models' logits on images, over the largest logit or 1."""
    found, expected = (
        np.concatenate([f(images[s : s + PORTION]) for s in range(0, len(images), PORTION)])
        for f in (one, other)
    )
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def describe(model: SavedModel, which: str) -> dict[str, Any]:
    """What people need to use an exported model, as JSON values."""
    settings, (scale, offset) = model.settings, preparation(model.network)
    pixels = settings.render.pixels
    return {
        "run": model.run.name,
        "model": which,
        "step": model.saved.step,
        "iteration": model.iteration,
        "seed": settings.seed,
        "weights_sha256": tensorfile.digest_tensors(_weights(model, "model/")),
        "input": {
            "name": "image",
            "type": "uint8",
            "shape": [None, pixels, pixels, 3],
            "meaning": "RGB, row 0 at the top; drawn as render says",
        },
        "preparation": {
            "formula": "scale * image + offset, in float32",
            "scale": scale,
            "offset": offset,
            "included": "in keras, savedmodel and onnx; not in safetensors",
        },
        "layers": [
            f"{name} {list(weights.shape)}" for name, weights in _weights(model).items()
        ],
        "order": "convolutions are VALID, stride 1, [rows, columns, in, out]; ReLU after both and "
        "after dense; the images are flattened by row, column, channel; no dropout",
        "output": {"logits": list(CLASSES), "probabilities": "softmax of them"},
        "render": settings.render.model_dump(mode="json"),
    }  # fmt: skip


def preparation(network: Network) -> tuple[float, float]:
    """Scale and offset that make the network's input of an image."""
    ends = tf.reshape(tf.constant([0, 255], tf.uint8), (2, 1, 1, 1))
    low, high = network.prepare(ends).numpy().ravel().tolist()
    return (high - low) / 255, low


def _weights(model: SavedModel, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: value.numpy() for name, value in model.network.parameters.items()}


# --- Keras and SavedModel --------------------------------------------------------------------


def _write_keras(model: SavedModel, path: Path) -> None:
    layers, pixels = tf.keras.layers, model.settings.render.pixels
    scale, offset = preparation(model.network)
    image = tf.keras.Input((pixels, pixels, 3), dtype="uint8", name="image")
    x = layers.Rescaling(scale, offset, name="prepare")(image)
    named = _weights(model)
    for name in ("conv1", "conv2"):
        rows, columns, _, filters = named[f"{name}/weights"].shape
        x = layers.Conv2D(filters, (rows, columns), activation="relu", name=name)(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(named["dense/weights"].shape[1], activation="relu", name="dense")(x)
    x = layers.Dropout(model.settings.train.dropout, name="dropout")(x)
    whole = tf.keras.Model(image, layers.Dense(OUTPUTS, name="output")(x), name="glass_cnn")
    for name in ("conv1", "conv2", "dense", "output"):
        whole.get_layer(name).set_weights([named[f"{name}/weights"], named[f"{name}/biases"]])
    aside = path.with_name(f"{path.name}.keras")  # Keras tells the format by the name
    whole.save(aside)
    aside.rename(path)


def _read_keras(_: SavedModel, path: Path) -> Logits:
    aside = path.with_name(f"{path.name}.keras")
    path.rename(aside)
    try:
        whole = tf.keras.models.load_model(aside, compile=False)
    finally:
        aside.rename(path)
    return lambda images: whole(tf.constant(images), training=False).numpy()


def _write_savedmodel(model: SavedModel, path: Path) -> None:
    pixels = model.settings.render.pixels
    whole = tf.Module(name="glass_cnn")
    whole.network = _network(model, _weights(model))

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = whole.network.logits(image)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    signature = [tf.TensorSpec((None, pixels, pixels, 3), tf.uint8, name="image")]
    whole.serve = tf.function(serve, autograph=False, input_signature=signature)
    tf.saved_model.save(whole, str(path), signatures={"serving_default": whole.serve})


def _read_savedmodel(_: SavedModel, path: Path) -> Logits:
    whole = tf.saved_model.load(str(path))
    return lambda images: whole.serve(tf.constant(images))["logits"].numpy()


# --- ONNX ------------------------------------------------------------------------------------


class Node(NamedTuple):
    """One operation of an ONNX graph."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any] = {}


NODES = (
    Node("Cast", ("image",), "values", {"to": 1}),  # float32
    Node("Mul", ("values", "scale"), "scaled"),
    Node("Add", ("scaled", "offset"), "prepared"),
    Node("Transpose", ("prepared",), "channels_first", {"perm": [0, 3, 1, 2]}),
    Node("Conv", ("channels_first", "conv1/weights", "conv1/biases"), "conv1"),
    Node("Relu", ("conv1",), "conv1_relu"),
    Node("Conv", ("conv1_relu", "conv2/weights", "conv2/biases"), "conv2"),
    Node("Relu", ("conv2",), "conv2_relu"),
    Node("Transpose", ("conv2_relu",), "channels_last", {"perm": [0, 2, 3, 1]}),
    Node("Flatten", ("channels_last",), "flat", {"axis": 1}),
    Node("Gemm", ("flat", "dense/weights", "dense/biases"), "dense"),
    Node("Relu", ("dense",), "dense_relu"),
    Node("Gemm", ("dense_relu", "output/weights", "output/biases"), "logits"),
    Node("Softmax", ("logits",), "probabilities", {"axis": 1}),
)


def _write_onnx(model: SavedModel, path: Path) -> None:
    onnx = _library("onnx")
    _library("onnxruntime")  # with which it is checked
    helper, kinds = onnx.helper, onnx.TensorProto
    pixels, (scale, offset) = model.settings.render.pixels, preparation(model.network)
    values = _weights(model)
    values |= {"scale": np.array(scale, np.float32), "offset": np.array(offset, np.float32)}
    for name in ("conv1/weights", "conv2/weights"):
        values[name] = np.ascontiguousarray(values[name].transpose(3, 2, 0, 1))
    graph = helper.make_graph(
        [helper.make_node(n.kind, n.inputs, [n.output], **n.attributes) for n in NODES],
        "glass_cnn",
        [helper.make_tensor_value_info("image", kinds.UINT8, ["n", pixels, pixels, 3])],
        [
            helper.make_tensor_value_info(name, kinds.FLOAT, ["n", OUTPUTS])
            for name in ("logits", "probabilities")
        ],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    whole = helper.make_model(graph, producer_name="glass-cnn", opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(whole)
    onnx.save(whole, str(path))


def _read_onnx(_: SavedModel, path: Path) -> Logits:
    session = _library("onnxruntime").InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["logits"], {"image": np.ascontiguousarray(images)})[0]


def _library(name: str) -> Any:
    """A library that is no part of the environment; raises ConfigError where it is missing."""
    try:
        if name == "onnx":
            importlib.import_module("onnx.checker")
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"FORMAT=onnx needs {name}, which only tests install: "
            ".venv/bin/python -m pip install 'onnx<1.20' onnxruntime; or take another format."
        ) from None


# --- Weights alone ---------------------------------------------------------------------------


def _write_safetensors(model: SavedModel, path: Path) -> None:
    tensors = _weights(model)
    snapshot = tensorfile.Snapshot(tensorfile.lay_out(tensors))
    snapshot.fill(tensors)
    tensorfile.write(path, snapshot)


def _read_safetensors(model: SavedModel, path: Path) -> Logits:
    network = _network(model, tensorfile.load(path))
    return lambda images: network.logits(tf.constant(images)).numpy()


def _network(model: SavedModel, weights: Mapping[str, np.ndarray]) -> Network:
    """The network in float32 and with plain convolutions, as it should be anywhere."""
    settings = model.settings
    network = Network(settings.recipe, settings.render.pixels, settings.seed)
    for name, value in weights.items():
        network.parameters[name].assign(value)
    return network


FORMS: dict[Format, tuple[Write, Read]] = {
    "keras": (_write_keras, _read_keras),
    "savedmodel": (_write_savedmodel, _read_savedmodel),
    "onnx": (_write_onnx, _read_onnx),
    "safetensors": (_write_safetensors, _read_safetensors),
}
"""how each form is written, and read back"""
