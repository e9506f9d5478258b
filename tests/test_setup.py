"""Set-up: the stamp, what the machine lacks, what the user is told."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
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
    assert added == [install.DEV_PINS]
    for target in ("doctor", "submit", "test", "check", "bench"):
        assert "install" not in run(*plan, target, cwd=clone).stdout
    (clone / "requirements/dev.txt").write_text("pytest==1\n")
    os.utime(clone / "requirements/dev.txt", (2e9, 2e9))
    assert "install" not in run(*plan, "doctor", cwd=clone).stdout
    assert "install --dev" in run(*plan, "check", cwd=clone).stdout
    install.set_up({})  # nothing of it is a reason to touch the rest
    for _ in range(2):
        install.add_dev()
    assert added == [install.DEV_PINS] * 2


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


def test_packages_are_compiled_whatever_python_is_told_with_signs_of_life(
    steps: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(steps, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(steps, "PYTHON", Path(sys.executable))
    folder = steps.VENV / "lib/python3.11/site-packages"
    folder.mkdir(parents=True)
    (folder / "good.py").write_text("x = 1\n")
    (folder / "template.py").write_text("x = {{ value\n")
    steps.byte_compile()
    assert "setup: ... compiling to bytecode, 0 s so far" in capsys.readouterr().out
    assert [path.name.split(".")[0] for path in folder.glob("__pycache__/*.pyc")] == ["good"]


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
        while not (steps.LOG.exists() and steps.LOG.read_text().rstrip()[-1:].isdigit()):
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
    install.PYTHON.with_name("glass").touch()
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
