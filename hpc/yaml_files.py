"""YAML files to plain trees: `extends`, `--set a.b=c`, and how one tree is laid over another.

A settings file is a YAML mapping. `extends: other.yaml` (relative to the file) starts from
another file; mappings are merged key by key, everything else is replaced. `--set a.b=c` is
applied last, its value read as YAML.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hpc.errors import ConfigError

MAX_EXTENDS = 16


MAX_NODES = 1_000_000
"""of one file, each counted as often as it is repeated: aliases of aliases could fill memory"""


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-3 as a number, takes dates and = as text, and refuses what
    people and YAML 1.1 read differently: 010 (octal there, 8), 1:30 (base 60, 90). It also refuses
    a key that stands twice or is no text, and tags that no settings have."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; raises ConstructorError at its place for one that is none."""
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:
            raise _refusal(
                node, f"{_written(node)} is no {_WORDS.get(node.tag, 'value')}"
            ) from None

    def construct_undefined(self, node: yaml.Node) -> Any:
        """Refuse a tag: binary data, sets, objects of programs."""
        raise _refusal(node, f"the tag {_short(node.tag)} is none that settings have; leave it out")


_YAML = "tag:yaml.org,2002:"
_WORDS = {
    f"{_YAML}int": "whole number",
    f"{_YAML}float": "number",
    f"{_YAML}bool": "truth value (true or false)",
    f"{_YAML}map": "mapping",
}
_MAX_DIGITS = 1000


def _refusal(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _short(tag: str) -> str:
    return tag.replace(_YAML, "!!")


def _written(node: yaml.Node) -> str:
    """A scalar as it stands in the file, the beginning of a long one."""
    if not isinstance(node, yaml.ScalarNode):
        return "this"
    text = str(node.value) or "nothing"
    return text if len(text) <= 60 else text[:57] + "..."


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(node.value).replace("_", "")
    _refuse_base_60(node)
    if len(text) > _MAX_DIGITS:
        raise _refusal(node, f"{_written(node)} is too long for a number")
    octal = re.fullmatch(r"([-+]?)0(o?)([0-9]+)", text)
    if octal is None:
        return loader.construct_yaml_int(node)
    ways = [] if octal[2] else [f"{octal[1]}{octal[3].lstrip('0') or '0'}"]
    with contextlib.suppress(ValueError):
        value = int(f"{octal[1]}{octal[3]}", 8)
        ways += [str(value)] if str(value) not in ways else []
    what = "a leading zero can mean an octal number"
    raise _refusal(node, f"{_written(node)}: {what}; write {' or '.join(ways)}, or quotes for text")


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    _refuse_base_60(node)
    return loader.construct_yaml_float(node)


def _refuse_base_60(node: yaml.ScalarNode) -> None:
    text = str(node.value).replace("_", "")
    if not re.fullmatch(r"[-+]?[0-9]+(:[0-9]+)+(\.[0-9]*)?", text) or len(text) > _MAX_DIGITS:
        return
    value = 0.0
    for part in text.lstrip("+-").split(":"):
        value = 60 * value + float(part)
    number = f"{'-' if text[0] == '-' else ''}{value:.15g}"
    problem = "colons mean base 60 in YAML; write"
    raise _refusal(
        node, f'{node.value}: {problem} {number} for the number, or "{node.value}" for text'
    )


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if key_node.tag == f"{_YAML}merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            hint = f': write "{key_node.value}"' if isinstance(key_node, yaml.ScalarNode) else ""
            raise _refusal(key_node, f"a key is {kind_of(key)}; keys must be text{hint}")
        if key in seen:
            raise _refusal(key_node, f"the key '{key}' stands twice in one mapping")
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if _short(tag) not in ("!!timestamp", "!!value")]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
    r"|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
# As integers, so that they are refused: YAML takes 08 and 0o10 for text, people do not.
_OCTAL = re.compile(r"^[-+]?0[0-9_]*[0-9]$|^[-+]?0o[0-7_]+$")
_Loader.add_implicit_resolver(f"{_YAML}float", _FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver(f"{_YAML}int", _OCTAL, list("-+0"))
_Loader.yaml_constructors = {
    f"{_YAML}null": yaml.SafeLoader.construct_yaml_null,
    f"{_YAML}bool": yaml.SafeLoader.construct_yaml_bool,
    f"{_YAML}str": yaml.SafeLoader.construct_yaml_str,
    f"{_YAML}timestamp": yaml.SafeLoader.construct_yaml_str,
    f"{_YAML}seq": yaml.SafeLoader.construct_yaml_seq,
    f"{_YAML}map": _mapping,
    f"{_YAML}int": _integer,
    f"{_YAML}float": _float,
    None: _Loader.construct_undefined,
}


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes every text which `_Loader` would read as something else."""


_Dumper.yaml_implicit_resolvers = {
    first: [*forms, *_Loader.yaml_implicit_resolvers.get(first, ())]
    for first, forms in yaml.SafeDumper.yaml_implicit_resolvers.items()
}


def dump_yaml(tree: Any) -> str:
    """YAML text that `parse_yaml` reads back to the same tree."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Number of nodes that one stands for, aliases followed each time; raises RecursionError."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 0  # one inside itself is refused when it is constructed
        inner = [
            part for each in node.value for part in (each if isinstance(each, tuple) else [each])
        ]
        known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    return known[id(node)]


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text safely; raises ConfigError naming `where`, line and column."""
    try:
        if _size(yaml.compose(text, Loader=_Loader), {}) > MAX_NODES:
            raise ConfigError(f"{where}: its aliases stand for more than {MAX_NODES:,d} values.")
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deep to be a settings file.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        what = getattr(error, "problem", None) or "this is not YAML"
        raise ConfigError(f"{place}: {what}. Mend it and run the command again.") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML file that must hold a mapping; raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.{_nearest_file(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; name a YAML file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file (UTF-8); name a YAML file.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: holds {kind_of(tree)} where a mapping 'key: value' is needed; "
            "see jobs/quickstart.yaml for an example."
        )
    return tree


def _nearest_file(path: Path) -> str:
    names = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    if near:
        return f" Did you mean {path.parent / near[0]}?"
    return f" Files there: {', '.join(sorted(names)[:12])}." if names else ""


Merge = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
"""how one tree is laid over another"""


def read_tree(path: Path, sets: Iterable[str] = (), merge: Merge | None = None) -> dict[str, Any]:
    """Read a settings file, follow `extends`, apply `--set` assignments; raises ConfigError.

    `extends: base.yaml` lays the file over another one, whose path is relative to it;
    `extends: [a.yaml, b.yaml]` over several, of which later ones lie over earlier ones. All
    assignments together are laid over the files, as one more. `merge` lays one over another.
    """
    merge = merge or union
    said: dict[str, Any] = {}
    for assignment in sets:
        said = union(said, _assignment(assignment))
    return merge(_read_extended(Path(path), (), merge), said)


def _read_extended(path: Path, chain: tuple[Path, ...], merge: Merge) -> dict[str, Any]:
    here = Path(os.path.realpath(path))  # resolve() raises where links go round in a circle
    if here in chain or len(chain) >= MAX_EXTENDS:
        route = " -> ".join(p.name for p in (*chain, here))
        raise ConfigError(f"{path}: 'extends' goes round in a circle or too deep: {route}.")
    tree = read_yaml(path)
    bases = tree.pop("extends", [])
    named = [bases] if isinstance(bases, str) else bases
    if not isinstance(named, list) or not all(isinstance(b, str) and b for b in named):
        raise ConfigError(
            f"{path}: extends: {show(bases)} must be the path of a YAML file or a list of them."
        )
    whole: dict[str, Any] = {}
    for base in named:
        whole = merge(whole, _read_extended(path.parent / base, (*chain, here), merge))
    return merge(whole, tree)


def is_key(text: Any) -> bool:
    """Whether this can name a setting: words with dots between levels."""
    return isinstance(text, str) and bool(
        re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*", text)
    )


def _assignment(text: str) -> dict[str, Any]:
    key, sign, value = text.partition("=")
    key = key.strip()
    if not sign or not is_key(key):
        raise ConfigError(
            f"--set {text!r}: write key=value with dots between levels, "
            "for example --set train.batch_size=80."
        )
    return unflatten({key: parse_yaml(value, f"--set {key}")})


def union(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """What both say: mappings key by key; of everything else the second one's."""
    both = dict(first)
    for key, value in second.items():
        old = both.get(key)
        inner = isinstance(value, Mapping) and isinstance(old, Mapping)
        both[key] = union(old, value) if inner else value  # type: ignore[arg-type]
    return both


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{'a.b': 1, 'a.c': 2} as {'a': {'b': 1, 'c': 2}}, in whatever order they stand."""
    tree: dict[str, Any] = {}
    for key, value in sorted(flat.items(), key=lambda item: item[0].count(".")):
        branch: Any = value
        for part in reversed(key.split(".")):
            branch = {part: branch}
        tree = union(tree, branch)
    return tree


def show(value: Any) -> str:
    """A value as a message shows it, at most 60 letters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def kind_of(value: Any) -> str:
    """What a value is, in words: a list, a text, a number…"""
    names = {list: "a list", dict: "a mapping", str: "a text", bool: "a truth value"}
    names |= {type(None): "nothing", int: "a number", float: "a number"}
    return names.get(type(value), "something")
