"""The documentation says what is true: names exist, links lead somewhere, code runs."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

from sleeplm.core import tree
from sleeplm.methods.learner import COUNTERS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("README.md")])
COMPOSE, MEMORY = ROOT / "docs" / "compose.md", ROOT / "docs" / "memory.md"
JUDGE, DREAMING = ROOT / "docs" / "judge.md", ROOT / "docs" / "dreaming.md"
SCALE = ROOT / "docs" / "scale.md"

NAME = re.compile(r"\b(sleeplm/[\w/]+\.py)::([A-Za-z_][\w.]*\w)")
TEST = re.compile(r"\b(tests/[\w/]+\.py)::(\w+)")
#: Files that pages tell people to run, or to take figures from; with wildcards as in a shell.
FILE = re.compile(r"\b((?:docs|experiments)/[\w./*-]*[\w*])")
LINK = re.compile(r"\]\(([^()\s]+)\)")
#: Links that show where they lead: a path, or a name in it.
SHOWN = re.compile(r"\[`([\w.-]+(?:/[\w.-]+)+)(?:::[\w.]+)?`\]\(([^()\s#]+)\)")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def ids(page):
    return page.name


def every_page(test):
    return pytest.mark.parametrize("page", PAGES, ids=ids)(test)


def exists(module, name):
    """Whether a dotted name can be reached from a module; fields of records count."""
    thing = importlib.import_module(module.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        fields = {**getattr(thing, "__dataclass_fields__", {}), **vars(thing)}
        if part not in fields and not hasattr(thing, part):
            return False
        thing = fields[part] if part in fields else getattr(thing, part)
    return True


@functools.cache
def functions_of(path):
    tree = ast.parse((ROOT / path).read_text()) if (ROOT / path).is_file() else ast.Module([], [])
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def without_code(text):
    """The text between the code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def targets(page):
    """What ``page.md#here`` can lead to: headings, as GitHub names them, and explicit ids."""
    text = without_code(page.read_text())
    titles = [title.strip().lower() for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    slugs = {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def test_there_is_documentation_to_check():
    assert {page.name for page in PAGES} >= {"method.md", "memory.md", "compose.md", "glossary.md"}
    text = "".join(page.read_text() for page in PAGES)
    assert len(NAME.findall(text)) > 50 and len(TEST.findall(text)) > 30


def test_a_name_that_does_not_exist_would_be_noticed():
    assert exists("sleeplm/core/types.py", "State.params")
    assert exists("sleeplm/core/types.py", "State.replace")
    assert not exists("sleeplm/core/types.py", "State.parameters")
    assert not exists("sleeplm/core/types.py", "Learner")
    assert "test_nothing" not in functions_of("tests/test_docs.py")


@every_page
def test_every_function_that_a_page_names_exists(page):
    missing = [f"{m}::{n}" for m, n in NAME.findall(page.read_text()) if not exists(m, n)]
    assert not missing, f"{page.name} names what does not exist: {missing}"


@every_page
def test_every_test_that_a_page_names_exists(page):
    missing = [f"{p}::{n}" for p, n in TEST.findall(page.read_text()) if n not in functions_of(p)]
    assert not missing, f"{page.name} names tests that do not exist: {missing}"


@every_page
def test_every_file_that_a_page_takes_runs_or_figures_from_is_there(page):
    missing = sorted({name for name in FILE.findall(page.read_text()) if not [*ROOT.glob(name)]})
    assert not missing


@every_page
def test_relative_links_lead_to_files_and_headings(page):
    broken = []
    for link in LINK.findall(without_code(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        ok = target.exists() and target.is_relative_to(ROOT)
        if not ok or (heading and heading not in targets(target)):
            broken.append(link)
    assert not broken, f"{page.name}: links that lead nowhere: {broken}"


@every_page
def test_a_link_that_shows_a_path_leads_there(page):
    shown = [(path, page.parent / link) for path, link in SHOWN.findall(page.read_text())]
    wrong = [path for path, target in shown if target.resolve() != ROOT / path]
    assert not wrong, f"{page.name}: links that show one file and lead to another: {wrong}"


def run_blocks(page):
    """Runs the python blocks of a page as one program; returns what they have defined."""
    names = {"__name__": f"docs_{page.stem}"}
    text = page.read_text()
    for match in BLOCK.finditer(text):
        # Empty lines in front give errors the line numbers of the page.
        start = text.count("\n", 0, match.start(1))
        exec(compile("\n" * start + match[1], str(page), "exec"), names)
    return names


@pytest.mark.slow
def test_your_own_method_runs_as_it_is_written(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = run_blocks(COMPOSE)
    before, after = names["state"], names["slept"]
    assert after.slots["slow"].active.tolist() == [True, False, False, False]
    assert int(after.counters["nights"]) == int(before.counters["nights"]) + 1


def test_your_own_method_takes_at_most_40_lines():
    first = BLOCK.search(COMPOSE.read_text())[1]
    lines = [line.strip() for line in first.splitlines()]
    code = [line for line in lines if line and not line.startswith(("#", "import ", "from "))]
    assert 20 < len(code) <= 40
    assert max(map(len, first.splitlines())) <= 100


def test_a_judge_of_ones_own_works_as_it_is_written():
    names = run_blocks(JUDGE)
    assert callable(names["mine"])


@pytest.mark.slow
def test_dreams_are_dreamt_learned_and_reinforced_as_it_is_written():
    names = run_blocks(DREAMING)
    assert names["slept"].slots["slow"].active.tolist() == [True, False, False, False]
    assert names["metrics"]["accepted"][1] == 2 * 4  # two rounds of four trials
    moved = tree.differing(*(names[name].params for name in ("writing", "after")))
    assert moved and all(path.startswith("['writer']") for path in moved)


@pytest.mark.slow
def test_a_learner_is_spread_over_four_devices_as_it_is_written():
    names = run_blocks(SCALE)
    one, two = names["state"], names["both"]
    assert one.slots["slow"].active.tolist() == [True, False, False, False]
    assert int(one.counters["nights"]) == 1
    assert {s.data.shape for s in one.params["embed"].addressable_shards} == {(64, 8)}
    assert two.counters["step"].tolist() == [1, 1]
    assert {s.data.shape for s in two.params["embed"].addressable_shards} == {(1, 64, 16)}


def test_the_bytes_in_the_memory_page_are_those_of_the_default_experiment(monkeypatch):
    monkeypatch.chdir(ROOT)
    table = re.findall(r"^\| .* \| ([\d,]+) \|$", MEMORY.read_text(), re.MULTILINE)
    sizes = run_blocks(MEMORY)["sizes"]
    want = [f"{size:,}" for size in sizes.values()]
    assert table == want, f"experiments/retention.py has changed: write {want} into docs/memory.md"


def test_the_counters_in_the_memory_page_are_those_of_a_learner():
    table = MEMORY.read_text().split("## Counters")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == COUNTERS


@pytest.mark.slow
def test_the_code_in_the_readme_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    state = run_blocks(ROOT / "README.md")["state"]
    assert state.slots["slow"].active.tolist() == [True, False, False, False]
    assert int(state.counters["nights"]) == 1
