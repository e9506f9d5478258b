"""Which data a run was trained on: told by their contents, for a name can come to hold others.

The fingerprint of a data set is made of its images in their order, their labels and their groups.
It stands in the data set's record, and is written down by every start of a run, in its checkpoints
and in its result. A run, its checkpoints and its numbers belong to those data alone.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from glass_cnn.paths import DatasetDir, RunDir, dataset_dir
from glass_cnn.records import DataIdentity, trained_on
from glass_cnn.settings import RunSettings
from glass_cnn.study import Study
from hpc.errors import DataError
from hpc.words import plural


class _Record(msgspec.Struct):
    """What is read of a data set's record here; data sets of older versions lack a fingerprint."""

    name: str
    created: str | None = None
    data_fingerprint: str | None = None


def stored(place: DatasetDir) -> DataIdentity | None:
    """The data that lie in a directory; None for none, for damaged ones, and where only opening
    the data set tells (those of older versions)."""
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
        record = msgspec.json.decode(place.record.read_bytes(), type=_Record)
        if record.data_fingerprint is not None:
            return DataIdentity(record.name, record.data_fingerprint, record.created)
    return None


def of(tree: Any) -> DataIdentity | None:
    """An identity from JSON values; None for what is none, as in what older versions wrote."""
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert(tree, DataIdentity)
    return None


def differ(trained: DataIdentity | None, now: DataIdentity | None) -> bool:
    """Whether something was trained on other data than there are now, as far as both are known."""
    return trained is not None and now is not None and trained.fingerprint != now.fingerprint


def check(what: Path, trained: DataIdentity | None, now: DataIdentity | None) -> None:
    """Raise DataError where `what` was trained on other data than there are now."""
    if trained is not None and now is not None and differ(trained, now):
        raise DataError(f"{what}: {superseded(trained, now)} {REMEDY}")


def superseded(trained: DataIdentity, now: DataIdentity) -> str:
    """One sentence that names both."""
    return (
        f"was trained on the data set {trained.name} as it was {trained}; under that name there "
        f"are now other data, {now}, and their results must not be mixed."
    )


REMEDY = (
    "Give the new data a data.name of their own and import them under that, or move what was "
    "trained on the old data away: then it is trained anew."
)


def check_study(study: Study, root: Path) -> str | None:
    """Raise DataError where runs of a study were trained on other data than there are now.

    Returns a note on runs that do not say, where it is worth one.
    """
    other, silent = compare(study, root)
    if other:
        run, trained, now = other[0]
        more = f" So were {plural(len(other) - 1, 'other run')}." if len(other) > 1 else ""
        raise DataError(f"{run.path}: {superseded(trained, now)}{more} {REMEDY}")
    if not silent:
        return None
    run, now = silent[0]
    runs = plural(len(silent), "run")
    return (
        f"{runs} of an older version (such as {run.name}) did not write down which data they were "
        f"trained on, and {now.name} was stored anew since, {now}. If these are other data, move "
        "those runs away: then they are trained anew."
    )


Other = list[tuple[RunDir, DataIdentity, DataIdentity]]
Silent = list[tuple[RunDir, DataIdentity]]


def compare(study: Study, root: Path) -> tuple[Other, Silent]:
    """Runs that were trained on other data than there are now, with both; and those that do not
    say, though this version has stored the data, as older versions wrote them."""
    now = {point.label: of_settings(point.settings, root) for point in study.points}
    other: Other = []
    silent: Silent = []
    for run in study.runs:
        here, place = now[run.point.label], study.run_dir(root, run)
        if here is None:
            continue
        trained = trained_on(place)
        if trained is None and place.provenance.exists():
            silent.append((place, here))
        elif trained is not None and differ(trained, here):
            other.append((place, trained, here))
    return other, silent


def of_settings(settings: RunSettings, root: Path) -> DataIdentity | None:
    """The data that settings name, as they are stored now under the logs directory `root`."""
    return stored(dataset_dir(root, settings.data.name, settings.dataset_digest()))
