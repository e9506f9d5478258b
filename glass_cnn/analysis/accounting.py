"""What Slurm's accounting says of a study's runs, kept beside them, in place of their own count.

    logs/<study>/accounting.json    by job; asked for when a table or a report is made

A run counts what the start took that ended it (`records.Usage`). Attempts that were killed are in
Slurm's count alone, and so is what a run took that has not ended.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec
import polars as pl

from hpc.accounting import Taken, taken
from hpc.errors import DataError
from hpc.files import write_json

Known = Mapping[str, Taken]
"""by the id of the job"""

RUN, SLURM = "run", "slurm"
"""whose number it is: the run's own, or that of Slurm's accounting"""
EARLIER = datetime.timedelta(days=1)
"""that a job may have begun before its run did, with room for clocks"""


def read(path: Path) -> Known:
    """What is kept in accounting.json; raises DataError for a file that is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Taken])
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: {error}; remove it, it is made again from Slurm's accounting."
        ) from None


def renew(path: Path, table: pl.DataFrame) -> bool:
    """Ask Slurm about the jobs of a table's runs, unless they are over, and keep the answers.

    Returns whether there was something new; what Slurm has forgotten stays. Raises SlurmError,
    StorageError.
    """
    known = read(path)
    jobs = {job for text in table["slurm_jobs"].drop_nulls() for job in text.split()}
    asked = {job for job in jobs if job not in known or not known[job].over}
    began = [time for text in table["started"].drop_nulls() for time in _times(text)]
    told = taken(asked, min(began) - EARLIER) if asked and began else {}
    if told.items() <= known.items():
        return False
    write_json(path, msgspec.to_builtins({**known, **told}))
    return True


def _times(text: str) -> list[datetime.datetime]:
    """The time that a record names; none for one of a form that we do not write."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        return []
    return [time] if time.tzinfo else []


def counted(table: pl.DataFrame, known: Known) -> pl.DataFrame:
    """The table with Slurm's numbers where it told of all jobs of a run.

    Runs that share a job have equal parts of its cores' time, and their own count of memory: a
    task of such a job is all of them.
    """
    if not known:
        return table
    names = [(jobs or "").split() for jobs in table["slurm_jobs"]]
    sharing = Counter(job for row in names for job in row)
    of_all = [row if all(job in known for job in row) else [] for row in names]
    seconds = [
        sum(known[job].core_seconds / sharing[job] for job in row) if row else None
        for row in of_all
    ]
    memory = [
        max((known[job].peak_memory or 0 for job in row if sharing[job] == 1), default=0) or None
        for row in of_all
    ]
    told = table.with_columns(
        pl.Series("_hours", seconds, pl.Float64) / 3600, pl.Series("_memory", memory, pl.Int64)
    )
    # Both saw less than there was, the run its last start, Slurm now and then: more is nearer.
    more = pl.col("_memory") > pl.col("peak_memory").fill_null(0)
    hours = pl.col("_hours").is_not_null()
    return told.with_columns(
        core_hours=pl.coalesce("_hours", "core_hours"),
        core_hours_by=pl.when(hours).then(pl.lit(SLURM)).otherwise("core_hours_by"),
        peak_memory=pl.when(more).then("_memory").otherwise("peak_memory"),
        peak_memory_by=pl.when(more).then(pl.lit(SLURM)).otherwise("peak_memory_by"),
    ).drop("_hours", "_memory")
