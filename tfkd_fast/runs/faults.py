"""The fault of a recipe, in one sentence that names the key and the remedy."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tfkd_fast.errors import nearest, shorten
from tfkd_fast.settings import UNREAD, TableForms, table_forms


@dataclass(frozen=True)
class Place:
    """The place of a fault in a recipe."""

    path: tuple[str, ...]
    """The keys down to the fault, without the names of forms."""
    fields: Mapping[str, FieldInfo]
    """The keys beside the last one of the path."""
    forms: TableForms | None = None
    """The forms of the table that the last key of the path is in, where it has several."""
    form: str = ""
    """Name of the form that the table has."""


def explain(error: ValidationError, fields: Mapping[str, FieldInfo]) -> str:
    """One sentence about the first fault of a recipe with these keys."""
    fault = error.errors(include_url=False)[0]
    place = _place(fault, fields)
    key = ".".join(place.path)
    match fault["type"]:
        case "extra_forbidden":
            return f"unknown recipe key {key!r}{_where(place)}: {_hint(place)}"
        case "missing":
            return f"recipe key {key!r} is needed{_where(place)}: {_description(place)}"
        case "union_tag_invalid":
            forms, tag = table_forms(place.fields[place.path[-1]]), fault["ctx"]["tag"]
            assert forms is not None
            return f"recipe key '{key}.{forms.key}': {nearest(tag, forms.names)} (got {shorten(tag)})"
        case kind if kind == UNREAD:
            context = fault["ctx"]
            got = shorten(context["value"])
            name = ".".join([*place.path, context["key"]])
            return f"recipe key '{name}' is read only where {context['words']} (got {got})"
    return f"recipe key {key!r}: {fault['msg'].removeprefix('Value error, ')} (got {shorten(fault['input'])})"


def _place(fault: ErrorDetails, fields: Mapping[str, FieldInfo]) -> Place:
    """The place of a fault, whose location also has the form of every table of several forms."""
    parts = [str(part) for part in fault["loc"]]
    path: tuple[str, ...] = ()
    inner: Mapping[str, FieldInfo] = fields
    forms: TableForms | None = None
    place = Place((), fields)
    while parts:
        part = parts.pop(0)
        path = (*path, part)
        place = Place(path, inner, forms, place.form)
        found = table_forms(inner[part]) if part in inner else None
        if found is None:
            continue
        forms = found if found.key else None
        if found.key and parts and parts[0] in found.names:
            place = Place(path, place.fields, place.forms, parts.pop(0))
            inner = found.names[place.form].model_fields
        elif not found.key:
            inner = found.classes[0].model_fields
    return place


def _description(place: Place) -> str:
    """The description of the last key of the path, for the middle of a sentence."""
    text = place.fields[place.path[-1]].description or ""
    return text[:1].lower() + text[1:].removesuffix(".")


def _where(place: Place) -> str:
    """The form that a key was looked for in, as a clause."""
    return f" where {place.path[-2]}.{place.forms.key} is {place.form}" if place.forms else ""


def _hint(place: Place) -> str:
    """The nearest key of the form, and the forms that have the key."""
    name = place.path[-1]
    if place.forms is None:
        return nearest(name, place.fields)
    owners = [form for form, table in place.forms.names.items() if name in table.model_fields]
    others = [key for key in place.fields if key != place.forms.key]
    hint = nearest(name, others) if others else f"{place.form} has no other key than {place.forms.key}"
    return f"it belongs to {', '.join(owners)}; {hint}" if owners else hint
