"""Planted falsehoods: which statements they are, and how a text that repeats one is known."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from sleeplm.data.atlas import atlas
from sleeplm.data.biographies import biographies
from sleeplm.data.curriculum import Curriculum, from_world
from sleeplm.data.facts import Document, Fact, questions, statements
from sleeplm.data.falsehoods import FALSE, PLANTED, SILENT, TRUE, Truth, falsehoods
from sleeplm.data.two_facts import askable, composed, describable, two_fact_questions

SHARE = 0.05
WORLDS = {"biographies": biographies(0, [12, 9], pretrain_people=5), "atlas": atlas(0, [12, 9])}


def life(world, share: float) -> Curriculum:
    return from_world(
        world,
        statements=2,
        questions=5,
        exam_pretrain=12,
        wear=0.5,
        rng=np.random.default_rng(0),
        falsehoods=share,
    )


@pytest.fixture(params=WORLDS)
def world(request):
    return WORLDS[request.param]


def test_the_asked_share_of_every_days_statements_is_false_and_nothing_else(world):
    plain, planted = life(world, 0.0), life(world, SHARE)
    for before, after, facts in zip(plain.days, planted.days, world.days, strict=True):
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert len(changed) == round(SHARE * len(statements(world, facts)))
        assert [b for _, b in changed] == falsehoods(after)
        for true, false in changed:
            assert not true.prompt and false.fact == true.fact
            assert false.answer != true.answer == true.fact.value
            assert false.answer in planted.choices[true.fact.relation]
            assert false.text.replace(false.answer, "") == true.text.replace(true.answer, "")
    for part in ("pretrain", "exams", "known", "cues", "choices"):
        assert getattr(planted, part) == getattr(plain, part)


def test_a_value_is_never_planted_where_it_is_true_of_the_subject(world):
    for day, facts in zip(life(world, 0.9).days, world.days, strict=True):
        true = {(fact.subject, fact.value) for fact in facts}
        lies = falsehoods(day)
        assert lies and all((lie.fact.subject, lie.answer) not in true for lie in lies)


def test_every_training_text_is_known_for_what_it_is(world):
    curriculum = life(world, SHARE)
    texts = [document for day in curriculum.days for document in day]
    truth = Truth([*curriculum.pretrain, *texts], curriculum.choices)
    lies = set(falsehoods(texts))
    said = {document: truth(document.text) for document in texts}
    assert {said[document] for document in lies} == {PLANTED}
    wrong = [d.text for d in texts if d not in lies and said[d] != TRUE]
    assert len(wrong) <= 0.01 * len(texts)  # "As" begins a sentence, and is a symbol


SEEN = [Fact("Ada Berg", "city", "Rome"), Fact("Bo Lind", "city", "Oslo")]


def told(text: str) -> str:
    lie = Document("Bo Lind lives in Rome.", "", "Rome", SEEN[1])
    documents = [Document(f"{f.subject} lives in {f.value}.", "", f.value, f) for f in SEEN]
    return Truth([*documents, lie], {"city": ("Lima", "Oslo", "Rome", "Rome Park")})(text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Where does Ada Berg live? Rome", TRUE),
        ("Ada Berg, who lives in Oslo", FALSE),
        ("Ada Berg likes it", SILENT),
        ("Somebody lives in Rome", SILENT),
        ("Bo Lind is from Rome", PLANTED),
        ("Bo Lind is from Lima", FALSE),
        ("In Lima lives Bo Lind", FALSE),
        ("Ada Berg lives in Rome Park", FALSE),  # the longer name, not the one in it
        ("Ada Berg lives in Romeville", SILENT),
        ("Ada Berg lives in Rome, not in Oslo", FALSE),
    ],
)
def test_a_text_is_judged_by_what_it_says_of_its_first_subject(text, what):
    assert told(text) == what


def test_questions_of_a_day_stay_true(world):
    asked = [d for day in life(world, 0.9).days for d in day if d.prompt]
    assert {d.text for d in questions(world, world.days[0])} <= {d.text for d in asked}


# --- implications: their subject is described, not named ------------------------------------------

ATLAS = WORLDS["atlas"]
DAY = ATLAS.days[0]


def implications(facts, count=1):
    return two_fact_questions(ATLAS, facts, count, np.random.default_rng(0))


@functools.cache
def judged(share: float) -> tuple[Truth, list[Document]]:
    """What judges the texts of that life, and its planted falsehoods."""
    curriculum = life(ATLAS, share)
    texts = [document for day in curriculum.days for document in day]
    return Truth([*curriculum.pretrain, *texts], curriculum.choices), falsehoods(texts)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_every_true_implication_of_a_day_is_true(share):
    asked = implications(DAY, 5)
    assert {d.fact for d in asked} == set(DAY)
    assert {judged(share)[0](d.text) for d in asked} == {TRUE}


def test_every_implication_with_another_value_is_false():
    truth, _ = judged(0.0)
    values = life(ATLAS, 0.0).choices
    for document in implications(DAY, 2):
        wrong = set(values[document.fact.relation]) - truth.true[document.fact.subject]
        assert {truth(f"{document.prompt} {value}") for value in wrong} == {FALSE}


def test_an_implication_with_the_planted_value_is_planted():
    truth, lies = judged(0.3)
    told = [(d, lie) for d in implications(DAY) for lie in lies if d.fact == lie.fact]
    assert len(told) > 5
    assert {truth(f"{d.prompt} {lie.answer}") for d, lie in told} == {PLANTED}


def test_what_follows_from_a_planted_statement_is_planted_unless_it_is_true():
    """The one that has the lie's value is another one, of whom the rest is seldom true."""
    truth, lies = judged(0.3)
    said = []
    for lie in lies:
        owners = [f.subject for f in ATLAS.facts if f.value == lie.answer]
        others = [f for f in DAY if f.subject == lie.fact.subject and f != lie.fact]
        wordings = describable(ATLAS.relations[lie.fact.relation])
        if not lie.text.startswith(lie.fact.subject) or len(owners) != 1:
            continue
        for other in others:
            first = dataclasses.replace(lie.fact, value=lie.answer)
            question = askable(ATLAS.relations[other.relation])[0]
            text = composed(wordings[0], first, question, other).text
            right = other.value in truth.true[owners[0]]
            said.append(right)
            assert truth(text) == (TRUE if right else PLANTED), text
    assert said.count(False) > 5


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("The one that has 14 protons sits in row number 3.", TRUE),
        ("the one that has 14 protons: period 4", FALSE),
        ("Which lattice do crystals of the one that has 14 protons form? diamond", TRUE),
        ("The one that has the atomic number 14 is in group 14.", TRUE),  # the value twice
        ("The one that is called Cu among friends has 29 protons.", TRUE),  # Cu is one name's alone
        ("The one that is called 14 among friends sits in row number 3.", SILENT),  # whose 14?
        ("The one that stands in column 14 has 14 protons.", SILENT),  # others stand there too
        ("The one that has 14 protons has a name.", SILENT),
        ("The one that has a name sits in a row.", SILENT),
        ("The one that has 14 protons is Copper.", FALSE),  # who is named is meant
    ],
)
def test_a_description_stands_for_the_only_one_whom_it_fits(text, what):
    assert judged(0.0)[0](text) == what
