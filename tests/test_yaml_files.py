"""YAML files: what is read, what is refused where, `extends` and --set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from hpc.errors import ConfigError
from hpc.yaml_files import MAX_EXTENDS, dump_yaml, parse_yaml, read_tree, read_yaml


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


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
    found = parse_yaml(text, "f")
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
        ("190:20:30.15", "write 685230.15 for the number"),
        ("!!float 1:30", "colons mean base 60"),
    ],
)
def test_numbers_that_yaml_and_people_read_differently_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse_yaml(text, "f")


@pytest.mark.parametrize(
    "text",
    ["2017-02-30", "2017-02-28", "2017-02-28 10:00:00", "2001-12-14t21:59:43.1-05:00", "12:30pm"],
)
def test_dates_are_text(text: str) -> None:
    assert parse_yaml(text, "f") == text
    assert parse_yaml(f"!!timestamp {text}", "f") == text


@pytest.mark.parametrize("text", ["0", "-0", "0.5", "00.5", "0x1F", "0b11", "10", "1_000"])
def test_other_numbers_stay_what_they_are(text: str) -> None:
    assert parse_yaml(text, "f") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("!!float abc", "abc is no number"),
        ("!!int 1.5", "1.5 is no whole number"),
        ('!!int ""', "nothing is no whole number"),
        ("!!int a:b", "a:b is no whole number"),
        ("!!bool maybe", "maybe is no truth value (true or false)"),
        ("!!map [1]", "this is no mapping"),
        ("9" * 5000, "9... is too long for a number"),
        ("0x" + "f" * 5000, "f... is too long for a number"),
        ("!!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system is none"),
        ("!!binary aGk=", "the tag !!binary is none that settings have; leave it out"),
        ("!!set {a}", "the tag !!set is none"),
        ("!mine 3", "the tag !mine is none"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_a_value_that_is_none_is_told_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(f"a: 1\nb: {text}", "f")
    assert str(caught.value).startswith("f, line 2, column 4: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("1", 'a key is a number; keys must be text: write "1"'),
        ("1e-3", 'a number; keys must be text: write "1e-3"'),
        ("on", 'a key is a truth value; keys must be text: write "on"'),
        ("~", 'a key is nothing; keys must be text: write "~"'),
        ("[1]", "a key is a list; keys must be text."),
        ("{a: 1}", "a key is a mapping; keys must be text."),
    ],
)
def test_keys_are_text(key: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        parse_yaml(f"x: {{y: 2, {key}: 3}}", "f")
    assert "f, line 1, column 11: " in str(caught.value)


@pytest.mark.parametrize("text", ["=", "a = b", "=1"])
def test_the_sign_for_equal_is_text(text: str) -> None:
    assert parse_yaml(f"[{text}]", "f") == [text]


LIKE_NUMBERS = ["08", "0o17", "1e5", "1:30", "2017-02-30", "=", "010", "yes", "~", ".5", "0x1F", ""]
plain = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text() | st.floats(
    allow_nan=False
) | st.sampled_from(LIKE_NUMBERS)  # fmt: skip
keys = st.text() | st.sampled_from(LIKE_NUMBERS)


@given(st.recursive(plain, lambda x: st.lists(x) | st.dictionaries(keys, x), max_leaves=8))
@example({text: [text] for text in LIKE_NUMBERS})
def test_what_is_written_is_read_back(tree: Any) -> None:
    assert parse_yaml(dump_yaml(tree), "f") == tree


def test_aliases_that_would_fill_memory_are_refused() -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    with pytest.raises(ConfigError, match="aliases stand for more than"):
        parse_yaml("\n".join(lines), "f")


def test_merge_keys_and_anchors_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}"
    assert parse_yaml(text, "f")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' stands twice"),
        ("a:\n  b: 1\n  b: 2", "line 3, column 3: the key 'b' stands twice"),
        ("a: [1, 2", "line 1"),
        ("a: b: c", "line 1, column 5"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "the tag !!python/object/apply:os.system is none",
        ),
        ("a: *nothing", "undefined alias"),
        ("&a {x: *a}", "recursive"),
        ("? [1]\n: 2", "line 1, column 3: a key is a list"),
        ("\x00", "not YAML"),
        ("[" * 5000, "nested too deep"),
    ],
)
def test_what_is_no_yaml_names_the_place(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse_yaml(text, "f.yaml")


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
        read_yaml(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_names_its_nearest(tmp_path: Path) -> None:
    write(tmp_path / "quickstart.yaml", "a: 1")
    with pytest.raises(ConfigError, match=r"no such file\. Did you mean .*quickstart\.yaml"):
        read_yaml(tmp_path / "quickstrat.yaml")
    with pytest.raises(ConfigError, match=r"Files there: quickstart\.yaml"):
        read_yaml(tmp_path / "zzz.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        read_yaml(tmp_path)


# extends and --set


def test_extends_merges_key_by_key_from_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", "train: {a: 1, b: 2, c: [1, 2]}\nother: 5")
    write(tmp_path / "middle.yaml", "extends: base.yaml\ntrain: {b: 3}")
    top = write(tmp_path / "sub" / "top.yaml", "extends: ../middle.yaml\ntrain: {c: [9]}")
    assert read_tree(top) == {"train": {"a": 1, "b": 3, "c": [9]}, "other": 5}


def test_of_several_extended_files_the_later_ones_lie_on_top(tmp_path: Path) -> None:
    write(tmp_path / "common.yaml", "train: {a: 0, d: 0}")
    write(tmp_path / "first.yaml", "extends: common.yaml\ntrain: {a: 1, b: 1, c: 1}")
    write(tmp_path / "second.yaml", "train: {b: 2, c: 2}")
    top = write(tmp_path / "top.yaml", "extends: [first.yaml, second.yaml]\ntrain: {c: 3}")
    assert read_tree(top) == {"train": {"a": 1, "b": 2, "c": 3, "d": 0}}


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
        read_tree(tmp_path / "a.yaml")


def test_a_long_chain_of_extends_is_refused(tmp_path: Path) -> None:
    for i in range(MAX_EXTENDS + 1):
        write(tmp_path / f"{i}.yaml", f"extends: {i + 1}.yaml")
    with pytest.raises(ConfigError, match="too deep"):
        read_tree(tmp_path / "0.yaml")


def test_set_comes_last_and_is_read_as_yaml(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a: {b: 1, c: 2}")
    tree = read_tree(path, ["a.b=1e-3", "a.d=[1, x]", "e=", "a.b = 7", "f.g=h=i"])
    assert tree == {"a": {"b": 7, "c": 2, "d": [1, "x"]}, "e": None, "f": {"g": "h=i"}}


@pytest.mark.parametrize(
    "text", ["", "a", "=1", "a..b=1", ".a=1", "a.=1", "a b=1", "1a=2", "a;b=1"]
)
def test_set_without_key_and_value(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.yaml", "a: 1")
    with pytest.raises(ConfigError, match="write key=value"):
        read_tree(path, [text])


def test_set_with_broken_yaml_names_its_key(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a: 1")
    with pytest.raises(ConfigError, match=r"--set a\.b, line 1"):
        read_tree(path, ["a.b=[1"])
