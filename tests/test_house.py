"""The sizes that keep the house easy to live in; `make lint` runs this with the linters."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("cluster", "adapter_store", "router", "deployments")
MOST_FILES = 20
MOST_ATTRIBUTES = 12
MOST_PARAMETERS = 7
MOST_LINES = 60

FOLDERS = sorted({p.parent for package in PACKAGES for p in (ROOT / package).rglob("*.py")})
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
# Their fields are what the wire, the store or the settings say: one more weighs nothing.
SCHEMAS = {"BaseModel", "BaseSettings"}

Classes = Mapping[str, ast.ClassDef]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_has_few_files(folder):
    files = [p.name for p in folder.iterdir() if p.is_file()]
    assert len(files) <= MOST_FILES, sorted(files)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_classes_and_functions_are_small(file):
    assert list(too_large(ast.parse(file.read_text()), our_classes())) == []


@cache
def our_classes() -> Classes:
    """By name, for what is inherited."""
    return classes_in(*(ast.parse(file.read_text()) for file in FILES))


def classes_in(*trees: ast.Module) -> Classes:
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def too_large(tree: ast.Module, known: Classes) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            line = lineage(node, known)
            found = set().union(*map(attributes, line))
            if len(found) > MOST_ATTRIBUTES and not any(SCHEMAS & bases(c) for c in line):
                yield f"{node.name} has {len(found)} attributes: {sorted(found)}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MOST_LINES:
                yield f"{node.name} has {lines} lines"
            parameters = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
            if node.name == "__init__" and parameters - 1 > MOST_PARAMETERS:
                yield f"a constructor in line {node.lineno} has {parameters - 1} parameters"


def lineage(node: ast.ClassDef, known: Classes) -> list[ast.ClassDef]:
    """A class and those of ours that it inherits from."""
    parents = (known[name] for name in bases(node) if name in known and known[name] is not node)
    return [node, *(ancestor for parent in parents for ancestor in lineage(parent, known))]


def bases(node: ast.ClassDef) -> set[str]:
    named = (b.value if isinstance(b, ast.Subscript) else b for b in node.bases)
    return {b.id for b in named if isinstance(b, ast.Name)}


def attributes(node: ast.ClassDef) -> set[str]:
    """What an instance carries: fields of the class's body, and what its methods set on self."""
    fields = {
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    return fields | {
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute)
        and isinstance(part.ctx, ast.Store)
        and isinstance(part.value, ast.Name)
        and part.value.id == "self"
    }


def found_in(source: str) -> list[str]:
    tree = ast.parse(source)
    return [text.partition(":")[0] for text in too_large(tree, classes_in(tree))]


def test_what_is_too_large_is_found():
    body = "\n".join(f"        self.a{i} = {i}" for i in range(13))
    fat = f"class A:\n    def __init__(self, a, b, c, d, e, f, g, h):\n{body}\n"
    assert found_in(fat) == ["A has 13 attributes", "a constructor in line 2 has 8 parameters"]
    assert found_in("def f():\n" + "    pass\n" * 60) == ["f has 61 lines"]
    fields = "\n".join(f"    a{i}: int = 0" for i in range(10))
    heir = "class B(A):\n    def f(self):\n        self.x, self.y = 1, 2\n"
    opened = "        with open('') as self.z:\n            pass\n"
    assert found_in(f"class A:\n{fields}\n{heir}{opened}") == ["B has 13 attributes"]
    assert found_in(f"class A(BaseModel):\n{fields}\n{heir}{opened}") == []
