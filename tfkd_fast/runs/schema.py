"""A JSON schema of recipe files, for editors."""

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tfkd_fast.methods import METHODS, MethodEntry
from tfkd_fast.runs.recipe import DEFAULT_METHOD, Recipe
from tfkd_fast.settings import Settings, table_forms

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """The schema (draft 2020-12) of a whole recipe file: which tables there are depends on the method.

    Keys that are read under a condition within their form are allowed without it; `make_recipe` refuses them.
    """
    models: list[type[BaseModel]] = [Recipe, *dict.fromkeys(entry.settings for entry in METHODS.values())]
    wanted: list[tuple[type[BaseModel], Literal["validation"]]] = [(model, "validation") for model in models]
    definitions: Schema = models_json_schema(wanted)[1]["$defs"]
    core = definitions.pop("Recipe")["properties"]
    del core["options"]
    core["method"] |= {"enum": list(METHODS)}
    own = {name: _tables(entry, definitions) for name, entry in METHODS.items()}
    names = list(dict.fromkeys(name for tables in own.values() for name in tables))
    return {
        "$schema": DIALECT,
        "title": "tfkd-fast recipe",
        "type": "object",
        "properties": core | {name: {} for name in names},
        "additionalProperties": False,
        "allOf": [
            _condition(method, {name: tables.get(name, False) for name in names}) for method, tables in own.items()
        ],
        "$defs": definitions,
    }


def _condition(method: str, tables: Schema) -> Schema:
    """The condition of the schema that gives a method its tables; a file may leave out the default method."""
    named: Schema = {"properties": {"method": {"const": method}}, "required": ["method"]}
    chosen = {"anyOf": [named, {"not": {"required": ["method"]}}]} if method == DEFAULT_METHOD else named
    return {"if": chosen, "then": {"properties": tables}}


def _tables(entry: MethodEntry, definitions: Schema) -> Schema:
    """The tables of a method; where its name presets the form of one, a file need not name the form."""
    tables = dict(definitions[entry.settings.__name__]["properties"])
    for name, field in entry.settings.model_fields.items():
        forms, preset = table_forms(field), entry.preset.get(name, {})
        if forms is None or forms.key not in preset:
            continue
        preset_form = _without_required(forms.names[preset[forms.key]], forms.key, definitions)
        fixed = entry.named_for == (name, forms.key)
        tables[name] = preset_form if fixed else {"anyOf": [preset_form, tables[name]]}
    return tables


def _without_required(form: type[Settings], key: str, definitions: Schema) -> Schema:
    """The schema of a form whose name a file may leave out."""
    schema = dict(definitions[form.__name__])
    return schema | {"required": [name for name in schema.get("required", []) if name != key]}
