"""What a life is about, in tokens: texts, cues, exams, the archive, questions in context."""

from __future__ import annotations

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from sleeplm.bench.material import (
    archive_of,
    check_world,
    context_papers,
    cues_of,
    curriculum_of,
    cut_asleep,
    digest,
    paper_of,
    prepare,
    world_of,
)
from sleeplm.core.errors import ConfigError
from sleeplm.data.curriculum import repeated
from sleeplm.data.facts import exam, questions, statements, subjects
from sleeplm.data.labels import LABEL, QUESTION
from sleeplm.data.plain import TEXT
from sleeplm.data.text import BOS, EOS, train_tokenizer


def config(**changes) -> SimpleNamespace:
    """The settings that material depends on."""
    settings = {
        "world": "atlas",
        "world_seed": 0,
        "days": 3,
        "facts_per_day": 12,
        "day_sizes": [],
        "pretrain_people": 20,
        "statements": 2,
        "questions": 5,
        "wear": 0.5,
        "falsehoods": 0.0,
        "day_statements": 0,
        "day_questions": -1,
        "formats": [],
        "format_examples": 2,
        "exam_facts": 1,
        "exam_pretrain": 30,
        "exam_per_day": 0,
        "backbone": "",
        "dream_chat": False,
        "text": "",
        "text_lines": 100,
        "data_dir": "",
        "manual_dir": "",
        "model": SimpleNamespace(vocab_size=512, max_len=64),
        "pretrain": SimpleNamespace(length=64),
        "day": SimpleNamespace(length=64),
        "sleep": SimpleNamespace(cue_tokens=8),
    }
    return SimpleNamespace(**{**settings, **changes})


@pytest.fixture(scope="module", params=["atlas", "biographies"])
def lesson(request):
    """Settings of either world, and its material."""
    settings = config(world=request.param)
    return settings, prepare(settings)


def texts(material, rows) -> list[str]:
    return material.tokenizer.decode_batch(rows)


# --- texts ---------------------------------------------------------------------------------------


def test_pretraining_tells_of_no_subject_of_a_day(lesson):
    settings, material = lesson
    told = texts(material, material.pretrain)
    for facts in world_of(settings).days:
        for subject in subjects(facts):
            assert not any(text.startswith(f"{subject} ") for text in told)
    named = set(material.curriculum.known_cues)
    assert named.isdisjoint(name for cues in material.curriculum.cues for name in cues)


def test_no_text_that_is_read_has_a_held_out_wording(lesson):
    settings, material = lesson
    world = world_of(settings)
    read = {text for rows in (material.pretrain, *material.days) for text in texts(material, rows)}
    for facts in (world.pretrain, *world.days):
        held_out = statements(world, facts, held_out=True) + exam(world, facts, per_fact=2)
        assert held_out
        assert read.isdisjoint(document.text for document in held_out)
        asked = {document.prompt for document in held_out if document.prompt}
        assert not any(text.startswith(tuple(asked)) for text in read)


def test_days_are_read_in_every_training_wording_and_pretraining_in_some(lesson):
    settings, material = lesson
    world = world_of(settings)
    for facts, rows in zip(world.days, material.days, strict=True):
        plain = statements(world, facts) + questions(world, facts)
        assert {document.text for document in plain} <= set(texts(material, rows))
        assert len(plain) == sum(len(world.relations[f.relation].training) for f in facts)
        worn = round(settings.wear * len(questions(world, facts)) / len(facts))
        assert len(rows) == len(plain) + worn * len(facts) > len(plain)
    most = (settings.statements + settings.questions) * len(world.pretrain)
    assert len(world.pretrain) < len(material.pretrain) <= most
    assert all(row[0] == BOS and row[-1] == EOS for row in material.pretrain)


def test_the_tokenizer_is_trained_on_pretraining_texts_only(lesson):
    settings, material = lesson
    again = train_tokenizer(material.curriculum.pretrain, settings.model.vocab_size)
    assert again.to_json() == material.tokenizer.to_json()
    assert material.tokenizer.vocab_size <= settings.model.vocab_size


def test_the_same_seed_gives_the_same_material_and_another_seed_another(lesson):
    settings, material = lesson
    again = prepare(settings)
    assert digest(again.curriculum) == digest(material.curriculum)
    assert (again.pretrain, again.days) == (material.pretrain, material.days)
    settings = SimpleNamespace(**{**vars(settings), "world_seed": 1})
    assert digest(curriculum_of(settings)) != digest(material.curriculum)


def test_texts_longer_than_a_row_are_refused_before_anything_is_trained():
    short = SimpleNamespace(length=12)
    for name in ("day", "pretrain"):
        settings = config(world="biographies", **{name: short})
        match = rf"{name}\.length = 12: the longest text has \d+ tokens"
        with pytest.raises(ConfigError, match=match):
            prepare(settings)
    settings = config(world="biographies", model=SimpleNamespace(vocab_size=512, max_len=8))
    with pytest.raises(ConfigError, match=r"model\.max_len = 8"):
        paper_of(settings, prepare(settings))


def test_days_may_be_of_unequal_size():
    material = prepare(config(world="biographies", days=0, day_sizes=[2, 9, 4]))
    assert [len(part) for part in material.curriculum.exams] == [2, 9, 4]


# --- cues ----------------------------------------------------------------------------------------


def test_cues_are_subjects_and_never_values(lesson):
    settings, material = lesson
    names = material.curriculum.cues[0]
    cues = cues_of(settings, material.tokenizer, names, len(names) + 2)
    assert cues["tokens"].shape == (len(names) + 2, settings.sleep.cue_tokens)
    assert cues["length"].tolist()[-2:] == [0, 0]
    for name, tokens, length in zip(names, cues["tokens"], cues["length"], strict=False):
        assert tokens[0] == BOS
        text = material.tokenizer.decode(tokens[:length])
        assert name.startswith(text.rstrip("\ufffd")) and text


def test_cues_of_any_length_are_cut_and_too_many_are_left_out(lesson):
    settings, material = lesson
    cues = cues_of(settings, material.tokenizer, ["word " * 99 + "end", "a", "b"], 2)
    assert cues["tokens"].shape == (2, settings.sleep.cue_tokens)
    assert cues["length"].tolist()[0] == settings.sleep.cue_tokens


# --- exams ---------------------------------------------------------------------------------------


def test_the_paper_asks_every_day_and_then_what_was_known_before(lesson):
    settings, material = lesson
    paper = paper_of(settings, material)
    asked = [*material.curriculum.exams, material.curriculum.known]
    documents = [(i, document) for i, part in enumerate(asked) for document in part]
    assert paper.groups == 4
    for row, (group, document) in enumerate(documents):
        assert paper.group[row] == group
        assert (
            material.tokenizer.decode(paper.prompts[row, : paper.lengths[row]]) == document.prompt
        )


def test_a_short_exam_asks_some_facts_of_each_day():
    material = prepare(config(exam_per_day=5))
    assert [len(part) for part in material.curriculum.exams] == [5, 5, 5]


# --- the archive ---------------------------------------------------------------------------------


def test_the_archive_holds_every_training_text_with_its_day(lesson):
    _, material = lesson
    archive = archive_of(material)
    assert {name: part.dtype for name, part in archive.items()} == {
        name: np.int32 for name in ("tokens", "length", "day")
    }
    for day, rows in enumerate((material.pretrain, *material.days), start=-1):
        where = np.flatnonzero(archive["day"] == day)
        kept = [archive["tokens"][i, : archive["length"][i]].tolist() for i in where]
        assert kept == rows
    rows = len(archive["length"])
    assert archive["tokens"].shape == (rows, archive["length"].max())
    padding = np.arange(archive["tokens"].shape[1]) >= archive["length"][:, None]
    assert not archive["tokens"][padding].any()


# --- questions in context ------------------------------------------------------------------------


def in_context(material, paper, row) -> str:
    return material.tokenizer.decode(paper.prompts[row, : paper.lengths[row]])


def test_a_question_stands_behind_the_latest_texts_that_fit(lesson):
    settings, material = lesson
    window = 90
    plain, papers = paper_of(settings, material), context_papers(settings, material, window)
    told: list[str] = []
    for documents, paper in zip(material.curriculum.days, papers, strict=True):
        latest = {document.fact: None for document in documents}
        by_fact = {f: {d.text for d in documents if d.fact == f and not d.prompt} for f in latest}
        told += latest
        for row in (0, 7, 40, len(plain.lengths) - 1):
            question = in_context(material, plain, row)
            text = in_context(material, paper, row)
            assert text.endswith(question)
            context = text.removesuffix(question).strip()
            newest = next(reversed(by_fact.values()))
            assert context.endswith(tuple(newest))
            used = paper.lengths[row] + (plain.answers[row] > 0).sum()
            assert window - 26 < used <= window


def test_all_papers_in_context_have_one_shape_and_the_questions_of_the_plain_one(lesson):
    settings, material = lesson
    plain, papers = paper_of(settings, material), context_papers(settings, material, 70)
    assert len(papers) == 3
    assert len({paper.prompts.shape for paper in papers}) == 1
    assert papers[0].prompts.shape[1] + 1 <= 70
    for paper in papers:
        np.testing.assert_array_equal(paper.answers, plain.answers)
        np.testing.assert_array_equal(paper.group, plain.group)


def test_a_wide_window_holds_every_fact_so_far_once_in_order(lesson):
    settings, material = lesson
    papers = context_papers(settings, material, 2000)
    for day, paper in enumerate(papers):
        text = in_context(material, paper, 0)
        places = []
        for documents in material.curriculum.days[: day + 1]:
            for fact in dict.fromkeys(document.fact for document in documents):
                said = {d.text for d in documents if d.fact == fact and not d.prompt}
                found = [text.find(one) for one in said if one in text]
                assert len(found) == 1
                places += found
        assert places == sorted(places)
        later = [d.fact for part in material.curriculum.days[day + 1 :] for d in part]
        assert not any(f"{fact.subject} " in text for fact in later)


def test_a_window_that_cannot_hold_a_question_is_refused(lesson):
    settings, material = lesson
    with pytest.raises(ConfigError, match=r"window = 6: the longest question and its answer have"):
        context_papers(settings, material, 6)


# --- worlds of files -----------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    """``mine.jsonl`` with three days of facts, and ``intents`` with three labels."""
    monkeypatch.chdir(tmp_path)
    with open("mine.jsonl", "w") as file:
        for i in range(9):
            fact = {"day": i // 3 + 1, "subject": f"Bo {chr(65 + i)}ora", "relation": "job"}
            file.write(json.dumps({**fact, "value": ("cook", "nurse")[i % 2]}) + "\n")
    (tmp_path / "intents").mkdir()
    for name in ("train", "test"):
        with open(f"intents/{name}.csv", "w", newline="") as file:
            rows = [(f"{name} {label} " * 30, label) for label in ("pay_day", "time", "joke")]
            csv.writer(file).writerows([("text", "label"), *rows])
    (tmp_path / "book.txt").write_text("It was a dark and stormy night.\n" * 5 + "x" * 200 + "\n")
    return tmp_path


def test_facts_of_a_file_become_days(files):
    settings = config(world="facts:mine.jsonl", days=0)
    assert check_world(settings) == 3
    material = prepare(settings)
    plain, worn = 18, 5
    assert [len(day) for day in material.days] == [3 * (plain + worn)] * 3
    assert len({d.fact for d in material.curriculum.pretrain}) == settings.pretrain_people
    assert repeated(material.curriculum) == []


def test_a_number_of_days_takes_the_first_ones_and_what_is_known_stays_the_same(files):
    two, all_ = (curriculum_of(config(world="facts:mine.jsonl", days=n)) for n in (2, 0))
    assert two.days == all_.days[:2]
    assert two.pretrain == all_.pretrain


def test_labelled_texts_come_after_the_atlas_and_a_text_of_your_own(files):
    settings = config(world="labels:intents", days=3, text="book.txt", text_lines=4)
    assert check_world(settings) == 3
    curriculum = prepare(settings).curriculum
    relations = [document.fact.relation for document in curriculum.pretrain]
    assert relations.count(TEXT) == 4 and "capital" in relations
    assert {d.fact.relation for part in curriculum.exams for d in part} == {LABEL}
    assert {document.fact.relation for document in curriculum.known} <= set(relations)
    assert {"pay day", "time", "joke"} == set(curriculum.choices[LABEL])
    assert "It was a dark" in curriculum.known_cues


def test_labelled_texts_are_cut_to_the_rows_of_days_and_exams(files):
    settings = config(world="labels:intents", days=3, day=SimpleNamespace(length=40))
    material = prepare(settings)
    for part in (*material.curriculum.days, *material.curriculum.exams):
        for document in part:
            assert document.prompt.endswith(f" {QUESTION}")
            assert 30 < len(material.tokenizer.encode(document.text)) + 2 <= 40
    paper = paper_of(settings, material)
    assert (paper.lengths + (paper.answers > 0).sum(1)).max() <= 64
    assert len(context_papers(settings, material, 128)) == 3


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"world": "atlass"},
            "world = 'atlass': must be one of atlas, biographies, facts:FILE.jso",
        ),
        ({"world": "atlass"}, "(did you mean 'atlas'?)"),
        ({"world": "fact:mine.jsonl"}, "(did you mean 'facts'?)"),
        ({"world": "facts"}, "world = 'facts': name a file: facts:FILE.jsonl"),
        ({"world": "labels:"}, "world = 'labels:': name a directory: labels:DIRECTORY"),
        ({"world": "atlas:x"}, "world = 'atlas:x': must be one of"),
        ({"world": "facts:none.jsonl"}, "world = 'none.jsonl': cannot be read"),
        ({"world": "facts:mine.jsonl", "days": 4}, "days = 4: mine.jsonl has 3: use 1 to 3, or 0"),
        ({"world": "facts:mine.jsonl", "day_sizes": [1]}, "day_sizes = [1]: the data say how many"),
        ({"world": "facts:mine.jsonl", "text": "book.txt"}, "text = 'book.txt': only worlds of la"),
        ({"world": "labels:intents", "days": 0}, "days = 0: split 3 labels into 1 to 3 days"),
        ({"world": "clinc150", "days": 11}, "days = 11: clinc150 has 10: use 1 to 10, or 0"),
        ({"world": "clinc150", "text": "none.txt"}, "text = 'none.txt': cannot be read"),
        ({"world": "atlas", "days": 0}, "days = 0: must be an integer of at least 1"),
        ({"world": "atlas", "days": 99}, "days = 99: at most"),
        ({"world": "atlas", "day_sizes": [5, 5]}, "days = 3: day_sizes names 2 days: use that nu"),
        ({"world": "atlas", "days": 2, "day_sizes": [5, 0]}, "day_sizes[1] = 0: must be an integ"),
        ({"world": "atlas", "days": 2, "day_sizes": [5, 900]}, "day_sizes = [5, 900]: at most 1 "),
    ],
)
def test_a_world_that_cannot_be_is_refused_in_one_line(files, changes, message):
    with pytest.raises(ConfigError) as caught:
        check_world(config(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("days", "count"), [(0, 10), (4, 4)])
def test_days_of_a_data_set_are_counted_without_reading_it(days, count):
    assert check_world(config(world="clinc150", days=days)) == count


def test_a_curriculum_cannot_be_changed_by_accident(lesson):
    with pytest.raises(dataclasses.FrozenInstanceError):
        lesson[1].curriculum.days = ()


@pytest.mark.parametrize(
    ("length", "pack", "told"),
    [
        (64, 0, []),
        (64, 50, []),
        (30, 0, ["sleep.length = 30: "]),
        (64, 24, ["sleep.pack = 24: "]),
        (30, 24, ["sleep.length = 30: ", "sleep.pack = 24: "]),
    ],
)
def test_what_nights_would_cut_off_is_said(length, pack, told):
    """Answers stand at the ends of texts: a night that cuts them keeps nothing."""
    days = [[[1] * 20, [1] * 40], [[1] * 22, [1] * 18]]
    settings = SimpleNamespace(sleep=SimpleNamespace(length=length, pack=pack))
    lines = cut_asleep(settings, [SimpleNamespace(days=days)])
    assert [line[: len(begin)] for line, begin in zip(lines, told, strict=True)] == told
    if length == 30:
        assert "25% of the days' texts are longer (up to 40 tokens)" in lines[0]
    if pack == 24:
        assert "50 tokens on average" in lines[-1]
