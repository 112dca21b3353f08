"""What pages are made of: big numbers, tables, and the frame around them with its colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from tfkd_fast.errors import printable
from tfkd_fast.report.drawing import DARK, LIGHT, Chart


@dataclass(frozen=True)
class Headline:
    """One of the big numbers at the top of a page, as text."""

    label: str
    value: str
    unit: str
    note: str


@dataclass(frozen=True)
class TableRow:
    """A row of a table, as text."""

    name: str
    cells: list[str]
    """What is `Markup` stays as it is, such as a link."""
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """A table whose rows have names; a narrow page shows them below each other."""

    caption: str
    heads: Sequence[str]
    """What stands above the names of the rows, and above each column of cells."""
    rows: list[TableRow]


def present(*charts: Chart | None) -> list[Chart]:
    """The charts that there are."""
    return [chart for chart in charts if chart is not None]


def render_template(package: str, template: str, **values: Any) -> str:
    """A page as HTML, in the frame and the colours of all pages.

    Args:
        package: where the template lies.
        template: its file, which extends `base.html`.
        values: what the template shows.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in dict.fromkeys((package, "tfkd_fast.report"))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(light=LIGHT, dark=DARK, **values)
    return "\n".join(map(printable, page.split("\n")))
