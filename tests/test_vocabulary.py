"""Names and texts of the package: one class for one name, no parameter that hides a builtin, and docstrings that are
plain sentences which stand alone, because editors and the documentation show each without its neighbours."""

import ast
import builtins
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import tfkd_fast

ROOT = Path(tfkd_fast.__file__).parent

SHORTEST = 20
"""Characters that a docstring has at least: fewer name a unit or a letter, and say nothing without their neighbours."""

LEANING = ("Of ", "The others", "That ", "Which ", "As ", "And ", "Likewise", "By ", "With ", "...")
"""Beginnings of texts that continue a sentence which stands somewhere else."""

SHAPE = re.compile(r"\([\w,+*. ]*\)[^:.;]*: [\w-]+ [\w`]+", re.DOTALL)
"""A shape, and a dtype if need be, with what the tensor is behind a colon."""

BANNED = re.compile(
    "_*(of|alone|together|stacked|cooled|harder|learned|selected|moved|mixed|swapped|shipped|undone|taught|said|heard|told"
    "|surer|seen|shown|kept|given|finite|below)_*"
)
"""Participles, adverbs and prepositions: a function is named by a verb, a value by a noun."""

PROTOCOL_OF_TORCH = frozenset({"forward", "setup_context", "backward", "state_dict", "load_state_dict"})
"""Methods whose meaning torch fixes: they need no docstring."""


@dataclass(frozen=True)
class Text:
    """A docstring, or the string below an attribute."""

    where: str
    value: str
    public: bool


@cache
def modules() -> dict[Path, ast.Module]:
    """Module -> its syntax tree; `kernels` may be a link, which `rglob` does not follow."""
    paths = sorted({*ROOT.rglob("*.py"), *(ROOT / "kernels").glob("*.py")})
    return {path: ast.parse(path.read_text()) for path in paths}


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def texts() -> Iterator[Text]:
    for path, tree in modules().items():
        for node, public in definitions(tree, True):
            docstring = ast.get_docstring(node)
            if docstring is not None and not docstring.startswith(("Args:", "Raises:")):  # of an __init__
                yield Text(place(path, node), docstring, public)
            for assignment, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(assignment, ast.Assign | ast.AnnAssign) and is_string(below):
                    target = assignment.target if isinstance(assignment, ast.AnnAssign) else assignment.targets[0]
                    shown = public and isinstance(target, ast.Name) and not target.id.startswith("_")
                    yield Text(place(path, below), ast.literal_eval(below.value).strip(), shown)  # type: ignore[attr-defined]


Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(node: Definition, public: bool) -> Iterator[tuple[Definition, bool]]:
    """The node and every class and function in it, with whether its name and those around it are public."""
    yield node, public
    inside_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from definitions(child, public and not inside_function and not child.name.startswith("_"))


def is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_a_class_name_stands_for_one_class() -> None:
    places = defaultdict(list)
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(place(path, node))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_parameter_and_no_variable_of_a_function_hides_a_builtin() -> None:
    hiding = []
    for path, tree in modules().items():
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
        for node in {inner for function in functions for inner in ast.walk(function)}:
            if isinstance(node, ast.arg) and hasattr(builtins, node.arg):
                hiding.append(f"{place(path, node)} {node.arg}")
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and hasattr(builtins, node.id):
                hiding.append(f"{place(path, node)} {node.id}")
    assert hiding == []


def test_a_function_is_named_by_a_verb_and_a_value_by_a_noun() -> None:
    found = []
    for path, tree in modules().items():
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef(name=name) | ast.arg(arg=name) | ast.Name(id=name) | ast.Attribute(attr=name):
                    if BANNED.fullmatch(name):
                        found.append(f"{place(path, node)} {name}")
    assert found == []


@pytest.mark.parametrize("opening", LEANING)
def test_no_text_continues_a_sentence_that_stands_elsewhere(opening: str) -> None:
    assert [f"{text.where} {text.value[:60]}" for text in texts() if text.value.startswith(opening)] == []


def test_a_shape_is_followed_by_a_meaning() -> None:
    """As in "(P,A) float32: the sampled actions."."""
    shapes = [text for text in texts() if text.value.startswith("(")]
    assert [f"{text.where} {text.value[:60]}" for text in shapes if not SHAPE.match(text.value)] == []


def test_a_public_text_is_a_sentence() -> None:
    def is_sentence(text: str) -> bool:
        summary = text.partition("\n\n")[0]
        return len(text) >= SHORTEST and summary.endswith((".", ":")) and (text[0].isupper() or not text[0].isalpha())

    assert [f"{text.where} {text.value[:60]}" for text in texts() if text.public and not is_sentence(text.value)] == []


def test_everything_public_has_a_docstring() -> None:
    """An override has that of the method that it overrides, and a dataclass says in it what its attributes are."""
    methods = {
        node.name: (
            {base.id for base in node.bases if isinstance(base, ast.Name)},
            {child.name for child in node.body if isinstance(child, ast.FunctionDef) and ast.get_docstring(child)},
        )
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def inherits(base: str, method: str) -> bool:
        bases, documented = methods.get(base, (set(), set()))
        return method in documented or any(inherits(other, method) for other in bases)

    bare = []
    for path, tree in modules().items():
        owner = {child: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in node.body}
        for node, public in definitions(tree, True):
            if not public or ast.get_docstring(node):
                continue
            if isinstance(node, ast.FunctionDef):
                inherited = node in owner and inherits(owner[node].name, node.name)
                overload = any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list)
                if inherited or overload or node.name in PROTOCOL_OF_TORCH:
                    continue
            bare.append(f"{place(path, node)} {getattr(node, 'name', 'module')}")
    assert bare == []


def test_an_attribute_is_explained_by_the_string_below_it() -> None:
    """Not by a comment behind it, which neither an editor nor the documentation can show."""
    trailing = []
    for path, tree in modules().items():
        attributes = {
            line: field
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for field in node.body
            if isinstance(field, ast.AnnAssign)
            for line in range(field.lineno, (field.end_lineno or field.lineno) + 1)
        }
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.COMMENT and token.start[0] in attributes and "noqa" not in token.string:
                trailing.append(f"{place(path, attributes[token.start[0]])} {token.string}")
    assert trailing == []
