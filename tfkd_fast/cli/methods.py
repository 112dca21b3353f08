"""`tfkd-fast methods`: the list of the training methods, and the keys that each of them reads."""

from dataclasses import replace

from tfkd_fast.cli.options import WIDEST, TableOptions, print_wrapped, show_table, tables_of
from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.methods import METHODS, MethodEntry, find_method
from tfkd_fast.settings import TableForms


def show_methods(terminal: Terminal) -> None:
    """Print one line a method: its name, how many teachers it learns from, and its targets."""
    names = max(map(len, METHODS))
    terminal.print(f"{'method':{names}}  teachers  teaches with", style="bold")
    for name, entry in METHODS.items():
        line = f"{name:{names}}  {_teachers(entry):8}  {entry.summary}"
        terminal.print(line, soft_wrap=True)
    terminal.print("tfkd-fast methods NAME: where a method is from, and what it reads", soft_wrap=True)


def show_method(name: str, terminal: Terminal) -> None:
    """Print all that one method reads.

    Raises:
        UserError: there is no method of this name.
    """
    entry = find_method(name)
    for line in (f"{name}: {entry.summary}", f"source: {entry.source}", f"teachers: {_teachers(entry)}"):
        print_wrapped(terminal, line, min(terminal.width, WIDEST))
    for table in method_tables(entry):
        terminal.print()
        show_table(table, terminal, entry.preset.get(table.name))
    for table in optional_tables(entry):
        line = f"[{table.name}] may be left out: tfkd-fast options {table.name} lists its keys"
        terminal.print(f"\n{line}", soft_wrap=True)


def method_tables(entry: MethodEntry) -> list[TableOptions]:
    """The tables that a method reads with its presets, in the form that holds unless a recipe chooses another one. A
    table that its name stands for has no other."""
    tables = []
    for table in tables_of(entry.settings):
        if entry.settings.model_fields[table.name].default is None and table.name not in entry.preset:
            continue
        chosen, forms = table.forms.chosen(entry.preset.get(table.name, {})), table.forms
        if chosen and entry.named_for and entry.named_for[0] == table.name:
            forms = TableForms(forms.key, (chosen,))
        tables.append(replace(table, forms=forms, chosen=chosen))
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
