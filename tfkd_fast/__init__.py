"""Teacher-free knowledge distillation: training runs, trained students and fused operators.

What is public stands here. Importing the package loads none of it: each name is imported when it is first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfkd_fast import ops
    from tfkd_fast.api import evaluate, resume, train
    from tfkd_fast.own_loop import Criterion, Steering
    from tfkd_fast.report.push import push
    from tfkd_fast.runs.stored import from_pretrained, load_run

__all__ = [
    "Criterion",
    "Steering",
    "__version__",
    "evaluate",
    "from_pretrained",
    "load_run",
    "ops",
    "push",
    "resume",
    "train",
]

__version__ = version("tfkd-fast")

_MODULES = {
    "Criterion": "tfkd_fast.own_loop",
    "Steering": "tfkd_fast.own_loop",
    "evaluate": "tfkd_fast.api",
    "from_pretrained": "tfkd_fast.runs.stored",
    "load_run": "tfkd_fast.runs.stored",
    "push": "tfkd_fast.report.push",
    "resume": "tfkd_fast.api",
    "train": "tfkd_fast.api",
}
"""The module that each public function or class is imported from."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "ops":
        return import_module("tfkd_fast.ops")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES, "ops"]
