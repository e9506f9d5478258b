"""Write the documents of reference that are made from the code: settings, columns, the schema.

Exit codes: 0 complete, 70 files cannot be written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from glass_cnn.report.reference import columns_document, settings_document
from glass_cnn.study_schema import study_schema
from hpc.commandline import Parser, run_main
from hpc.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    return Parser("reference", __doc__).parse_args(argv)


def documents() -> dict[Path, str]:
    """Each file and what it should hold."""
    schema = json.dumps(study_schema(), indent=1, ensure_ascii=False)
    return {
        ROOT / "docs" / "settings.md": settings_document(),
        ROOT / "docs" / "columns.md": columns_document(),
        ROOT / "jobs" / "study.schema.json": schema + "\n",
    }


def main(argv: list[str]) -> None:
    """Write those that are not what they should be."""
    parse(argv)
    for path, text in documents().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(run_main(main))
