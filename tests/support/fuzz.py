"""How many examples fuzzing tries, and what it does to files."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tfkd_fast.errors import UserError

EXAMPLES = int(os.environ.get("TFKD_FAST_FUZZ", "0"))
"""Examples of each test; 0 for the few of `make test`, which are the same ones every time."""


def fuzzed(few: int) -> settings:
    """Settings of a test that tries `few` examples, or as many as the environment variable says."""
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@st.composite
def damages(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with one flipped bit, cut short, with a hole of zeros, with other bytes in it, or of other bytes."""
    place = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(["bit", "bit", "bit", "cut", "hole", "bytes", "doubled", "other"]))
    match kind:
        case "bit":
            flipped = content[place] ^ 1 << draw(st.integers(0, 7))
            return content[:place] + bytes([flipped]) + content[place + 1 :]
        case "cut":
            return content[:place]
        case "hole":
            size = min(draw(st.integers(1, 4096)), len(content) - place)
            return content[:place] + bytes(size) + content[place + size :]
        case "bytes":
            other = draw(st.binary(min_size=1, max_size=32))
            return content[:place] + other + content[place + len(other) :]
        case "doubled":
            return content + content[place:]
    return draw(st.binary(max_size=200))


def outcome(read: Callable[[], Any]) -> Any:
    """What was read, or the sentence of a refusal, which is one line; anything else that is raised is a fault."""
    try:
        return read()
    except UserError as error:
        sentence = error
    assert str(sentence).strip()
    assert len(str(sentence).splitlines()) == 1
    return sentence
