"""Frozen, typed settings from plain trees, and every message about one that is wrong."""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import pydantic
import pydantic_core

from hpc.errors import ConfigError
from hpc.yaml_files import dump_yaml, kind_of, show


def _check_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}", value):
        raise ValueError(
            "must start with a letter or digit and hold at most 80 letters, digits, '_', '.', "
            "'+' and '-', because it becomes a file name"
        )
    return value


Name = Annotated[str, pydantic.AfterValidator(_check_name)]
"""A string that is safe as a path component and as a shell word."""


Positive = Annotated[float, pydantic.Field(gt=0)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
Count = Annotated[int, pydantic.Field(ge=1)]


@dataclass(frozen=True)
class Identity:
    """How a field enters the identity of what it is a setting of; stands in its `Annotated` type.

    A name made of a digest must outlive the next version of the program. So a setting that is
    added later says `since=2` (or more) and counts only where its value differs from `before`, what
    the program did without it: its default may even change later, and what was written without it
    is read as `before` (see `up_to_date`). A setting whose values come to mean something else
    gets the next `meaning`, and everything it touches gets a new name: by its old one it is known
    as made when they meant something else.
    """

    without: tuple[str, ...] = ()
    """identities that it is no part of, as named in `identity_tree`"""
    since: int = 1
    """version of identities in which it was added"""
    before: Any = None
    """since > 1: the value that stands for what was done before it was added"""
    meaning: int = 1
    """raised when the same value makes other results than before"""


class Settings(pydantic.BaseModel):
    """Base of every group of settings: frozen, no unknown keys, no silent conversion of types."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        strict=False,
        allow_inf_nan=False,
        validate_default=True,
        hide_input_in_errors=True,
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


S = TypeVar("S", bound=Settings)


def validate(model: type[S], tree: Any, source: str) -> S:
    """Build `model` from a plain tree; raises ConfigError with one line for each thing wrong."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source}: holds {kind_of(tree)} where a mapping is needed.")
    try:
        return model.model_validate(dict(tree))
    except pydantic.ValidationError as error:
        items = [item for item in error.errors() if not _follows_from_others(item, tree)]
        lines = [_explain(model, tree, item) for item in _one_a_value(items, tree)]
        raise ConfigError("\n".join(f"{source}: {line}" for line in dict.fromkeys(lines))) from None


def _one_a_value(items: Iterable[Any], tree: Any) -> Iterable[Any]:
    """The errors; where a value is none of a union's members, one for what each of them wants."""
    found: dict[Any, dict[str, Any]] = {}
    for number, item in enumerate(items):
        place = tuple(_without_tags(item, tree))
        key = place if item["loc"][:-1] == place else number  # a member's name stands last
        if key in found:
            wanted = item["msg"].removeprefix("Input should be ").partition(", unable to")[0]
            found[key]["msg"] += f" or {wanted}"
        else:
            found[key] = dict(item)
    return found.values()


def _follows_from_others(item: Any, tree: Any) -> bool:
    """A list counts as empty for pydantic when all its members are wrong: those are told."""
    return item["type"] == "too_short" and bool(_at(tree, _without_tags(item, tree)))


def overlay(
    model: type[Settings],
    base: Mapping[str, Any],
    over: Mapping[str, Any],
    told: Callable[[str], object] = str,
) -> dict[str, Any]:
    """`base` with what `over` says laid on it, both trees of `model`.

    Mappings merge key by key, everything else is replaced. Where `over` names another `kind` of a
    schedule, optimizer, … than the one that is there (the default one, where none is named), keys
    of the former kind that the new one does not know are dropped, and `told` is given a sentence
    for each. Keys that neither knows stay, for `validate` to refuse.
    """
    return _overlay([model], base, over, told, "")


def _overlay(
    models: list[type[Settings]],
    base: Mapping[str, Any],
    over: Mapping[str, Any],
    told: Callable[[str], object],
    place: str,
) -> dict[str, Any]:
    before, now = _chosen(models, base), _chosen(models, {**base, **over})
    merged = dict(base)
    if before is not now and before is not None and now is not None:
        for key in [key for key in base if key in _fields(before).keys() - _fields(now).keys()]:
            kind = show({**base, **over}["kind"])
            told(f"{place}kind = {kind} drops {place}{key} = {show(merged.pop(key))}")
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            field = _fields(now).get(str(key)) if now else None
            inner = _models(field.annotation) if field else []
            merged[key] = _overlay(inner, old, value, told, f"{place}{key}.")
        else:
            merged[key] = value
    return merged


def _chosen(models: list[type[Settings]], tree: Mapping[str, Any]) -> type[Settings] | None:
    """Which of a union's members a tree means: by its kind, else the one with a default kind."""
    tagged = [m for m in models if "kind" in m.model_fields]
    if "kind" in tree:
        return next((m for m in tagged if tree["kind"] in _kinds(m)), None)
    default = [m for m in tagged if not m.model_fields["kind"].is_required()]
    return (default or models or [None])[0]  # type: ignore[list-item]


def _explain(model: type[Settings], tree: Mapping[str, Any], item: Any) -> str:
    location = _without_tags(item, tree)
    name = ".".join(str(part) for part in location) or "the file"
    value = _at(tree, location)
    if item["type"] == "extra_forbidden":
        return _unknown_key(model, tree, location)
    if item["type"] == "missing":
        return f"{name} is missing; give it a value ({_meaning(model, tree, location)})."
    if item["type"] == "union_tag_invalid":
        kind = show(_at(tree, [*location, "kind"]))
        return f"{name}.kind = {kind} is none of {item['ctx']['expected_tags']}."
    if item["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return f"{name} is {kind_of(value)}; a mapping 'key: value' is needed."
    if item["type"] == "invalid_key" or item["loc"][-1:] == ("[key]",):
        return f"{name} is {kind_of(location[-1])}; keys must be text."
    problem = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    problem = problem.replace("a valid tuple", "a list", 1)
    if not location:
        return f"{problem}."
    if isinstance(value, Mapping) or value is _ABSENT:
        return f"{name}: {problem}."
    meaning = _meaning(model, tree, location)
    return f"{name} = {show(value)}: {problem}" + (f" ({meaning})." if meaning else ".")


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
    if owner is None or field is None:
        return ""
    name = next(name for name, each in owner.model_fields.items() if each is field)
    whole = " ".join(meanings(owner).get(name, "").split())
    return whole.split("; ")[0].rstrip(".")


@functools.cache
def meanings(model: type[Settings]) -> dict[str, str]:
    """What the fields of a group mean, by their names in the code: the text below each.

    Read from the source when somebody asks: for all groups that takes a fifth of a command's start.
    Empty where there is no source.
    """
    found: dict[str, str] = {}
    for base in reversed(model.__mro__[: model.__mro__.index(Settings)]):
        try:
            (group,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, ValueError):
            continue
        assert isinstance(group, ast.ClassDef)
        for field, below in itertools.pairwise(group.body):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ) if name in model.model_fields:
                    found[name] = inspect.cleandoc(text)
    return found


def groups(model: type[Settings]) -> dict[str, type[Settings]]:
    """All groups that settings are made of, by the names of their classes; itself included."""
    found = {model.__name__: model}
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            if inner.__name__ not in found:
                found |= groups(inner)
    return found


def _unknown_key(model: type[Settings], tree: Any, location: list[Any]) -> str:
    owner = model_at(model, tree, location[:-1])
    known = _fields(owner) if owner else ()
    name = ".".join(map(str, location))
    if "." in str(location[-1]):
        first, *rest = str(location[-1]).split(".")
        inner = functools.reduce(lambda tree, part: f"{{{part}: {tree}}}", reversed(rest), "…")
        return f"{name} is no setting: dots are for arms, grids and --set; write {first}: {inner}."
    return unknown_key_message(name, known)


def unknown_key_message(name: str, known: Iterable[str]) -> str:
    """Say that the dotted `name` is no setting and which of its siblings comes nearest."""
    *above, last = name.split(".")
    known = sorted(known)
    near = difflib.get_close_matches(last, known, n=1, cutoff=0.5)
    section = f"in '{'.'.join(above)}'" if above else "at the top level"
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{name} is no setting: {hint}Known {section}: {', '.join(known)}."


def to_tree(settings: Settings) -> dict[str, Any]:
    """Settings as a plain tree that `validate` reads back to an equal object."""
    return settings.model_dump(mode="json", by_alias=True)


def identity_tree(settings: Settings, of: str) -> dict[str, Any]:
    """Settings that tell one `of` from another, as a plain tree for `digest`; see Identity."""
    return _identity_tree(settings, to_tree(settings), of)


def _identity_tree(settings: Settings, tree: Mapping[str, Any], of: str) -> dict[str, Any]:
    kept = {}
    for name, field in type(settings).model_fields.items():
        mark = _mark(field)
        value, key = getattr(settings, name), field.alias or name
        if of in mark.without or (mark.since > 1 and value == mark.before):
            continue
        plain = _identity_value(value, tree[key], of)
        kept[key] = plain if mark.meaning == 1 else {"meaning": mark.meaning, "value": plain}
    return kept


def _mark(field: pydantic.fields.FieldInfo) -> Identity:
    return next((m for m in field.metadata if isinstance(m, Identity)), Identity())


def _identity_value(value: Any, plain: Any, of: str) -> Any:
    if isinstance(value, Settings):
        return _identity_tree(value, plain, of)
    if isinstance(value, tuple):
        return [_identity_value(v, p, of) for v, p in zip(value, plain, strict=True)]
    return plain


def up_to_date(model: type[Settings], tree: Mapping[str, Any]) -> dict[str, Any]:
    """A whole dump of settings that `to_tree` of this version or an earlier one made.

    A setting that was added since is what was done before it, whatever its default is now.
    """
    whole = dict(tree)
    for key, field in _fields(model).items():
        mark = _mark(field)
        if key not in whole and mark.since > 1:
            whole[key] = mark.before
        elif key in whole:
            whole[key] = _up_to_date(_models(field.annotation), whole[key])
    return whole


def _up_to_date(models: list[type[Settings]], value: Any) -> Any:
    if isinstance(value, list):
        return [_up_to_date(models, each) for each in value]
    model = _chosen(models, value) if isinstance(value, Mapping) else None
    return value if model is None else up_to_date(model, value)


def to_yaml(settings: Settings | Mapping[str, Any]) -> str:
    """YAML text that `validate` reads back to equal settings."""
    tree = to_tree(settings) if isinstance(settings, Settings) else dict(settings)
    return dump_yaml(tree)


def digest(tree: Any) -> str:
    """SHA-256, in hexadecimal, of a plain tree in canonical JSON: equal settings, equal digest."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
