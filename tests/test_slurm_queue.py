"""What is in Slurm's queue, as tasks of studies; what a submission would do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from glass_cnn.paths import DatasetDir, StudyDir
from glass_cnn.pipeline import SECTIONS
from hpc import slurm
from hpc.batch import job_text
from hpc.files import write_json
from hpc.site import Site
from hpc.slurm import Queued, active
from tests.slurm.stages import study_stages, task


def test_queue_is_matched_to_tasks_by_id_and_by_comment(tmp_path: Path) -> None:
    study = StudyDir(tmp_path / "study")
    folder = study.jobs / "20260102-030405"
    folder.mkdir(parents=True)
    tasks = [task(f"r{i}", folder=study.path) for i in range(3)]
    for name, some in (("train-1.tsv", tasks[:2]), ("train-2.tsv", tasks[2:])):
        (folder / name).write_text(job_text(Site(), some))
    record = {"id": "17", "stage": "train", "tasks": 2, "file": str(folder / "train-1.tsv")}
    write_json(folder / "submission.json", {"study": "study", "jobs": [record]})
    rows = [
        Queued("17", 1, "RUNNING", "None", "n1", ""),
        Queued("18", 0, "PENDING", "Resources", "", str(folder / "train-2.tsv")),
        Queued("19", 0, "PENDING", "Resources", "", "somebody's else"),
        Queued("17", 5, "PENDING", "Resources", "", ""),
    ]
    found = active(tmp_path, rows)
    assert {name: row.target for name, row in found.values()} == {"r1": "17_1", "r2": "18_0"}
    assert set(found) == {str(tasks[1].done), str(tasks[2].done)}
    assert slurm.active_in(study.path, rows) == found
    assert slurm.active_in(tmp_path / "other", rows) == {}


def test_a_job_without_a_file_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of somebody else; also where we stand in the logs themselves, which its "" might mean."""
    monkeypatch.chdir(tmp_path)
    assert active(tmp_path, [Queued("19", 0, "PENDING", "Resources", "", "")]) == {}


def test_a_link_to_the_logs_leads_to_the_same_tasks(tmp_path: Path) -> None:
    """Nothing is submitted twice because LOGS was given by another name."""
    study, link = StudyDir(tmp_path / "logs" / "study"), tmp_path / "link"
    link.symlink_to("logs")
    file = study.jobs / "20260102-030405" / "train-1.tsv"
    file.parent.mkdir(parents=True)
    run, data = task("r0", folder=study.path), DatasetDir(study.path.parent / "datasets").record
    file.write_text(job_text(Site(), [run, dataclasses.replace(run, name="data", done=data)]))
    rows = [Queued("17", i, "RUNNING", "None", "n1", str(file)) for i in range(2)]
    wanted = {str(link / path.relative_to(study.path.parent)) for path in (run.done, data)}
    assert set(active(link, rows)) == wanted
    assert set(slurm.active_in(link / "study", rows)) == wanted
    assert slurm.active_in(link / "other", rows) == {}


def test_runs_that_another_study_submitted_are_known(tmp_path: Path) -> None:
    first, second = StudyDir(tmp_path / "first"), StudyDir(tmp_path / "second")
    file = second.jobs / "20260102-030405" / "train-1.tsv"
    file.parent.mkdir(parents=True)
    needed = task("r0", folder=first.path)
    file.write_text(job_text(Site(), [needed]))
    rows = [Queued("17", 0, "RUNNING", "None", "n1", str(file))]
    for study in (first, second):
        assert set(slurm.active_in(study.path, rows)) == {str(needed.done)}


def test_dry_run_shows_commands_and_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    study = StudyDir(tmp_path / "study")
    assert (
        slurm.Slurm(study.path, "gpu", sections=SECTIONS).launch(study_stages(20), dry_run=True)
        == 0
    )
    shown = capsys.readouterr().out
    assert "sbatch --parsable" in shown
    assert "--dependency=afterok:<simulate-1>" in shown
    assert "base-s0-0123abcd" in shown
    assert "and 17 tasks more" in shown
    assert "#SBATCH --signal=B:USR2@120" in shown
    assert not study.path.exists()


def test_a_machine_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.answers()
    with pytest.raises(slurm.SlurmError, match="LAUNCHER=local"):
        slurm.queue()
