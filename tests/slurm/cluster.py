"""The development cluster, and what tests do to it and to the runs on it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from glass_cnn.paths import RunDir, StudyDir
from hpc import slurm
from hpc.checkpoint_names import newest_step
from hpc.environment import BATCH_JOB
from hpc.files import read_json
from hpc.preempt import STOP_SIGNALS
from hpc.records import read_records

Ranks = list[psutil.Process]
Moment = Callable[[Ranks], object]
"""whether a run is, at this moment, where a test wants to strike"""
ENDED = (psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE)
STILL = (psutil.STATUS_STOPPED, *ENDED)


class Cluster:
    """The development cluster, in a place of its own."""

    def __init__(self, root: Path, link: Path) -> None:
        self.script, self.link = root / "slurm" / "cluster.sh", link

    def do(self, *words: str) -> None:
        done = subprocess.run(
            ["bash", str(self.script), *words, str(self.link)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def conf(self) -> Path:
        return self.link.resolve() / "slurm.conf"

    def set_user_signal(self, wanted: bool) -> None:
        """Whether a preempted job gets the signal of its --signal option, or only CONT and TERM."""
        lines = [x for x in self.conf.read_text().splitlines() if "preempt_send" not in x]
        lines += ["SlurmctldParameters=preempt_send_user_signal"] if wanted else []
        self.conf.write_text("\n".join(lines) + "\n")
        slurm.call("scontrol", "reconfigure")

    def take(self, *nodes: str) -> None:
        """A job of the high partition that needs these nodes, and nobody else on them."""
        slurm.call(
            "sbatch", "--partition=high", f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}",
            "--exclusive", "--output=/dev/null", "--job-name=important", "--wrap=sleep 1",
        )  # fmt: skip

    def kill_node(self, name: str) -> None:
        """End a node's slurmd and everything it runs, as a power cut would."""
        daemon = next(
            p for p in psutil.process_iter(["cmdline"])
            if p.info["cmdline"] and p.info["cmdline"][:3] == ["slurmd", "-N", name]
            and str(self.conf) in p.info["cmdline"]
        )  # fmt: skip
        daemon.kill()
        for process in psutil.process_iter(["pid"]):
            if self._runs_on(process, name):
                tell([process], signal.SIGKILL)

    def _runs_on(self, process: psutil.Process, node: str) -> bool:
        """Whether it belongs to a job on the node, or is a slurmstepd there."""
        environment = _environment(process)
        if environment.get("SLURM_CONF") != str(self.conf):
            return False  # of another cluster on this machine
        return environment.get("SLURMD_NODENAME") == node or _is_step(process, node)


@contextmanager
def development_cluster(root: Path, folder: Path) -> Iterator[Cluster]:
    """A cluster that is up, and that `hpc.slurm` and Slurm's commands find."""
    cluster = Cluster(root, folder / "cluster")
    cluster.do("up")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(cluster.conf)
    try:
        yield cluster
    finally:
        cluster.do("down")
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _is_step(process: psutil.Process, node: str) -> bool:
    """Whether this is a slurmstepd of the node: it has the node's spool socket open."""
    try:
        return process.name() == "slurmstepd" and any(
            f"{node}_" in connection.laddr for connection in process.net_connections("unix")
        )
    except psutil.Error:
        return False


# -- waiting ---------------------------------------------------------------------------------------


def until(
    done: Callable[[], object],
    what: str,
    runs: Sequence[RunDir] = (),
    timeout: float = 240,
    every: float = 0.2,
) -> None:
    """Wait for something; say what the runs said if it does not come."""
    end = time.monotonic() + timeout
    while not done():
        if time.monotonic() > end:
            logs = "\n".join(log(run)[-3000:] for run in runs)
            pytest.fail(f"no {what} in {timeout} s\n{slurm.call('squeue', '--array')}\n{logs}")
        time.sleep(every)


def until_done(*runs: RunDir) -> None:
    until(lambda: all(run.result.exists() for run in runs), "end of all runs", runs)


# -- the queue -------------------------------------------------------------------------------------


def targets(study: StudyDir) -> dict[str, str]:
    """Done file of each of a study's tasks in the queue -> the job or array task that it is."""
    found = slurm.active_in(study.path, slurm.queue())
    return {done: row.target for done, (_, row) in found.items()}


def assert_nothing_twice(study: StudyDir, before: dict[str, str]) -> None:
    """The same tasks are the same jobs still, but for those that have ended well meanwhile."""
    now = targets(study)
    assert now.items() <= before.items(), "submitted again"
    lost = [done for done in before.keys() - now.keys() if not Path(done).exists()]
    assert not lost, "no more in the queue"


# -- what a run has left ---------------------------------------------------------------------------


def log(run: RunDir) -> str:
    path = run.path / "output.log"
    return path.read_text() if path.exists() else ""


def events(run: RunDir, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_records(run.events) if record["event"] == kind]


def reasons(run: RunDir, kind: str = "requeue") -> list[str]:
    """Why its jobs went back into the queue, or did not."""
    return [record["reason"] for record in events(run, kind)]


def starts(run: RunDir) -> list[int]:
    """Step from which each start went on."""
    return [record["resumed_step"] for record in read_records(run.provenance)]


# -- ranks, and striking them at a chosen moment ---------------------------------------------------


def ranks_of(run: RunDir) -> Ranks:
    """The ranks of a run that live now."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        ours = (run.name in words and str(run.path.parents[2]) in words) or str(run.path) in words
        if ours and words[1:2] == ["-m"] and BATCH_JOB in _environment(process):
            found.append(process)
    return found


def hold(run: RunDir, moment: Moment, size: int = 2) -> Ranks:
    """Stop a run's ranks in their tracks as soon as it is at `moment`; it stays there.

    So what strikes a run does so where it is meant to, however fast the machine is.
    """
    ranks: Ranks = []

    def found() -> bool:
        ranks[:] = ranks_of(run)
        return len(ranks) == size

    def caught() -> bool:
        if not moment(ranks):
            return False
        tell(ranks, signal.SIGSTOP)
        until(lambda: all(_state(rank) in STILL for rank in ranks), "standstill", [run], every=0.01)
        if moment(ranks):
            return True
        tell(ranks, signal.SIGCONT)  # it has gone on in between
        return False

    held = False
    while not held:
        until(found, "ranks", [run])
        until(lambda: gone(ranks) or caught(), "moment to strike at", [run], every=0.02)
        held = not gone(ranks)
    return ranks


def release(ranks: Ranks) -> None:
    """Let ranks that are held go on as soon as a request to stop waits for each of them."""
    until(lambda: all(_asked_to_stop(rank) for rank in ranks), "signal")
    tell(ranks, signal.SIGCONT)


def tell(ranks: Ranks, number: signal.Signals) -> None:
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


def gone(ranks: Ranks) -> bool:
    """Whether one of them has ended."""
    return any(_state(rank) in ENDED for rank in ranks)


def _asked_to_stop(rank: psutil.Process) -> bool:
    """Whether a signal waits for a stopped process, or Slurm itself has let it go on."""
    return _state(rank) != psutil.STATUS_STOPPED or bool(
        _signals(rank, "ShdPnd") & set(STOP_SIGNALS)
    )


def _state(process: psutil.Process) -> str:
    """Running, stopped and so on; dead for a process that is not there any more."""
    with suppress(psutil.NoSuchProcess):
        if process.is_running():
            return str(process.status())
    return str(psutil.STATUS_DEAD)


def _signals(process: psutil.Process, which: str) -> set[int]:
    """Signals that the system says are pending (ShdPnd) or caught (SigCgt)."""
    text = ""
    with suppress(OSError):  # it has just ended
        text = Path(f"/proc/{process.pid}/status").read_text()
    mask = re.search(rf"^{which}:\s*(\w+)$", text, re.M)
    return {n for n in range(1, 65) if mask and int(mask[1], 16) >> (n - 1) & 1}


def saved(run: RunDir) -> Moment:
    """Moment: a start after those so far has written a checkpoint of its own."""
    before = len(starts(run))

    def moment(_: Ranks) -> bool:
        began = starts(run)
        return len(began) > before and newest_step(run.checkpoints) > began[-1]

    return moment


def evaluating(run: RunDir) -> Moment:
    """Moment: in the middle of an evaluation, begun and not recorded."""

    def moment(_: Ranks) -> bool:
        beat = run.heartbeats / "rank-0.json"
        where = read_json(beat)["where"] if beat.exists() else ""
        step = re.fullmatch(r"evaluating after step (\d+)", where)
        recorded = [record["step"] for record in read_records(run.metrics)]
        return step is not None and int(step[1]) not in recorded

    return moment


def starting(run: RunDir) -> Moment:
    """Moment: the first start has heard of signals, and nothing else has happened yet."""

    def moment(ranks: Ranks) -> bool:
        hears = all(set(STOP_SIGNALS) <= _signals(rank, "SigCgt") for rank in ranks)
        return hears and not run.provenance.exists()

    return moment
