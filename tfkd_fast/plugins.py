"""Things by name that other distributions can add to, by entry points.

An entry point `name = module:object` of a group such as `tfkd_fast.methods` makes an object of an installed
distribution known under its name, in every process. Only what is named is imported.
"""

import importlib.metadata
import os
import sys
import sysconfig
import traceback
from collections.abc import Collection, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tfkd_fast.errors import UserError

T = TypeVar("T")


class Registry(MutableMapping[str, T]):
    """Name -> thing: those of this package and of the program, and those of installed distributions.

    Iterating gives all names; reading the values imports all of them. A program may set and delete things of its own.
    """

    def __init__(self, kind: str, group: str, expected: Any, what: str, own: dict[str, T]) -> None:
        """
        Args:
            kind: what the things are, in the singular, for sentences.
            group: group of the entry points.
            expected: class that every thing has to be an instance of.
            what: the same for sentences: the class with its module, or a description.
            own: the things of this package.
        """
        self.kind, self.group = kind, group
        self._expected, self._what, self._own = expected, what, own
        self._reserved: Collection[str] = ()

    def reserve(self, names: Collection[str]) -> None:
        """Refuse names that this package uses for things of this kind without having them here."""
        self._reserved = names

    def __getitem__(self, name: str) -> T:
        """The thing of this name.

        Raises:
            KeyError: there is none.
            UserError: a distribution offers the name of one that is here already, several offer it, or what one offers
                cannot be imported or is nothing of this kind.
        """
        offers = self._installed().select(name=name)
        origins = " and ".join(map(_origin, offers))
        if name in self._own or name in self._reserved:
            if offers:
                raise UserError(f"{self.kind} {name!r} of {origins} has the name of one of tfkd_fast: uninstall it")
            return self._own[name]
        if len(offers) > 1:
            raise UserError(f"{self.kind} {name!r} is offered by {origins}: uninstall all but one")
        if not offers:
            raise KeyError(name)
        (offer,) = offers
        with in_one_sentence(f"{self.kind} {name!r} of {origins} cannot be imported"):
            thing: T = offer.load()
        if not isinstance(thing, self._expected):
            kind = type(thing).__name__
            raise UserError(f"{self.kind} {name!r} of {origins} must be a {self._what}, is of type {kind}")
        return thing

    def __setitem__(self, name: str, thing: T) -> None:
        self._own[name] = thing

    def __delitem__(self, name: str) -> None:
        del self._own[name]

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys([*self._own, *sorted(self._installed().names)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._installed().names

    def usable(self) -> Iterator[T]:
        """Yield all things but those of distributions that cannot be used."""
        for name in self:
            with suppress(UserError):
                yield self[name]

    def _installed(self) -> importlib.metadata.EntryPoints:
        return _entry_points(self.group, tuple(sys.path))


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> importlib.metadata.EntryPoints:
    """The entry points of a group in the distributions on an import path."""
    return importlib.metadata.entry_points(group=group)


def _origin(offer: importlib.metadata.EntryPoint) -> str:
    distribution = offer.dist.name if offer.dist else "an unnamed distribution"
    return f"{distribution} (entry point {offer.name} = {offer.value})"


PACKAGES = "site-packages"
"""A part of the paths of installed packages."""
NO_PLACE_OF_THEIRS = ("<", sysconfig.get_path("stdlib"), f"{Path(__file__).parent}{os.sep}")
"""How the names of files begin whose lines say nothing to whoever wrote a plug-in or a network."""


@contextmanager
def in_one_sentence(what: str) -> Iterator[None]:
    """Context manager around code of others: what it raises becomes a sentence that begins with `what`, see `explain`.

    So does that it ends the program, as a script may when it is imported.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        explain(what, error)


def explain(what: str, error: BaseException) -> NoReturn:
    """Raise UserError about an error in the code of others, with the last line of it that is no library's.

    Args:
        what: what went wrong, as a sentence without its end.
        error: what the code raised.
    """
    files = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [(name, line) for name, line in files if not name.startswith(NO_PLACE_OF_THEIRS) and PACKAGES not in name]
    where = f" at {own[-1][0]}:{own[-1][1]}" if own else ""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise UserError(f"{what} ({shorten_line(reason)}{where})") from error


def shorten_line(line: str, most: int = 300) -> str:
    """The first characters of a line."""
    return line if len(line) <= most else f"{line[:most]}..."
