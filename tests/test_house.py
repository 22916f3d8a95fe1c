"""The sizes that keep the house easy to live in; `make lint` runs this with the linters."""

import ast
from collections.abc import Iterator
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
SCHEMAS = {"BaseModel", "BaseSettings", "Section", "Value", "Record"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_has_few_files(folder):
    files = [p.name for p in folder.iterdir() if p.suffix == ".py" and p.name != "__init__.py"]
    assert len(files) <= MOST_FILES, sorted(files)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_classes_and_functions_are_small(file):
    tree = ast.parse(file.read_text())
    assert list(too_large(tree)) == []


def too_large(tree: ast.Module) -> Iterator[str]:
    schemas = SCHEMAS | schemas_in(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name not in schemas:
            found = attributes(node)
            if len(found) > MOST_ATTRIBUTES:
                yield f"{node.name} has {len(found)} attributes: {sorted(found)}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MOST_LINES:
                yield f"{node.name} has {lines} lines"
            parameters = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
            if node.name == "__init__" and parameters - 1 > MOST_PARAMETERS:
                yield f"a constructor in line {node.lineno} has {parameters - 1} parameters"


def schemas_in(tree: ast.Module) -> set[str]:
    """Classes of a file that are pydantic models, by what they inherit."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = {b.id for b in node.bases if isinstance(b, ast.Name)}
            if bases & (SCHEMAS | found):
                found.add(node.name)
    return found


def attributes(node: ast.ClassDef) -> set[str]:
    """What an instance carries: fields of the class's body, and what its methods set on self."""
    fields = {
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    for inner in ast.walk(node):
        targets = (
            inner.targets
            if isinstance(inner, ast.Assign)
            else [inner.target]
            if isinstance(inner, ast.AnnAssign | ast.AugAssign)
            else []
        )
        for target in targets:
            for part in ast.walk(target):
                if (
                    isinstance(part, ast.Attribute)
                    and isinstance(part.value, ast.Name)
                    and part.value.id == "self"
                    and isinstance(part.ctx, ast.Store)
                ):
                    fields.add(part.attr)
    return fields


def test_what_is_too_large_is_found():
    body = "\n".join(f"        self.a{i} = {i}" for i in range(13))
    tree = ast.parse(f"class A:\n    def __init__(self, a, b, c, d, e, f, g, h):\n{body}\n")
    assert [text.partition(":")[0] for text in too_large(tree)] == [
        "A has 13 attributes",
        "a constructor in line 2 has 8 parameters",
    ]
    long = ast.parse("def f():\n" + "    pass\n" * 60)
    assert list(too_large(long)) == ["f has 61 lines"]
