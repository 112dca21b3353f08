"""Finds products of two 32-bit numbers in the addresses of a compiled Triton kernel.

Two sizes of a problem, such as a row and the number of classes, have a product that may need more than 31 bits. It
then wraps around, and the kernel reads foreign memory. What is multiplied by a constant of the kernel counts rows or
classes still, which the operators limit to 2**30.
"""

import re
from collections.abc import Iterator

RESULTS = re.compile(r"^\s*(%[\w.#:, %-]+) = ")
NAMES = re.compile(r"%[\w.-]+(?:#\d+)?")
DATA = ("tt.load", "tt.atomic_rmw", "tt.atomic_cas", "tt.reduce")
"""Operations whose results are numbers of the data, such as a label, and no sizes."""
LOOP = re.compile(r"scf\.for .*?(%[\w.-]+) = (%[\w.#-]+) to (%[\w.#-]+) step (%[\w.#-]+)")
INITIAL = re.compile(r"(%[\w.-]+) = (%[\w.#-]+)")


def narrow_products(ttir: str) -> list[str]:
    """The places in the source, such as "soft_target.py:155", of 32-bit products that an address depends on.

    Args:
        ttir: the kernel in Triton's intermediate representation, as text.
    """
    lines = ttir.splitlines()
    places = dict(location for line in lines for location in re.findall(r"^(#loc\d*) = loc\((.*)\)$", line))
    constants = {name for line in lines if " arith.constant " in line for name in NAMES.findall(line.partition("=")[0])}
    origins: dict[str, set[str]] = {}  # of a value: the locations of the products that it depends on
    found: set[str] = set()
    for _ in range(3):  # what a loop carries comes back to its beginning
        frames: list[tuple[list[str], list[str]]] = []  # of the regions that are open: results, and what is carried
        for line in lines:
            _follow(line, constants, origins, frames, found)
    return sorted(_place(location, places) for location in found)


def _follow(
    line: str,
    constants: set[str],
    origins: dict[str, set[str]],
    frames: list[tuple[list[str], list[str]]],
    found: set[str],
) -> None:
    body = line.partition(" loc(")[0]
    match = RESULTS.match(body)
    results = NAMES.findall(match[1].replace(":", " :")) if match else []
    operation = body[match.end() :] if match else body.strip()
    used = [name for name in NAMES.findall(operation) if name not in results]

    def of(names: list[str]) -> set[str]:
        return set().union(*(origins.get(name, origins.get(name.partition("#")[0], set())) for name in names))

    if loop := LOOP.search(operation):
        origins.setdefault(loop[1], set()).update(of([loop[2], loop[4]]))
        pairs = INITIAL.findall(operation.partition("iter_args(")[2])
        for name, value in pairs:
            origins.setdefault(name, set()).update(of([value]))
        frames.append((results, [name for name, _ in pairs]))
        return
    if operation.startswith(("scf.if", "scf.while")) or "else {" in operation:
        frames.append((results or (frames[-1][0] if frames else []), []))
        return
    if operation.startswith("scf.yield"):
        names = NAMES.findall(operation.partition(":")[0])
        owners, carried = frames.pop() if frames else ([], [])
        for position, name in enumerate(names):
            for target in [*carried[position : position + 1], *_result(owners, position, len(names))]:
                origins.setdefault(target, set()).update(of([name]))
        return
    if operation.startswith(DATA):
        return
    taken = of(used)
    if operation.startswith("arith.muli") and re.search(r"[ x<]i32\b", operation) and not constants & set(used):
        taken = taken | {line.rpartition("loc(")[2].rstrip(")")}
    if operation.startswith("tt.addptr"):
        found |= of(used[1:])
    for name in results:
        origins[name] = taken


def _result(owners: list[str], position: int, count: int) -> Iterator[str]:
    """The name of one of the results of a region: `%1`, or `%1#0` where there are several."""
    if owners:
        yield owners[0] if count == 1 else f"{owners[0]}#{position}"


def _place(location: str, places: dict[str, str]) -> str:
    """A file and a line; a location may name others."""
    for _ in range(len(places)):
        if match := re.search(r'"([^"]*\.py)":(\d+):', location):
            return f"{match[1].rpartition('/')[2]}:{match[2]}"
        location = next((places[name] for name in re.findall(r"#loc\d*", location) if name in places), location)
    return location
