"""Settings and columns as documents, made from the code that they describe."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from glass_cnn.analysis.rows import SCHEMA, Row
from glass_cnn.analysis.table import ADDED, MAIN_SETTINGS
from glass_cnn.records import DIAGNOSTICS, Evaluation
from glass_cnn.report.results import COMPARISONS, CURVES, ESTIMATES, FACTORS
from glass_cnn.study_schema import REF, RUN, Schema, settings_at, study_schema
from hpc.yaml_files import show

NOTE = "<!-- Made by `make reference` from the code; changes here are lost. -->"


# --- settings --------------------------------------------------------------------------------


def settings_document() -> str:
    """Every setting of a study file: what is allowed, the default, the meaning."""
    schema = study_schema()
    groups = schema["$defs"]
    lines = [
        "# Settings",
        NOTE,
        "A study file holds these sections; what it leaves out has the default. In arms, grids and "
        "`SET` a setting is named with dots: `train.learning_rate.initial`. How files, arms and "
        "`SET` are laid over each other: [studies.md](studies.md).",
        *_section("study", {"$ref": f"{REF}Study"}, groups),
    ]
    for name, place in groups[RUN]["properties"].items():
        if name != "seed":
            lines += _section(name, place, groups)
    return "\n\n".join(lines) + "\n"


def _section(name: str, schema: Schema, groups: Schema) -> Iterator[str]:
    """A group of settings and those inside it; of several kinds, each."""
    members = schema.get("items", {})
    for group in [*settings_at(schema), *settings_at(members)]:
        if group in ELSEWHERE:
            continue
        kind = groups[group]["properties"].get("kind", {}).get("const")
        yield from _group(f"{name}, kind: {kind}" if kind else name, groups[group])
        for inner, place in groups[group]["properties"].items():
            yield from _section(f"{name}.{inner}", place, groups)


def _group(title: str, group: Schema) -> Iterator[str]:
    yield f"## {title}"
    yield " ".join(group["description"].split())
    rows = [
        (f"`{name}`", _allowed(place), _default(place), " ".join(place["description"].split()))
        for name, place in group["properties"].items()
        if name != "kind"
    ]
    yield _table(("setting", "allowed", "default", "meaning"), rows)


ELSEWHERE = {"Lists": "settings with dots, each with a list of values"}
"""groups that need no table of their own -> what they are"""
KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}
BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
}


def _allowed(schema: Schema) -> str:
    """What a value may be, in words."""
    if "anyOf" in schema:
        told = dict.fromkeys(_allowed(choice) for choice in schema["anyOf"])
        return " or ".join(told)
    if "$ref" in schema:
        return ELSEWHERE.get(schema["$ref"].removeprefix(REF), "see below")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{show(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        each = _allowed(schema["items"])
        return "list, see below" if each == "see below" else f"list of: {each}"
    bounds = [f"{sign} {schema[word]:,}" for word, sign in BOUNDS.items() if word in schema]
    return " ".join([KINDS[schema["type"]], ", ".join(bounds)]).strip()


def _default(schema: Schema) -> str:
    if "default" not in schema:
        return "–"
    value = schema["default"]
    if isinstance(value, Mapping):
        value = {key: each for key, each in value.items() if each is not None}
        if len(value) > 2:
            return "see below"
    return f"`{show(value)}`"


# --- columns ---------------------------------------------------------------------------------


def columns_document() -> str:
    """Every column of the tables that a study ends in, and what it means."""
    evaluation = docstrings(Evaluation)
    curves = {name: told or evaluation[name] for name, (_, told) in CURVES.items()}
    return "\n\n".join(
        [
            "# Columns",
            NOTE,
            "The tables that a study's runs become, and how to open them: [api.md](api.md). What "
            "is not known is null. Accuracies and rates are fractions of 1, times are UTC.",
            "## Runs: `summary.parquet`, `summary.csv`, `study.runs`",
            "One row a run of the study, one that has not begun included, and one for every other "
            "directory that lies among them.",
            _table(("column", "type", "meaning"), [*_of_runs()]),
            "## Evaluations: `study.curves`",
            "One row an evaluation, from `metrics.jsonl`.",
            _table(("column", "meaning"), _rows(curves)),
            "## Arms: `study.estimates`",
            "One row a point of the study. How each is estimated: [studies.md](studies.md).",
            _table(("column", "meaning"), _rows({k: told for k, (_, told) in ESTIMATES.items()})),
            "## Differences: `study.comparisons`",
            "One row a pair of arms.",
            _table(("column", "meaning"), _rows(COMPARISONS)),
            "## Factors: `study.factors`",
            "One row a level of each axis of a grid.",
            _table(("column", "meaning"), _rows({k: told for k, (_, told) in FACTORS.items()})),
        ]
    ) + "\n"  # fmt: skip


def runs_meanings() -> dict[str, str]:
    """Columns of the table of runs that every study has, but for settings and diagnostics."""
    hidden = {"well_named", "analysis"}
    told = ADDED | docstrings(Row)
    return {name: told[name] for name in [*ADDED, *SCHEMA] if name not in hidden}


def _of_runs() -> Iterator[tuple[str, ...]]:
    for name, told in runs_meanings().items():
        kind = str(SCHEMA.get(name, "String" if name == "study" else "Boolean"))
        yield f"`{name}`", kind.lower().removesuffix("64"), told
    main = ", ".join(f"`{name}`" for name in MAIN_SETTINGS)
    yield (
        "a setting with dots",
        "its own",
        f"{main}, and all that differ within the study: [settings.md](settings.md)",
    )
    for name, told in DIAGNOSTICS.items():
        each = ".…" if ", by " in told else ""
        yield f"`diagnostics.{name}{each}.last`, `.max`", "float", f"last and largest: {told}"


def _rows(meanings: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"`{name}`", told) for name, told in meanings.items()]


def docstrings(cls: type) -> dict[str, str]:
    """Fields of a class -> the texts below them in its source, on one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = getattr(below.value, "value", None)
            if isinstance(text, str) and isinstance(field.target, ast.Name):
                found[field.target.id] = " ".join(text.split())
    return found


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
