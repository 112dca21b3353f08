"""Networks of other packages and of one's own, by the names that a recipe may have as `model.name`.

A network is any `nn.Module` from images (B,C,H,W) to logits (B,K). It comes from a factory, a function or a class that
is called with `num_classes`, and with `in_channels` or `in_chans` where it takes that:

* `timm/NAME`, `torchvision/NAME`: a network of these packages, with random weights;
* `package.module:factory`: a factory that can be imported;
* `path/file.py:factory`: a factory in a file of one's own;
* a name that an installed distribution offers as an entry point of the group `tfkd_fast.models`;
* `python/NAME`: a module or a factory that was given to `tfkd_fast.train` and that cannot be imported; another process
  has to be given it again.

To import a factory is to run the code of whoever wrote it. That happens where a network is built and by the name that
the recipe or the command has. Where a stored run names a module or a file, a `Notice` says so; what an installed
distribution offers was installed by whoever works here. Weights are never unpickled.
"""

import copy
import importlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from tfkd_fast.errors import Notice, UserError, nearest, shorten
from tfkd_fast.plugins import Registry, in_one_sentence
from tfkd_fast.settings import absolute_path

Factory = Callable[..., nn.Module]
"""Called with `num_classes`, by name or as one of its `**keywords`, and with `in_channels` or `in_chans` where it takes
that by name."""

NetworkOrFactory = nn.Module | Factory
"""What a program may give in the place of a name."""

INSTALLED: Registry[Factory] = Registry("network", "tfkd_fast.models", Callable, "function or class that makes it", {})
"""The factories that installed distributions offer, by name."""

FORMS = "timm/NAME, torchvision/NAME, package.module:factory or path/file.py:factory"
"""The names of networks that are not of this package, for messages."""


class Given(NamedTuple):
    """What a program gave."""

    original: NetworkOrFactory
    """The module or the factory itself, by which it is known again."""
    factory: Factory
    """What its networks are built by."""


from_programs: dict[str, Given] = {}
"""What programs gave, by name; it goes before what could be imported."""
from_imports: dict[str, Factory] = {}
"""What was imported from modules and files, and the factories of timm and torchvision, by name."""
beside_files: dict[Path, dict[str, ModuleType]] = {}
"""What the files of networks imported of their own folders, by folder and name."""


def check_name(name: str, own: Iterable[str]) -> str:
    """The name of a network as a recipe keeps it: the path of a file is made absolute. Nothing is imported.

    Args:
        name: the name.
        own: names of networks of this package.

    Raises:
        ValueError: it is no name of a network.
    """
    if name in own or name in from_programs or name in INSTALLED:
        return name
    if re.fullmatch(r"(timm|torchvision|python)/[\w.-]+", name):
        return name
    place, colon, factory = name.rpartition(":")
    if colon and factory.isidentifier() and place.endswith(".py"):
        return f"{absolute_path(place)}:{factory}"
    if colon and all(part.isidentifier() for part in (*place.split("."), *factory.split("."))):
        return name
    if re.match(r"(timm/)?hf[_-]?(hub)?[:/]", name):
        raise ValueError(
            f"{shorten(name)} is not built from the Hub: name a network of timm as timm/NAME, or any other one by a "
            "factory of yours that fetches it, as in path/file.py:factory"
        )
    raise ValueError(f"unknown model {shorten(name)}: {nearest(name, {*own, *INSTALLED})}; or {FORMS}")


def give(model: NetworkOrFactory, name: str | None = None) -> str:
    """Make a module or a factory known to this process; returns the name that a recipe has for it.

    A factory that can be imported has the name by which other processes import it. Any other, and a module, is
    `python/NAME`, and `python/NAME.2` and so on where this process has another object of that name. Every network that
    is built from a module is a copy of it, with its weights.

    Args:
        model: the module or the factory.
        name: the name to know it by; None to find one.

    Raises:
        UserError: it is neither, or a module that cannot be copied.
    """
    if isinstance(model, nn.Module):
        kind = type(model).__name__
        name = name or _name_here(kind, model)
        what = f"every network that is built from a {kind} is a copy of it, and this one cannot be copied"
        with in_one_sentence(f"{what}: give the class or a function that makes it"):
            original = copy.deepcopy(model)
        from_programs[name] = Given(model, lambda num_classes: copy.deepcopy(original))
    elif callable(model):
        own = re.sub(r"\W", "", getattr(model, "__name__", "")) or "model"
        name = name or _importable_name(model) or _name_here(own, model)
        from_programs[name] = Given(model, model)
    else:
        raise UserError(f"a model is an nn.Module or a function that makes one, not {shorten(model)}")
    return name


def _name_here(own: str, model: NetworkOrFactory) -> str:
    """The name of an object in this process, which no other object has."""
    names = (f"python/{own}" if number == 1 else f"python/{own}.{number}" for number in count(1))
    return next(name for name in names if name not in from_programs or from_programs[name].original is model)


def _importable_name(factory: Factory) -> str | None:
    """The name by which another process imports a factory; None where it cannot."""
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", "")
    if not module or module == "__main__" or not all(part.isidentifier() for part in name.split(".")):
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    file = getattr(sys.modules.get(module), "__file__", None)
    if found is not factory or file is None:
        return None
    try:
        importable = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        importable = False
    return f"{module}:{name}" if importable else None


def imports_code(name: str) -> bool:
    """Whether building the network `name` imports a module or a file that only the name tells of."""
    return ":" in name and name not in from_programs and name not in INSTALLED


def announce_import(name: str, where: object) -> None:
    """Say, where a stored run has the network `name`, that its code is about to be imported. `where` is the run."""
    if imports_code(name) and name not in from_imports:
        what = name.rpartition(":")[0]
        warnings.warn(Notice(f"{where} has the network {name}: {what} is imported, which runs its code"), stacklevel=3)


def build_foreign(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """Build a network by a name that `check_name` gave.

    Args:
        name: the name.
        num_classes: number of logits.
        in_channels: channels of the images.

    Raises:
        UserError: it cannot be imported or built.
    """
    factory, offered = _find_factory(name), {"in_channels": in_channels, "in_chans": in_channels}
    takes, takes_others = _keywords(factory)
    if "num_classes" not in takes and not takes_others:
        raise UserError(
            f"the network {name} cannot be built for {num_classes} classes: its factory takes no num_classes"
        )
    arguments = {"num_classes": num_classes} | {key: value for key, value in offered.items() if key in takes}
    with in_one_sentence(f"the network {name} cannot be built"), _beside_its_file(name):
        network = factory(**arguments)
    if not isinstance(network, nn.Module):
        raise UserError(f"the network {name} is no network: its factory gave {shorten(network)}, not an nn.Module")
    return network


def _find_factory(name: str) -> Factory:
    if name in from_programs:
        return from_programs[name].factory
    if name not in from_imports and name not in INSTALLED:
        from_imports[name] = _import_factory(name)
    found: Any = INSTALLED[name] if name in INSTALLED else from_imports[name]
    if isinstance(found, nn.Module) or not callable(found):
        raise UserError(f"{name} is no factory, but {shorten(found)}: name a function or class that makes the network")
    factory: Factory = found
    return factory


def _import_factory(name: str) -> Any:
    kind, slash, rest = name.partition("/")
    if slash and kind == "python":
        raise UserError(
            f"the network {name} was given to tfkd_fast.train as an object, which this process does not have: give it "
            "again, with the argument model, or name a factory that can be imported"
        )
    if slash and kind == "timm":
        return _timm_factory(rest)
    if slash and kind == "torchvision":
        return _torchvision_factory(rest)
    place, _, path = name.rpartition(":")
    with in_one_sentence(f"the network {name} cannot be imported"), _beside_its_file(name):
        found: Any = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        for part in path.split("."):
            found = getattr(found, part)
    return found


def _import_file(path: Path) -> ModuleType:
    """The module of a file."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: name the file of the network where it is now")
    name = f"tfkd_fast_model_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _beside_its_file(name: str) -> Iterator[None]:
    """Context manager in which the factory of a file may import the modules of its folder.

    They are known by their names in it alone: the file of another network may have others of the same names beside it.
    """
    place = name.rpartition(":")[0]
    if not place.endswith(".py"):
        yield
        return
    folder, before = Path(place).parent, dict(sys.modules)
    own = beside_files.setdefault(folder, {})
    sys.modules.update(own)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        new = sys.modules.keys() - before.keys()
        own |= {module: sys.modules[module] for module in new if _is_beside(module, folder)}
        for module in own:
            sys.modules.pop(module, None)
        sys.modules.update({module: before[module] for module in own if module in before})


def _is_beside(module: str, folder: Path) -> bool:
    """Whether an imported module is a file or a package of a folder, or a part of such a package."""
    name = module.partition(".")[0]
    spec = getattr(sys.modules.get(name), "__spec__", None)
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec is not None else []
    return any(place is not None and Path(place).with_suffix("") == folder / name for place in places)


def _timm_factory(name: str) -> Factory:
    try:
        import timm
    except ImportError:
        raise UserError(f"timm/{name} needs a package that is not installed: pip install 'tfkd-fast[timm]'") from None
    if not timm.is_model(name.partition(".")[0]):
        close = timm.list_models(f"{name[:4]}*")
        raise UserError(f"timm has no network {name!r}: {nearest(name, close) if close else 'see timm.list_models()'}")

    def build(num_classes: int, in_chans: int) -> nn.Module:
        return timm.create_model(name, num_classes=num_classes, in_chans=in_chans)

    return build


def _torchvision_factory(name: str) -> Factory:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise UserError(f"torchvision has no network {name!r}: {nearest(name, names)}")

    def build(num_classes: int) -> nn.Module:
        return models.get_model(name, weights=None, num_classes=num_classes)

    return build


def _keywords(factory: Factory) -> tuple[set[str], bool]:
    """The names of what a factory takes by name, and whether it takes others as `**keywords`, as factories of
    torchvision and timm take num_classes; what it does with those shows in the logits alone."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return set(), False
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return (
        {parameter.name for parameter in parameters if parameter.kind in named},
        any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters),
    )
