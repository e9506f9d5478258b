"""Set-up: Horovod's wheel, its sources, the CUDA toolkit, and the horizon."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.clones import run

pytestmark = pytest.mark.lasting


@pytest.fixture
def horovod_wheel(install: ModuleType) -> ModuleType:
    """How that script makes and keeps Horovod's wheel."""
    return sys.modules["requirements.horovod_wheel"]


# --- the kept wheel -------------------------------------------------------------------------------

KEY = {
    "horovod": "0.28.1 without horovod/tensorflow/xla_mpi_ops.cc",
    "python": "cpython-311 linux-x86_64",
    "tensorflow": "tensorflow-cpu 2.21.0",
    "mpi": "mpich 5.0.2",
    "machine": "x86_64 avx f16c fma",
    "system": "glibc 2.36",
    "compiler": "c++ (Debian 12.2.0) 12.2.0",
    "options": "{}",
}


def test_key_says_all_that_horovod_depends_on(
    horovod_wheel: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horovod_wheel, "PYTHON", Path(sys.executable))
    key = horovod_wheel.horovod_key(None, mpicc="")
    assert key.keys() == KEY.keys()
    assert all(key.values())
    with_gpu = horovod_wheel.horovod_key(horovod_wheel.cuda.Toolkit("12.5.82"), mpicc="")
    assert with_gpu.keys() == {*KEY, "cuda"}
    assert re.search(r"CUDA 12\.5\.82, NCCL [\d.]+, .* 75,80,90,", with_gpu["cuda"])
    monkeypatch.setenv("HOROVOD_BUILD_CUDA_CC_LIST", "70")
    other = horovod_wheel.horovod_key(horovod_wheel.cuda.Toolkit("12.5.82"), mpicc="")
    assert "capabilities 70," in other["cuda"]


@pytest.mark.parametrize("part", KEY)
def test_no_wheel_serves_another_key(horovod_wheel: ModuleType, part: str) -> None:
    other = horovod_wheel.key_name({**KEY, part: KEY[part] + "x"})
    assert other != horovod_wheel.key_name(KEY)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", other)


def test_a_half_written_wheel_is_not_used(horovod_wheel: ModuleType, tmp_path: Path) -> None:
    wheel = tmp_path / "horovod-0.28.1-cp311-cp311-linux_x86_64.whl"
    assert horovod_wheel.kept_wheel(tmp_path) is None
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("horovod/__init__.py", "")
    assert horovod_wheel.kept_wheel(tmp_path) == wheel
    wheel.write_bytes(wheel.read_bytes()[:-30])
    assert horovod_wheel.kept_wheel(tmp_path) is None


def test_a_wheel_that_does_not_load_is_not_kept(
    install: ModuleType,
    horovod_wheel: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else every set-up after it would install it again, and fail again."""
    monkeypatch.setenv("GLASS_CACHE", str(tmp_path))
    home = horovod_wheel.cache_root() / "wheels" / "key"
    home.mkdir(parents=True)
    for name in ("horovod-0.28.1-cp311.whl", "key.json"):
        (home / name).touch()
    horovod_wheel.INSTALLED.parent.mkdir(parents=True)
    horovod_wheel.INSTALLED.write_text("key")

    def load(_: object, step: str) -> None:
        raise install.SetupError(f"{step} failed")

    monkeypatch.setattr(install, "run", load)
    with pytest.raises(install.SetupError, match="loading what training needs failed"):
        install.check_imports(install.Options())
    assert [path.name for path in home.iterdir()] == ["key.json"]
    assert not horovod_wheel.INSTALLED.exists()


# --- Horovod's sources and the CUDA toolkit -------------------------------------------------------


@pytest.mark.parametrize("times", [0, 1, 2])
def test_horovod_is_edited_only_where_it_is_the_one_that_is_known(
    horovod_wheel: ModuleType, tmp_path: Path, times: int
) -> None:
    for name, words, others in (horovod_wheel.XLA, horovod_wheel.STREAM):
        file = tmp_path / Path(name).name
        file.write_text("before\n" + f"{words}\n" * times + "after\n")
        if times == 1:
            horovod_wheel.replace(file, words, others)
            assert file.read_text() == f"before\n{others}\nafter\n"
        else:
            message = re.escape(f"does not name {words} once, but {times} times")
            with pytest.raises(horovod_wheel.SetupError, match=message):
                horovod_wheel.replace(file, words, others)


@pytest.fixture
def cuda(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The search for a toolkit, on a machine without one."""
    for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME", "HOROVOD_BUILD_CUDA_CC_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    return install.cuda


def make_toolkit(cuda: ModuleType, home: Path, version: str = "12.5.82") -> Path:
    """A tree with all that is looked for, whose `nvcc` says where it lies and its version."""
    for name in cuda.NEEDED:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    say = f'echo "release x, V{version}"; echo "#\\$ TOP={home}/bin/.." >&2'
    (home / "bin/nvcc").write_text(f"#!/bin/sh\n{say}\n")
    (home / "bin/nvcc").chmod(0o755)
    return home


def test_cuda_comes_from_pypi_where_there_is_none(cuda: ModuleType) -> None:
    found = cuda.toolkit()
    assert (found.version, found.home) == (cuda.steps.pinned("nvidia-cuda-nvcc"), None)
    assert str(found).endswith("compute capabilities 75,80,90, NVIDIA driver 580 or newer")


@pytest.mark.parametrize("where", ["HOROVOD_CUDA_HOME", "CUDA_HOME", "PATH", "a script in PATH"])
def test_the_site_s_toolkit_is_found_where_it_really_lies(
    cuda: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    home = make_toolkit(cuda, tmp_path / "cuda")
    if where == "a script in PATH":
        (tmp_path / "nvcc").write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
        (tmp_path / "nvcc").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv(where, str(home / "bin" if where == "PATH" else home))
    assert cuda.toolkit() == cuda.Toolkit("12.5.82", home)
    assert "driver 525 or newer" in str(cuda.toolkit())


@pytest.mark.parametrize(
    ("lacks", "version", "message"),
    [
        ("bin/nvcc", "12.5.82", "has no bin/nvcc"),
        ("include/cuda_runtime.h", "12.5.82", "has no include/cuda_runtime.h"),
        ("lib64/libcudart_static.a", "12.5.82", "has no lib64/libcudart_static.a"),
        ("", "11.8.89", "is not CUDA 12 or 13"),
        ("", "", "is not CUDA 12 or 13"),
    ],
)
def test_a_toolkit_that_cannot_serve_is_refused_if_named_and_else_passed_over(
    cuda: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lacks: str,
    version: str,
    message: str,
) -> None:
    home = make_toolkit(cuda, tmp_path / "cuda", version)
    monkeypatch.setenv("PATH", str(home / "bin"))
    if lacks:
        (home / lacks).unlink()
    assert cuda.toolkit().home is None
    if lacks != "bin/nvcc":
        assert f"{home} {message}, so it comes from PyPI" in capsys.readouterr().out
    monkeypatch.setenv("CUDA_HOME", str(home))
    with pytest.raises(cuda.SetupError, match=f"CUDA_HOME={home} {message}; without it"):
        cuda.toolkit()


def test_a_toolkit_that_cannot_serve_is_told_before_anything_is_downloaded(
    clone: Path, tmp_path: Path
) -> None:
    offline = {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1", "HOROVOD_CUDA_HOME": str(tmp_path)}
    answer = run(sys.executable, "-m", "requirements.install", "--gpu", "1", cwd=clone, env=offline)
    assert answer.returncode == 70
    assert f"make setup: HOROVOD_CUDA_HOME={tmp_path} has no bin/nvcc" in answer.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("lacks", ["", "nccl", "mpi"])
def test_a_horovod_without_what_was_asked_for_is_refused(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    """With GPU=1 one without NCCL would sum in the memory of the host, and nobody would know."""
    built = "".join(
        f"def {part}_built(): return {part != lacks}\n" for part in ("mpi", "nccl", "cuda")
    )
    modules = (
        "mpi4py/__init__",
        "mpi4py/MPI",
        "tensorflow",
        "horovod/__init__",
        "horovod/tensorflow",
    )
    for name in (*modules, "lammps"):
        (tmp_path / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(f"{built}lammps = dict\n")
    monkeypatch.setattr(install, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(install.steps, "ROOT", tmp_path)  # what it imports first
    install.VENV.mkdir()
    if not lacks:
        install.check_imports(install.Options(gpu=True))
        return
    with pytest.raises(
        install.SetupError, match=f"error: Horovod was built without ..{lacks.upper()}"
    ):
        install.check_imports(install.Options(gpu=True))
    if lacks == "nccl":
        install.check_imports(install.Options(gpu=False))


def test_the_horizon_is_looked_at_in_a_copy_with_pins_resolved_anew(
    clone: Path, root: Path, tmp_path: Path
) -> None:
    shutil.copy(root / "pyproject.toml", clone)
    for command in (["init", "-q"], ["add", "-A"]):
        run("git", *command, cwd=clone)
    before = {path: path.read_bytes() for path in clone.rglob("*") if path.is_file()}
    programs = tmp_path / "programs"
    programs.mkdir()
    resolve = (
        f'cp pyproject.toml {tmp_path}/asked; while [ "$1" != -o ]; do shift; done\n'
        'echo "numpy==9.9 ; sys_platform == x" >>"$2"'
    )
    for name, text in (("uv", resolve), ("make", f'echo "make $*"; pwd >{tmp_path}/place')):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    answer = run("sh", "requirements/horizon.sh", cwd=clone, env=path)
    assert answer.returncode == 0, answer.stderr
    head, *rest = answer.stdout.splitlines()
    assert "newer than the pins" in head
    assert rest == ["  numpy==9.9", "make --no-print-directory setup doctor"]
    asked = tomllib.loads((tmp_path / "asked").read_text())
    groups = [asked["project"]["dependencies"], *asked["dependency-groups"].values()]
    assert [name for group in groups for name in group if "==" in name] == []
    assert {path: path.read_bytes() for path in clone.rglob("*") if path.is_file()} == before
    assert not Path((tmp_path / "place").read_text().strip()).exists()
