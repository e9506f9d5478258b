"""The JSON schema of study files, made from the settings: what editors complete and check against.

It knows names, types, bounds and meanings. What settings must be to each other, only the program
checks; and a file may extend another, so nothing is required here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from glass_cnn.settings import RunSettings
from glass_cnn.study_file import OWN, StudySection
from hpc.config import Settings, groups, meanings

Schema = dict[str, Any]
DIALECT = "http://json-schema.org/draft-07/schema#"
"""the one that editors' YAML servers know"""
RUN = "RunSettings"
REF = "#/$defs/"


def study_schema() -> Schema:
    """The schema of a study file as plain JSON values."""
    run, section = (_schema(model) for model in (RunSettings, StudySection))
    groups = {**run.pop("$defs"), **section.pop("$defs"), RUN: run, "Study": section}
    sections = {name: {"$ref": f"{REF}{RUN}/properties/{name}"} for name in run["properties"]}
    for name in OWN:  # belong into the study section
        del sections[name]
    places = _places(groups)
    own = "|".join(re.escape(path) for path, at in places.items() if _is_free(groups, *at[0]))
    either = {path: _either(at) for path, at in places.items()}
    groups["Changes"] = _mapping({**sections, **either}, own)
    lists = {path: {"type": "array", "minItems": 1, "items": one} for path, one in either.items()}
    groups["Lists"] = _mapping(lists, own)
    inside = section["properties"]
    inside["arms"]["additionalProperties"] = {"$ref": f"{REF}Changes"}
    inside["grid"] |= {"$ref": f"{REF}Lists"}
    inside["grid"].pop("additionalProperties")
    inside["paired"]["items"] = {"$ref": f"{REF}Lists"}
    files = {"type": "array", "items": {"type": "string"}}
    extends = {
        "description": "file or files that this one is laid over; paths count from its directory",
        "anyOf": [{"type": "string"}, files],
    }
    study = {"$ref": f"{REF}Study"}
    top = _mapping({"extends": extends, "study": study, **sections})
    return {"$schema": DIALECT, "title": "Study file of glass-cnn", **top, "$defs": groups}


def settings_at(schema: Schema) -> Iterator[str]:
    """Names of the groups of settings that a value may be: several where it has a kind."""
    if "$ref" in schema:
        yield schema["$ref"].removeprefix(REF)
    for choice in schema.get("anyOf", ()):
        yield from settings_at(choice)


def _places(groups: Schema) -> dict[str, list[tuple[str, str]]]:
    """Dotted names of all settings -> their group and name there; several where kinds share one."""
    found: dict[str, list[tuple[str, str]]] = {}

    def visit(group: str, above: str) -> None:
        for name, schema in groups[group]["properties"].items():
            if not above and name in OWN:
                continue
            if above:
                found.setdefault(above + name, []).append((group, name))
            for inner in settings_at(schema):
                visit(inner, f"{above}{name}.")

    visit(RUN, "")
    return found


def _is_free(groups: Schema, group: str, name: str) -> bool:
    """Whether a setting is a mapping whose keys are its users' own, as those of launch.slurm."""
    return bool(groups[group]["properties"][name].get("additionalProperties"))


def _mapping(properties: Schema, own: str | None = None) -> Schema:
    """Exactly these keys, and those below what `own` matches."""
    more: Schema = {} if own is None else {"patternProperties": {rf"^({own})\.": {}}}
    return {"type": "object", "additionalProperties": False, "properties": properties, **more}


def _either(places: list[tuple[str, str]]) -> Schema:
    schemas = [{"$ref": f"{REF}{group}/properties/{name}"} for group, name in places]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _schema(model: type[Settings]) -> Schema:
    """What pydantic makes of a group of settings, with what its settings mean."""
    whole: Schema = model.model_json_schema()
    for name, group in groups(model).items():
        properties = (whole if group is model else whole["$defs"][name])["properties"]
        for field, meaning in meanings(group).items():
            alias = group.model_fields[field].alias or field
            told = properties[alias] | {"description": meaning}
            properties[alias] = dict(sorted(told.items()))  # as pydantic sorts them
    tidy: Schema = _tidy(whole)
    return tidy


def _tidy(schema: Any) -> Any:
    """Without titles, which repeat the names, and what is required; a kind is told by its name."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    dropped = ("discriminator", "required")
    kept = {key: _tidy(value) for key, value in schema.items() if key not in dropped}
    if isinstance(kept.get("title"), str):
        del kept["title"]
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    return kept
