"""The launcher stands beside the package: it is imported by nobody but experiment files."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "launch").glob("*.py"))


def imported(path):
    tree = ast.walk(ast.parse(path.read_text()))
    nodes = [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [[a.name for a in n.names] if isinstance(n, ast.Import) else [n.module] for n in nodes]
    return {name.split(".")[0] for some in names for name in some}


def test_the_package_does_not_know_the_launcher():
    assert len(FILES) > 5 and any("sleeplm" in imported(path) for path in FILES)
    for path in (ROOT / "sleeplm").rglob("*.py"):
        assert "launch" not in imported(path), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) < 400


def test_axes_of_an_experiment_file_do_not_import_jax():
    assert imported(ROOT / "launch" / "axes.py") <= {
        *("__future__", "collections", "itertools", "typing", "sleeplm")
    }
