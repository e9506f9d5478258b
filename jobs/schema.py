"""Print the JSON schema of study files, with which editors complete and check them.

Exit codes: 0 complete, 78 bad configuration.
"""

from __future__ import annotations

import argparse
import json
import sys

from glass_cnn.study_schema import study_schema
from hpc.commandline import Parser, run_main


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    return Parser("schema", __doc__).parse_args(argv)


def main(argv: list[str]) -> None:
    """Print it."""
    parse(argv)
    print(json.dumps(study_schema(), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(run_main(main))
