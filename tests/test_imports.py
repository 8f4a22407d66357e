"""Imports run one way, and files stay small."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sleeplm"
FILES = sorted(PACKAGE.rglob("*.py"))
#: Rooms, each of which may import those before it. ``testing`` and ``__init__`` stand on top.
ORDER = ["core", "memory", "models", "methods", "pretrained", "data", "runtime", "plan", "bench"]
#: Leaves: they import only these rooms, and only runtime, bench and what is on top import them.
LEAVES = {"data": {"core"}, "pretrained": {"core", "memory", "models"}}
CORE_MAY_IMPORT = {"jax", "optax", "numpy", "sleeplm"} | set(sys.stdlib_module_names)


def room(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "top"


def imports(path):
    """Full names of the modules that a file imports, wherever in the file it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write relative imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_imported(path):
    own = [name.split(".") for name in imports(path) if name.split(".")[0] == "sleeplm"]
    return {parts[1] if parts[1] in ORDER else "top" for parts in own if len(parts) > 1}


def ids(path):
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check():
    assert {room(path) for path in FILES} >= {"core", "memory", "models", "methods", "runtime"}
    assert any(rooms_imported(path) for path in FILES)


def test_the_map_of_the_package_has_the_rooms_in_their_order():
    text = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text()))
    assert re.findall(r"^\* :mod:`sleeplm\.(\w+)`", text, re.MULTILINE) == ORDER
    assert set(ORDER) == {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_a_room_imports_only_rooms_before_it(path):
    here, used = room(path), rooms_imported(path)
    if here == "top":
        return
    assert "top" not in used, f"{ids(path)} imports a module that stands above all rooms"
    allowed = LEAVES.get(here) or set(ORDER[: ORDER.index(here)])
    if here not in ("runtime", "bench"):
        allowed = allowed - set(LEAVES)
    assert used <= allowed | {here}, f"{ids(path)} may not import {sorted(used - allowed - {here})}"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_only_models_import_flax(path):
    if room(path) != "models":
        assert "flax" not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", [p for p in FILES if room(p) == "core"], ids=ids)
def test_core_imports_jax_optax_and_numpy_only(path):
    assert {name.split(".")[0] for name in imports(path)} <= CORE_MAY_IMPORT


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) < 400
