"""A JSON schema of recipe files, for editors."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tfkd_fast.methods import METHODS, MethodEntry
from tfkd_fast.runs.recipe import DEFAULT_METHOD, Recipe
from tfkd_fast.settings import Settings, table_forms

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


class Definitions:
    """The schemas of some classes of tables and of all that they refer to, by `$ref`."""

    def __init__(self, tables: Iterable[type[BaseModel]]) -> None:
        wanted: list[tuple[type[BaseModel], Literal["validation"]]] = [(table, "validation") for table in tables]
        references, whole = models_json_schema(wanted)
        self.references = {table: reference for (table, _), reference in references.items()}
        """Class -> the reference to its schema."""
        self.schemas: Schema = whole["$defs"]
        """Name -> schema."""

    def find(self, table: type[BaseModel]) -> Schema:
        """The schema of a class."""
        schema: Schema = self.schemas[self.references[table]["$ref"].removeprefix("#/$defs/")]
        return schema


def recipe_schema() -> Schema:
    """The schema (draft 2020-12) of a whole recipe file: which tables there are depends on the method. Methods and
    forms of tables that other distributions add are in it; the names of their data sets, networks and criteria need not
    be, because any text may stand there.

    Keys that are read under a condition within their form are allowed without it; `make_recipe` refuses them.

    Raises:
        UserError: a distribution offers what cannot be used.
    """
    settings = dict.fromkeys(entry.settings for entry in METHODS.values())
    fields = [field for each in settings for field in each.model_fields.values()]
    forms = [form for field in fields if (tables := table_forms(field)) for form in tables.every_class]
    definitions = Definitions([Recipe, *dict.fromkeys([*settings, *forms])])
    core = dict(definitions.find(Recipe)["properties"])
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
        "$defs": {name: schema for name, schema in definitions.schemas.items() if name != Recipe.__name__},
    }


def _condition(method: str, tables: Schema) -> Schema:
    """The condition of the schema that gives a method its tables; a file may leave out the default method."""
    named: Schema = {"properties": {"method": {"const": method}}, "required": ["method"]}
    chosen = {"anyOf": [named, {"not": {"required": ["method"]}}]} if method == DEFAULT_METHOD else named
    return {"if": chosen, "then": {"properties": tables}}


def _tables(entry: MethodEntry, definitions: Definitions) -> Schema:
    """The tables of a method; where its name presets the form of one, a file need not name the form."""
    tables = dict(definitions.find(entry.settings)["properties"])
    for name, field in entry.settings.model_fields.items():
        forms, preset = table_forms(field), entry.preset.get(name, {})
        if forms is None or forms.key is None:
            continue
        for plugin in (forms.plugins or {}).values():
            tables[name] = {"anyOf": [tables[name], definitions.references[plugin.settings]]}
        if forms.key in preset:
            preset_form = _without_required(forms.names[preset[forms.key]], forms.key, definitions)
            fixed = entry.named_for == (name, forms.key)
            tables[name] = preset_form if fixed else {"anyOf": [preset_form, tables[name]]}
    return tables


def _without_required(form: type[Settings], key: str, definitions: Definitions) -> Schema:
    """The schema of a form whose name a file may leave out."""
    schema = dict(definitions.find(form))
    return schema | {"required": [name for name in schema.get("required", []) if name != key]}
