"""The drawing in docs/architecture.md is the code: its arrows, its rooms, its libraries."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = ("hpc", "glass_cnn", "jobs")
MOST_ARROWS = 16
MOST_LINES = 700
Arrow = tuple[str, str]

# Library -> the only rooms that may import it themselves; the others go through these.
ONLY = {
    "mpi4py": {"hpc.world", "glass_cnn.data.lammps"},  # LAMMPS needs the libmpi that it loads
    "horovod": {"glass_cnn.training.division"},
    "tensorflow": {"glass_cnn.tensorflow"},  # where oneDNN is switched on before
    "lammps": {"glass_cnn.data.lammps"},
    "onnx": {"glass_cnn.training.export"},
    "MDAnalysis": {"glass_cnn.data.mdanalysis"},
    # The launchers start programs; provenance asks git for the commit, gpus nvidia-smi, the doctor
    # tries things out.
    "subprocess": {"hpc.slurm", "hpc.local", "hpc.gpus", "hpc.provenance", "jobs.doctor"},
}
# Room or folder -> what importing it never brings in, directly or through other rooms.
LIGHT = {
    "hpc": ("tensorflow", "keras", "horovod"),
    "glass_cnn.settings": ("tensorflow", "mpi4py", "scipy"),
    "glass_cnn.data": ("tensorflow", "keras", "horovod"),
    "glass_cnn.analysis": ("tensorflow", "keras", "horovod", "mpi4py"),
    "glass_cnn.report.page": ("tensorflow", "keras", "horovod", "mpi4py"),
    "jobs.status": ("tensorflow", "scipy", "mpi4py"),  # it answers at once
    "hpc.commandline": ("numpy", "pydantic", "mpi4py"),  # signals are caught before slow imports
}


def sources(root: Path) -> dict[str, str]:
    """Module name -> source of every module of the program."""
    paths = (path for top in TOP for path in sorted((root / top).rglob("*.py")))
    return {".".join(p.relative_to(root).with_suffix("").parts): p.read_text() for p in paths}


def imported(source: str, at_start_only: bool = False) -> set[str]:
    """Dotted names that a source imports: also in functions and for types, unless told not to."""
    found: set[str] = set()
    for node in walk(ast.parse(source), at_start_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the arrow"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def walk(node: ast.AST, at_start_only: bool) -> Iterator[ast.AST]:
    """All nodes; without bodies of functions and what is for types alone, if `at_start_only`."""
    yield node
    lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    lazy |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    if not (at_start_only and lazy):
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_start_only)


def folder(module: str) -> str:
    """The folder a module lies in: `glass_cnn.data.store` in data, `hpc.world` in hpc."""
    parts = module.split(".")
    return parts[1] if parts[0] == "glass_cnn" and len(parts) > 2 else parts[0]


DOOR = "glass_cnn.__init__"
"""where code of others comes in: it may see what it hands out, and no room goes through it"""


def folder_arrows(code: dict[str, str]) -> set[Arrow]:
    """Which folder imports from which other one; but for the door."""
    pairs = {(name, what) for name in code if name != DOOR for what in imported(code[name])}
    inside = {(name, what) for name, what in pairs if what in code}
    return {(folder(a), folder(b)) for a, b in inside if folder(a) != folder(b)}


def circles(code: dict[str, str]) -> set[frozenset[str]]:
    """Modules that import each other, by whatever way round."""
    direct = {name: imported(source) & set(code) - {name} for name, source in code.items()}
    reach = {name: reachable(name, direct) for name in code}
    return {
        frozenset({a, b}) for a in code for b in reach[a] if b != a and a in reach.get(b, set())
    }


def reachable(name: str, direct: dict[str, set[str]]) -> set[str]:
    """Everything that importing a module brings in, through other modules of the program."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for what in direct.get(waiting.pop(), set()) - seen:
            seen.add(what)
            waiting.append(what)
    return seen


def is_within(name: str, package: str) -> bool:
    """Whether a dotted name is a package or lies in it."""
    return name == package or name.startswith(package + ".")


def heavy(code: dict[str, str]) -> list[str]:
    """Breaches of LIGHT, in words."""
    at_start = {name: imported(source, at_start_only=True) for name, source in code.items()}
    return [
        f"{name} brings in {what}"
        for place, banned in LIGHT.items()
        for name in code
        if is_within(name, place)
        for what in sorted(reachable(name, at_start))
        if any(is_within(what, library) for library in banned)
    ]


def strangers(code: dict[str, str]) -> list[str]:
    """Breaches of ONLY, in words."""
    return [
        f"{name} imports {library}, which only {sorted(rooms)} may"
        for library, rooms in ONLY.items()
        for name in code
        if name not in rooms and any(is_within(what, library) for what in imported(code[name]))
    ]


def drawn(document: str) -> list[tuple[str, list[str]]]:
    """The picture's lines, from the top floor down: a folder and those that it imports from."""
    picture = next(b for b in re.findall(r"^```\n(.*?)^```", document, re.M | re.S) if "→" in b)
    lines = (line.split("→") for line in picture.splitlines() if "→" in line)
    return [(left.strip(), right.split()) for left, right in lines]


@pytest.fixture(scope="module")
def document(root: Path) -> str:
    return (root / "docs" / "architecture.md").read_text()


@pytest.fixture(scope="module")
def code(root: Path) -> dict[str, str]:
    return sources(root)


def test_the_picture_shows_the_arrows_that_there_are(code: dict[str, str], document: str) -> None:
    shown = {(here, there) for here, others in drawn(document) for there in others}
    assert folder_arrows(code) == shown
    assert len(shown) <= MOST_ARROWS


def test_no_arrow_of_the_picture_runs_back_up(document: str) -> None:
    above: set[str] = set()
    for here, others in drawn(document):
        above.add(here)
        assert not above & set(others), here


def test_no_modules_import_each_other(code: dict[str, str]) -> None:
    assert circles(code) == set()


def test_the_door_leads_to_one_room_and_opens_when_asked(code: dict[str, str]) -> None:
    seen = {what for what in imported(code[DOOR]) if what in code}
    assert seen == {"glass_cnn.report.results"}
    assert not [name for name in imported(code[DOOR], at_start_only=True) if "glass_cnn" in name]


def test_no_room_goes_through_the_door(code: dict[str, str]) -> None:
    rooms = {name.rpartition(".")[0] for name in code} | set(code)
    through = {
        (name, what)
        for name, source in code.items()
        for what in imported(source)
        if what.startswith("glass_cnn.") and what not in rooms and what.count(".") == 1
    }
    assert through == set()


def test_libraries_are_used_by_their_own_rooms_only(code: dict[str, str]) -> None:
    assert strangers(code) == []
    assert {room for rooms in ONLY.values() for room in rooms} <= set(code)


def test_tests_and_benchmarks_load_tensorflow_through_its_room_too(root: Path) -> None:
    room = root / "glass_cnn" / "tensorflow.py"
    loads = re.compile(r"\b(import|from) tensorflow\b")  # in code that is handed to a process, too
    places = (path for top in (*TOP, "tests", "benchmarks") for path in (root / top).rglob("*.py"))
    assert [path for path in places if loads.search(path.read_text())] == [room]


def test_light_rooms_bring_in_nothing_heavy(code: dict[str, str]) -> None:
    assert heavy(code) == []


def test_every_room_stands_in_the_document_once(code: dict[str, str], document: str) -> None:
    named = re.findall(r"^\| `([a-z_/]+\.py)`", document, re.M)
    rooms = {name.replace(".", "/") + ".py" for name in code if not name.endswith("__init__")}
    assert sorted(named) == sorted(room for room in rooms if not room.startswith("jobs/"))


def test_no_file_is_too_long_to_be_read(root: Path) -> None:
    kinds = ("hpc", "glass_cnn", "jobs", "tests", "benchmarks", "requirements")
    files = (path for kind in kinds for path in (root / kind).rglob("*.py"))
    assert {str(p.relative_to(root)): n for p in files if (n := lines_of(p)) > MOST_LINES} == {}


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("hpc.local", "def f():\n    from glass_cnn import study", ("hpc", "glass_cnn")),
        ("glass_cnn.study", "from glass_cnn.data import store", ("glass_cnn", "data")),
        ("hpc.world", "if TYPE_CHECKING:\n    import jobs.train", ("hpc", "jobs")),
    ],
)
def test_arrows_are_found_wherever_they_hide(module: str, source: str, found: Arrow) -> None:
    others = {"glass_cnn.study": "", "glass_cnn.data.store": "", "jobs.train": ""}
    assert found in folder_arrows({**others, module: source})


def test_breaches_are_found() -> None:
    assert strangers({"hpc.checkpoint": "import subprocess"}) != []
    code = {"hpc.words": "from hpc.help import x", "hpc.help": "import keras"}
    assert heavy(code) == ["hpc.words brings in keras", "hpc.help brings in keras"]
    assert circles({"a": "if TYPE_CHECKING:\n    import b", "b": "import a"}) != set()
