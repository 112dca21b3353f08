"""JSON that every reader of the standard takes."""

import json
import math
from pathlib import Path

import pytest

import tfkd_fast
from tfkd_fast.strict_json import to_json

PACKAGE = Path(tfkd_fast.__file__).parent


@pytest.mark.parametrize("indent", [None, 2])
def test_what_json_lacks_becomes_null(indent: int | None) -> None:
    values = {"nll": math.nan, "values": [1.0, math.inf], "parts": ({"a": -math.inf},), "name": "nan", "count": 3}
    read = json.loads(to_json(values, indent), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read == {"nll": None, "values": [1.0, None], "parts": [{"a": None}], "name": "nan", "count": 3}


def test_the_package_writes_json_in_one_place() -> None:
    writers = {path.name for path in PACKAGE.rglob("*.py") if "json.dump" in path.read_text()}
    assert writers == {"strict_json.py"}
