"""The JSON schema of study files: it accepts those that there are, and sees what is mistyped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glass_cnn.study_schema import DIALECT, study_schema
from hpc.yaml_files import read_yaml
from tests.conftest import ROOT
from tests.schemas import errors

SCHEMA = study_schema()
FILES = sorted((ROOT / "jobs").rglob("*.yaml"))


def wrong(tree: Any) -> list[str]:
    return errors(tree, SCHEMA, SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_study_file_fits_the_schema(path: Path) -> None:
    assert wrong(read_yaml(path)) == []


@pytest.mark.parametrize(
    "tree",
    [
        {"study": {"name": "x", "seeds": 3}, "train": {"batchsize": 80}},
        {"train": {"batch_size": "80"}},
        {"train": {"batch_size": 0}},
        {"train": {"dropout": 1.0}},
        {"train": {"learning_rate": {"kind": "linera"}}},
        {"train": {"learning_rate": {"kind": "linear", "decay": 0.5}}},
        {"model": {"recipe": "swanson2018"}},
        {"seed": 3},
        {"study": {"arms": {"low": {"train.learning_rate.intial": 1e-4}}}},
        {"study": {"arms": {"low": {"train": {"dropuot": 0.1}}}}},
        {"study": {"grid": {"train.batch_size": 80}}},
        {"study": {"grid": {"train.batch_size": [80, "many"]}}},
        {"study": {"grid": {"train.batch_size": []}}},
        {"study": {"paired": [{"train.iterations": [100], "train.batch": [1]}]}},
    ],
)
def test_a_mistake_is_seen(tree: dict[str, Any]) -> None:
    assert wrong(tree) != []


@pytest.mark.parametrize(
    "tree",
    [
        {"extends": ["a.yaml", "b.yaml"], "train": {"learning_rate": {"final": 1e-5}}},
        {"study": {"seeds": {"from": 4}, "arms": {"low": {"train.learning_rate.initial": 1e-4}}}},
        {"study": {"arms": {"short": {"train": {"iterations": 30}}}, "seeds": [1, 5]}},
        {"study": {"grid": {"launch.slurm.time": ["1:00:00"], "train.dropout": [0.1, 0.5]}}},
        {"data": {"types": {"Ar": "A"}}, "render": {"window": None}},
    ],
)
def test_what_is_allowed_is_no_mistake(tree: dict[str, Any]) -> None:
    assert wrong(tree) == []


def test_the_command_prints_it() -> None:
    command = [sys.executable, "-m", "jobs.schema"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == SCHEMA
    assert SCHEMA["$schema"] == DIALECT
