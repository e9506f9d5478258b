"""What a physicist would try before a network: simple measures, and how well they tell glasses.

Measures of whole configurations: pair energy, smallest distance over σ_ij, mean |ψ6|, partial g(r);
of images: mean brightness (to which discs that overlap are enough), and the radial power spectrum,
which does not see it. Each goes into a logistic regression whose scores come from folds that never
cut a trajectory.
"""

from __future__ import annotations

import contextlib

import freud
import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from glass_cnn.analysis.dataset_summary import BRIGHTNESS, ENERGY, Baseline, Measured, Measures
from glass_cnn.analysis.evaluation import auc, auc_interval
from glass_cnn.configuration import Configuration
from glass_cnn.mixture import SIGMA, SPECIES
from glass_cnn.settings import CLASSES
from hpc.config import digest
from hpc.errors import DataError, StorageError
from hpc.files import write_json
from hpc.words import plural

FORMAT = 2
"""of what is kept beside a data set; of another one it is measured anew"""
MOST_PAIRS = 100
"""configurations of each class that g(r) is averaged over"""
FOLDS = 5
MOST = 2000
"""configurations, or images, that are measured at most"""
REACH = 1.5
"""distance within which the smallest one is sought, σ"""
BINS, R_MAX = 60, 4.0
"""bins of g(r) and their end, σ"""

Floats = NDArray[np.float64]


def measures(dataset: Measured, confidence: float = 0.95) -> Measures:
    """Baselines and g(r): those that are kept beside the data set, else measured, and kept."""
    asked = [FORMAT, confidence, dataset.record["data_fingerprint"], dataset.labels.tolist()]
    path = dataset.place.baselines(digest(asked))
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=Measures)
    found = _measure(dataset, confidence)
    with contextlib.suppress(StorageError):  # it may lie where nothing can be written
        write_json(path, msgspec.to_builtins(found))
    return found


def _measure(dataset: Measured, confidence: float) -> Measures:
    found: list[Baseline] = []
    without = ""
    try:
        found = baselines(dataset, confidence)
    except DataError as error:
        without = str(error).removeprefix(f"{dataset.path}: ")
    if not dataset.record["psi6"]:
        return Measures(found, without)
    return Measures(found, without, *_correlations(dataset))


def _correlations(dataset: Measured) -> tuple[list[float], dict[str, list[list[float]]]]:
    """Distances, and the mean g(r) of AA, AB and BB of each class there."""
    labels = dataset.column("configurations/label")
    chosen = {
        name: dataset.configurations(np.flatnonzero(labels == label)[:MOST_PAIRS])
        for label, name in enumerate(CLASSES)
    }
    r_max = min(reach(one) for some in chosen.values() for one in some)
    distance = (np.arange(BINS) + 0.5) * r_max / BINS
    means = {
        name: np.mean([pair_correlations(one, r_max) for one in some], axis=0)
        for name, some in chosen.items()
    }
    return distance.tolist(), {n: g.reshape(3, -1).round(5).tolist() for n, g in means.items()}


def baselines(dataset: Measured, confidence: float = 0.95) -> list[Baseline]:
    """Every measure that the data set allows; imported images have no configurations.

    Raises DataError when there are fewer trajectories than FOLDS, or fewer than two of a class.
    """
    _check_trajectories(dataset)
    rows = some_of(len(dataset.labels))
    images = dataset.images[rows]
    features = {
        BRIGHTNESS: np.array([[image.mean()] for image in images]),
        "image power spectrum": np.stack([power_spectrum(image) for image in images]),
    }
    labels, trajectories = dataset.labels[rows], dataset.trajectories[rows]
    found = [
        score(name, values, labels, trajectories, confidence) for name, values in features.items()
    ]
    if dataset.record["psi6"]:
        labels = dataset.column("configurations/label")
        rows = some_of(len(labels))
        labels = labels[rows]
        trajectories = dataset.column("configurations/trajectory")[rows]
        measures = configuration_measures(dataset, rows)
        found = [
            score(name, values, labels, trajectories, confidence)
            for name, values in measures.items()
        ] + found
    return found


def some_of(count: int) -> NDArray[np.intp]:
    """Rows of `count` that are measured: all, or MOST of them at random, always the same.

    Not the first ones: a data set may hold one class, or one trajectory, after the other.
    """
    return np.sort(np.random.default_rng(0).permutation(count)[:MOST])


def _check_trajectories(dataset: Measured) -> None:
    """Every fold must have both classes to learn from."""
    groups = len(np.unique(dataset.trajectories))
    if groups < FOLDS:
        raise DataError(
            f"{dataset.path}: has {plural(groups, 'trajectory')}; {FOLDS} are needed, one for "
            "each fold."
        )
    for label, name in enumerate(CLASSES):
        if len(np.unique(dataset.trajectories[dataset.labels == label])) < 2:
            raise DataError(
                f"{dataset.path}: all its {name} images are of one trajectory; 2 are needed, to "
                "learn from one what the other is."
            )


def configuration_measures(dataset: Measured, rows: NDArray[np.intp]) -> dict[str, Floats]:
    """Features [configurations, n] of each measure."""
    configurations = dataset.configurations(rows)
    energy = {}
    with contextlib.suppress(DataError):  # nobody told the energies of imported configurations
        energy[ENERGY] = dataset.column("configurations/potential_energy")[rows, None]
    return {
        **energy,
        "smallest distance / σ": np.array([[smallest_distance(one)] for one in configurations]),
        "mean |ψ6|": dataset.column("configurations/psi6")[rows, None],
        "g(r) of AA, AB, BB": np.stack([pair_correlations(one) for one in configurations]),
    }


def smallest_distance(configuration: Configuration) -> float:
    """Smallest r_ij/σ_ij over the pairs; inf if none is within REACH σ."""
    box = configuration.box
    tree = cKDTree(np.mod(configuration.positions, box), boxsize=box)
    pairs = tree.sparse_distance_matrix(tree, REACH, output_type="coo_matrix")
    apart = pairs.row < pairs.col
    i, j = configuration.species[pairs.row[apart]], configuration.species[pairs.col[apart]]
    return float(np.min(pairs.data[apart] / sigma_table()[i, j], initial=np.inf))


def sigma_table() -> Floats:
    """σ_ij by the numbers of both species, symmetric; no species has number 0."""
    table = np.full((max(SPECIES) + 1, max(SPECIES) + 1), np.nan)
    for (i, j), sigma in SIGMA.items():
        table[i, j] = table[j, i] = sigma
    return table


def reach(configuration: Configuration) -> float:
    """Where g(r) ends, σ: R_MAX, or half the box."""
    return min(R_MAX, 0.499 * float(configuration.box.min()))


def pair_correlations(configuration: Configuration, r_max: float | None = None) -> Floats:
    """Partial g(r) of AA, AB and BB up to `r_max`, one after the other, [3 · BINS].

    It is 0 where there is no pair, and goes as far as it can unless told otherwise.
    """
    r_max = r_max or reach(configuration)
    cell = freud.box.Box(*configuration.box, is2D=True)
    points = np.zeros((len(configuration), 3), np.float32)
    points[:, :2] = configuration.positions
    of = {number: points[configuration.species == number] for number in SPECIES}
    found = []
    for first, second in SIGMA:
        if not (len(of[first]) and len(of[second])):
            found.append(np.zeros(BINS))
            continue
        rdf = freud.density.RDF(bins=BINS, r_max=r_max)
        rdf.compute((cell, of[first]), query_points=of[second])
        found.append(np.where(rdf.bin_centers < 0.1, 0, rdf.rdf))  # a particle and itself
    return np.concatenate(found)


def power_spectrum(image: np.ndarray) -> Floats:
    """Log of an image's power, averaged over directions and colours, for each whole wave number."""
    pixels = image.shape[0]
    window = np.hanning(pixels)[:, None, None] * np.hanning(pixels)[None, :, None]
    values = (image - image.mean(axis=(0, 1))) * window
    power = (np.abs(np.fft.fft2(values, axes=(0, 1))) ** 2).mean(axis=2)
    wave = np.fft.fftfreq(pixels, 1 / pixels)
    ring = np.rint(np.hypot(wave[:, None], wave)).astype(int)
    inside = ring <= pixels // 2
    total = np.bincount(ring[inside], power[inside])
    return np.log(total[1:] / np.bincount(ring[inside])[1:] + 1e-12)


def score(
    name: str, features: Floats, labels: np.ndarray, trajectories: np.ndarray, confidence: float
) -> Baseline:
    """Accuracy and AUC of out-of-fold scores of a logistic regression on standardized features."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    labels = labels.astype(np.int64)
    scores = cross_val_predict(
        model, features, labels, groups=trajectories, cv=folds, method="decision_function"
    )
    low, high = auc_interval(scores, labels, trajectories, confidence)
    correct = int(((scores > 0) == labels).sum())
    return Baseline(name, features.shape[1], len(labels), correct, auc(scores, labels), low, high)
