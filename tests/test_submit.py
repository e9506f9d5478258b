"""A whole study with one command: what is missing is done, what is there is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glass_cnn.pipeline import Pipeline, pipeline
from glass_cnn.study import load_study
from hpc import gpus, provenance
from hpc.commandline import run_main
from hpc.errors import EXIT_AGAIN, EXIT_CONFIG, ConfigError, DataError
from hpc.files import read_json
from hpc.preempt import STOP_SIGNALS
from hpc.records import read_records
from hpc.stages import Room
from jobs import dataset, report, submit
from tests import synthetic, tiny
from tests.conftest import ONE_THREAD, ROOT


def names(whole: Pipeline) -> list[str]:
    return [study.name for study in whole.chain]


def planned(study: Path, logs: Path, *words: str) -> list[str]:
    """Names of the tasks of each stage that would be started."""
    found = pipeline(study, submit.assignments(submit.parse([str(study), *words])), logs)
    found = found.placed(lambda: Room(2))
    return [
        f"{stage.name}: {' '.join(task.name for task in stage.tasks)}" for stage in found.stages()
    ]


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """Jobs that run in this process catch signals; Ctrl-C must go on to end the tests."""
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return tiny.write_study(tmp_path / "study.yaml", tiny.tree(seeds=2))


@pytest.mark.parametrize(
    ("package", "used", "words"),
    [
        ("tensorflow", ("GPU-a", "GPU-b"), ""),
        ("tensorflow-cpu", (), "2 GPUs not used: this environment was set up for processors"),
    ],
)
def test_gpus_are_handed_out_where_tensorflow_can_use_them(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    used: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.setattr(gpus, "here", lambda: gpus.Found(("GPU-a", "GPU-b")))
    monkeypatch.setattr(provenance, "versions", lambda: {package: "2"})
    assert submit.usable_gpus() == used
    assert words in capsys.readouterr().out


def test_mail_is_told_to_be_for_slurm_alone(
    study: Path, tmp_path: Path, tiny_logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tiny.share(tiny_logs, tmp_path / "logs")
    words = [str(study), "--launcher", "local", "--logs", str(logs), "--dry-run"]
    assert run_main(submit.main, [*words, "--set", "launch.notify=me@example.org"]) == 0
    assert "launch.notify writes no mail from this machine" in capsys.readouterr().out
    assert run_main(submit.main, [*words, "--set", "launch.notify='a b@c'"]) == EXIT_CONFIG
    assert "must be one e-mail address" in capsys.readouterr().err


def test_a_driver_that_does_not_answer_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpus, "here", lambda: gpus.Found(complaint="no driver"))
    assert submit.usable_gpus() == ()
    assert capsys.readouterr().out == "note: no GPU is used; nvidia-smi says: no driver\n"


# What would be done


def test_everything_is_missing_at_first(study: Path, tmp_path: Path) -> None:
    simulate, train, aggregate = planned(study, tmp_path / "logs")
    assert simulate.startswith("simulate: tiny-")
    assert train.startswith("train: base-s0-")
    assert " base-s1-" in train
    assert aggregate == "aggregate: report"


def test_only_what_is_missing_is_done(study: Path, tmp_path: Path, tiny_logs: Path) -> None:
    logs = tiny.share(tiny_logs, tmp_path / "logs")
    found = load_study(study)
    first, second = (found.run_dir(logs, run) for run in found.runs)
    assert planned(study, logs) == [f"train: {first.name} {second.name}", "aggregate: report"]
    synthetic.write_run(found.directory(logs), found.runs[0])
    assert planned(study, logs) == [f"train: {second.name}", "aggregate: report"]
    synthetic.write_run(found.directory(logs), found.runs[1])
    assert planned(study, logs) == ["aggregate: report"]
    found.directory(logs).report.write_text("")
    assert planned(study, logs) == []
    # Other settings are other runs; more seeds are the new ones only.
    assert len(planned(study, logs, "--set", "train.l2=0.5")) == 2
    (train, _) = planned(study, logs, "--set", "study.seeds=3")
    assert train.startswith("train: base-s2-")
    assert train.count("base") == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "another seed"])
def test_a_damaged_result_is_named_and_counts_as_none(
    study: Path, tmp_path: Path, tiny_logs: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tiny.share(tiny_logs, tmp_path / "logs")
    found = load_study(study)
    for run in found.runs:
        synthetic.write_run(found.directory(logs), run)
    place, other = (found.run_dir(logs, each) for each in found.runs)
    place.result.write_text(other.result.read_text() if content == "another seed" else content)
    before = tiny.fingerprint(logs)
    words = [str(study), "--launcher", "local", "--logs", str(logs), "--dry-run"]
    assert run_main(submit.main, words) == 0
    said = capsys.readouterr().out
    assert f"{place.result} is damaged: the run is finished again" in said
    assert f"{place.name} --logs" in said
    assert other.name not in said
    assert tiny.fingerprint(logs) == before


def test_a_report_is_made_again_when_there_is_more_to_tell(
    study: Path, tmp_path: Path, tiny_logs: Path
) -> None:
    """After runs that were trained by hand, and after another form of the study."""
    logs = tiny.share(tiny_logs, tmp_path / "logs")
    found = load_study(study)
    place = found.directory(logs)
    for run in found.runs:
        synthetic.write_run(place, run)
    place.study.write_text(found.to_yaml())
    report.main([str(place.path)])
    assert planned(study, logs) == []
    assert planned(study, logs, "--set", "launch.ranks=2") == []
    for change in ("analysis.confidence=0.9", "study.description=x", "study.seeds=1"):
        assert planned(study, logs, "--set", change) == ["aggregate: report"]
    result = found.run_dir(logs, found.runs[1]).result
    result.write_text(result.read_text())
    assert planned(study, logs) == ["aggregate: report"]
    report.main([str(place.path)])
    assert planned(study, logs) == []


def test_ranks_and_settings_reach_the_stages(study: Path, tmp_path: Path) -> None:
    args = submit.parse(
        [str(study), "--ranks", "3", "--set", "train.l2=0.5 launch.threads_per_rank=2"]
    )
    found = load_study(study, submit.assignments(args))
    whole = pipeline(study, submit.assignments(args), tmp_path).placed(lambda: Room(2))
    train = whole.stages()[1]
    assert (train.ranks, train.threads) == (3, 2)
    assert found.points[0].settings.train.l2 == 0.5
    task = train.tasks[0]
    assert task.module == "jobs.train"
    assert task.args == (str(tmp_path / "tiny" / "study.yaml"), task.name, "--logs", str(tmp_path))
    assert task.meter is not None
    assert task.meter.total == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--ranks", "0"],
            "launch.ranks = 0: must be 'auto' or greater than or equal to 1 (MPI ranks",
        ),
        (["--ranks", "26"], "train.batch_size 25 is smaller than launch.ranks 26"),
        (["--set", "train.batch_size"], "write key=value"),
        (["--set", "train.l2='"], "--set train.l2, line 1"),
        (["--set", "a.b=1"], "a is no setting"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    study: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    assert run_main(submit.main, [str(study), "--logs", str(logs), *words]) == 78
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not logs.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- just\n- a list\n", "holds a list where a mapping 'key: value' is needed"),
        ("study: {name: s}\nstudy: {name: t}\n", "the key 'study' stands twice"),
        ("study: {name: s\n", "line 2"),
        ("extends: study.yaml\n", "goes round in a circle"),
        ("train: {}\n", "has no 'study:' section"),
        ("study: {name: a/b}\n", "because it becomes a file name"),
        ("study: {name: s, seeds: 0}\n", "study.seeds = 0"),
        ("study: {name: s}\ntrian: {}\n", "did you mean 'train'?"),
        ("study: {name: s}\ntrain: {batch_size: '80'}\n", "is text; a number is needed"),
        ("study: {name: s}\ntrain: {batch_size: -80}\n", "train.batch_size = -80"),
        ("study: {name: s}\nrender: {window: 99}\n", "is larger than the box"),
        ("study: {name: s}\nsplit: {train: 0.9}\n", "must add up to 1"),
        ("study: {name: s}\ndata: {glass: {frame: 0}}\n", "the glass must be the colder one"),
        (None, "no such file"),
    ],
)
@pytest.mark.parametrize("job", [submit.main, dataset.main], ids=["submit", "dataset"])
def test_a_wrong_study_file_is_one_message(
    tmp_path: Path, job: Any, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study, logs = tmp_path / "study.yaml", tmp_path / "logs"
    if text is not None:
        study.write_text(text)
    assert run_main(job, [str(study), "--logs", str(logs)]) == 78
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {study}")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not logs.exists()


def test_logs_that_are_a_file_are_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("")
    assert run_main(submit.main, [str(study), "--logs", str(tmp_path / "logs")]) == 78
    assert "is a file; name a directory" in capsys.readouterr().err


def test_a_missing_import_says_how_to_import(tmp_path: Path) -> None:
    content = tiny.tree(data={"name": "photos", "source": "import"})
    study = tiny.write_study(tmp_path / "study.yaml", content)
    with pytest.raises(DataError, match="make import SOURCE=<directory> CONFIG="):
        planned(study, tmp_path / "logs")


def test_a_dry_run_makes_nothing(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(study), "--logs", str(tmp_path / "logs"), "--launcher", "local", "--dry-run"]
    assert submit.main(words) == 0
    said = capsys.readouterr().out
    assert "-m jobs.dataset" in said
    assert said.count("-m jobs.train") == 2
    assert "-m jobs.report" in said
    assert not (tmp_path / "logs").exists()


# Studies that need others


def chain(place: Path, **after: str | None) -> None:
    """Study files `<name>.yaml`, each after another."""
    for name, other in after.items():
        content = tiny.tree(name)
        if other is not None:
            content["study"]["after"] = other
        tiny.write_study(place / f"{name}.yaml", content)


def test_studies_that_are_needed_come_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sub").mkdir()
    chain(tmp_path, one=None, two="one.yaml")
    chain(tmp_path / "sub", three="../two.yaml")
    study, logs = tmp_path / "sub" / "three.yaml", tmp_path / "logs"
    found = load_study(study)
    assert names(pipeline(study, (), logs)) == ["one", "two", "three"]
    # The resolved study lies elsewhere and still finds them.
    place = found.directory(logs)
    place.path.mkdir(parents=True)
    place.study.write_text(found.to_yaml())
    assert names(pipeline("three", (), logs)) == ["one", "two", "three"]
    submit.main([str(study), "--logs", str(logs), "--launcher", "local", "--dry-run"])
    said = capsys.readouterr().out
    places = [said.index(f"/{name}/study.yaml base-s0-") for name in ("one", "two", "three")]
    assert places == sorted(places)


def test_settings_reach_the_studies_that_are_needed(tmp_path: Path) -> None:
    """Data, network, launch and seeds are shared; how each is trained is not."""
    chain(tmp_path, one=None, two="one.yaml")
    study, logs = tmp_path / "two.yaml", tmp_path / "logs"
    sets = ["simulation.trajectories=30", "launch={ranks: 3}", "train.l2=0.5", "study.seeds=2"]
    whole = pipeline(study, sets, logs)
    one, _ = whole.chain
    settings = one.points[0].settings
    assert (settings.simulation.trajectories, settings.launch.ranks) == (30, 3)
    assert settings.train.l2 == tiny.settings().train.l2
    assert len(one.runs) == 2
    # Called by its name, the study finds the other as it was submitted.
    whole.write()
    first, _ = pipeline("two", (), logs).chain
    assert [run.name for run in first.runs] == [run.name for run in one.runs]


@pytest.mark.parametrize(
    "after", [{"a": "a.yaml"}, {"a": "b.yaml", "b": "a.yaml"}, {"a": "b.yaml", "b": "b.yaml"}]
)
def test_studies_that_need_each_other_are_refused(tmp_path: Path, after: dict[str, str]) -> None:
    chain(tmp_path, **after)
    with pytest.raises(ConfigError, match="goes round in a circle"):
        pipeline(tmp_path / "a.yaml", (), tmp_path)


def test_a_needed_study_that_is_missing_is_named(tmp_path: Path) -> None:
    chain(tmp_path, a="b.yaml")
    with pytest.raises(ConfigError, match=r"b\.yaml: no such file\. Did you mean .*a\.yaml"):
        pipeline(tmp_path / "a.yaml", (), tmp_path)


# Done for real


def command(study: Path, logs: Path, *words: str) -> list[str]:
    options = ["--logs", str(logs), "--launcher", "local", *words]
    return [sys.executable, "-m", "jobs.submit", str(study), *options]


def start(study: Path, logs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(study, logs, *words), capture_output=True, text=True, timeout=400, cwd=ROOT,
        env={**os.environ, **ONE_THREAD},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.requires("mpi")
def test_a_study_from_nothing_to_its_report_and_on(study: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    first = start(study, logs)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "tiny: 2 of 2 runs complete." in first.stdout
    found = load_study(study)
    runs = [found.run_dir(logs, run) for run in found.runs]
    place = found.directory(logs)
    for path in (place.report, place.results_log, place.summary, place.summary_csv):
        assert path.stat().st_size > 0
    assert str(place.report) in first.stdout
    shas = [read_json(run.result)["weights_sha256"] for run in runs]
    assert shas[0] != shas[1], "seeds differ"

    before = tiny.fingerprint(logs)
    second = start(study, logs)
    assert second.returncode == 0
    assert "all 2 runs are complete; nothing to do." in second.stdout
    assert tiny.fingerprint(logs) == before, "a second call changes nothing"

    # One result is damaged: that run alone is finished again from its last checkpoint.
    os.truncate(runs[1].result, 50)
    kept = tiny.fingerprint(runs[0].path)
    third = start(study, logs)
    assert third.returncode == 0, third.stdout + third.stderr
    assert f"{runs[1].result} is damaged: the run is finished again" in third.stdout
    assert "train: 1 to do" in third.stdout
    assert tiny.starts(runs[1]) == [0, 12]
    assert read_json(runs[1].result)["weights_sha256"] == shas[1]
    assert tiny.fingerprint(runs[0].path) == kept


@pytest.mark.slow
@pytest.mark.requires("mpi")
def test_a_failing_run_does_not_end_the_study(tmp_path: Path, tiny_logs: Path) -> None:
    logs = tiny.share(tiny_logs, tmp_path / "logs")
    content = tiny.tree()
    content["study"]["arms"] = {
        "lost": {"train.restart_from": {"run": "nowhere/runs/x"}},
        "fine": {"train.iterations": 1},
    }
    study = tiny.write_study(tmp_path / "study.yaml", content)
    done = start(study, logs)
    assert done.returncode == 78, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "exit code 78: error: train.restart_from.run 'nowhere/runs/x'" in said
    assert "1 of 2 runs complete" in said
    assert "the same command starts only those again" in said
    assert (logs / "tiny" / "report.html").exists()
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.requires("mpi")
def test_ctrl_c_stops_at_checkpoints_and_the_same_command_goes_on(
    tmp_path: Path, tiny_logs: Path, make_waiting: Callable[..., Any]
) -> None:
    logs = tiny.share(tiny_logs, tmp_path / "logs")
    long: dict[str, Any] = {"train": {"iterations": 4000}, "launch": {"ranks": 2}}
    study = tiny.write_study(tmp_path / "study.yaml", tiny.tree(**long))
    found = load_study(study)
    run = found.run_dir(logs, found.runs[0])
    launcher = subprocess.Popen(
        command(study, logs), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    make_waiting(lambda: len(read_records(run.metrics)) >= 3)
    launcher.send_signal(signal.SIGINT)
    said = launcher.communicate(timeout=200)[0]
    assert launcher.returncode == EXIT_AGAIN, said
    assert "stopped at a checkpoint" in said
    assert "the same command goes on from here" in said
    assert not run.result.exists()
    stop = [r for r in read_records(run.events) if r["event"] == "stopped"]
    assert [(r["by"], r["step"] > 8) for r in stop] == [("SIGUSR1", True)]
    assert list(run.checkpoints.glob(f"step-{stop[0]['step']:09d}"))


@pytest.fixture
def make_waiting() -> Callable[..., Any]:
    """`make_waiting(condition)` waits until it holds; the test fails after two minutes."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, "what was waited for did not come"
            time.sleep(0.1)

    return wait
