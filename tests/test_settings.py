"""The tree of settings: what is refused before anything starts, and what makes a run's identity."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_cnn.settings import RunSettings, build_run, load_run
from hpc.config import Settings, groups, meanings, to_tree, to_yaml
from hpc.errors import ConfigError
from hpc.yaml_files import unflatten


def run(**changes: Any) -> RunSettings:
    """Settings with changes; `train__batch_size=3` is train.batch_size."""
    return build_run(unflatten({k.replace("__", "."): v for k, v in changes.items()}), "test.yaml")


THRESHOLD = {"kind": "threshold", "initial": 1e-3}

# setting: (value, words of the message)
REFUSED: list[tuple[dict[str, Any], str]] = [
    # bounds of each setting: tests/test_bounds.py
    # words that are none of those allowed
    ({"model__recipe": "modren"}, "must be 'swanson2017' or 'modern'"),
    ({"render__style": "dots"}, "must be 'scatter2017' or 'disc'"),
    ({"data__source": "imported"}, "must be 'simulation' or 'import'"),
    ({"data__form": "cold"}, "must be 'thermal' or 'inherent'"),
    ({"data__name": "a/b"}, "because it becomes a file name"),
    ({"data__name": "-rf"}, "because it becomes a file name"),
    ({"train__learning_rate": {"kind": "cosin"}}, "train.learning_rate.kind"),
    ({"train__optimizer": {"kind": "lamb"}}, "train.optimizer.kind"),
    # combinations
    ({"checkpoint__after_end": "best", "checkpoint__best": False}, "best keeps nothing"),
    ({"train__batch_size": 1, "launch__ranks": 2}, "train.batch_size 1 is smaller than launch.r"),
    ({"train__batch_size": 3, "launch__ranks": 4}, "at least one example; fewer ranks, a larger"),
    ({"render__window": 18.3}, "render.window 18.3 σ is larger than the box, 18.26 σ"),
    ({"render__windows_per_configuration": 2}, "needs a window"),
    (
        {"render__window": 9.0, "train__augmentation__translations": True},
        "translations needs whole-box images",
    ),
    ({"data__glass": {"frame": 0}, "data__liquid": {"frame": -1}}, "the glass must be the colder"),
    ({"data__glass": {"frame": 0}}, "the glass must be the colder"),
    ({"data__glass": {"temperature": 1.9}, "data__liquid": {"temperature": 1.0}}, "colder"),
    ({"data__glass": {"frame": 200}}, "is outside the ramp of 200 frames"),
    ({"data__glass": {"frame": -201}}, "is outside the ramp"),
    ({"data__liquid": {"temperature": 2.5}}, "data.liquid {'temperature': 2.5} is outside"),
    ({"data__glass": {"frame": 1, "temperature": 0.1}}, "given: frame, temperature"),
    ({"data__glass": {}}, "given: none"),
    ({"split__train": 0.8}, "= 1.1; the three shares must add up to 1"),
    ({"split__train": 0.85, "split__validation": 0.0}, "must each be greater than 0"),
    ({"simulation__temperature_end": 2.0}, "must be below temperature_start"),
    ({"simulation__temperature_start": 0.01}, "the ramp cools"),
    ({"simulation__cooling_steps": 1001}, "must be a multiple of frames"),
    ({"simulation__particles": 29}, "at least twice the cutoff"),
    (
        {
            "train__learning_rate": {
                **THRESHOLD,
                "levels": [{"above": 0.9, "rate": 1}, {"above": 0.9, "rate": 2}],
            }
        },
        "levels must rise in accuracy; they are [0.9, 0.9]",
    ),
    (
        {"train__learning_rate": {**THRESHOLD, "levels": [{"rate": 1}]}},
        "levels.0: give exactly one of at_least (an accuracy that is reached) and above",
    ),
    (
        {
            "train__learning_rate": {
                **THRESHOLD,
                "levels": [{"above": 0.9, "at_least": 0.9, "rate": 1}],
            }
        },
        "give exactly one of at_least",
    ),
    ({"train__learning_rate": {"kind": "linear"}}, "train.learning_rate.initial is missing"),
    ({"train__learning_rate": {"inital": 1e-3}}, "did you mean 'initial'?"),
    ({"train__learning_rate": 1e-3}, "a mapping 'key: value' is needed"),
    ({"train__optimizer": {"kind": "sgd", "beta_1": 0.9}}, "beta_1 is no setting"),
    ({"train__restart_from": {"which": "best"}}, "train.restart_from.run is missing"),
    (
        {"train__restart_from": {"run": "x", "which": "best", "optimizer_state": True}},
        "best checkpoints hold weights",
    ),
    # keys
    ({"trian": {}}, "trian is no setting: did you mean 'train'?"),
    ({"train__batchsize": 3}, "train.batchsize is no setting: did you mean 'batch_size'?"),
    ({"train__augmentation": {"flip": True}}, "did you mean 'flips'?"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=lambda x: str(x)[:60])
def test_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        run(**changes)
    assert all(line.startswith("test.yaml: ") for line in str(caught.value).splitlines())


def test_the_defaults_are_the_logs_of_2017() -> None:
    settings = run()
    assert settings.model.recipe == "swanson2017"
    assert settings.render.pixels == 250
    assert to_tree(settings.train.optimizer) == {
        "kind": "adam",
        "beta_1": 0.9,
        "beta_2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": None,
    }
    split = settings.split
    assert (split.train, split.validation, split.test) == (0.70, 0.15, 0.15)
    assert settings.train.batches_per_iteration == 10
    assert settings.train.steps == 6000


def all_models(model: type[Settings]) -> set[type[Settings]]:
    """`model` and every group of settings below it."""

    def members(annotation: Any) -> set[type[Settings]]:
        if isinstance(annotation, type) and issubclass(annotation, Settings):
            return all_models(annotation)
        inner = getattr(annotation, "__args__", ())
        return set().union(*(members(a) for a in inner))

    fields = model.model_fields.values()
    return {model}.union(*(members(f.annotation) for f in fields))


def test_every_setting_says_what_it_means() -> None:
    models = all_models(RunSettings)
    assert {"Cosine", "Sgd", "Rollback", "Level"} <= {m.__name__ for m in models}
    for model in models:
        assert set(meanings(model)) == set(model.model_fields), model.__name__
        assert all(meanings(model).values()), model.__name__
    assert set(groups(RunSettings).values()) == models


# Frames


def test_frames_are_chosen_by_index_temperature_or_distance_from_the_transition() -> None:
    ramp = run().simulation
    assert ramp.temperature(0) == pytest.approx(1.99025)
    assert ramp.temperature(199) == pytest.approx(0.05)
    assert run(data__liquid={"frame": 3}).frame("liquid") == 3
    assert run().frame("glass") == 199
    assert run(data__glass={"frame": -2}).frame("glass") == 198
    near = run(data__liquid={"temperature": 1.0}).frame("liquid")
    distances = [abs(ramp.temperature(f) - 1.0) for f in range(200)]
    assert near == distances.index(min(distances))
    transition = [abs(ramp.temperature(f) - 0.21) for f in range(200)]
    middle = transition.index(min(transition))
    pair = run(data__liquid={"above_transition": 12}, data__glass={"above_transition": -3})
    assert (pair.frame("liquid"), pair.frame("glass")) == (middle - 12, middle + 3)
    assert run(data__liquid={"temperature": 2.0}).frame("liquid") == 0


# Identity

SAME_RUN: list[dict[str, Any]] = [
    {"launch__ranks": 4},
    {"launch__threads_per_rank": 3},
    {"launch__slurm": {"partition": "gpu"}},
    {"checkpoint__every_iterations": 3},
    {"checkpoint__after_end": "best"},
    {"analysis__learned_accuracy": 0.9},
    {"train__evaluation_batch": 10},
    {"train__diagnostics_every": 0},
    {"simulation__style": "plain"},
]
OTHER_RUN: list[dict[str, Any]] = [
    {"train__batch_size": 81},
    {"train__l2": 0.02},
    {"train__learning_rate": {"initial": 1e-4}},
    {"train__augmentation": {"flips": True}},
    {"train__restart_from": {"run": "a"}},
    {"train__evaluation_examples": 100},
    {"model__recipe": "modern"},
    {"split__seed": 2},
    {"simulation__seed": 2},
    {"render__pixels": 100},
    {"data__permute_labels": True},
]


@pytest.mark.parametrize("changes", SAME_RUN, ids=str)
def test_what_changes_no_result_changes_no_identity(changes: dict[str, Any]) -> None:
    assert run(**changes).run_digest() == run().run_digest()
    assert run(**changes).dataset_digest() == run().dataset_digest()


@pytest.mark.parametrize("changes", OTHER_RUN, ids=str)
def test_what_changes_results_is_another_run(changes: dict[str, Any]) -> None:
    assert run(**changes).run_digest() != run().run_digest()


def test_seeds_share_a_point_and_its_data() -> None:
    assert run(seed=1).point_digest() == run(seed=2).point_digest()
    assert run(seed=1).run_digest() != run(seed=2).run_digest()
    assert run(seed=1).dataset_digest() == run(seed=2).dataset_digest()


def test_a_data_set_is_known_by_what_it_is_made_of() -> None:
    digest = run().dataset_digest()
    assert (
        run(train__batch_size=9, split__seed=3, model__recipe="modern").dataset_digest() == digest
    )
    assert run(data__glass={"frame": 199}).dataset_digest() == digest  # the same frame
    assert run(data__permute_labels=True).dataset_digest() == digest
    assert run(data__glass={"frame": 198}).dataset_digest() != digest
    assert run(render__seed=2).dataset_digest() != digest
    imported = {"data__source": "import", "data__name": "photos"}
    assert run(**imported, simulation__seed=5).dataset_digest() == run(**imported).dataset_digest()
    assert run(**imported, simulation__seed=5).run_digest() == run(**imported).run_digest()


@pytest.mark.lasting
@given(
    batch=st.integers(2, 500),
    rate=st.floats(1e-8, 1.0),
    l2=st.floats(0, 1),
    seed=st.integers(0, 2**31 - 1),
)
def test_yaml_there_and_back_is_the_same_run(
    tmp_path_factory: pytest.TempPathFactory, batch: int, rate: float, l2: float, seed: int
) -> None:
    settings = run(
        train__batch_size=batch, train__learning_rate={"initial": rate}, train__l2=l2, seed=seed
    )
    path = tmp_path_factory.getbasetemp() / "run.yaml"
    path.write_text(to_yaml(settings), encoding="utf-8")
    assert load_run(path) == settings
    assert load_run(path).run_digest() == settings.run_digest()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(pydantic.ValidationError):
        run().train.batch_size = 3


def test_a_config_file_from_elsewhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train: {batch_size: x}", encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(f'{path}: train.batch_size = "x"')):
        load_run(path)
