"""Pages of reports, read as a browser reads them, and the logs that they are made of."""

import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tfkd_fast.report import write_report

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting as it reads, and keeps what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.titles: list[str] = []
        self.labels: list[str] = []
        self.boxes: list[str] = []
        self.lists: list[tuple[str, list[str]]] = []
        """The class of each list, and the text of its items."""
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        values = dict(attrs)
        assert len(values) == len(attrs), f"an attribute of <{tag}> is given twice"
        self.ids += [values["id"] or ""] if "id" in values else []
        self.targets += [values[name] or "" for name in ("src", "href", "xlink:href", "action") if name in values]
        self.targets += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for value in values.values()))
        if tag == "svg":
            assert values["role"] == "img"
            self.labels.append(values["aria-label"] or "")
            self.boxes.append(values["viewbox"] or "")
        if tag == "ul":
            self.lists.append((values.get("class") or "", []))
        if tag == "li":
            self.lists[-1][1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.titles.append(data)
        if self.open and self.open[-1] == "li":
            self.lists[-1][1][-1] += data
        if "style" not in self.open:
            self.words += data

    @property
    def legends(self) -> list[list[str]]:
        """The names in the legend of each chart that has one."""
        return [items for kind, items in self.lists if kind == "legend"]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text())


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the events of a log, one by one."""
    path = folder / "metrics.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        change(event)
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def nulled(value: Any) -> Any:
    """Every fraction becomes null, as NaN and infinity do; whole numbers and names stay."""
    if isinstance(value, float):
        return None
    if isinstance(value, dict):
        return {key: nulled(item) for key, item in value.items()}
    return [nulled(item) for item in value] if isinstance(value, list) else value
