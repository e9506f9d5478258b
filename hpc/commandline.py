"""Command lines of jobs: the arguments they share, one message for a mistake, one way to end.

This room loads in no time: a job of many ranks catches signals before its slow imports.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from hpc.environment import STARTED
from hpc.errors import EXIT_AGAIN, EXIT_COMPLETE, EXIT_INTERNAL, ConfigError, UserError
from hpc.preempt import StopFlag
from hpc.words import command

if TYPE_CHECKING:
    from hpc.world import World

Work = Callable[[argparse.Namespace, "World", StopFlag], "int | None"]


class Parser(argparse.ArgumentParser):
    """The command line of a job, named as people call it; raises ConfigError for a mistake."""

    on_parse: ClassVar[Callable[[argparse.ArgumentParser], None] | None] = None
    """called with a whole parser before it parses: how a shell's completion comes to know it"""

    def __init__(self, job: str, description: str | None) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=command(job), description=description, formatter_class=form)

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """As argparse does."""
        if Parser.on_parse is not None:
            Parser.on_parse(self)
        return super().parse_args(*args, **options)

    def error(self, message: str) -> NoReturn:
        """A mistake in the command line is told, and ends, like one in a settings file."""
        raise ConfigError(f"{message}; see {self.prog} --help.")

    def add_study(self, **options: Any) -> None:
        """CONFIG, the study; `options` as add_argument takes them."""
        text = "study file, or the name or directory of a study"
        self.add_argument("config", metavar="CONFIG", **{"help": text, **options})

    def add_run_name(self) -> None:
        """RUN, one of the study's."""
        text = "name of a run, or the beginning of one"
        self.add_argument("run", metavar="RUN", nargs="?", help=text)

    def add_run(self) -> None:
        """RUN, the directory of a run."""
        text = "directory of a run: logs/<study>/runs/<run>"
        self.add_argument("run", metavar="RUN", type=Path, help=text)

    def add_settings(self) -> None:
        """--set, once or several times."""
        self.add_argument(
            "--set", type=assignments, action="extend", default=[], metavar="KEY=VALUE",
            help="settings in place of the study file's; several with spaces between",
        )  # fmt: skip

    def add_logs(self, default: str = "$GLASS_LOGS or logs") -> None:
        """--logs, the directory of all outputs."""
        self.add_argument("--logs", help=f"directory of all outputs (default: {default})")


def assignments(text: str) -> list[str]:
    """The assignments of a text such as `a.b=1 c={kind: x, rate: 1e-3} d='two words, e=3'`.

    Values are YAML, which has spaces of its own: one ends where the next `key=` begins, outside of
    quotes and brackets.
    """
    begins = [
        match.start()
        for match in re.finditer(r"(?<!\S)[A-Za-z_][\w.-]*=", text)
        if not _inside(text[: match.start()])
    ]
    ends = [*begins[1:], len(text)] if begins else []
    head = text[: begins[0]].strip() if begins else text.strip()
    found = [text[a:b].strip() for a, b in zip(begins, ends, strict=True)]
    return ([head] if head or not found else []) + found


_QUOTED = re.compile(r"""(?<=[\s=\[{,:])(?:'(?:[^']|'')*'|"(?:[^"\\]|\\.)*")""", re.DOTALL)
_OPEN = re.compile(r"""(?<=[\s=\[{,:])['"]""")
"""a quotation mark elsewhere is an apostrophe"""


def _inside(text: str) -> bool:
    """Whether a text ends within quotes or brackets that it has opened."""
    rest = _QUOTED.sub("", text)
    return bool(_OPEN.search(rest)) or sum(map(rest.count, "[{")) > sum(map(rest.count, "]}"))


@contextlib.contextmanager
def outliving_the_reader() -> Iterator[None]:
    """Go on without printing when standard output is lost: pipe, terminal, or full disk."""
    before: Any = sys.stdout
    if before is not None:
        sys.stdout = _Audience(before)
    try:
        yield
    finally:
        sys.stdout = before


class _Audience:
    """A stream that is given up at the first error."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._or_nowhere():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._or_nowhere():
            self._stream.flush()

    @contextlib.contextmanager
    def _or_nowhere(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


def run_ranks(
    work: Work,
    parse: Callable[[list[str]], argparse.Namespace],
    argv: list[str],
    stop: StopFlag | None = None,
) -> int:
    """The `main` of a job on all the ranks it was started with; the exit code of `work`.

    A user's mistake is raised on every rank and told by one. Any other error ends all ranks, for
    they would wait in vain for this one. `stop` is given by who has installed it already.
    """
    stop = stop or StopFlag().install()  # before the slow imports: no signal kills the start
    args, mistake = argparse.Namespace(), None
    try:
        args = parse(argv)  # before MPI: --help needs no ranks
    except UserError as error:
        mistake = error
    from hpc.world import world

    ranks = world()
    ranks.pin()
    if ranks.is_root and (begun := os.environ.get(STARTED)):
        with contextlib.suppress(OSError):
            Path(begun).touch()
    ranks.check(mistake)
    try:
        with outliving_the_reader():
            return int(work(args, ranks, stop) or EXIT_COMPLETE)
    except UserError:
        raise
    except Exception:
        text = f"rank {ranks.rank}: internal error\n{traceback.format_exc()}"
        print(text, file=sys.stderr, flush=True)
        ranks.abort(EXIT_INTERNAL)
        raise


def run_main(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Call a job's `main` and turn a UserError into its one message and exit code; so too a file
    that may not be read.

    An error with a true attribute `told` was printed by another rank already. A stop on request is
    printed as a message, not as an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # no sign that a locale lacks may end a run
    try:
        return int(main(sys.argv[1:] if argv is None else argv) or EXIT_COMPLETE)
    except UserError as error:
        if not error.told and error.exit_code == EXIT_AGAIN:
            print(error, flush=True)
        elif not error.told:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except PermissionError as error:
        remedy = "ask its owner for access, or choose another place (LOGS=dir for outputs)"
        print(f"error: {error.filename}: permission denied; {remedy}.", file=sys.stderr, flush=True)
        return EXIT_INTERNAL
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_COMPLETE
