"""Starting a run from another run's weights: `train.restart_from`."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from glass_cnn.paths import RunDir
from glass_cnn.records import Lineage
from glass_cnn.settings import RunSettings
from glass_cnn.train_settings import RestartFrom
from hpc import checkpoint, checkpoint_names
from hpc.errors import ConfigError, DataError

SHOWN = 5
"""Directories that are named where a pattern fits several."""


@dataclass(frozen=True)
class Branch:
    """Weights (and the optimizer's state, if asked for) to start from."""

    tensors: dict[str, np.ndarray]
    updates: int
    """updates that the optimizer's state has seen; 0 without it"""
    lineage: Lineage
    """goes into the provenance"""


def open_branch(settings: RunSettings, root: Path, state: Mapping[str, Any]) -> Branch | None:
    """Read what `train.restart_from` names, None where it names nothing.

    Raises ConfigError when it is not there or its tensors do not fit `state` (name → tensor),
    DataError when it is damaged.
    """
    source = settings.train.restart_from
    if source is None:
        return None
    found = _locate(source, root, settings.seed)
    tensors = _chosen(found, source)
    _check_shapes(found.path, tensors, state)
    lineage = Lineage(
        run=_run_of(found.path).name,
        checkpoint=str(found.path),
        step=found.step,
        which=source.which,
        optimizer_state=source.optimizer_state,
    )
    return Branch(tensors, int(found.meta["updates"]) if source.optimizer_state else 0, lineage)


def _locate(source: RestartFrom, root: Path, seed: int) -> checkpoint.Checkpoint:
    pattern = source.run.replace("{seed}", str(seed))
    places = [Path(p) for p in sorted(glob.glob(str(Path(glob.escape(str(root))) / pattern)))]
    if len(places) != 1:
        _refuse(source.run, root, places)
    place = places[0]
    if (place / checkpoint_names.MANIFEST).exists():
        return _read(place)
    run = RunDir(place)
    if source.which == "best":
        return _read(run.checkpoints / checkpoint_names.BEST)
    newest = checkpoint.newest(run.checkpoints, None, lambda refused: print(refused, flush=True))
    if newest is None:
        raise ConfigError(
            f"train.restart_from.run {source.run!r}: {place} has no latest checkpoint; train it "
            "first, or take which: best (checkpoint.after_end: best keeps no other)."
        )
    return newest


def _refuse(pattern: str, root: Path, places: list[Path]) -> NoReturn:
    what, remedy = "nothing is there", "Train it first, or name it more exactly"
    if places:
        more = ", …" if len(places) > SHOWN else ""
        named = ", ".join(place.name for place in places[:SHOWN])
        what = f"{len(places)} directories fit, {named}{more}"
        remedy = (
            "They have other settings (see config.yaml in each): name the one that is meant, or "
            "move the others elsewhere"
        )
    raise ConfigError(
        f"train.restart_from.run {pattern!r} (from {root}): {what}; exactly one run or checkpoint "
        f"must be named. {remedy} ({{seed}} stands for this run's seed, * for anything)."
    )


def _read(path: Path) -> checkpoint.Checkpoint:
    try:
        return checkpoint.read(path)
    except checkpoint.InvalidCheckpoint as damage:
        raise DataError(
            f"train.restart_from: {damage} Train that run, or name another run or checkpoint."
        ) from None


def _run_of(path: Path) -> Path:
    return next((p.parent for p in path.parents if p.name == RunDir(p).checkpoints.name), path)


def _chosen(found: checkpoint.Checkpoint, source: RestartFrom) -> dict[str, np.ndarray]:
    kept = {k: v for k, v in found.tensors.items() if k.startswith("model/")}
    if source.optimizer_state:
        slots = {k: v for k, v in found.tensors.items() if k.startswith("optimizer/")}
        if not slots:
            raise ConfigError(
                f"train.restart_from.optimizer_state: {found.path} holds weights only; take a "
                "latest checkpoint or set optimizer_state: false."
            )
        kept |= slots
    return kept


def _check_shapes(path: Path, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
    for name, value in tensors.items():
        wanted = tuple(state[name].shape) if name in state else None
        if wanted != value.shape:
            raise ConfigError(
                f"train.restart_from: {name} of {path} has shape {list(value.shape)}, this run "
                f"needs {'none of it' if wanted is None else list(wanted)}; render.pixels and "
                "train.optimizer.kind must be those of the run it starts from."
            )
