"""Trees to settings: how one lies over another, and every message about what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc import commandline, config
from hpc.config import Name, Settings
from hpc.errors import ConfigError, DataError, UserError
from hpc.yaml_files import parse_yaml
from tests.conftest import ROOT


class Wheel(Settings):
    """One kind of part."""

    kind: Literal["wheel"] = "wheel"
    """wheel or wing"""
    spokes: Annotated[int, pydantic.Field(ge=1)] = 32
    """number of spokes"""
    colour: str = "black"
    """its paint"""


class Wing(Settings):
    """Another kind of part."""

    kind: Literal["wing"]
    """wing"""
    span: float
    """tip to tip, m"""
    colour: str = "white"
    """its paint"""


class Machine(Settings):
    """A tree with every shape that settings have."""

    name: Name = "bicycle"
    """what it is called"""
    weight: Annotated[float, pydantic.Field(gt=0)] = 10.0
    """kg"""
    seats: int = 1
    """riders"""
    electric: bool = False
    """has a motor"""
    part: Annotated[Wheel | Wing, pydantic.Field(discriminator="kind")] = Wheel()
    """what it moves with"""
    parts: list[Wing] = []
    """more of them"""
    wheels: Literal["auto"] | Annotated[int, pydantic.Field(ge=1)] = "auto"
    """how many touch the ground"""


def refused(tree: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config.validate(Machine, tree, "m.yaml")
    return str(caught.value)


# One tree over another


def test_another_kind_drops_what_it_does_not_know_and_says_so() -> None:
    told: list[str] = []
    base = {"part": {"kind": "wheel", "spokes": 20, "colour": "red"}}
    assert (
        config.overlay(Machine, base, {"part": {"spokes": 3}}, told.append)["part"]["spokes"] == 3
    )
    assert told == []
    other = config.overlay(Machine, base, {"part": {"kind": "wing", "span": 2}}, told.append)
    assert other == {"part": {"kind": "wing", "span": 2, "colour": "red"}}
    assert told == ['part.kind = "wing" drops part.spokes = 20']


def test_naming_the_kind_that_is_there_replaces_nothing() -> None:
    for base in ({"spokes": 20}, {"kind": "wheel", "spokes": 20}):
        merged = config.overlay(Machine, {"part": base}, {"part": {"kind": "wheel"}})
        assert merged == {"part": {"kind": "wheel", "spokes": 20}}


def test_keys_that_neither_kind_knows_stay_to_be_refused() -> None:
    base = {"part": {"kind": "wheel", "spoke": 20}}
    tree = config.overlay(Machine, base, {"part": {"kind": "wing", "span": 2}})
    assert "part.spoke is no setting: Known in 'part': colour, kind, span." in refused(tree)


# Validation


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (
            {"seat": 1},
            ["seat is no setting: did you mean 'seats'?", "Known at the top level: elec"],
        ),
        (
            {"part": {"kind": "wheel", "spoke": 1}},
            ["part.spoke is no setting: did you mean 'spokes'?"],
        ),
        ({"zzzzzz": 1}, ["zzzzzz is no setting: Known"]),
        ({"seats": "2"}, ['seats = "2": is text; a number is needed', "(riders)"]),
        ({"seats": True}, ["seats = true: is a truth value; a number is needed"]),
        ({"seats": 1.5}, ["seats = 1.5: must be a valid integer"]),
        ({"seats": None}, ["seats = null: must be a valid integer"]),
        ({"seats": [1]}, ["seats = [1]: must be a valid integer"]),
        ({"electric": 1}, ["electric = 1: is a number; true or false is needed"]),
        ({"electric": "yes"}, ['electric = "yes": is text; true or false is needed']),
        ({"weight": 0}, ["weight = 0: must be greater than 0 (kg)"]),
        ({"weight": float("nan")}, ["weight = NaN: must be a finite number"]),
        ({"weight": float("inf")}, ["weight = Infinity: must be a finite number"]),
        ({"name": "../x"}, ['name = "../x": must start with a letter or digit']),
        ({"name": "a b"}, ["because it becomes a file name"]),
        ({"name": "a" * 81}, ["at most 80 letters"]),
        ({"name": "$(x)"}, ["because it becomes a file name"]),
        ({"name": 5}, ["name = 5: must be a valid string"]),
        ({"part": {"kind": "fin"}}, ["part.kind = \"fin\" is none of 'wheel', 'wing'."]),
        ({"part": {"kind": "wing"}}, ["part.span is missing; give it a value (tip to tip, m)."]),
        ({"part": {"kind": "wing", "span": "x"}}, ['part.span = "x": is text']),
        (
            {"part": {"kind": "wing", "span": 1, "spokes": 2}},
            ["Known in 'part': colour, kind, span."],
        ),
        ({"part": 3}, ["part is a number; a mapping 'key: value' is needed."]),
        ({"part": None}, ["part is nothing; a mapping"]),
        ({"parts": {"a": 1}}, ["parts: must be a valid list"]),
        ({"parts": [{"kind": "wing"}]}, ["parts.0.span is missing"]),
        (
            {"parts": [{"kind": "wing", "span": 1, "spam": 2}]},
            ["parts.0.spam is no setting: did you"],
        ),
        ({3: 1}, ["3 is a number; keys must be text."]),
        ({"wheels": 0}, ["wheels = 0: must be 'auto' or greater than or equal to 1 (how many"]),
        ({"wheels": "many"}, ["wheels = \"many\": must be 'auto' or a valid integer"]),
        ({"wheels": 1.5}, ["wheels = 1.5: must be 'auto' or a valid integer"]),
        ({"part": {"kind": ["wing"]}}, ['part.kind = ["wing"] is none of']),
        ({"part": {"kind": None}}, ["part.kind = null is none of"]),
        (
            {"part.kind": "wing"},
            ["part.kind is no setting: dots are for", "write part: {kind: …}."],
        ),
        ({"a.b.c": 1}, ["write a: {b: {c: …}}."]),
    ],
)
def test_what_is_wrong_is_named(tree: Any, words: list[str]) -> None:
    message = refused(tree)
    assert message.startswith("m.yaml: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_each_mistake_has_a_line_of_its_own() -> None:
    lines = refused({"seats": 1.5, "wieght": 3, "name": ""}).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("m.yaml: ") for line in lines)


@pytest.mark.parametrize("tree", [None, [], "text", 3])
def test_a_tree_that_is_no_mapping(tree: Any) -> None:
    assert "where a mapping is needed" in refused(tree)


def test_long_values_are_cut_short() -> None:
    assert len(refused({"seats": list(range(1000))})) < 200


def test_settings_are_frozen_and_go_to_yaml_and_back() -> None:
    machine = config.validate(Machine, {"part": {"kind": "wing", "span": 1e-7}}, "m")
    with pytest.raises(pydantic.ValidationError):
        machine.seats = 2
    again = config.validate(Machine, parse_yaml(config.to_yaml(machine), "m"), "m")
    assert again == machine


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text()))
def test_digest_depends_on_the_tree_alone(tree: dict[str, Any]) -> None:
    backwards = dict(reversed(tree.items()))
    assert config.digest(tree) == config.digest(backwards)
    assert config.digest({**tree, "another": 1}) != config.digest({**tree, "another": 2})


# Ends


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("so"), 78), (DataError("so"), 65), (UserError("so"), 70)],
)
def test_a_users_mistake_is_one_message_and_a_code(
    error: UserError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> int:
        assert argv == ["a"]
        raise error

    assert commandline.run_main(main, ["a"]) == code
    assert capsys.readouterr().err == "error: so\n"
    error.told = True
    assert commandline.run_main(main, ["a"]) == code
    assert capsys.readouterr().err == ""


def test_codes_of_jobs_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    assert commandline.run_main(lambda _: 75, []) == 75
    assert commandline.run_main(lambda _: None, []) == 0
    monkeypatch.setattr(sys, "argv", ["job", "x"])
    assert commandline.run_main(lambda argv: len(argv)) == 1


def test_signs_that_a_locale_lacks_are_replaced() -> None:
    script = "from hpc.commandline import run_main; run_main(lambda _: print('✓ Grüße'), [])"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, cwd=ROOT
    )
    assert done.stdout.decode("latin-1") == "? Grüße\n"
    assert done.returncode == 0, done.stderr
