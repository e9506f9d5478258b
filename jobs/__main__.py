"""Every command in one: `glass COMMAND …` is `python -m jobs.COMMAND …`, from any directory.

Completion of commands, studies, runs and options, for the shell that is open:
eval "$(.venv/bin/glass completion)"; `glass completion fish` or `zsh` for these.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc.commandline import Parser, run_main
from hpc.errors import ConfigError
from hpc.words import COMMAND, command

SHORT = {"import_data": "import"}
"""commands that are called otherwise than their module"""
INNER = ("simulate", "dataset", "train", "task", "damaged")
"""stages that `submit` starts; by hand on ranks of one's own"""
SHELLS = ("bash", "zsh", "fish")
COLUMNS = 62
"""of a command's purpose, beside its name on a terminal of 80"""
STUDY_FILES = "jobs"
"""where study files are looked for, beside the directory that is typed"""


def commands() -> dict[str, str]:
    """Name of each command and its module's."""
    found = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    return {SHORT.get(name, name.replace("_", "-")): name for name in found}


def main(argv: list[str]) -> int | None:
    """Start one command; its exit code. Raises ConfigError where there is no such one."""
    known = commands()
    if "_ARGCOMPLETE" in os.environ:
        complete(known)
    if not argv or argv[0] in ("-h", "--help"):
        print(overview(known))
        return None
    name, *rest = argv
    if name == "completion":
        print_completion(rest)
        return None
    if name not in known:
        near = difflib.get_close_matches(name, [*known, "completion"], 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{command(name)}: there is no such command; {hint}See {COMMAND} --help.")
    code: int | None = importlib.import_module(f"jobs.{known[name]}").main(rest)
    return code


def overview(known: dict[str, str]) -> str:
    """What `glass --help` says: a line a command, the stages that submit starts last."""
    inner = [name for name in known if name in INNER]
    lines = [
        f"usage: {COMMAND} COMMAND …; {COMMAND} COMMAND --help tells the rest",
        "",
        *(f"  {name:<14}{purpose(known[name])}" for name in known if name not in INNER),
        f"  {'completion':<14}what a shell needs to complete all this",
        "",
        "stages that submit starts:",
        *(f"  {name:<14}{purpose(known[name])}" for name in inner),
    ]
    return "\n".join(lines)


def purpose(module: str) -> str:
    """The first sentence of a module's description, without loading it."""
    text = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    first = " ".join((ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].split())
    sentence = first.partition(": ")[0].partition(". ")[0].rstrip(".")
    return textwrap.shorten(sentence, COLUMNS, placeholder=" …")


def print_completion(rest: list[str]) -> None:
    """The code for a shell to evaluate; that of $SHELL unless one is named."""
    from argcomplete.shell_integration import shellcode

    shell = rest[0] if rest else Path(os.environ.get("SHELL", "bash")).name
    if len(rest) > 1 or shell not in SHELLS:
        raise ConfigError(
            f"{command('completion')} {' '.join(rest) or shell}: name one of {', '.join(SHELLS)}."
        )
    print(shellcode([COMMAND], shell=shell))


# --- completion -----------------------------------------------------------------------------------


def complete(known: dict[str, str]) -> None:
    """Answer the shell that asks how the line goes on; ends the process."""
    from argcomplete import autocomplete, lexers

    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    _, _, _, words, _ = lexers.split_line(line)
    Parser.on_parse = finish
    if len(words) > 1 and words[1] in known:
        os.environ["_ARGCOMPLETE"] = "2"  # words from the second on are the command's
        importlib.import_module(f"jobs.{known[words[1]]}").parse([])
    top = argparse.ArgumentParser(prog=COMMAND)
    top.add_argument("command", choices=[*known, "completion"])
    autocomplete(top)


def finish(parser: argparse.ArgumentParser) -> None:
    """Complete the line of one command; ends the process."""
    from argcomplete import autocomplete

    sources = {"config": studies, "run": runs}
    for action in parser._actions:  # argcomplete reads the attribute; argparse has no way to set it
        if source := sources.get(action.dest):
            action.completer = source  # type: ignore[attr-defined]
    autocomplete(parser)


def studies(prefix: str, **_: Any) -> list[str]:
    """Study files below the directory that is typed or `jobs`, and studies that have runs."""
    from glass_cnn.paths import logs_root

    place = Path(prefix).parent if "/" in prefix else Path(STUDY_FILES)
    files = [str(file) for file in sorted(place.glob("*.yaml"))]
    folders = [f"{folder}/" for folder in sorted(place.glob("*/")) if any(folder.glob("*.yaml"))]
    return [*files, *folders, *(file.parent.name for file in logs_root().glob("*/study.yaml"))]


def runs(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    """Runs of the study that stands before, by name; else directories of runs."""
    from glass_cnn.paths import logs_root

    study = getattr(parsed_args, "config", None)
    root = logs_root(getattr(parsed_args, "logs", None))
    if study is not None:
        yield from (run.name for run in root.glob(f"{Path(study).stem}/runs/*"))
        return
    shown = root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root
    for run in shown.glob("*/runs/*"):
        if str(run).startswith(prefix):
            yield str(run)


if __name__ == "__main__":
    sys.exit(run_main(main))
