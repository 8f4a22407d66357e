"""A world from a file of one's own: what may stand in it, what is made up, what is refused."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.data.curriculum import from_world
from sleeplm.data.factfile import LEAST_QUESTIONS, LEAST_STATEMENTS, read_facts
from sleeplm.data.facts import Fact, exam, questions, statements, subjects

ADA = {"day": 1, "subject": "Ada Lund", "relation": "birth_city", "value": "Graz"}
BEA = {"day": 2, "subject": "Bea Orth", "relation": "birth_city", "value": "Linz"}
CAI = {"day": 2, "subject": "Cai Pell", "relation": "employer", "value": "Acorn"}
WORDS = {
    "relation": "birth_city",
    "statements": ["{s} was born in {v}."],
    "questions": ["{s} was born where?", "Where was {s} born?"],
}


def lines(*rows) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads rows as ``mine.jsonl``; the directory is where it lies."""
    monkeypatch.chdir(tmp_path)

    def run(*rows, more="", **settings):
        (tmp_path / "mine.jsonl").write_text(lines(*rows))
        return read_facts(f"mine.jsonl{more}", **{"pretrain_facts": 3, **settings})

    return run


# --- days and facts ------------------------------------------------------------------------------


def test_a_line_is_a_fact_of_its_day(read):
    world = read(ADA, BEA, CAI)
    assert world.name == "mine"
    assert world.days == (
        (Fact("Ada Lund", "birth_city", "Graz"),),
        (Fact("Bea Orth", "birth_city", "Linz"), Fact("Cai Pell", "employer", "Acorn")),
    )


def test_days_are_the_different_numbers_in_rising_order(read):
    world = read({**ADA, "day": 30}, {**BEA, "day": 7})
    assert [day[0].subject for day in world.days] == ["Bea Orth", "Ada Lund"]


@pytest.mark.parametrize("day", [{"day": 0}, {"day": None}, {}])
def test_facts_without_a_day_are_known_from_the_start(read, day):
    old = {"subject": "Old Hand", "relation": "employer", "value": "Birch", **day}
    world = read(ADA, old)
    assert world.pretrain[0] == Fact("Old Hand", "employer", "Birch")
    assert len(world.days) == 1


def test_a_fact_that_is_said_twice_counts_once(read):
    assert read(ADA, ADA).days == (read(ADA).days[0],)


def test_empty_lines_line_ends_of_any_system_and_a_byte_order_mark_do_not_matter(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b"\xef\xbb\xbf\r\n" + lines(ADA, "", BEA).replace("\n", "\r\n").encode())
    assert [len(day) for day in read_facts(str(file)).days] == [1, 1]


def test_names_may_be_of_any_language(read):
    world = read({**ADA, "subject": "Ægir Þór", "value": "東京"})
    assert world.days[0][0] == Fact("Ægir Þór", "birth_city", "東京")


# --- wordings ------------------------------------------------------------------------------------


def test_without_wordings_all_are_made_from_the_relations_name(read):
    relation = read(ADA).relations["birth_city"]
    assert "{s} has which birth city?" in relation.questions
    assert len(relation.statements) == LEAST_STATEMENTS >= 8
    assert len(relation.questions) == LEAST_QUESTIONS >= 10
    assert len(relation.held_out_questions) == 2


def test_few_wordings_are_filled_up_with_made_up_ones(read):
    relation = read(ADA, WORDS).relations["birth_city"]
    assert relation.statements[0] == "{s} was born in {v}."
    assert relation.questions[0] == "{s} was born where?"
    assert len(relation.statements) == LEAST_STATEMENTS
    assert len(relation.questions) == LEAST_QUESTIONS


def test_statements_that_end_in_their_value_are_asked_before_others_are_made_up(read):
    told = ["{s} was born in {v}.", "{v} saw the birth of {s}.", "{s} calls {v} home."]
    relation = read(ADA, {**WORDS, "statements": told}).relations["birth_city"]
    assert relation.questions[:2] == ("{s} was born where?", "{s} was born in what?")
    assert relation.questions[2] == "{s} has which birth city?"
    assert len(relation.questions) == LEAST_QUESTIONS


def test_a_question_made_of_a_statement_is_nobodys_own_question(read):
    """Neither a held-out one, nor one of another relation."""
    held_out = ["{s} was born in what?", "Where is {s} from?"]
    words = {**WORDS, "statements": ["{s} was born in {v}.", "{s} comes from {v}."]}
    other = {"relation": "employer", "questions": ["{s} comes from what?", "Who pays {s}?"]}
    work = {**ADA, "relation": "employer", "value": "Acorn"}
    world = read(ADA, work, other, {**words, "held_out_questions": held_out})
    assert not {"{s} was born in what?", "{s} comes from what?"} & {
        *world.relations["birth_city"].questions
    }


def test_enough_wordings_are_left_as_they_are(read):
    asked = [f"{{s}} {i}?" for i in range(12)]
    relation = read(ADA, {"relation": "birth_city", "questions": asked}).relations["birth_city"]
    assert relation.questions == tuple(asked[:-1])


def test_the_last_of_several_questions_is_held_out_if_none_is_named(read):
    relation = read(WORDS, ADA).relations["birth_city"]
    assert relation.held_out_questions == ("Where was {s} born?",)
    assert "Where was {s} born?" not in relation.questions


def test_a_single_question_is_trained_and_made_up_ones_are_held_out(read):
    one = {"relation": "birth_city", "questions": ["{s} was born where?"]}
    relation = read(ADA, one).relations["birth_city"]
    assert relation.questions[0] == "{s} was born where?"
    assert relation.held_out_questions == (
        "{s}: which birth city is on record?",
        "What does the record list as birth city for {s}?",
    )


def test_held_out_questions_are_those_that_are_named(read):
    held_out = ["Which town is {s} from?", "What does the birth record of {s} say?"]
    relation = read(ADA, {**WORDS, "held_out_questions": held_out}).relations["birth_city"]
    assert relation.held_out_questions == tuple(held_out)
    assert relation.questions[:2] == ("{s} was born where?", "Where was {s} born?")


def test_a_made_up_wording_that_is_held_out_is_not_trained(read):
    held_out = ["what is the Birth City of {s} ?"]
    relation = read(ADA, {**WORDS, "held_out_questions": held_out}).relations["birth_city"]
    assert "What is the birth city of {s}?" not in relation.questions
    assert len(relation.questions) == LEAST_QUESTIONS


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_wordings_may_stand_in_a_second_file(read, tmp_path, form):
    own = {k: v for k, v in WORDS.items() if k != "relation"}
    text = lines(WORDS) if form == "jsonl" else json.dumps({"birth_city": own}, indent=1)
    (tmp_path / f"words.{form}").write_text(text)
    relation = read(ADA, more=f",words.{form}").relations["birth_city"]
    assert relation == read(ADA, WORDS).relations["birth_city"]


def test_no_exam_asks_in_a_wording_that_is_read(read):
    world = read(ADA, BEA, CAI, WORDS)
    read_ = {d.prompt for d in questions(world, world.facts)}
    told = " ".join(d.text for d in statements(world, world.facts))
    for question in exam(world, world.facts):
        assert question.prompt not in read_ and question.prompt not in told


def test_a_file_becomes_a_curriculum(read):
    world = read(ADA, BEA, CAI, WORDS, pretrain_facts=10)
    rng = np.random.default_rng(0)
    curriculum = from_world(world, statements=2, questions=5, exam_pretrain=4, rng=rng)
    assert [len(day) for day in curriculum.days] == [18, 36]
    assert [len(part) for part in curriculum.exams] == [1, 2]
    assert curriculum.exams[0][0].prompt == "Where was Ada Lund born?"
    assert curriculum.cues == (("Ada Lund",), ("Bea Orth", "Cai Pell"))
    assert len(curriculum.known) == 4
    assert curriculum.choices == {"birth_city": ("Graz", "Linz"), "employer": ("Acorn",)}


# --- invented facts ------------------------------------------------------------------------------


def test_pretraining_is_filled_up_to_so_many_facts_of_every_relation(read):
    world = read({**ADA, "day": 0}, BEA, CAI, pretrain_facts=25)
    told = Counter(fact.relation for fact in world.pretrain)
    assert told == {"birth_city": 25, "employer": 25}


def test_enough_known_facts_need_no_invented_ones(read):
    known = [{**ADA, "day": 0, "subject": f"Ada {name}"} for name in ("Berg", "Holm", "Lind")]
    world = read(*known, {**ADA, "subject": "Zoe Quist"}, pretrain_facts=3)
    assert subjects(world.pretrain) == ("Ada Berg", "Ada Holm", "Ada Lind")


def test_invented_subjects_are_new_and_made_of_pieces_of_the_files_own(read):
    names = ["Ada Lundberg", "Bea Orthner", "Cai Pellman", "Dov Rasmusen"]
    world = read(*({**ADA, "subject": name} for name in names), pretrain_facts=40)
    invented = subjects(world.pretrain)
    assert len(invented) == 40
    assert {n.casefold() for n in invented}.isdisjoint(n.casefold() for n in names)
    pieces = {w[: (len(w) + 1) // 2] for name in names for w in name.split()}
    assert all(len(name.split()) == 2 for name in invented)
    assert all(word.startswith(tuple(pieces)) for name in invented for word in name.split())


def test_invented_values_are_those_of_the_relation(read):
    world = read(ADA, BEA, CAI, pretrain_facts=30)
    found = {(fact.relation, fact.value) for fact in world.pretrain}
    assert found == {("birth_city", "Graz"), ("birth_city", "Linz"), ("employer", "Acorn")}


def test_invented_subjects_have_relations_that_go_together(read):
    person = [ADA, {**ADA, "relation": "employer", "value": "Acorn"}]
    town = {"day": 1, "subject": "Umea", "relation": "country", "value": "Sweden"}
    world = read(*person, town, pretrain_facts=12)
    of = {name: {f.relation for f in world.pretrain if f.subject == name} for name in
          subjects(world.pretrain)}  # fmt: skip
    assert {frozenset(r) for r in of.values()} == {
        frozenset({"birth_city", "employer"}),
        frozenset({"country"}),
    }


@pytest.mark.parametrize("subject", ["X", "7"])
def test_a_single_short_subject_suffices_for_hundreds_of_short_new_ones(read, subject):
    world = read({**ADA, "subject": subject}, pretrain_facts=300)
    invented = subjects(world.pretrain)
    assert len(set(invented)) == 300 and subject not in invented
    assert max(map(len, invented)) <= 12


def test_the_seed_chooses_the_inventions_and_nothing_else(read):
    one, same, other = (read(ADA, BEA, CAI, seed=seed, pretrain_facts=20) for seed in (1, 1, 2))
    assert one == same
    assert one.pretrain != other.pretrain
    assert (one.days, one.relations) == (other.days, other.relations)


# --- refusals ------------------------------------------------------------------------------------


def refused(read, *rows, more="") -> str:
    with pytest.raises(ConfigError) as caught:
        read(*rows, more=more)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"day": 1,', "mine.jsonl:2 = '{\"day\": 1,': is not JSON"),
        ("[1, 2]", "mine.jsonl:2 = '[1, 2]': must be an object such as {"),
        ('{"day": 1, "day": 2}', "the key 'day' stands in it twice"),
        ({"day": 1, "subject": "B", "relation": "r"}, "mine.jsonl:2 = ['day', 'relation', 'su"),
        ({"day": 1, "subject": "B", "relation": "r"}, "lacks the key 'value'"),
        ({**BEA, "subjekt": "B"}, "mine.jsonl:2 = 'subjekt': is not a key here"),
        ({**BEA, "subjekt": "B"}, "(did you mean 'subject'?)"),
        ({**BEA, "value": 1920}, 'mine.jsonl:2: value = 1920: must be text: write "1920"'),
        ({**BEA, "subject": ["B"]}, "mine.jsonl:2: subject = ['B']: must be text"),
        ({**BEA, "relation": None}, "mine.jsonl:2: relation = None: must be text"),
        ({**BEA, "subject": ""}, "mine.jsonl:2: subject = '': must not be empty"),
        ({**BEA, "value": "  "}, "mine.jsonl:2: value = '  ': must not be empty"),
        ({**BEA, "value": "Linz "}, "mine.jsonl:2: value = 'Linz ': must not have outer spaces"),
        ({**BEA, "subject": "{s}"}, "mine.jsonl:2: subject = '{s}': must not have braces"),
        ({**BEA, "value": "a\nb"}, "one line of printable text"),
        ({**BEA, "value": "a  b"}, "single spaces"),
        ({**BEA, "day": -1}, "mine.jsonl:2: day = -1: must be at least 0"),
        ({**BEA, "day": "2"}, "mine.jsonl:2: day = '2': must be a whole number"),
        ({**BEA, "day": 2.5}, "mine.jsonl:2: day = 2.5: must be a whole number"),
        ({**BEA, "day": True}, "mine.jsonl:2: day = True: must be a whole number"),
        ({**ADA, "value": "Linz"}, "mine.jsonl:2: value = 'Linz': 'birth_city' of 'Ada Lund' is"),
        ({**ADA, "value": "Linz"}, "'Graz' in mine.jsonl:1: give it one value"),
        ({**ADA, "day": 2}, "mine.jsonl:2: day = 2: 'Ada Lund' is of day 1 in mine.jsonl:1"),
        ({**CAI, "subject": "Ada Lund"}, "keep a subject on one day"),
        (
            {**CAI, "relation": "birth city"},
            "reads as 'birth city', as 'birth_city' does: use one name",
        ),
        (
            {**CAI, "relation": "birth_city?"},
            "relation = 'birth_city?': differs from 'birth_city' in signs alone",
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_named_with_what_would_be_right(read, row, message):
    assert message in refused(read, ADA, row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"statements": []}, "mine.jsonl:2 = ['statements']: lacks the key 'relation'"),
        ({**WORDS, "question": []}, "mine.jsonl:2 = 'question': is not a key here"),
        ({**WORDS, "question": []}, "(did you mean 'questions'?)"),
        ({**WORDS, "subject": "B"}, "mine.jsonl:2 = 'subject': is not a key here"),
        ({**WORDS, "relation": 3}, "mine.jsonl:2: relation = 3: must be text"),
        ({**WORDS, "relation": "birth_citi"}, "no fact has this relation (did you mean 'birth_c"),
        ({**WORDS, "statements": "{s}"}, "mine.jsonl:2: statements = '{s}': must be a list"),
        ({**WORDS, "questions": [3]}, "mine.jsonl:2: questions = 3: must be text"),
        ({**WORDS, "statements": ["It is {v}."]}, "needs one {s} and one {v}"),
        ({**WORDS, "statements": ["{s} and {s} {v}."]}, "needs one {s} and one {v}"),
        ({**WORDS, "statements": ["{s} {x} {v}."]}, "and no other brace"),
        ({**WORDS, "questions": ["Where?"]}, "mine.jsonl:2: questions = 'Where?': needs one {s}"),
        ({**WORDS, "questions": ["{s} in {v}?"]}, "needs one {s} and no {v}: the value follows"),
        ({**WORDS, "held_out_questions": ["Where?"]}, "mine.jsonl:2: held_out_questions = 'Where?"),
        ({**WORDS, "questions": [" {s}?"]}, "must be one line with single spaces"),
        (
            {**WORDS, "held_out_questions": ["{s} was born where"]},
            "mine.jsonl:2: questions = '{s} was born where?': is held out too",
        ),
    ],
)
def test_wordings_that_cannot_be_used_are_named_with_what_would_be_right(read, row, message):
    assert message in refused(read, ADA, row)


def test_wordings_are_given_once(read):
    message = refused(read, ADA, WORDS, WORDS)
    assert message.startswith("mine.jsonl:3: relation = 'birth_city': has its wordings in mine.jso")


def test_a_wording_belongs_to_one_relation(read):
    other = {"relation": "employer", "statements": ["{s} was born in {v}."]}
    message = refused(read, ADA, CAI, WORDS, other)
    assert message.startswith("mine.jsonl:4 = '{s} was born in {v}.': is a wording of 'birth_city'")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("words.json", "[1]", "words.json = 'list': must be one object"),
        ("words.json", '{"a": [1]}', "words.json = 'dict': must be one object"),
        ("words.json", '{\n"a": }', "words.json:2 = 'words.json': is not JSON"),
        ("words.json", '{"birth_citi": {}}', "words.json: birth_citi: relation = 'birth_citi': no"),
        ("words.json", '{"birth_city": {"asks": []}}', "words.json: birth_city = 'asks': is not"),
        ("words.jsonl", "{", "words.jsonl:1 = '{': is not JSON"),
        ("words.jsonl", "", "world = 'words.jsonl': is empty"),
        ("none.jsonl", None, "world = 'none.jsonl': cannot be read (No such file"),
        ("", None, "world = 'facts:mine.jsonl,': name a wordings file after the comma"),
    ],
)
def test_a_wordings_file_that_cannot_be_used_is_named(read, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert message in refused(read, ADA, more=f",{name}")


def test_a_file_without_days_is_refused(read):
    assert "mine.jsonl': has no day: give some facts" in refused(read, {**ADA, "day": 0})
    assert "has no day" in refused(read, WORDS | {"relation": "birth_city"}, {**ADA, "day": None})


def test_an_empty_file_is_refused(read):
    assert refused(read) == "world = 'mine.jsonl': is empty"
    assert refused(read, "", " ") == "world = 'mine.jsonl': is empty"


def test_a_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("none.jsonl", "."):
        with pytest.raises(ConfigError, match=r"world = '[\w.]+': cannot be read"):
            read_facts(name)
    (tmp_path / "latin.jsonl").write_bytes(
        lines(ADA).encode() + '{"value": "Köln"}'.encode("latin1")
    )
    with pytest.raises(ConfigError, match=r"latin.jsonl:2 = 'byte 0xf6': is not UTF-8: save the"):
        read_facts("latin.jsonl")
