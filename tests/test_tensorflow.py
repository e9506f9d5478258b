"""How TensorFlow and Horovod are loaded: what is held back, and what is refused."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import glass_cnn.tensorflow as room
from glass_cnn.training.division import Horovod
from hpc.environment import GPUS
from hpc.errors import EXIT_CONFIG, ConfigError
from hpc.gpus import VISIBLE
from hpc.world import World
from tests.conftest import MpiRun

pytestmark = pytest.mark.usefixtures("tensorflow")

NOTICE = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    "I0000 00:00:1.2 3 port.cc:153] oneDNN custom operations are on.\n"
)
WARNING = "W0000 00:00:1.2 3 x.cc:1] something is wrong\nTraceback\n"


@pytest.mark.parametrize("fails", [False, True])
def test_what_tensorflow_says_at_every_start_is_held_back_and_nothing_else(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setenv(room.LOG_LEVEL, "2")
    with contextlib.suppress(ImportError), room.without_notice():
        os.write(2, f"{NOTICE}{WARNING}".encode())
        if fails:
            raise ImportError
    assert capfd.readouterr().err == WARNING


def test_who_asks_for_all_that_tensorflow_says_gets_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(room.LOG_LEVEL, "0")
    with room.without_notice():
        os.write(2, NOTICE.encode())
    assert capfd.readouterr().err == NOTICE


@pytest.mark.parametrize(
    ("driver", "visible", "told"),
    [(False, "0", False), (True, "", False), (True, "0", True)],
    ids=["no driver", "all hidden", "some wanted"],
)
def test_that_there_is_no_gpu_is_said_where_one_is_wanted(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    driver: bool,
    visible: str,
    told: bool,
) -> None:
    said = "E0000 00:00:1.2 3 cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)\n"

    def none(_: str) -> list[object]:
        os.write(2, said.encode())
        return []

    monkeypatch.setattr(room, "DRIVER", tmp_path if driver else tmp_path / "none")
    monkeypatch.setenv(VISIBLE, visible)
    monkeypatch.setattr(room.tf.config, "list_physical_devices", none)
    assert room.prepare() is None
    assert capfd.readouterr().err == (said if told else "")


@pytest.mark.lasting
def test_a_start_loads_no_keras_before_it_is_used_and_the_end_looks_through_nothing() -> None:
    script = (
        "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count() > 10**5)); "
        "from glass_cnn.tensorflow import tf; "
        "from glass_cnn.training.division import load_horovod; "
        "load_horovod().init(); tf.constant(1.0).numpy(); "
        "others = {'keras', 'pandas', 'scipy.stats', 'sklearn', 'matplotlib'}; "
        "print(sorted(others & set(sys.modules))); "
        "print(tf.keras.layers.Dense(3).units)"
    )
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["[]", "3", "True"]


def test_what_was_loaded_before_is_not_complained_of_at_the_end() -> None:
    words = "import freud; from glass_cnn.tensorflow import tf; freud.box.Box(1, 1)"
    done = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(("gpus", "nccl"), [(1, False), (1, True), (0, False)])
def test_ranks_on_gpus_refuse_a_horovod_without_nccl(
    monkeypatch: pytest.MonkeyPatch, gpus: int, nccl: bool
) -> None:
    facts = {"init": None, "rank": 1, "size": 2, "nccl_built": nccl}
    horovod: Any = SimpleNamespace(
        **{name: lambda answer=answer: answer for name, answer in facts.items()}
    )
    monkeypatch.setitem(sys.modules, "horovod", SimpleNamespace(tensorflow=horovod))
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", horovod)
    monkeypatch.setattr(room.tf.config, "list_physical_devices", lambda _: ["GPU"] * gpus)
    ranks = cast(World, SimpleNamespace(rank=1, size=2))
    if gpus and not nccl:
        with pytest.raises(ConfigError, match=r"2 ranks see GPUs.* without NCCL.*GPU=1"):
            Horovod(ranks)
    else:
        Horovod(ranks)


def test_one_gpu_is_taken_with_memory_as_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By training and by saved models alike; rank 3 of two GPUs is told later that it shares."""
    set_to: dict[str, Any] = {}
    config = room.tf.config
    monkeypatch.setattr(config, "list_physical_devices", lambda _: ["first", "second"])
    monkeypatch.setattr(config, "set_visible_devices", lambda *w: set_to.update(visible=w))
    monkeypatch.setattr(
        config.experimental, "set_memory_growth", lambda *w: set_to.update(growth=w)
    )
    assert room.prepare(3) == "second"
    assert set_to == {"visible": (["second"], "GPU"), "growth": ("second", True)}
    assert not config.experimental.tensor_float_32_execution_enabled()


PROMISED = """
from glass_cnn.training.engine import set_up_tensorflow
from hpc.commandline import run_main
from hpc.world import world
import sys
sys.exit(run_main(lambda _: set_up_tensorflow(1, world()) and None, []))
"""


@pytest.mark.lasting
@pytest.mark.requires("mpi")
def test_a_training_that_was_promised_gpus_does_without_none(
    mpirun: MpiRun, tmp_path: Path
) -> None:
    script = tmp_path / "promised.py"
    script.write_text(PROMISED)
    done = mpirun(2, script, env={GPUS: "1"})
    assert done.returncode == EXIT_CONFIG
    assert done.stderr.count("was to have a GPU and sees none") == 1
