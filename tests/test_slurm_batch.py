"""Batch jobs without a Slurm: site profiles, job files, command lines."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glass_cnn.pipeline import SECTIONS
from hpc import batch
from hpc.batch import job_text, plan, resources
from hpc.errors import ConfigError
from hpc.site import Site, load_site, seconds
from hpc.stages import Task
from tests import synthetic
from tests.slurm.stages import LOGS, study_stages, task

GOLDEN = Path(__file__).parent / "slurm" / "golden"

# -- scripts and commands --------------------------------------------------------------------------


def submission(site: Site, runs: int = 3) -> str:
    """Every command and job file of a submission, as text."""
    parts: list[str] = []
    before: list[str] = []
    for chunks in plan(study_stages(runs), LOGS / "jobs" / "20260102-030405", site, 1001):
        for job in chunks:
            parts += [shlex.join(batch.command(job, "endpoint", before)), job.text]
        before = [f"<{job.file.stem}>" for job in chunks]
    return "\n".join(parts)


@pytest.mark.parametrize("name", ["dev", "cpu", "gpu"])
def test_submission_with_each_shipped_profile_is_as_it_was(name: str) -> None:
    over = {"launcher": "mpiexec", "min_nodes": 1, "ranks_per_node": 2} if name == "dev" else {}
    assert submission(load_site(name, over, SECTIONS)) == (GOLDEN / f"{name}.txt").read_text()


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


def test_arrays_are_chunked_and_hold_every_run_once() -> None:
    train = plan(study_stages(10_000), Path("/j"), Site(), 1001)[1]
    assert [len(job.stage.tasks) for job in train] == [1000] * 10
    assert len({task.name for job in train for task in job.stage.tasks}) == 10_000
    assert [job.file.name for job in train][:2] == ["train-1.tsv", "train-2.tsv"]
    assert all("--array=0-999" in batch.command(job, "x") for job in train)


def test_throttle_and_chunk_size_come_from_the_profile() -> None:
    site = Site(throttle=7, max_array_size=3)
    train = plan(study_stages(5), Path("/j"), site, 1001)[1]
    arrays = [word for job in train for word in batch.command(job, "x") if "--array" in word]
    assert arrays == ["--array=0-1%7", "--array=0-1%7", "--array=0-0"]


def test_stages_depend_on_the_one_before() -> None:
    jobs = plan(study_stages(1), Path("/j"), Site(ranks_per_node=8), 1001)
    assert [chunks[0].after for chunks in jobs] == ["", "afterok", "afterany"]
    words = batch.command(jobs[1][0], "x", ["7", "8"])
    assert "--dependency=afterok:7:8" in words
    assert "--kill-on-invalid-dep=yes" in words
    assert not [word for word in batch.command(jobs[1][0], "x") if "dependency" in word]


def test_one_mail_is_written_when_the_last_job_has_ended() -> None:
    jobs = plan(study_stages(3), Path("/j"), Site(ranks_per_node=8), 2, "me@example.org")
    words = [batch.command(job, "x") for chunks in jobs for job in chunks]
    assert len(words) == 5, "arrays of one task"
    mails = [[word for word in each if "mail" in word] for each in words]
    assert mails == [[], [], [], [], ["--mail-user=me@example.org", "--mail-type=END,FAIL"]]


def test_own_options_of_the_profile_win() -> None:
    words = resources(
        study_stages(1)[1], Site(ranks_per_node=4, options=("--time=5", "--exclusive"))
    )
    assert words.index("--time=5") > words.index("--time=1:00:00")
    assert words[-1] == "--exclusive"


def test_nodes_of_the_profile_are_for_training_only() -> None:
    site = Site(nodes=4, min_nodes=2)
    assert "--nodes=2-4" in resources(study_stages(1)[1], site.of("train", main=True))
    assert "--nodes=1" in resources(study_stages(1)[2], site.of("aggregate"))


def gpu_words(ranks: int, **over: Any) -> list[str]:
    """What sbatch is told of nodes, ranks and GPUs for a training under the profile gpu."""
    site = load_site("gpu", over, SECTIONS).of("train", main=True)
    words = resources(study_stages(1, ranks)[1], site)
    return [word for word in words if re.match("--(nodes|ntasks|gpus)", word)]


@pytest.mark.parametrize(
    ("ranks", "over", "gpus"),
    [
        (1, {}, "--nodes=1 --ntasks=1 --ntasks-per-node=1 --gpus-per-node=1"),
        (2, {}, "--nodes=1 --ntasks=2 --ntasks-per-node=2 --gpus-per-node=2"),
        (6, {}, "--nodes=2 --ntasks=6 --ntasks-per-node=3 --gpus-per-node=3"),
        (2, {"nodes": 2}, "--nodes=2 --ntasks=2 --ntasks-per-node=1 --gpus-per-node=1"),
        (8, {"min_nodes": 1}, "--nodes=1-2 --ntasks-per-node=4 --gpus-per-node=4"),
        (2, {"gpus_per_rank": "a100:1"}, "--nodes=1 --ntasks=2 --ntasks-per-node=2 "
                                         "--gpus-per-node=a100:2"),
        (2, {"gpus_per_node": "a100:4"}, "--nodes=1 --ntasks=2 --ntasks-per-node=2 "
                                         "--gpus-per-node=a100:4"),
        (2, {"gpus_per_rank": 0}, "--nodes=1 --ntasks=2 --ntasks-per-node=2"),
    ],
)  # fmt: skip
def test_as_many_gpus_are_asked_for_as_there_are_ranks(
    ranks: int, over: dict[str, Any], gpus: str
) -> None:
    assert " ".join(gpu_words(ranks, **over)) == gpus


def test_gpus_are_for_training_only() -> None:
    site = load_site("gpu", {}, SECTIONS)
    for stage in (study_stages(1)[0], study_stages(1)[2]):
        assert not [w for w in resources(stage, site.of(stage.name)) if "gpu" in w]
        assert "gpus" not in job_text(site.of(stage.name), stage.tasks)
    assert "8 GPU-hours" in batch.cost(study_stages(1, 2)[1], site)
    assert "idle" not in batch.cost(study_stages(1, 2)[1], site)
    assert "6 GPUs (1 of them idle)" in batch.cost(study_stages(1, 5)[1], site)
    assert "16 GPU-hours" in batch.cost(
        study_stages(1, 2)[1], load_site("gpu", {"gpus_per_node": 4}, SECTIONS)
    )


def test_more_ranks_on_a_node_than_it_has_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 ranks on a node of 2 GPUs"):
        gpu_words(4, gpus_per_node="a100:2")


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


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"nodes": 1, "ranks_per_node": 2}, "cannot be spread over"),
        ({"nodes": 9, "ranks_per_node": 2}, "cannot be spread over"),
        ({"nodes": 3, "ranks_per_node": 2, "min_nodes": 1}, "same number of ranks on each"),
        ({"nodes": 2, "ranks_per_node": 2, "min_nodes": 3}, "min_nodes 3"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resources(study_stages(1)[1], Site(**over))


# -- profiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"partion": "x"}, "did you mean 'partition'"),
        ({"time": 43200}, "in quotes"),
        ({"time": "soon"}, "hours:minutes:seconds"),
        ({"time": "0:30"}, "at least a minute"),
        ({"partition": "--wrap=x"}, "begin with '-'"),
        ({"account": "a\nb"}, "control characters"),
        ({"environment": {"A-B": "1"}}, "environment variable"),
        ({"environment": {"A": "1\n2"}}, "control characters"),
        ({"modules": ["gcc\tx"]}, "control characters"),
        ({"launcher": "prun"}, "srun"),
        ({"gpus_per_node": "a100"}, "gpus_per_node"),
        ({"gpus_per_rank": 2}, "a rank computes on one"),
        ({"gpus_per_rank": "a100:2"}, "a rank computes on one"),
        ({"memory": "lots"}, "memory"),
        ({"simulate": {"partion": "x"}}, "section 'simulate'"),
    ],
)
def test_mistakes_in_a_profile_are_named(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_site("dev", over, SECTIONS)


def test_unknown_site_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Known: cpu, dev, gpu, karolina"):
        load_site("devv", {})
    with pytest.raises(ConfigError, match="no such file"):
        load_site(str(tmp_path / "mine.yaml"), {})


@pytest.mark.parametrize(
    ("name", "gpus"),
    [
        ("karolina", "1 --cpus-per-task=16 --gpus-per-node=1"),
        ("leonardo", "1 --cpus-per-task=8 --gpus-per-node=1"),
        ("marenostrum5", "1 --cpus-per-task=20 --gpus-per-node=1"),
        ("perlmutter", "1 --cpus-per-task=32 --gpus-per-node=4"),
        ("snellius", "1 --cpus-per-task=18 --gpus-per-node=1"),
    ],
)
def test_profiles_of_centres_say_that_they_are_untested_and_ask_for_gpus(
    root: Path, name: str, gpus: str
) -> None:
    assert "UNTESTED" in (root / "slurm" / "sites" / f"{name}.yaml").read_text()
    site = load_site(name, {}, SECTIONS)
    simulate, train, report = study_stages(1, 1)
    words = " ".join(resources(train, site.of("train", main=True)))
    assert f"--ntasks-per-node={gpus} " in words
    for stage in (simulate, report):
        assert "gpu" not in " ".join(resources(stage, site.of(stage.name))).replace(
            "--partition=qgpu", ""
        )


def test_a_profile_of_ones_own_may_extend_a_shipped_one(tmp_path: Path, root: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: {root}/slurm/sites/cpu.yaml\npartition: long\n")
    site = load_site(str(mine), {"time": "2-00:00:00"}, SECTIONS)
    assert (site.partition, site.bind, site.time) == ("long", "cores", "2-00:00:00")


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:30:00", 5400),
        ("2-1", 176_400),
        ("1-0:30", 88_200),
        ("1-00:00:01", 86_401),
    ],
)
def test_time_limits_as_slurm_reads_them(text: str, length: int) -> None:
    assert seconds(text) == length


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


def test_control_characters_and_backslashes_are_refused() -> None:
    with pytest.raises(ConfigError, match="control characters"):
        job_text(Site(), [task("a\tb")])
    job = plan(study_stages(1), Path("/a\\b"), Site(), 1001)[0][0]
    with pytest.raises(ConfigError, match="backslash"):
        batch.command(job, "x")


def test_percent_signs_in_paths_are_no_patterns() -> None:
    job = plan(study_stages(1), Path("/50%a"), Site(), 1001)[0][0]
    assert "--output=/50%%a/simulate-1-%a.out" in batch.command(job, "x")
