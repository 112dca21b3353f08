"""The JSON schema of recipe files: what editors check a recipe against."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from tfkd_fast.methods import METHODS
from tfkd_fast.runs.recipe import core_fields, load_recipe, make_recipe, parse, shipped_recipes
from tfkd_fast.runs.schema import DIALECT, recipe_schema
from tfkd_fast.settings import table_forms

SCHEMA = json.loads(json.dumps(recipe_schema()))


def references(schema: Any) -> Iterator[str]:
    """All references in a schema."""
    for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if key == "$ref":
            yield value
        elif isinstance(value, dict | list):
            yield from references(value)


def tables_under(method: str) -> dict[str, Any]:
    """What the schema says of each table under a method."""
    (then,) = (rule["then"] for rule in SCHEMA["allOf"] if f'"const": "{method}"' in json.dumps(rule["if"]))
    return dict(then["properties"])


def test_it_is_whole() -> None:
    assert SCHEMA["$schema"] == DIALECT
    found = set(references(SCHEMA))
    assert len(found) > 30
    assert all(reference.removeprefix("#/$defs/") in SCHEMA["$defs"] for reference in found)
    assert set(core_fields()) <= SCHEMA["properties"].keys()
    assert SCHEMA["additionalProperties"] is False


def test_every_form_of_every_table_has_its_keys_and_no_other() -> None:
    for method, entry in METHODS.items():
        own = tables_under(method)
        assert {name for name, schema in own.items() if schema is not False} == set(entry.settings.model_fields)
        for field in entry.settings.model_fields.values():
            forms = table_forms(field)
            assert forms is not None
            for form in forms.classes:
                definition = SCHEMA["$defs"].get(form.__name__)
                if definition is None:
                    continue
                assert definition["properties"].keys() == form.model_fields.keys()
                assert definition["additionalProperties"] is False
                for key, each in definition["properties"].items():
                    assert each.get("description") or key == forms.key


def test_recipes_are_valid_and_unread_keys_are_not() -> None:
    """By a validator, where one is installed; the structure is tested above."""
    if find_spec("jsonschema") is None:
        return
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(SCHEMA)
    validator = Draft202012Validator(SCHEMA)
    for name, text in shipped_recipes().items():
        assert validator.is_valid(parse(text, name))
        assert validator.is_valid(load_recipe(name).table())
    for method in METHODS:
        assert validator.is_valid(make_recipe({"method": method}).table())
    for table in (
        {"controller": {"name": "ucb", "clip": 0.3}},
        {"target": {"family": "scalar", "bins": "fine"}},
        {"method": "ce", "selection": {"budget": "none", "candidates": 8}},
        {"method": "ce", "target": {"family": "scalar"}},
        {"method": "kd", "selection": {}},
        {"schedule": {"name": "cosine", "gamma": 0.1}},
        {"epoch": 3},
    ):
        assert not validator.is_valid(table), table
