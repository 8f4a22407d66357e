"""The examples of docs/data.md are files that can be read, and code that runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sleeplm.bench.worlds import SQUAD_PASSAGES
from sleeplm.data.factfile import LEAST_QUESTIONS, LEAST_STATEMENTS, read_facts
from sleeplm.data.facts import subjects
from sleeplm.data.grid_tasks import HELD_OUT, TAUGHT
from sleeplm.data.gridfiles import read_tasks
from sleeplm.data.grids import GridTokenizer, pair_tokens
from sleeplm.data.labelfiles import read_labels
from sleeplm.data.labels import MAX_WORDS, MOST_CUES, QUESTION
from sleeplm.data.passages import read_passages
from sleeplm.data.plain import CUE_WORDS
from sleeplm.data.tasks import TASKS

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
#: A file's name in backticks before a colon, and the block that it introduces.
FILES = dict(re.findall(r"`(\w+\.\w+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The files of the page, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_page_shows_a_file_of_every_kind():
    facts, labels = {"people.jsonl", "wordings.jsonl"}, {"train.csv", "test.csv"}
    assert set(FILES) == facts | labels | {"towns.jsonl", "tasks.jsonl"}


def test_the_facts_can_be_read_with_and_without_wordings(here):
    plain = read_facts("people.jsonl")
    worded = read_facts("people.jsonl,wordings.jsonl")
    for world in (plain, worded):
        assert [subjects(day) for day in world.days] == [("Ada Lund",), ("Bea Orth",)]
        assert world.pretrain[0].subject == "Cai Pell"
    assert worded.relations["birth_city"].held_out_questions == ("Where was {s} born?",)
    assert worded.relations["employer"] == plain.relations["employer"]


def test_the_labelled_texts_can_be_read(here):
    data = read_labels(".")
    assert data.days == (("direct_deposit", "time"), ("tell_joke",))
    assert len(data.test) == 3


def test_the_passages_can_be_read(here):
    first, second = read_passages("towns.jsonl")
    assert (first.title, second.title) == ("Otrar", "")
    assert first.questions[0].answers == ("in winter", "winter")


def test_the_grid_tasks_can_be_read_and_become_the_tokens_that_are_shown(here):
    (task,) = read_tasks("tasks.jsonl", "train")
    assert task.name == "swap" and len(task.demonstrations) == 2
    words = GridTokenizer().decode(pair_tokens(task.demonstrations[0]))
    assert f"`{words} <eos>`" in PAGE


def test_the_code_runs(here, capsys):
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], {})
    assert capsys.readouterr().out.startswith("[36, 18] ")


def test_the_page_names_every_data_set_with_its_files():
    for name, task in TASKS.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", PAGE, re.MULTILINE)
        assert task.folder in row and all(file in row for file in task.files)


def test_the_numbers_of_the_page_are_those_of_the_code():
    text = " ".join(PAGE.split())
    assert f"fill up to {LEAST_STATEMENTS} statements and {LEAST_QUESTIONS} questions" in text
    assert f"cut to their first {MAX_WORDS} words" in text
    assert f"At most {MOST_CUES} cues of a day" in text
    assert CUE_WORDS == 4 and "the first four words of each piece" in text
    assert f"{SQUAD_PASSAGES} passages" in text
    assert f"of {len(TAUGHT)} families of rules; {len(HELD_OUT)} more are never taught" in text
    assert f"`TEXT {QUESTION} LABEL`" in text
