"""The base of every table of a recipe, and of tables that have several forms.

Every key of a table is read: a table whose keys depend on a choice is a union with one class for each choice, marked by
`Forms`; a single key that is read only under a condition is marked by `ReadIf`.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationInfo, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

LARGEST = 1e30
"""The largest number that a table takes where nothing else bounds it: float32 holds it, and most multiples of it."""
UNREAD = "unread_key"
"""The type of the validation error for a key whose `ReadIf` does not hold."""

Items = TypeVar("Items", bound=Sequence[Hashable])


def absolute_path(path: str) -> str:
    """The same path as it is named from any folder; a ~ at its beginning is the home folder.

    Raises:
        ValueError: there is no such home folder or no current folder, or the name is no UTF-8, as a recipe has to be.
    """
    try:
        absolute = str(Path(path).expanduser().absolute())
        absolute.encode()
    except UnicodeEncodeError:
        raise ValueError("this name is no UTF-8, which a recipe has to be: rename the folder or file") from None
    except (OSError, RuntimeError) as error:
        raise ValueError(f"it is not known what this path is relative to ({error}): give an absolute one") from None
    return absolute


FilePath = Annotated[str, AfterValidator(absolute_path)]
"""The path of a file or a folder, made absolute when it is checked: a run may go on in another current folder."""


@dataclass(frozen=True)
class ReadIf:
    """Marks a key that is read only where another key of the same table has certain values.

    Any other value than the default is refused where the condition does not hold.
    """

    key: str
    """The other key of the table."""
    test: Callable[[Any], bool]
    """Whether the marked key is read, given the value of the other one."""
    words: str
    """The condition as a clause, such as "mix is mixup or cutmix"."""


@dataclass(frozen=True)
class ReadAcross:
    """A key of a table that is read only where another table of the same settings has certain values.

    Any other value than the default is refused where the condition does not hold.
    """

    table: str
    """The attribute that holds the table of the key."""
    key: str
    """The key; tables without it are left alone."""
    test: Callable[[Any], bool]
    """Whether the key is read, given the settings that hold both tables."""
    words: str
    """The condition as a clause, such as "data.augment is true"."""


UNREAD_TOO = {"unread": True}
"""Context of a validation that lets keys pass which another table leaves unread, `Settings.unread_across`."""


class Settings(BaseModel):
    """Immutable, typed, bounded, finite values; a key that is unknown or that nothing reads is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    across: ClassVar[tuple[ReadAcross, ...]] = ()
    """Keys of the tables in these settings that are read only as others of them are."""

    def unread_across(self) -> Iterator[tuple[ReadAcross, Any]]:
        """Yield the conditions of `across` that do not hold of a value that is not the default, with that value."""
        for condition in self.across:
            table = getattr(self, condition.table)
            if condition.key in type(table).model_fields:
                value = getattr(table, condition.key)
                if value != default_of(type(table), condition.key) and not condition.test(self):
                    yield condition, value

    @model_validator(mode="after")
    def _refuse_unread_values(self, info: ValidationInfo) -> Self:
        for across, value in () if info.context == UNREAD_TOO else self.unread_across():
            key = f"{across.table}.{across.key}"
            raise PydanticCustomError(
                UNREAD, "{key} is read only where {words}", {"key": key, "words": across.words, "value": value}
            )
        for key, condition in conditions(type(self)).items():
            value = getattr(self, key)
            if value != default_of(type(self), key) and not condition.test(getattr(self, condition.key)):
                raise PydanticCustomError(
                    UNREAD, "{key} is read only where {words}", {"key": key, "words": condition.words, "value": value}
                )
        return self


@dataclass(frozen=True)
class Forms:
    """Marks a union of tables, `Annotated[A | B, Forms("name")]`, that the value of one key tells apart.

    A table without that key has the form whose class has a default for it.
    """

    key: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        default = default_form(self.key, get_args(source))

        def with_form(values: Any) -> Any:
            if isinstance(values, Mapping) and self.key not in values and default is not None:
                return {self.key: default, **values}
            return values

        union = handler(Annotated[source, Field(discriminator=self.key)])
        return core_schema.no_info_before_validator_function(with_form, union)


@dataclass(frozen=True)
class TableForms:
    """The classes that a table of a recipe may have."""

    key: str | None
    """The key that tells them apart; None for a table of one form."""
    classes: tuple[type[Settings], ...]

    @property
    def names(self) -> dict[str, type[Settings]]:
        """The class of each value of the key that tells the forms apart; empty for a table of one form."""
        return {form_name(self.key, form): form for form in self.classes} if self.key else {}

    def chosen(self, values: Mapping[str, Any]) -> type[Settings] | None:
        """The class of a table with these values; None for a form that does not exist."""
        if self.key is None:
            return self.classes[0]
        name = values.get(self.key, default_form(self.key, self.classes))
        return self.names.get(name) if isinstance(name, str) else None

    def known(self) -> set[str]:
        """The keys of all forms."""
        return {key for form in self.classes for key in form.model_fields}

    def read(self, values: Mapping[str, Any]) -> set[str]:
        """The keys that are read of a table with these values; all known ones for a form that does not exist."""
        form = self.chosen(values)
        if form is None:
            return self.known()
        unread = {
            key
            for key, condition in conditions(form).items()
            if not condition.test(values.get(condition.key, default_of(form, condition.key)))
        }
        return form.model_fields.keys() - unread


def table_forms(field: FieldInfo) -> TableForms | None:
    """The forms of a field that is a table, or a list of tables; None for a plain value."""
    parts = list(_flatten(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation))
    classes = tuple(part for part in parts if isinstance(part, type) and issubclass(part, Settings))
    keys = [part.key for part in parts if isinstance(part, Forms)]
    return TableForms(keys[0] if keys else None, classes) if classes else None


def _flatten(annotation: Any) -> Iterator[Any]:
    """The members of a union or list, of annotated members too, and what they are annotated with."""
    if arguments := [part for part in get_args(annotation) if part not in (NoneType, ...)]:
        for part in arguments:
            yield from _flatten(part)
    else:
        yield annotation


def form_name(key: str, form: type[Settings]) -> str:
    """The one value that the key which tells forms apart has in this form."""
    (name,) = get_args(form.model_fields[key].annotation)
    return str(name)


def default_form(key: str, forms: Sequence[type[Settings]]) -> str | None:
    """The value of the key for a table that leaves it out; None where it must not."""
    return next((form_name(key, form) for form in forms if not form.model_fields[key].is_required()), None)


def conditions(table: type[Settings]) -> dict[str, ReadIf]:
    """The keys of a table that are read only under a condition."""
    return {
        key: condition
        for key, field in table.model_fields.items()
        for condition in field.metadata
        if isinstance(condition, ReadIf)
    }


def default_of(table: type[Settings], key: str) -> Any:
    """The default of a key, which has one."""
    return table.model_fields[key].get_default(call_default_factory=True, validated_data={})


def named_once(items: Items) -> Items:
    """The items, if none of them comes twice.

    Raises:
        ValueError: for the first that does.
    """
    for item, count in Counter(items).items():
        if count > 1:
            raise ValueError(f"{item!r} is named twice")
    return items
