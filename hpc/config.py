"""YAML files to frozen, typed settings, and every message about a configuration that is wrong.

A settings file is a YAML mapping. `extends: other.yaml` (relative to the file) starts from
another file; mappings are merged key by key, everything else is replaced. `--set a.b=c` is
applied last, its value read as YAML.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import pydantic_core
import yaml

EXIT_COMPLETE = 0
EXIT_DATA = 65
EXIT_INTERNAL = 70
EXIT_AGAIN = 75
EXIT_CONFIG = 78

MAX_EXTENDS = 16


class UserError(Exception):
    """Something the user can mend; its text is all they need to see."""

    exit_code = EXIT_INTERNAL
    told = False
    """whether another rank prints it"""


class ConfigError(UserError):
    """A setting, a settings file or a command line that is wrong (exit code 78)."""

    exit_code = EXIT_CONFIG


class DataError(UserError):
    """Input data that is missing, damaged or unusable (exit code 65)."""

    exit_code = EXIT_DATA


def _check_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}", value):
        raise ValueError(
            "must start with a letter or digit and hold at most 80 letters, digits, '_', '.', "
            "'+' and '-', because it becomes a file name"
        )
    return value


Name = Annotated[str, pydantic.AfterValidator(_check_name)]
"""A string that is safe as a path component and as a shell word."""


class Settings(pydantic.BaseModel):
    """Base of every group of settings: frozen, no unknown keys, no silent conversion of types."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        strict=False,
        allow_inf_nan=False,
        validate_default=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _no_lossy_types(cls, tree: Any) -> Any:
        """Refuse what pydantic would convert without a word: `yes` for a number, '80' for 80."""
        if isinstance(tree, Mapping):
            for key, value in tree.items():
                field = _fields(cls).get(str(key))
                if field is not None:
                    _refuse_conversion(str(key), value, field.annotation)
        return tree


def _refuse_conversion(key: str, value: Any, annotation: Any) -> None:
    kinds = _plain_types(annotation)
    problem = None
    if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
        problem = "is a truth value; a number is needed"
    elif isinstance(value, str) and kinds & {int, float, bool} and str not in kinds:
        what = "true or false" if bool in kinds else "a number"
        problem = f"is text; {what} is needed, without quotes"
    elif isinstance(value, int | float) and not isinstance(value, bool) and kinds == {bool}:
        problem = "is a number; true or false is needed"
    if problem is not None:
        context = {"problem": problem, "key": key}
        raise pydantic_core.PydanticCustomError(_CONVERSION, "{problem}", context)


_CONVERSION = "conversion"


def _plain_types(annotation: Any) -> set[type]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _plain_types(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_plain_types(a) for a in typing.get_args(annotation)))
    if origin is typing.Literal:
        return {type(a) for a in typing.get_args(annotation)}
    return {annotation} if isinstance(annotation, type) else set()


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
            f"{path}: holds {_kind(tree)} where a mapping 'key: value' is needed; "
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
            f"{path}: extends: {_show(bases)} must be the path of a YAML file or a list of them."
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


S = TypeVar("S", bound=Settings)


def validate(model: type[S], tree: Any, source: str) -> S:
    """Build `model` from a plain tree; raises ConfigError with one line for each thing wrong."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source}: holds {_kind(tree)} where a mapping is needed.")
    try:
        return model.model_validate(dict(tree))
    except pydantic.ValidationError as error:
        items = [item for item in error.errors() if not _follows_from_others(item, tree)]
        lines = [_explain(model, tree, item) for item in items]
        raise ConfigError("\n".join(f"{source}: {line}" for line in dict.fromkeys(lines))) from None


def _follows_from_others(item: Any, tree: Any) -> bool:
    """A list counts as empty for pydantic when all its members are wrong: those are told."""
    return item["type"] == "too_short" and bool(_at(tree, _without_tags(item, tree)))


def load(path: Path, model: type[S], sets: Iterable[str] = ()) -> S:
    """Read, extend, override and validate one settings file; raises ConfigError."""
    return validate(model, read_tree(path, sets), str(path))


def _explain(model: type[Settings], tree: Mapping[str, Any], item: Any) -> str:
    location = _without_tags(item, tree)
    name = ".".join(str(part) for part in location) or "the file"
    value = _at(tree, location)
    if item["type"] == "extra_forbidden":
        return _unknown_key(model, tree, location)
    if item["type"] == "missing":
        return f"{name} is missing; give it a value ({_meaning(model, tree, location)})."
    if item["type"] == "union_tag_invalid":
        return (
            f"{name}.kind = {_show(item['ctx']['tag'])} is none of {item['ctx']['expected_tags']}."
        )
    if item["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return f"{name} is {_kind(value)}; a mapping 'key: value' is needed."
    if item["type"] == "invalid_key" or item["loc"][-1:] == ("[key]",):
        return f"{name} is {_kind(location[-1])}; keys must be text."
    problem = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    if not location:
        return f"{problem}."
    if isinstance(value, Mapping) or value is _ABSENT:
        return f"{name}: {problem}."
    meaning = _meaning(model, tree, location)
    return f"{name} = {_show(value)}: {problem}" + (f" ({meaning})." if meaning else ".")


_ABSENT = object()


def _without_tags(item: Any, tree: Any) -> list[Any]:
    """Where an error is, less the names of union members that pydantic puts between the keys."""
    path: list[Any] = []
    for part in item["loc"]:
        if _at(tree, [*path, part]) is not _ABSENT:
            path.append(part)
    if item["type"] == "missing":
        path.append(item["loc"][-1])
    if item["type"] == _CONVERSION:
        path.append(item["ctx"]["key"])
    return path


def _at(tree: Any, location: Iterable[Any]) -> Any:
    for part in location:
        there = isinstance(tree, Mapping) and part in tree
        there |= isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree)
        if not there:
            return _ABSENT
        tree = tree[part]
    return tree


def _models(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [m for a in typing.get_args(annotation) for m in _models(a)]


def model_at(model: type[Settings], tree: Any, location: Iterable[Any]) -> type[Settings] | None:
    """The class of settings that stands at `location` below `model`, following `kind` tags."""
    current: type[Settings] | None = model
    for part in location:
        if isinstance(part, int):
            tree = _at(tree, [part])
            continue
        field = _fields(current).get(str(part)) if current else None
        tree = _at(tree, [part])
        members = _models(field.annotation) if field else []
        kind = tree.get("kind") if isinstance(tree, Mapping) else None
        tagged = [m for m in members if kind in _kinds(m)]
        current = (tagged or members or [None])[0]  # type: ignore[list-item]
    return current


def _fields(model: type[Settings]) -> dict[str, pydantic.fields.FieldInfo]:
    """Fields by the names they have in a file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _kinds(model: type[Settings]) -> tuple[Any, ...]:
    field = model.model_fields.get("kind")
    return typing.get_args(field.annotation) if field else ()


def _meaning(model: type[Settings], tree: Any, location: list[Any]) -> str:
    if not location:
        return ""
    owner = model_at(model, tree, location[:-1])
    field = _fields(owner).get(str(location[-1])) if owner else None
    return (field.description or "").split("\n")[0].rstrip(".") if field else ""


def _unknown_key(model: type[Settings], tree: Any, location: list[Any]) -> str:
    owner = model_at(model, tree, location[:-1])
    known = _fields(owner) if owner else ()
    return unknown_key_message(".".join(map(str, location)), known)


def unknown_key_message(name: str, known: Iterable[str]) -> str:
    """Say that the dotted `name` is no setting and which of its siblings comes nearest."""
    *above, last = name.split(".")
    known = sorted(known)
    near = difflib.get_close_matches(last, known, n=1, cutoff=0.5)
    section = f"in '{'.'.join(above)}'" if above else "at the top level"
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{name} is no setting: {hint}Known {section}: {', '.join(known)}."


def _show(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", type(None): "nothing", bool: "a truth value"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "something")


def to_tree(settings: Settings) -> dict[str, Any]:
    """Settings as a plain tree that `validate` reads back to an equal object."""
    return settings.model_dump(mode="json", by_alias=True)


def to_yaml(settings: Settings | Mapping[str, Any]) -> str:
    """YAML text that `validate` reads back to equal settings."""
    tree = to_tree(settings) if isinstance(settings, Settings) else dict(settings)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def digest(tree: Any) -> str:
    """SHA-256, in hexadecimal, of a plain tree in canonical JSON: equal settings, equal digest."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def run_main(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Call a job's `main` and turn a UserError into its one message and exit code; so too a file
    that may not be read.

    An error with a true attribute `told` was printed by another rank already. To have stopped on
    request is none.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # no sign that a locale lacks may end a run
    try:
        return int(main(sys.argv[1:] if argv is None else argv) or EXIT_COMPLETE)
    except UserError as error:
        if not error.told and error.exit_code == EXIT_AGAIN:
            print(error, flush=True)
        elif not error.told:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except PermissionError as error:
        remedy = "ask its owner for access, or choose another place (LOGS=dir for outputs)"
        print(f"error: {error.filename}: permission denied; {remedy}.", file=sys.stderr, flush=True)
        return EXIT_INTERNAL
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_COMPLETE
