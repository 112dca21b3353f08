"""Finds products of two 32-bit numbers in the addresses of a compiled Triton kernel.

Two sizes of a problem, such as a row and the number of classes, have a product that may need more than 31 bits. It
then wraps around, and the kernel reads foreign memory. What is multiplied by a constant of the kernel counts rows or
classes still, which the operators limit to 2**30.
"""

import re
from typing import NamedTuple

RESULTS = re.compile(r"^\s*(%[\w.#:, %-]+) = ")
NAME = re.compile(r"%[\w.-]+(?:#\d+)?")
LOOP = re.compile(r"scf\.for .*?(%[\w.-]+) = (%[\w.#-]+) to (%[\w.#-]+) step (%[\w.#-]+)")
INITIAL = re.compile(r"(%[\w.-]+) = (%[\w.#-]+)")
NARROW_PRODUCT = re.compile(r"arith\.muli .*[ x<]i32\b")
DATA = ("tt.load", "tt.atomic_rmw", "tt.atomic_cas", '"tt.reduce"')
"""Operations whose results are numbers of the data, such as a label, and no sizes."""
PASSES = 3
"""Over the kernel: what a loop carries comes back to its beginning."""


class Region(NamedTuple):
    """The lines between two braces."""

    results: list[str]
    """Names of what the operation gives that the region belongs to."""
    carried: list[str]
    """Names of what a loop hands from one round to the next."""


def narrow_products(ttir: str) -> list[str]:
    """The places in the source, such as "soft_target.py:155", of 32-bit products that an address depends on.

    Args:
        ttir: the kernel in Triton's intermediate representation, as text.
    """
    lines = ttir.splitlines()
    places = dict(location for line in lines for location in re.findall(r"^(#loc\d*) = loc\((.*)\)$", line))
    walk = Walk({name for line in lines if " arith.constant " in line for name in NAME.findall(line.partition("=")[0])})
    for _ in range(PASSES):
        for line in lines:
            walk.read(line)
    return sorted({place_of(location, places) for location in walk.found})


class Walk:
    """Follows products from line to line."""

    def __init__(self, constants: set[str]) -> None:
        self.constants = constants
        self.origins: dict[str, set[str]] = {}  # of a value: the locations of the products that it depends on
        self.regions: list[Region] = []  # that are open
        self.found: set[str] = set()  # locations of products that an address depends on

    def read(self, line: str) -> None:
        """Take in a line of the kernel."""
        before, _, location = line.rpartition(" loc(")
        body = before or line
        match = RESULTS.match(body)
        results = NAME.findall(match[1].replace(":", " :")) if match else []
        operation = body[match.end() :] if match else body.strip()
        closed = self.regions.pop() if body.lstrip().startswith("}") and self.regions else Region([], [])
        if line.endswith("{"):
            self.regions.append(self.open_region(operation, results or closed.results))
        elif operation.startswith("scf.yield"):
            self.hand_on(NAME.findall(operation.partition(" : ")[0]))
        elif not operation.startswith(DATA):
            self.compute(operation, results, location.rstrip(")"))

    def open_region(self, operation: str, results: list[str]) -> Region:
        """Begin a loop, a branch, or another region."""
        loop = LOOP.search(operation)
        if loop is None:
            return Region(results, [])
        pairs = INITIAL.findall(operation.partition("iter_args(")[2])
        self.add(loop[1], self.origins_of([loop[2], loop[4]]))
        for name, value in pairs:
            self.add(name, self.origins_of([value]))
        return Region(results, [name for name, _ in pairs])

    def hand_on(self, values: list[str]) -> None:
        """Hand values of a region to its results, and to the next round of a loop."""
        results, carried = self.regions[-1]
        names = results if len(values) == 1 else [f"{results[0]}#{at}" for at in range(len(values))]
        for targets in (names, carried):
            for name, value in zip(targets, values, strict=False):  # a branch carries nothing
                self.add(name, self.origins_of([value]))

    def compute(self, operation: str, results: list[str], location: str) -> None:
        """Take in an operation without a region."""
        used = NAME.findall(operation)
        origins = self.origins_of(used)
        if NARROW_PRODUCT.match(operation) and not self.constants & set(used):
            origins = origins | {location}
        if operation.startswith("tt.addptr"):
            self.found |= self.origins_of(used[1:])
        for name in results:
            self.origins[name] = origins

    def add(self, name: str, origins: set[str]) -> None:
        """A value depends on these products, too."""
        self.origins[name] = self.origins.get(name, set()) | origins

    def origins_of(self, names: list[str]) -> set[str]:
        """The products that any of some values depends on."""
        return set().union(*(self.origins.get(name, set()) for name in names))


def place_of(location: str, places: dict[str, str]) -> str:
    """A file and a line; a location may name others."""
    for _ in range(len(places)):
        if match := re.search(r'"([^"]*\.py)":(\d+):', location):
            return f"{match[1].rpartition('/')[2]}:{match[2]}"
        location = next((places[name] for name in re.findall(r"#loc\d*", location) if name in places), location)
    return location
