"""Look at CONFIG, SOURCE and RUN before set-up takes minutes: `-m requirements.inputs TARGET ...`.

Standard library only, so no more is seen than a text shows without reading its YAML. The jobs look
closer; what is refused here they refuse, too, with the same exit code.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

NEEDED = {
    **dict.fromkeys(
        ("submit", "cancel", "aggregate", "report", "baselines", "export-frames"), ("CONFIG",)
    ),
    **dict.fromkeys(("evaluate", "visualize", "export", "verify"), ("RUN",)),
    "import": ("SOURCE", "CONFIG"),
    "data-report": ("DATA",),
    "predict": ("RUN", "SOURCE"),
}
MEANT = {
    "CONFIG": "name a study file, for example jobs/quickstart.yaml",
    "SOURCE": "name the directory to import, or what to predict",
    "RUN": "name one of logs/<study>/runs/",
    "DATA": "name one of logs/datasets/, or a study",
}
EXIT_DATA = 65
EXIT_CONFIG = 78


def main(targets: list[str]) -> int:
    """Check what the targets are given; ends the process at the first thing that is wrong."""
    for target in targets:
        check_target(target)
    return 0


def refuse(text: str, exit_code: int = EXIT_CONFIG) -> NoReturn:
    """End the process with one message for people."""
    print(f"error: {text}", file=sys.stderr)
    sys.exit(exit_code)


def check_target(target: str) -> None:
    """Refuse a target that lacks what it needs, or is given what cannot be right."""
    checks = CHECKS | ({"SOURCE": check_any_source} if target == "predict" else {})
    given = {name: os.environ.get(name, "") for name in checks}
    for name in NEEDED.get(target, ()):
        if not given[name]:
            refuse(f"make {target}: {name} is not given; {MEANT[name]}.")
    for name, value in given.items():
        several = target == "report" and name == "CONFIG" and not Path(value).exists()
        for each in value.split() if several else [value]:
            if each:
                checks[name](Path(each))


def check_config(config: Path) -> None:
    """Refuse what is no study file and no directory or name of a study."""
    logs = Path(os.environ.get("GLASS_LOGS") or "logs").expanduser().absolute()
    if config.is_dir():
        file = config / "study.yaml"
        wrong = f"CONFIG={config}: is a directory without a study.yaml; {MEANT['CONFIG']}."
    elif config.exists() or config.suffix in (".yaml", ".yml"):
        file = config
        wrong = f"{config}: no such file.{nearest(config)}"
    else:
        file = logs / config / "study.yaml"
        wrong = f"CONFIG={config}: is neither a study file nor the name of a study in {logs}."
    if not file.exists():
        refuse(wrong)
    check_study(file)


def check_study(file: Path) -> None:
    """Refuse a file whose text is not that of a study."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        refuse(f"{file}: is not a text file (UTF-8); name a YAML file.")
    except OSError as error:
        refuse(f"{file}: cannot be read: {error.strerror}.")
    if tab := re.search(r"^\t", text, re.M):
        line = text.count("\n", 0, tab.start()) + 1
        refuse(f"{file}, line {line}: begins with a tab; YAML is indented with spaces.")
    if not re.search(r"\b(study|extends)\b[\"']?\s*:", text):
        refuse(
            f"{file}: has no 'study:' section; add one with at least a name, for example "
            "'study: {name: my_study, seeds: 2}'."
        )


def nearest(path: Path) -> str:
    """The file beside it that may be meant."""
    names = [each.name for each in path.parent.glob("*.y*ml")]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""


def check_source(source: Path) -> None:
    """Refuse what is no directory."""
    if not source.is_dir():
        refuse(f"{source}: is no directory; SOURCE names the directory to import.", EXIT_DATA)


def check_any_source(source: Path) -> None:
    """Raise InputError if SOURCE does not exist."""
    if not source.exists():
        refuse(f"{source}: no such file or directory.", EXIT_DATA)


def check_run(run: Path) -> None:
    """Refuse what is no run's directory."""
    if not (run / "config.yaml").exists():
        refuse(f"RUN={run}: is no run's directory (it has no config.yaml); {MEANT['RUN']}.")


def check_data(data: Path) -> None:
    """Raise InputError if DATA is neither a data set's directory nor a study."""
    if not (data / "dataset.json").exists():
        check_config(data)


CHECKS = {"CONFIG": check_config, "SOURCE": check_source, "RUN": check_run, "DATA": check_data}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
