"""The base of every table of a recipe, and of tables that have several forms.

Every key of a table is read: a table whose keys depend on a choice is a union with one class for each choice, marked by
`Forms`; a single key that is read only under a condition is marked by `ReadIf`.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Protocol, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

LARGEST = 1e30
"""The largest number that a table takes where nothing else bounds it: float32 holds it, and most multiples of it."""
UNREAD = "unread_key"
"""The type of the validation error for a key whose `ReadIf` does not hold."""


class WrittenInt(int):
    """A whole number of the command line, which remembers how it was written for keys that want text."""

    text: str


class WrittenFloat(float):
    """A number of the command line, see `WrittenInt`."""

    text: str


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


PathText = Annotated[str, BeforeValidator(lambda path: str(path) if isinstance(path, Path) else path)]
"""A path as text, of a text or a `Path`."""

FilePath = Annotated[PathText, AfterValidator(absolute_path)]
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

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_types(cls, values: Any) -> Any:
        """The values, unless pydantic would make a number of true or false, or either of them of text; a number that
        was written for text is that text.

        Raises:
            ValidationError: for the first that is of another type.
        """
        if not isinstance(values, Mapping):
            return values
        known = {key: _scalars(cls, key) for key in values if key in cls.model_fields}
        for key, wanted in known.items():
            value = values[key]
            for item in _items(value):
                if _is_made_another(item, wanted):
                    what = "true or false" if bool in wanted else "a valid number"
                    fault = PydanticCustomError("other_type", "Input should be {what}", {"what": what})
                    details = InitErrorDetails(type=fault, loc=(key,), input=value)
                    raise ValidationError.from_exception_data(cls.__name__, [details])
        texts = {
            key: values[key].text
            for key, wanted in known.items()
            if wanted == {str} and isinstance(values[key], WrittenInt | WrittenFloat)
        }
        return {**values, **texts}

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
    plugins: Mapping[str, "Plugin"] | None = field(default=None, compare=False)
    """Forms of other distributions, by the value of the key; None where there cannot be any."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        default, plugins = default_form(self.key, get_args(source)), self.plugins

        def with_form(values: Any, own: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
            if isinstance(values, Mapping) and self.key not in values and default is not None:
                values = {self.key: default, **values}
            name = values.get(self.key) if isinstance(values, Mapping) else getattr(values, self.key, None)
            if plugins is None or not isinstance(name, str) or name not in plugins:
                return own(values)
            return _validate_plugin(plugins[name].settings, values, info)

        union = handler(Annotated[source, Field(discriminator=self.key)])
        as_it_is = None if plugins is None else core_schema.simple_ser_schema("any")
        return core_schema.with_info_wrap_validator_function(with_form, union, serialization=as_it_is)


class Plugin(Protocol):
    """A form that another distribution adds to a table."""

    settings: type["Settings"]
    """The class of the table."""


def _validate_plugin(form: type["Settings"], values: Any, info: ValidationInfo) -> "Settings":
    """The table of a form that is no member of the union.

    Raises:
        ValueError: for values that are none of it.
    """
    try:
        return form.model_validate(values, context=info.context)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


@dataclass(frozen=True)
class TableForms:
    """The classes that a table of a recipe may have."""

    key: str | None
    """The key that tells them apart; None for a table of one form."""
    classes: tuple[type[Settings], ...]
    plugins: Mapping[str, Plugin] | None = None
    """Forms of other distributions, see `Forms`."""

    @property
    def names(self) -> dict[str, type[Settings]]:
        """The class of each value of the key that tells the forms apart; empty for a table of one form."""
        if self.key is None:
            return {}
        own = {form_name(self.key, form): form for form in self.classes}
        return own | {name: plugin.settings for name, plugin in (self.plugins or {}).items()}

    @property
    def every_class(self) -> tuple[type[Settings], ...]:
        """The classes of all forms, those of other distributions last."""
        return tuple(self.names.values()) or self.classes

    def chosen(self, values: Mapping[str, Any]) -> type[Settings] | None:
        """The class of a table with these values; None for a form that does not exist."""
        if self.key is None:
            return self.classes[0]
        name = values.get(self.key, default_form(self.key, self.classes))
        if not isinstance(name, str):
            return None
        if self.plugins is not None and name in self.plugins:
            return self.plugins[name].settings
        return next((form for form in self.classes if form_name(self.key, form) == name), None)

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
            if not _holds(condition, values.get(condition.key, default_of(form, condition.key)))
        }
        return form.model_fields.keys() - unread


def _holds(condition: ReadIf, value: Any) -> bool:
    """Whether a condition holds for a value that was not checked; one that it cannot judge is refused for itself."""
    try:
        return condition.test(value)
    except (TypeError, ValueError, AttributeError):
        return True


def table_forms(field: FieldInfo) -> TableForms | None:
    """The forms of a field that is a table, or a list of tables; None for a plain value."""
    parts = list(_flatten(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation))
    classes = tuple(part for part in parts if isinstance(part, type) and issubclass(part, Settings))
    marks = [part for part in parts if isinstance(part, Forms)]
    if not classes:
        return None
    return TableForms(marks[0].key, classes, marks[0].plugins) if marks else TableForms(None, classes)


def _items(value: Any) -> Iterator[Any]:
    """The single values of nested lists."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _items(item)
    else:
        yield value


def _is_made_another(value: Any, wanted: Set[type]) -> bool:
    """Whether pydantic would make something else of a value, for a key that takes values of the `wanted` types."""
    if isinstance(value, bool):
        return bool not in wanted and bool(wanted & {int, float})
    return isinstance(value, str | bytes) and str not in wanted and bool(wanted)


@cache
def _scalars(table: type[Settings], key: str) -> Set[type]:
    """The types of single values that a key takes, also in a list; a choice among names is text."""
    leaves = list(_flatten(table.model_fields[key].annotation))
    found = {leaf if isinstance(leaf, type) else type(leaf) for leaf in leaves}
    return set() if Any in leaves else found & {bool, int, float, str}


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
