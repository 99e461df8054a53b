"""Tests say what they check: every test function asserts something, and few reach into private names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
# calls of pytest that assert
ASSERTING = {"fail", "raises", "warns"}
# what begins with an underscore and is public: methods of named tuples, and the end of a process
PUBLIC = {"_asdict", "_exit", "_fields", "_make", "_replace"}
# the probe of the image encoder; anything else needs a public seam
MOST_PRIVATE = 1

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(TESTS.rglob("*.py"))}


def all_tests() -> Iterator[tuple[Path, Function]]:
    for path, tree in trees().items():
        if path.name.startswith("test_"):
            for node in ast.walk(tree):
                if isinstance(node, Function) and node.name.startswith("test_"):
                    yield path, node


@cache
def functions(path: Path) -> dict[str, list[Function]]:
    """Return a file's functions and methods by name."""
    found: dict[str, list[Function]] = {}
    for node in ast.walk(trees()[path]):
        if isinstance(node, Function):
            found.setdefault(node.name, []).append(node)
    return found


@cache
def everywhere() -> dict[str, list[tuple[Path, Function]]]:
    """Return the functions and methods of all files by name."""
    found: dict[str, list[tuple[Path, Function]]] = {}
    for path in trees():
        for name, nodes in functions(path).items():
            found.setdefault(name, []).extend((path, node) for node in nodes)
    return found


@cache
def imports(path: Path) -> dict[str, tuple[Path, str]]:
    """Return for each name that a file imports from the tests where its function is: the file and its name there."""
    files = {".".join(other.relative_to(TESTS).with_suffix("").parts): other for other in trees()}
    files |= {name.removeprefix("support."): other for name, other in files.items()}
    found = {}
    for node in ast.walk(trees()[path]):
        if isinstance(node, ast.ImportFrom) and node.module in files:
            found |= {alias.asname or alias.name: (files[node.module], alias.name) for alias in node.names}
    return found


def callees(path: Path, function: Function) -> Iterator[tuple[Path, Function]]:
    """Yield the functions of the tests that a function may call; methods are found by their name alone."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute):
            yield from everywhere().get(node.func.attr, [])
        elif isinstance(node.func, ast.Name):
            other, name = imports(path).get(node.func.id, (path, node.func.id))
            yield from ((other, each) for each in functions(other).get(name, []))


def asserts_itself(function: Function) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ASSERTING or name.startswith("assert_"):
                return True
    return False


def asserts(path: Path, function: Function) -> bool:
    """Return whether a function asserts something, itself or in what it calls."""
    seen: set[Function] = set()
    to_see = [(path, function)]
    while to_see:
        where, node = to_see.pop()
        if asserts_itself(node):
            return True
        seen.add(node)
        to_see += [(other, callee) for other, callee in callees(where, node) if callee not in seen]
    return False


def private_accesses(path: Path) -> list[str]:
    """Return the private names of other objects and modules that a file uses, with their lines."""
    found = []
    for node in ast.walk(trees()[path]):
        names: list[str] = []
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in ("self", "cls"):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names] + (node.module or "").split(".")
        private = [name for name in names if name.startswith("_") and not name.startswith("__") and name not in PUBLIC]
        found += [f"{path.relative_to(TESTS)}:{node.lineno} {name}" for name in private]
    return found


def test_every_test_asserts_something() -> None:
    found = list(all_tests())
    assert len(found) > 800
    assert [f"{path.relative_to(TESTS)}: {node.name}" for path, node in found if not asserts(path, node)] == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("assert 1 + x", True),
        ("with pytest.raises(ValueError):\n        f()", True),
        ("np.testing.assert_array_equal(a, b)", True),
        ("assert True", False),
        ("print(f())", False),
        ("return", False),
    ],
)
def test_what_counts_as_an_assertion(body: str, expected: bool) -> None:
    (node,) = ast.parse(f"def test():\n    {body}\n").body
    assert isinstance(node, ast.FunctionDef)
    assert asserts(Path(__file__), node) is expected


def test_few_tests_reach_into_private_names() -> None:
    found = [name for path in trees() for name in private_accesses(path)]
    assert len(found) <= MOST_PRIVATE, "\n".join(found)
