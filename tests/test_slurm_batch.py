"""Batch jobs without a Slurm: site profiles, job files, command lines."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from glass_cnn.pipeline import SECTIONS
from hpc import batch
from hpc.batch import job_text, plan, resources
from hpc.errors import ConfigError
from hpc.site import Site, load_site, seconds
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


# -- words that go through no shell ---------------------------------------------------------------


def test_control_characters_and_backslashes_are_refused() -> None:
    with pytest.raises(ConfigError, match="control characters"):
        job_text(Site(), [task("a\tb")])
    job = plan(study_stages(1), Path("/a\\b"), Site(), 1001)[0][0]
    with pytest.raises(ConfigError, match="backslash"):
        batch.command(job, "x")


def test_percent_signs_in_paths_are_no_patterns() -> None:
    job = plan(study_stages(1), Path("/50%a"), Site(), 1001)[0][0]
    assert "--output=/50%%a/simulate-1-%a.out" in batch.command(job, "x")
