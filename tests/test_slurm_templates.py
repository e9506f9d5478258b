"""The templates in slurm/ without a Slurm: what they read, start, refuse and say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpc.batch import job_text
from hpc.site import Site
from hpc.stages import Task
from tests import synthetic
from tests.slurm.stages import task


@pytest.mark.parametrize("stage", ["simulate", "train", "aggregate"])
def test_templates_are_complete_batch_scripts(root: Path, stage: str) -> None:
    text = (root / "slurm" / f"{stage}.sh").read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert f"sbatch slurm/{stage}.sh CONFIG" in text
    for option in ("--signal=B:USR2@", "--requeue", "--open-mode=append", "--time=", "--ntasks="):
        assert f"#SBATCH {option}" in text
    outside = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", f"slurm/{stage}.sh", "x"], cwd=root, env=outside, capture_output=True, text=True
    )
    assert done.returncode == 78
    assert "sbatch" in done.stderr


@pytest.mark.parametrize("stage", ["train", "simulate", "aggregate"])
def test_a_template_tells_how_it_is_submitted(root: Path, stage: str) -> None:
    done = subprocess.run(
        ["bash", f"slurm/{stage}.sh", "--help"], cwd=root, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"sbatch slurm/{stage}.sh CONFIG" in done.stdout
    assert "#SBATCH" not in done.stdout


@pytest.mark.parametrize(
    ("profile", "variables", "answer"),
    [
        ("gpus_per_rank=1", {"SLURM_JOB_GPUS": "0,1"}, "promised 1\n"),
        ("gpus_per_node=4", {"SLURM_GPUS_ON_NODE": "4"}, "promised 1\n"),
        ("", {}, "promised\n"),
        ("gpus_per_rank=1", {}, "sbatch --gpus-per-node=2 slurm/train.sh"),
        ("gpus_per_rank=a100:1", {}, "sbatch --gpus-per-node=a100:2 slurm/train.sh"),
        ("gpus_per_node=a100:4", {}, "sbatch --gpus-per-node=a100:4 slurm/train.sh"),
    ],
)
def test_a_job_without_the_gpus_of_its_profile_says_which_option_it_lacks(
    root: Path, profile: str, variables: dict[str, str], answer: str
) -> None:
    script = f"""
        . {root}/slurm/common.sh
        stage=train ranks=3 gpus_per_rank= gpus_per_node= {profile}
        check_gpus && echo promised ${{LAUNCH_GPUS:-}}
    """
    done = subprocess.run(
        ["bash", "-uc", script], capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "SLURM_JOB_NUM_NODES": "2", **variables},
    )  # fmt: skip
    assert answer in done.stdout + done.stderr
    assert done.returncode == (0 if "promised" in answer else 78)


# -- nothing that a setting says is evaluated ------------------------------------------------------

HOSTILE = [
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED #",
    "a  b",
    "'\"\\",
    "*",
    "-n",
    "$HOME",
    "ü",
]


def test_job_files_reach_the_program_word_for_word(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "a b" / "$(touch PWNED).log"
    job = Task("r", "m", (*HOSTILE, ""), tmp_path / "`x`", log)
    site = Site(launcher_options=tuple(HOSTILE[:3]), environment={"GLASS_TEST": HOSTILE[0]})
    file = tmp_path / "jo'b $x.tsv"
    file.write_text(job_text(site, [task("other"), job]))
    script = f"""
        . {root}/slurm/common.sh
        python=false SLURM_ARRAY_TASK_ID=1
        read_job train --tasks "$1"
        printf '%s\\0' "$name" "$log" "$done_file" "$GLASS_TEST"
        printf '%s\\0' "${{options[@]}}" "${{arguments[@]}}"
    """
    done = subprocess.run(
        ["bash", "-uc", script, "bash", str(file)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = ["r", str(log), str(job.done), HOSTILE[0], *HOSTILE[:3], *HOSTILE, ""]
    assert done.stdout.split("\0")[:-1] == expected
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.lasting
def test_a_damaged_result_is_no_complete_run_for_the_template(root: Path, tmp_path: Path) -> None:
    study = synthetic.study(seeds=3)
    place = synthetic.directory(study, tmp_path)
    cut, other, good = (synthetic.write_run(place, run) for run in study.runs)
    cut.result.write_text(cut.result.read_text()[:-20])
    other.result.write_text(good.result.read_text())  # of another seed
    tasks = [Task(r.name, "m", (), r.result, r.output) for r in (cut, other, good)]
    (tmp_path / "train-1.tsv").write_text(job_text(Site(), tasks))
    script = f"""
        . slurm/common.sh
        for part in load_modules make_command check_gpus make_program clear_shared_memory \\
            requeue; do
            eval "$part() {{ :; }}"
        done
        run_ranks() {{ status=0; echo "$name: starts"; }}
        python={sys.executable} stage=train SLURM_ARRAY_TASK_ID=$1 ranks=1
        read_job train --tasks "$2"
        main_alone
    """
    said = [
        subprocess.run(
            ["bash", "-uc", script, "bash", str(index), str(tmp_path / "train-1.tsv")],
            cwd=root, capture_output=True, text=True, check=True,
        ).stdout
        for index in range(3)
    ]  # fmt: skip
    for run, told in zip((cut, other), said[:2], strict=True):
        assert f"{run.name}: result.json is damaged: the run is finished again" in told
        assert f"{run.name}: starts" in told
        assert run.result.with_name("result.json.damaged").exists()
    assert "is complete; nothing to do" in said[2]
    assert good.result.exists()


@pytest.mark.parametrize(
    ("facts", "index"),
    [
        ("JobId=8 ArrayJobId=7 ArrayTaskId=5 JobName=x", "5"),
        ("JobId=8 JobName=x", "none"),
        ("JobId=8 ArrayJobId=77 ArrayTaskId=5", "none"),
        (None, "5"),
    ],
)
def test_the_array_of_an_outer_job_is_not_taken_for_ones_own(
    root: Path, tmp_path: Path, facts: str | None, index: str
) -> None:
    """sbatch hands SLURM_ARRAY_… on; None: Slurm cannot be asked."""
    answer = "exit 1" if facts is None else f"echo '{facts}'"
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "scontrol").chmod(0o755)
    variables = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "5"}
    script = f'. {root}/slurm/common.sh; keep_own_array; echo "${{SLURM_ARRAY_TASK_ID:-none}}"'
    done = subprocess.run(
        ["bash", "-uc", script], capture_output=True, text=True, check=True,
        env={**os.environ, **variables, "PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout == f"{index}\n"


@pytest.mark.parametrize(
    ("variables", "words"), [({}, []), ({"LAUNCH_GPUS": "1"}, ["--nv"])], ids=["plain", "gpu"]
)
def test_ranks_run_in_the_container_of_the_profile(
    root: Path, tmp_path: Path, variables: dict[str, str], words: list[str]
) -> None:
    image = tmp_path / "an image.sif"
    image.touch()
    file, log = tmp_path / "train-1.tsv", tmp_path / "log"
    job = Task("r", "jobs.train", ("study.yaml", "a b"), tmp_path / "done", log)
    file.write_text(job_text(Site(container=str(image)), [job]))
    for name, script in {
        "apptainer": "printf '%s\\n' \"$@\"",
        "srun": 'while [ "$1" != apptainer ]; do shift; done; exec "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    script = f"""
        . {root}/slurm/common.sh
        python=false stage=train
        read_job train --tasks "$1"
        make_command
        make_program
        run_ranks
        exit "$status"
    """
    done = subprocess.run(
        ["bash", "-uc", script, "bash", str(file)], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    program = ["exec", "--pwd", str(tmp_path), *words, str(image), "python", "-m", "jobs.train"]
    assert log.read_text().splitlines() == [*program, "study.yaml", "a b"]


@pytest.mark.parametrize(
    ("programs", "message"),
    [((), "no apptainer in PATH"), (("apptainer",), "nowhere.sif cannot be read")],
)
def test_a_container_that_cannot_run_is_told_before_ranks_start(
    root: Path, tmp_path: Path, programs: tuple[str, ...], message: str
) -> None:
    for name in programs:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    script = f". {root}/slurm/common.sh; python=false container=nowhere.sif; make_program"
    done = subprocess.run(
        ["bash", "-uc", script], capture_output=True, text=True, env={"PATH": f"{tmp_path}:/bin"}
    )
    assert done.returncode == 78
    assert message in done.stderr


@pytest.mark.parametrize(("name", "words"), [("cpu", "setup"), ("gpu", "setup GPU=1")])
def test_images_are_made_by_the_same_set_up(root: Path, name: str, words: str) -> None:
    text = (root / "containers" / f"{name}.def").read_text()
    assert f"make -C /opt/glass {words}\n" in text
    (files,) = re.findall(r"^%files\n(.*?)\n\n", text, re.M | re.S)
    copied = dict(line.split() for line in files.splitlines())
    assert copied == {"Makefile": "/opt/glass/Makefile", "requirements": "/opt/glass/requirements"}
    assert "export PATH=/opt/glass/.venv/bin:$PATH" in text
