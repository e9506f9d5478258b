"""A small reader of JSON schemas, for tests: exactly the words that the program's schemas use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

SILENT = {"$schema", "$defs", "title", "description", "default"}
KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
BOUNDS = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "minItems": lambda value, bound: len(value) >= bound,
}


def errors(value: Any, schema: Any, whole: Any, at: str = "") -> list[str]:
    """Where a value is not what the schema allows; KeyError for a word that is not known here."""
    return [f"{at}: {told}" for word in schema for told in _of_word(word, value, schema, whole, at)]


def _of_word(word: str, value: Any, schema: Any, whole: Any, at: str) -> Iterator[str]:
    given = schema[word]
    if word == "$ref":
        target = whole
        for part in given.removeprefix("#/").split("/"):
            target = target[part]
        yield from errors(value, target, whole, at)
    elif word == "anyOf":
        if all(errors(value, choice, whole, at) for choice in given):
            yield f"{value!r} is none of what is allowed"
    elif word == "type":
        if not isinstance(value, KINDS[given]) or (isinstance(value, bool) and given != "boolean"):
            yield f"{value!r} is no {given}"
    elif word in ("enum", "const"):
        if value not in (given if word == "enum" else [given]):
            yield f"{value!r} is not {given}"
    elif word in ("properties", "patternProperties", "additionalProperties"):
        yield from _of_mapping(word, value, schema, whole, at)
    elif word == "items" and isinstance(value, list):
        yield from (told for each in value for told in errors(each, given, whole, f"{at}[]"))
    elif word in BOUNDS and isinstance(value, list if word == "minItems" else int | float):
        if not BOUNDS[word](value, given):
            yield f"{value!r} is out of bounds"
    elif word not in {*SILENT, *BOUNDS, "items"}:
        raise KeyError(word)


def _of_mapping(word: str, value: Any, schema: Any, whole: Any, at: str) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, each in value.items():
        fits = [pattern for pattern in patterns if re.search(pattern, key)]
        if word == "properties" and key in named:
            yield from errors(each, named[key], whole, f"{at}.{key}")
        elif word == "additionalProperties" and key not in named and not fits:
            if schema[word] is False:
                yield f"{key} is no key"
            elif schema[word] is not True:
                yield from errors(each, schema[word], whole, f"{at}.{key}")
