"""Worlds of passages: settings that can work, who reads what, and what becomes of it in tokens."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from sleeplm.bench.arms import build_arm
from sleeplm.bench.classes import count_labels
from sleeplm.bench.material import check_world, curriculum_of, paper_of, prepare
from sleeplm.bench.worlds import SQUAD_PASSAGES
from sleeplm.core.errors import ConfigError
from sleeplm.data.passage_days import ANSWER, PASSAGE
from sleeplm.data.plain import TEXT
from sleeplm.runtime.config import check, load_config

LIFE = f"{pathlib.Path(__file__).with_name('tiny_life.py')}:brief"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Settings of a life that reads ``texts.jsonl``: six passages, with one question to six."""
    monkeypatch.chdir(tmp_path)
    sentences = "It fell. It burned down in the winter. Its people left."
    lines = [
        {
            "title": f"Town {i}",
            "context": f"Town {i} was rich. {sentences}",
            "questions": [
                {"question": f"Question {k} of {i}?", "answers": [f"{k} men", f"{k}"]}
                for k in range(i + 1)
            ],
        }
        for i in range(6)
    ]
    pathlib.Path("texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def make(**changes):
        settings = {"world": "passages:texts.jsonl", "days": 1, "facts_per_day": 1, **changes}
        made = load_config(LIFE, [])
        rows = {"pretrain": 160, "day": 60, "model": 160}
        parts = {
            name: dataclasses.replace(
                getattr(made, name), **{"max_len" if name == "model" else "length": size}
            )
            for name, size in rows.items()
        }
        return dataclasses.replace(made, **parts, **settings)

    return make


def titles(day) -> set[str]:
    return {document.text.partition(":")[0] for document in day}


def test_learners_in_a_row_read_one_passage_each(config):
    for seed in (0, 1, 5, 6, 11):
        material = prepare(config(world_seed=seed))
        assert [titles(day) for day in material.curriculum.days] == [{f"Town {seed % 6}"}]
        assert len(material.curriculum.exams[0]) == seed % 6 + 1
        assert set(material.curriculum.accepted[0]) <= {(f"{k} men", f"{k}") for k in range(6)}


def test_several_days_are_a_shuffle_of_the_seed(config):
    lives = [curriculum_of(config(days=3, facts_per_day=2, world_seed=s)) for s in range(3)]
    assert len({life.days for life in lives}) == 3
    for life in lives:
        days = [titles(day) for day in life.days]
        assert [len(day) for day in days] == [2, 2, 2]
        assert len(set().union(*days)) == 6
    unequal = curriculum_of(config(days=0, day_sizes=[1, 3]))
    assert [len(titles(day)) for day in unequal.days] == [1, 3]


def test_passages_are_cut_to_the_rows_of_a_day_and_questions_never_read(config):
    settings = config(days=2, facts_per_day=3)
    material = prepare(settings)
    for day, rows in zip(material.curriculum.days, material.days, strict=True):
        assert len(rows) == len(day) > 3
        assert max(map(len, rows)) <= 60
        assert {document.fact.relation for document in day} == {PASSAGE}
        assert not any("Question" in document.text for document in day)
    asked = [question for part in material.curriculum.exams for question in part]
    assert {question.fact.relation for question in asked} == {ANSWER}
    for cues, day in zip(material.curriculum.cues, material.curriculum.days, strict=True):
        assert all(any(d.text.startswith(cue) for d in day) for cue in cues)


def test_the_atlas_and_a_text_of_your_own_come_before(config):
    pathlib.Path("book.txt").write_text("It was a dark and stormy night, and so on it went.\n" * 9)
    material = prepare(config(text="book.txt", text_lines=4))
    relations = [document.fact.relation for document in material.curriculum.pretrain]
    assert relations.count(TEXT) == 4 and "capital" in relations
    assert {document.fact.relation for document in material.curriculum.known} <= set(relations)


def test_answers_have_the_room_that_is_asked_for(config):
    short, long = (config(answer_tokens=n) for n in (0, 30))
    material = prepare(short)
    width = paper_of(short, material).shape[2]
    assert width < 30 == paper_of(long, material).shape[2]
    assert paper_of(config(answer_tokens=1), material).shape[2] == width


def test_questions_may_be_asked_in_words_of_ones_own(config):
    life = curriculum_of(config(ask="Briefly: {q}"))
    assert [question.prompt for question in life.exams[0]] == ["Briefly: Question 0 of 0?"]


def test_settings_that_can_work_pass(config):
    check(config(answer_tokens=12))
    check(config(days=2, facts_per_day=3))


def test_squads_passages_are_counted_without_reading_them(config):
    assert check_world(config(world="squad", days=10, facts_per_day=20)) == 10
    with pytest.raises(ConfigError, match=f"there are {SQUAD_PASSAGES}"):
        check_world(config(world="squad", days=10, facts_per_day=207))


def test_squad_is_read_from_the_file_that_was_put_down(config, tmp_path):
    qa = {"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    articles = [
        {"title": f"T_{i}", "paragraphs": [{"context": f"Ada {i}.", "qas": [{**qa, "id": f"{i}"}]}]}
        for i in range(3)
    ]
    pathlib.Path("dev-v1.1.json").write_text(json.dumps({"data": articles}))
    places = {"data_dir": str(tmp_path / "tfds"), "manual_dir": str(tmp_path)}
    life = curriculum_of(config(world="squad", world_seed=4, **places))
    assert [document.text for document in life.days[0]] == ["T 1: Ada 1."]
    assert life.accepted == ((("Ada",),),)


def test_an_external_classifier_has_no_classes_here(config):
    settings = config()
    with pytest.raises(ConfigError, match="needs a labelled world, not 'passages:texts.jsonl'"):
        build_arm("inca", settings, count_labels([prepare(settings)]))


def test_a_judge_is_asked_for_before_anything_is_compiled(config, monkeypatch):
    def missing():
        raise ConfigError("minilm", "a package", "is not installed")

    monkeypatch.setattr("sleeplm.bench.retention.minilm_folder", missing)
    check(config())
    with pytest.raises(ConfigError, match="is not installed"):
        check(config(score_judge=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": "passages"}, "world = 'passages': name a file: passages:FILE.json"),
        ({"world": "passages:none.json"}, "world = 'none.json': cannot be read"),
        ({"world": "passage:x"}, "(did you mean 'passages'?)"),
        ({"world": "squat"}, "(did you mean 'squad'?)"),
        ({"days": 2, "facts_per_day": 4}, "days = 2: 8 passages are asked for"),
        ({"days": 0}, "days = 0: must be an integer of at least 1"),
        ({"answer_tokens": -1}, "answer_tokens = -1: must be a number of at least 0"),
        ({"ask": "Answer:"}, "ask = 'Answer:': needs one {q}"),
        ({"text": "none.txt"}, "text = 'none.txt': cannot be read"),
        (
            {"world": "biographies", "answer_tokens": 9},
            "answer_tokens = 9: only answers about passages are free text",
        ),
    ],
)
def test_what_cannot_work_is_one_line(config, changes, message):
    with pytest.raises(ConfigError) as caught:
        check(config(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
