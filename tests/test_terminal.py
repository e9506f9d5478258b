"""What is seen in a real terminal of 80 columns and 24 lines: tables, progress, and the way out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import synthetic
from tests.conftest import ROOT

pytestmark = [pytest.mark.requires("tmux"), pytest.mark.lasting]

WAIT = 60.0
"""seconds in which something must be seen"""
CODE = r"echo code $? $(stty -a | grep -o ' echo \| icanon ')"
"""tells the exit code of what ran before, and how it left the terminal"""


class Terminal:
    """A shell in tmux, on a server of its own."""

    def __init__(self, place: Path) -> None:
        self.server = f"glass-{os.getpid()}-{time.monotonic_ns()}"
        self.tmux(
            "-f", os.devnull, "new-session", "-d", "-x", "80", "-y", "24", "-c", str(place),
            *("-e", f"PYTHONPATH={ROOT}", "-e", f"PATH={os.environ['PATH']}"),
            "bash --norc --noprofile",
        )  # fmt: skip

    def tmux(self, *words: str) -> str:
        command = ["tmux", "-L", self.server, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def type(self, line: str) -> None:
        self.tmux("send-keys", "-l", line)
        self.press("Enter")

    def press(self, key: str) -> None:
        self.tmux("send-keys", key)

    def lines(self) -> list[str]:
        return self.tmux("capture-pane", "-p").rstrip("\n").split("\n")

    def see(self, words: str, absent: str = "\0") -> list[str]:
        """The lines of the screen, as soon as they hold these words and lack those."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            shown = self.lines()
            if words in "\n".join(shown) and absent not in "\n".join(shown):
                return shown
            time.sleep(0.1)
        raise AssertionError(f"{words!r} is not on the screen:\n" + "\n".join(self.lines()))

    def is_clean(self) -> bool:
        """Whether the cursor is seen, and the screen is the usual one."""
        return self.tmux("display", "-p", "#{cursor_flag}#{alternate_on}").strip() == "10"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.tmux("kill-server")


WATCH = "import jobs.status as s; s.EVERY = 0.3; s.main(['synthetic', '--logs', '.', '--watch'])"


def test_a_watched_study_fits_the_screen_and_leaves_it_as_it_was(
    terminal: Terminal, tmp_path: Path
) -> None:
    arms = {f"an_arm_whose_name_is_rather_long_{i}": {"train.dropout": 0.1 * i} for i in (1, 2)}
    study = synthetic.study(seeds=8, arms=arms)
    place = synthetic.directory(study, tmp_path)
    bad = synthetic.write_run(place, study.runs[0])
    kept = bad.metrics.read_text()
    bad.metrics.write_text("".join(kept.splitlines(keepends=True)[4:]))
    (tmp_path / "watch.py").write_text(WATCH)
    terminal.type(f"{sys.executable} watch.py; {CODE}")
    shown = terminal.see("lacks the evaluations of iterations 1–4")
    assert shown[0] == "synthetic  16 runs: 1 damaged, 15 waiting"
    assert shown[1].startswith("  an_arm_whose_name_is_rather_long_1: 1 damaged, 7 waiting")
    names = [line.split()[0] for line in shown if " waiting  " in line and "/60" in line]
    (more,) = [line for line in shown if line.startswith("… and ")]
    assert more == f"… and {16 - 1 - len(names)} more; glass status --all shows them"
    assert "trains it again" in shown[-1]
    bad.metrics.write_text(kept)
    shown = terminal.see("1 complete", absent="damaged")
    assert shown[0] == "synthetic  16 runs: 1 complete, 15 waiting"
    assert not any(word in " ".join(shown) for word in ("lacks", "1–4", "trains it again"))
    terminal.press("C-c")
    shown = terminal.see("code 0 icanon echo", absent="synthetic  16")
    assert "Traceback" not in "\n".join(shown)
    assert terminal.is_clean()


WORKER = """
import pathlib, signal, sys, time
stopped = []
signal.signal(signal.SIGUSR1, lambda *_: stopped.append(1))
print("a line of the log that is longer than the terminal is wide:", "words " * 20, "end")
while not stopped:
    if pathlib.Path("go").exists():
        pathlib.Path("go").unlink()
        print("a short one")
    time.sleep(0.05)
sys.exit(75)
"""
LAUNCH = """
import pathlib, sys
from hpc.local import Local
from hpc.stages import Stage, Task
task = Task("base-s0-0123abcd", "worker", (), pathlib.Path("done"), pathlib.Path("a.log"))
sys.exit(Local().launch([Stage("train", (task,), 1, 1)]))
"""


def test_the_launcher_leaves_nothing_of_a_long_line_and_gives_the_terminal_back(
    terminal: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "launch.py").write_text(LAUNCH)
    terminal.type(f"PYTHONPATH=.:{ROOT} {sys.executable} launch.py; {CODE}")
    terminal.see("words words")
    (tmp_path / "go").touch()
    shown = terminal.see("a short one", absent="words")
    began = next(i for i, line in enumerate(shown) if line.startswith("train: 1 to do"))
    bar, below = shown[began + 1 :]
    assert bar.startswith("base-s0-0123abcd ")
    assert bar.endswith(" a short one")
    assert below == "0 ended, 0 waiting"
    terminal.press("C-c")
    shown = terminal.see("code 75 icanon echo")
    assert shown[began + 1 :][:3] == [
        "stopping: each running task writes a checkpoint …",
        "‖ base-s0-0123abcd stopped at a checkpoint",
        "code 75 icanon echo",
    ]
    assert terminal.is_clean()
