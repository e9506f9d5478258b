"""Set-up: the stamp, what the machine lacks, the kept wheel, what the user is told."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.clones import install_of, run

pytestmark = pytest.mark.lasting


@pytest.fixture
def steps(install: ModuleType) -> ModuleType:
    """How that script runs its steps."""
    return sys.modules["requirements.steps"]


@pytest.fixture
def horovod_wheel(install: ModuleType) -> ModuleType:
    """How that script makes and keeps Horovod's wheel."""
    return sys.modules["requirements.horovod_wheel"]


# --- the stamp ------------------------------------------------------------------------------------


def test_nothing_is_done_when_complete(install: ModuleType, complete: dict[str, Any]) -> None:
    install.set_up({})
    install.set_up({"gpu": False, "mpi": "wheel", "mpicc": ""})
    assert json.loads(install.STAMP.read_text()) == complete
    assert not (install.VENV / "setup.log").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"root": "/elsewhere"},
        {"root": None},
        {"python": None},
        {"python": "3.10.13 /usr"},
        "truncated",
        "no interpreter",
    ],
)
def test_incomplete_or_moved_is_not_complete(
    install: ModuleType, complete: dict[str, Any], change: dict[str, str] | str
) -> None:
    assert install.read_stamp(install.STAMP) == complete
    if change == "no interpreter":
        install.PYTHON.unlink()
    elif change == "truncated":
        install.STAMP.write_text(install.STAMP.read_text()[:-20])
    else:
        assert isinstance(change, dict)
        changed = {key: value for key, value in {**complete, **change}.items() if value is not None}
        install.STAMP.write_text(json.dumps(changed))
    assert install.read_stamp(install.STAMP) == {}


@pytest.mark.parametrize("reason", ["moved", "pin", "option", "no interpreter"])
def test_make_looks_closer_only_with_a_reason(
    clone: Path, complete: dict[str, Any], reason: str
) -> None:
    plan = ["make", "--dry-run", "doctor"]
    assert "requirements.install" not in run(*plan, cwd=clone).stdout
    if reason == "moved":
        clone = clone.rename(clone.with_name("moved"))
    elif reason == "pin":
        os.utime(clone / "requirements/base.txt", (2e9, 2e9))
    elif reason == "option":
        plan.append("GPU=1")
    else:
        (clone / ".venv/bin/python").unlink()
    assert "requirements.install" in run(*plan, cwd=clone).stdout


def test_a_changed_pin_changes_the_digest(install: ModuleType, clone: Path) -> None:
    before = install.pins_digest()
    (clone / "requirements/cpu.txt").write_text("tensorflow-cpu==2.20.0\n")
    assert install.pins_digest() != before


def test_what_tests_need_is_added_by_tests_alone(
    clone: Path, install: ModuleType, complete: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[tuple[str, ...]] = []
    monkeypatch.setattr(install.steps, "install_pins", lambda *names, **_: added.append(names))
    monkeypatch.setattr(install, "fill", lambda _: added.append(("all",)))
    plan = ["make", "--dry-run"]
    for target in ("test", "check", "bench"):
        assert "install --dev" in run(*plan, target, cwd=clone).stdout
    install.add_dev()
    assert added == [("dev",)]
    for target in ("doctor", "submit", "test", "check", "bench"):
        assert "install" not in run(*plan, target, cwd=clone).stdout
    (clone / "requirements/dev.txt").write_text("pytest==1\n")
    os.utime(clone / "requirements/dev.txt", (2e9, 2e9))
    assert "install" not in run(*plan, "doctor", cwd=clone).stdout
    assert "install --dev" in run(*plan, "check", cwd=clone).stdout
    install.set_up({})  # nothing of it is a reason to touch the rest
    for _ in range(2):
        install.add_dev()
    assert added == [("dev",), ("dev",)]


@pytest.mark.parametrize("uv", ["works", "fails", "is not there"])
def test_uv_installs_where_it_can_and_pip_where_not(
    steps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uv: str
) -> None:
    programs = tmp_path / "programs"
    for name, status in (("uv", int(uv == "fails")), ("python", 0)):
        programs.mkdir(exist_ok=True)
        (programs / name).write_text(
            f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/calls\nexit {status}\n'
        )
        (programs / name).chmod(0o755)
    if uv == "is not there":
        (programs / "uv").unlink()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(steps, "PYTHON", programs / "python")
    steps.VENV.mkdir()
    steps.install_pins("base", "cpu", step="installing")
    calls = (tmp_path / "calls").read_text().splitlines()
    expected = {"works": ["uv"], "fails": ["uv", "python"], "is not there": ["python"]}
    assert [call.split()[0] for call in calls] == expected[uv]
    for call in calls:
        assert "--require-hashes" in call
        assert f"{steps.REQUIREMENTS}/cpu.txt" in call


def test_a_failed_set_up_is_not_complete_and_names_the_cause(clone: Path) -> None:
    pin = f"glass-cnn-without-such-a-package==1 --hash=sha256:{'0' * 64}\n"
    (clone / "requirements/base.txt").write_text(pin)
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(clone), "UV_OFFLINE": "1"}
    offline["PYTHON"] = sys.executable
    answer = run("make", "setup", cwd=clone, env=offline)
    assert answer.returncode != 0
    assert "installing packages failed" in answer.stderr
    assert "No matching distribution found for glass-cnn-without-such-a-package" in answer.stderr
    assert f"whole log: {clone}/.venv/setup.log" in answer.stderr
    assert "likely cause: PyPI (or the mirror" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert (clone / ".venv/bin/python").exists()
    assert not (clone / ".venv/.ready").exists()


@pytest.mark.parametrize("interrupted", ["while packages are written", "while Horovod compiles"])
def test_an_interrupted_set_up_goes_on_from_what_is_whole(
    install: ModuleType,
    complete: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    interrupted: str,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (install.REQUIREMENTS / "base.txt").write_text("numpy==2.0.1\n")  # a reason to work
    anew: list[bool] = []
    monkeypatch.setattr(install, "make_venv", lambda _: anew.append(True))
    monkeypatch.setattr(install.steps, "install_pins", lambda *_, **__: None)
    monkeypatch.setattr(install, "install_horovod", interrupt)
    if "packages" in interrupted:
        monkeypatch.setattr(install.steps, "install_pins", interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            install.set_up({})
        assert not install.STAMP.exists()
    assert anew == ([True] if "packages" in interrupted else [])


def test_modules_from_elsewhere_stay_out(
    steps: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/cluster/module")
    steps.VENV.mkdir()
    steps.run([sys.executable, "-c", "import os, sys; print(os.environ, sys.path)"], "looking")
    assert "/cluster/module" not in steps.LOG.read_text()
    assert f"'PATH': '{steps.VENV}/bin:" in steps.LOG.read_text()


def test_a_read_only_clone_is_named(clone: Path) -> None:
    (clone / ".venv.lock").mkdir()  # root may write into read-only folders, not open a folder
    answer = run(sys.executable, "-m", "requirements.install", cwd=clone)
    assert answer.returncode == 70
    assert f"'{clone}/.venv.lock'" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_two_set_ups_do_not_meet(install: ModuleType, clone: Path, capfd: Any) -> None:
    with (clone / ".venv.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = subprocess.Popen(
            [sys.executable, "-m", "requirements.install", "--mpi", "site"],
            cwd=clone,
            env={**os.environ, "PATH": "/nowhere"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert second.stdout is not None
        assert "another set-up is at work in this clone" in second.stdout.readline()
        assert second.poll() is None
    assert second.wait(60) == install.EXIT_FAILED  # it goes on, and finds no mpicc in PATH
    second.stdout.close()


def test_what_a_killed_set_up_left_running_keeps_the_next_one_waiting(
    steps: ModuleType, clone: Path
) -> None:
    """pip would write into the environment that the next set-up removes."""
    steps.VENV.mkdir()
    script = (
        "from requirements import steps; import sys\n"
        "with steps.locked(steps.ROOT / 'lock', ''):\n"
        "    steps.run([sys.executable, '-c', 'import os, time;"
        " print(os.getpid(), flush=True); time.sleep(60)'], 'sleeping')\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=clone) as first:
        while not (steps.LOG.exists() and steps.LOG.read_text().split()[-1].isdigit()):
            time.sleep(0.02)
        first.kill()
    left = int(steps.LOG.read_text().split()[-1])
    with (clone / "lock").open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(left, signal.SIGKILL)
        fcntl.flock(file, fcntl.LOCK_EX)


def test_a_link_to_the_environment_of_another_clone_is_refused(
    install: ModuleType, complete: dict[str, Any], clone: Path
) -> None:
    stamp = install.STAMP.rename(clone / "stamp")
    other = install.VENV.rename(clone / "other")
    stamp.rename(other / ".ready")
    install.VENV.symlink_to(other)
    install.STAMP.write_text(json.dumps({**complete, "root": "/elsewhere"}))
    with pytest.raises(install.SetupError, match=rf"is a link to {other}; remove it"):
        install.set_up({})
    assert (other / ".ready").exists()
    install.STAMP.write_text(json.dumps(complete))
    install.set_up({})  # a link to its own


def test_why_an_environment_is_made_anew(
    install: ModuleType, complete: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for asked in ({"gpu": True}, {"python": "3.12.1 /usr"}):
        assert install.why_anew(asked, complete) in (
            "it was made with gpu False, now True",
            f"it was made with python {install.interpreter()!r}, now '3.12.1 /usr'",
        )
    assert "incomplete" in install.why_anew({"gpu": True}, {})


def test_make_knows_a_clone_of_any_name(clone: Path, tmp_path: Path) -> None:
    clone = clone.rename(tmp_path / "größe (2)")
    install = install_of(clone)
    install.PYTHON.parent.mkdir(parents=True)
    install.PYTHON.symlink_to(sys.executable)
    install.write_stamp(install.STAMP, install.Options())
    assert "requirements.install" not in run("make", "--dry-run", "doctor", cwd=clone).stdout


# --- what the machine lacks -----------------------------------------------------------------------


def test_missing_tools_are_named_with_their_commands(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(install.sysconfig, "get_path", lambda _: "/nowhere")
    with pytest.raises(install.SetupError) as error:
        install.check_machine(install.Options(gpu=True, mpi="site"))
    text = str(error.value)
    version = f"python3.{sys.version_info.minor}"
    for command in ("g++", "gcc", "make", f"{version}-dev"):
        assert f"sudo apt-get install {command}`" in text
    assert "mpicc in PATH (MPI=site)" in text


def test_without_horovod_no_compiler_is_needed(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, "/nowhere/compiler")
    with pytest.raises(install.SetupError, match="HOROVOD=0 to do without"):
        install.check_machine(install.Options())
    install.check_machine(install.Options(horovod=False))
    with pytest.raises(install.SetupError, match="a C compiler"):  # of mpi4py
        install.check_machine(install.Options(horovod=False, mpi="site"))
    with pytest.raises(install.SetupError, match="add through NCCL"):
        install.set_up({"gpu": True, "horovod": False})


def test_without_horovod_none_is_compiled_or_loaded(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    (install.VENV / "bin").mkdir(parents=True)
    done: list[str] = []
    monkeypatch.setattr(install.steps, "install_pins", lambda *_, **__: done.append("pins"))
    monkeypatch.setattr(install, "install_horovod", lambda *_: done.append("horovod"))
    monkeypatch.setattr(install, "write_stamp", lambda *_: None)
    monkeypatch.setattr(install, "run", lambda command, _: done.append(command[-1]))
    install.fill(install.Options(horovod=False), None)
    assert done[0] == "pins"
    assert not any("horovod" in each for each in done)
    done.clear()
    install.fill(install.Options(), None)
    assert done[:2] == ["pins", "horovod"]
    assert "horovod.tensorflow" in done[2]


def test_a_stamp_of_before_it_could_be_left_out_is_one_with_horovod(
    install: ModuleType, complete: dict[str, Any]
) -> None:
    before = {key: value for key, value in complete.items() if key != "horovod"}
    install.STAMP.write_text(json.dumps(before))
    assert install.read_stamp(install.STAMP) == complete


def test_python_of_an_environment_is_passed_over(clone: Path, tmp_path: Path) -> None:
    for name in ("venv", "usr"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin/python3.11").symlink_to(os.path.realpath(sys.executable))
    (tmp_path / "venv/pyvenv.cfg").touch()
    path = {"PATH": f"{tmp_path}/venv/bin:{tmp_path}/usr/bin", "PYTHON": ""}
    found = run("/bin/sh", "requirements/python.sh", cwd=clone, env=path)
    assert found.stdout == f"{tmp_path}/usr/bin/python3.11\n"


def test_mpi_of_the_site_is_not_that_of_an_activated_environment(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (install.VENV / "bin", tmp_path / "site"):
        folder.mkdir(parents=True)
        (folder / "mpicc").write_text(f"#!/bin/sh\necho {folder} $1\n")
        (folder / "mpicc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{install.VENV}/bin:{tmp_path}/site")
    assert install.describe_mpicc() == f"{tmp_path}/site/mpicc {tmp_path}/site -show "


@pytest.mark.parametrize("option", [("--gpu", "yes"), ("--mpi", "openmpi")])
def test_an_unknown_option_is_refused(clone: Path, option: tuple[str, str]) -> None:
    answer = run(sys.executable, "-m", "requirements.install", *option, cwd=clone)
    assert answer.returncode == 78
    assert answer.stderr.startswith(
        f"make setup: argument {option[0]}: invalid choice: '{option[1]}'"
    )
    assert not (clone / ".venv").exists()


def test_a_complete_machine_lacks_nothing(install: ModuleType) -> None:
    install.check_machine(install.Options())


def test_a_python_that_does_not_run_is_passed_over(clone: Path, tmp_path: Path) -> None:
    broken, good = tmp_path / "broken", tmp_path / "good one"
    for folder, text in (
        (broken, "#!/bin/sh\nexit 127\n"),
        (good, f'#!/bin/sh\nexec {sys.executable} "$@"\n'),
    ):
        folder.mkdir()
        for name in ("python3.11", "python3.12", "python3"):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
    path = f"{tmp_path}/absent:{broken}:{good}"
    found = run("/bin/sh", "requirements/python.sh", cwd=clone, env={"PATH": path, "PYTHON": ""})
    assert found.stdout == f"{good}/python3.11\n"
    none = run(
        "/bin/sh", "requirements/python.sh", cwd=clone, env={"PATH": str(broken), "PYTHON": ""}
    )
    assert none.returncode == 70
    assert "no Python 3.11, 3.12 or 3.13 in PATH" in none.stderr
    wrong = {"PATH": path, "PYTHON": str(broken / "python3")}
    refused = run("/bin/sh", "requirements/python.sh", cwd=clone, env=wrong)
    assert refused.returncode == 78
    assert "broken/python3 is not a Python 3.11" in refused.stderr


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
