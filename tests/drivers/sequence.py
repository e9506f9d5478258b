"""Run jobs.train several times in one process: argv[1] is a JSON list of its arguments.

TensorFlow starts once for all. Ends with the first exit code that is not 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hpc.commandline import run_main
from jobs import train


def main(plan: Path) -> int:
    for arguments in json.loads(plan.read_text()):
        if code := run_main(train.main, arguments):
            print(f"jobs.train {' '.join(arguments)}: exit code {code}", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
