"""YAML files to plain trees: `extends`, `--set a.b=c`, and how one tree is laid over another.

A settings file is a YAML mapping. `extends: other.yaml` (relative to the file) starts from
another file; mappings are merged key by key, everything else is replaced. `--set a.b=c` is
applied last, its value read as YAML.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hpc.errors import ConfigError

MAX_EXTENDS = 16


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-3 as a number and refuses a key written twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, str) and key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{key}' stands twice in one mapping", key_node.start_mark
            )
        if isinstance(key, str):
            seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text safely; raises ConfigError naming `where`, line and column."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deep to be a settings file.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        what = getattr(error, "problem", None) or "this is not YAML"
        raise ConfigError(f"{place}: {what}. Mend the file and run the command again.") from None


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


def read_tree(path: Path, sets: Iterable[str] = ()) -> dict[str, Any]:
    """Read a settings file, follow `extends`, apply `--set` assignments; raises ConfigError.

    `extends: base.yaml` lays the file over another one, whose path is relative to it;
    `extends: [a.yaml, b.yaml]` over several, of which later ones lie over earlier ones.
    """
    tree = _read_extended(Path(path), ())
    for assignment in sets:
        tree = merge(tree, _assignment(assignment))
    return tree


def _read_extended(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
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
        whole = merge(whole, _read_extended(path.parent / base, (*chain, here)))
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


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on it: mappings merge key by key, everything else is replaced.

    A mapping whose `kind` changes is replaced whole: the fields of one kind of schedule or
    optimizer mean nothing to another.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            new_kind = "kind" in value and value["kind"] != old.get("kind")
            merged[key] = dict(value) if new_kind else merge(old, value)
        else:
            merged[key] = value
    return merged


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{'a.b': 1, 'a.c': 2} as {'a': {'b': 1, 'c': 2}}."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        branch: Any = value
        for part in reversed(key.split(".")):
            branch = {part: branch}
        tree = merge(tree, branch)
    return tree


def show(value: Any) -> str:
    """A value as a message shows it, at most 60 letters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def kind_of(value: Any) -> str:
    """What a value is, in words: a list, a text, a number…"""
    names = {list: "a list", str: "a text", type(None): "nothing", bool: "a truth value"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "something")
