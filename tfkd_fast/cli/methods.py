"""`tfkd-fast methods`: the list of the training methods, and the keys that each of them reads."""

from rich.console import Console

from tfkd_fast.cli.options import WIDEST, TableOptions, print_wrapped, show_table, tables_of
from tfkd_fast.methods import METHODS, MethodEntry, find_method
from tfkd_fast.settings import TableForms


def show_methods(console: Console) -> None:
    """Print one line a method: its name, how many teachers it learns from, and its targets."""
    names = max(map(len, METHODS))
    console.print(f"{'method':{names}}  teachers  teaches with", style="bold", markup=False, highlight=False)
    for name, entry in METHODS.items():
        line = f"{name:{names}}  {_teachers(entry):8}  {entry.summary}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print("tfkd-fast methods NAME: where a method is from, and what it reads", soft_wrap=True, highlight=False)


def show_method(name: str, console: Console) -> None:
    """Print all that one method reads.

    Raises:
        UserError: there is no method of this name.
    """
    entry = find_method(name)
    for line in (f"{name}: {entry.summary}", f"source: {entry.source}", f"teachers: {_teachers(entry)}"):
        print_wrapped(console, line, min(console.width, WIDEST))
    for table in method_tables(entry):
        console.print()
        show_table(table, console, entry.preset.get(table.name))
    for table in optional_tables(entry):
        line = f"[{table.name}] may be left out: tfkd-fast options {table.name} lists its keys"
        console.print(f"\n{line}", markup=False, highlight=False, soft_wrap=True)


def method_tables(entry: MethodEntry) -> list[TableOptions]:
    """The tables that a method reads with its presets; of a table that its name stands for, the form of the preset."""
    tables = []
    for table in tables_of(entry.settings):
        if entry.settings.model_fields[table.name].default is None and table.name not in entry.preset:
            continue
        if entry.named_for and entry.named_for[0] == table.name:
            form = table.forms.names[entry.preset[table.name][entry.named_for[1]]]
            table = TableOptions(table.name, table.description, TableForms(table.forms.key, (form,)))
        tables.append(table)
    return tables


def optional_tables(entry: MethodEntry) -> list[TableOptions]:
    """The tables that a method reads only where a recipe has them."""
    names = {table.name for table in method_tables(entry)}
    return [table for table in tables_of(entry.settings) if table.name not in names]


def _teachers(entry: MethodEntry) -> str:
    count = entry.needs().teachers
    if count.most is None:
        return f"{count.fewest}+"
    return f"{count.fewest} to {count.most}" if count.most > count.fewest else str(count.fewest)
