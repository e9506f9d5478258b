"""Set-up and quickstart in a new clone, as a new user has them.

    python -m benchmarks.set_up

`git clone` of this clone's last commit, `make setup`, `make submit CONFIG=jobs/quickstart.yaml`,
each from its start to its end. Packages are downloaded (or come from the cache of pip), and
Horovod is compiled, so this takes minutes and the net.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import measured, tell

ROOT = Path(__file__).resolve().parent.parent
GOAL = 240
"""seconds of each, on two idle cores"""


def main(argv: list[str] | None = None) -> None:
    """Measure and tell."""
    argparse.ArgumentParser(prog="python -m benchmarks.set_up", description=__doc__).parse_args(
        argv
    )
    with tempfile.TemporaryDirectory(prefix="set-up-") as folder:
        clone = Path(folder) / "clone"
        seconds(["git", "clone", "--quiet", str(ROOT), str(clone)], ROOT)
        tell(measured("set-up", [seconds(["make", "setup"], clone)], "s", at_most=GOAL))
        words = ["make", "submit", "CONFIG=jobs/quickstart.yaml", "LAUNCHER=local"]
        tell(measured("quickstart, set-up apart", [seconds(words, clone)], "s", at_most=GOAL))


def seconds(words: Sequence[str], where: Path) -> float:
    """What a command takes; raises CalledProcessError where it fails."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    began = time.monotonic()
    subprocess.run(words, cwd=where, env=ours, check=True)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
