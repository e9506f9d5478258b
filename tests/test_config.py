"""YAML to settings: what is read, what is merged, and every message about what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpc import commandline, config, yaml_files
from hpc.config import Name, Settings
from hpc.errors import ConfigError, DataError, UserError
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


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(tree: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config.validate(Machine, tree, "m.yaml")
    return str(caught.value)


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("1e3x", "1e3x"),
        ("80", 80),
        ("true", True),
        ("null", None),
        ("[1, 1e-4]", [1, 1e-4]),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, value: Any) -> None:
    found = yaml_files.parse_yaml(text, "f")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0100", "0100: a leading zero can mean an octal number; write 100 or 64, or quotes"),
        ("010", "write 10 or 8"),
        ("-007", "write -7, or quotes"),
        ("08", "write 8, or quotes"),
        ("00", "write 0, or quotes"),
        ("01_0", "write 10 or 8"),
        ("0o17", "write 15, or quotes"),
        ("[1, 010]", "line 1, column 5: 010: a leading zero"),
        ("a: {b: 010}", "line 1, column 8: 010: a leading zero"),
        ('!!int "010"', "write 10 or 8"),
        ("1:30", '1:30: colons mean base 60 in YAML; write 90 for the number, or "1:30" for text'),
        ("-1:30:00", "write -5400 for the number"),
        ("190:20:30.15", "write 685230 for the number"),
        ("!!float 1:30", "colons mean base 60"),
    ],
)
def test_numbers_that_yaml_and_people_read_differently_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        yaml_files.parse_yaml(text, "f")


@pytest.mark.parametrize("text", ["2017-02-30", "2017-02-28", "2017-02-28 10:00:00", "12:30pm"])
def test_dates_are_text(text: str) -> None:
    assert yaml_files.parse_yaml(text, "f") == text


@pytest.mark.parametrize("text", ["0", "-0", "0.5", "00.5", "0x1F", "0b11", "10", "1_000"])
def test_other_numbers_stay_what_they_are(text: str) -> None:
    assert yaml_files.parse_yaml(text, "f") == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text", ["!!timestamp 2017-02-30", "!!float abc", "!!int x", "!!bool x", "="]
)
def test_whatever_a_constructor_says_is_told_with_its_place(text: str) -> None:
    with pytest.raises(ConfigError, match="f, line 2, column 4: "):
        yaml_files.parse_yaml(f"a: 1\nb: {text}", "f")


def test_aliases_that_would_fill_memory_are_refused() -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    with pytest.raises(ConfigError, match="aliases stand for more than"):
        yaml_files.parse_yaml("\n".join(lines), "f")


def test_merge_keys_and_anchors_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}"
    assert yaml_files.parse_yaml(text, "f")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' stands twice"),
        ("a:\n  b: 1\n  b: 2", "line 3, column 3: the key 'b' stands twice"),
        ("a: [1, 2", "line 1"),
        ("a: b: c", "line 1, column 5"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: *nothing", "undefined alias"),
        ("&a {x: *a}", "recursive"),
        ("? [1]\n: 2", "unhashable"),
        ("\x00", "not YAML"),
        ("[" * 5000, "nested too deep"),
    ],
)
def test_what_is_no_yaml_names_the_place(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        yaml_files.parse_yaml(text, "f.yaml")


# Files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds nothing where a mapping"),
        (b"- 1\n- 2\n", "holds a list where a mapping"),
        (b"just words\n", "holds a text where a mapping"),
        (b"12\n", "holds a number where a mapping"),
        (b"2024-01-01\n", "holds a text where a mapping"),
        (b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_a_file_that_is_no_mapping(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        yaml_files.read_yaml(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_names_its_nearest(tmp_path: Path) -> None:
    write(tmp_path / "quickstart.yaml", "a: 1")
    with pytest.raises(ConfigError, match=r"no such file\. Did you mean .*quickstart\.yaml"):
        yaml_files.read_yaml(tmp_path / "quickstrat.yaml")
    with pytest.raises(ConfigError, match=r"Files there: quickstart\.yaml"):
        yaml_files.read_yaml(tmp_path / "zzz.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        yaml_files.read_yaml(tmp_path)


# extends and --set


def test_extends_merges_key_by_key_from_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", "train: {a: 1, b: 2, c: [1, 2]}\nother: 5")
    write(tmp_path / "middle.yaml", "extends: base.yaml\ntrain: {b: 3}")
    top = write(tmp_path / "sub" / "top.yaml", "extends: ../middle.yaml\ntrain: {c: [9]}")
    assert yaml_files.read_tree(top) == {"train": {"a": 1, "b": 3, "c": [9]}, "other": 5}


def test_of_several_extended_files_the_later_ones_lie_on_top(tmp_path: Path) -> None:
    write(tmp_path / "common.yaml", "train: {a: 0, d: 0}")
    write(tmp_path / "first.yaml", "extends: common.yaml\ntrain: {a: 1, b: 1, c: 1}")
    write(tmp_path / "second.yaml", "train: {b: 2, c: 2}")
    top = write(tmp_path / "top.yaml", "extends: [first.yaml, second.yaml]\ntrain: {c: 3}")
    assert yaml_files.read_tree(top) == {"train": {"a": 1, "b": 2, "c": 3, "d": 0}}


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


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": "extends: a.yaml"}, "goes round in a circle"),
        ({"a": "extends: b.yaml", "b": "extends: a.yaml"}, "a.yaml -> b.yaml -> a.yaml"),
        ({"a": "extends: 3"}, "extends: 3 must be the path"),
        ({"a": "extends: ''"}, "must be the path"),
        ({"a": "extends:"}, "extends: null must be the path"),
        ({"a": "extends: [b.yaml, 3]", "b": "x: 1"}, "must be the path of a YAML file or a list"),
        ({"a": "extends: [b.yaml, a.yaml]", "b": "x: 1"}, "goes round in a circle"),
        ({"a": "extends: c.yaml"}, "no such file"),
        ({"a": "extends: b.yaml", "b": "- 1"}, "holds a list"),
    ],
)
def test_extends_that_cannot_be_followed(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, text in files.items():
        write(tmp_path / f"{name}.yaml", text)
    with pytest.raises(ConfigError, match=re.escape(words)):
        yaml_files.read_tree(tmp_path / "a.yaml")


def test_a_long_chain_of_extends_is_refused(tmp_path: Path) -> None:
    for i in range(yaml_files.MAX_EXTENDS + 1):
        write(tmp_path / f"{i}.yaml", f"extends: {i + 1}.yaml")
    with pytest.raises(ConfigError, match="too deep"):
        yaml_files.read_tree(tmp_path / "0.yaml")


def test_set_comes_last_and_is_read_as_yaml(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a: {b: 1, c: 2}")
    tree = yaml_files.read_tree(path, ["a.b=1e-3", "a.d=[1, x]", "e=", "a.b = 7", "f.g=h=i"])
    assert tree == {"a": {"b": 7, "c": 2, "d": [1, "x"]}, "e": None, "f": {"g": "h=i"}}


@pytest.mark.parametrize(
    "text", ["", "a", "=1", "a..b=1", ".a=1", "a.=1", "a b=1", "1a=2", "a;b=1"]
)
def test_set_without_key_and_value(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.yaml", "a: 1")
    with pytest.raises(ConfigError, match="write key=value"):
        yaml_files.read_tree(path, [text])


def test_set_with_broken_yaml_names_its_key(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a: 1")
    with pytest.raises(ConfigError, match=r"--set a\.b, line 1"):
        yaml_files.read_tree(path, ["a.b=[1"])


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
    again = config.validate(Machine, yaml.safe_load(config.to_yaml(machine)), "m")
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
