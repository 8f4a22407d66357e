"""Questions that need two facts: who is meant is told by another fact, and by that alone."""

from __future__ import annotations

import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.data.atlas import atlas
from sleeplm.data.curriculum import from_world
from sleeplm.data.facts import Fact, Relation, World
from sleeplm.data.two_facts import composed, partners, two_fact_exam, two_fact_questions

LIMA = Fact("Peru", "capital", "Lima")
REGION = Fact("Peru", "region", "South America")
QUITO = Fact("Ecuador", "capital", "Quito")
SOUTH = Fact("Ecuador", "region", "South America")


def relation(name: str, verb: str) -> Relation:
    return Relation(
        name,
        (f"{{s}} {verb} {{v}}.", f"{{v}} is what {{s}} {verb}."),
        (f"{{s}} {verb} what?", f"{{s}}: {verb} what?", f"What does {{s}} {verb}?"),
        (f"{{s}} surely {verb} {{v}}.", f"{{v}}: {{s}} {verb} it."),
        (f"{{s}}: surely {verb} what?", f"Surely {{s}} {verb} what?"),
    )


@pytest.fixture
def world() -> World:
    relations = {"capital": relation("capital", "governs"), "region": relation("region", "lies in")}
    return World("small", relations, (LIMA, REGION), ((QUITO, SOUTH),))


def test_the_subject_of_a_question_is_replaced_by_what_a_statement_says_of_it():
    question = composed("{s} has {v} as its capital.", LIMA, "In what region is {s}?", REGION)
    assert question.prompt == "In what region is the one that has Lima as its capital?"
    assert (question.answer, question.fact) == ("South America", REGION)
    first = composed("{s} has {v} as its capital.", LIMA, "{s} lies where?", REGION)
    assert first.text == "The one that has Lima as its capital lies where? South America"


def test_only_a_value_that_nobody_else_has_tells_who_is_meant(world):
    assert partners(world, world.pretrain) == {REGION: [LIMA]}  # two lie in South America
    alone = World("one", world.relations, (LIMA, REGION), ())
    assert partners(alone, alone.pretrain) == {REGION: [LIMA], LIMA: [REGION]}


def test_exams_are_worded_by_what_is_held_out_and_training_by_the_rest(world):
    (asked,) = two_fact_exam(world, world.days[0])
    assert asked.prompt == "Surely the one that surely governs Quito lies in what?"
    assert two_fact_exam(world, world.days[0]) == [asked]
    read = two_fact_questions(world, world.days[0], 20, np.random.default_rng(0))
    assert {document.prompt for document in read} == {
        "The one that governs Quito lies in what?",
        "What does the one that governs Quito lies in?",
    }
    assert {document.answer for document in read} == {"South America"}


def test_no_question_names_its_subject_and_nearly_all_facts_of_the_atlas_have_one():
    world = atlas(0, [40, 40])
    for facts in world.days:
        asked = two_fact_exam(world, facts)
        assert len(asked) >= 0.9 * len(facts) and len({q.fact for q in asked}) == len(asked)
        assert not any(q.fact.subject in q.prompt.split() for q in asked)


def curriculum(world, **changes):
    settings = {"statements": 2, "questions": 5, "exam_pretrain": 12} | changes
    return from_world(world, rng=np.random.default_rng(0), **settings)


def test_a_life_can_be_examined_by_such_questions_and_read_them_of_other_facts_before_it():
    world = atlas(0, [40, 40])
    life = curriculum(world, exam_facts=2, formats=["implication"], format_examples=1)
    plain = curriculum(world)
    assert life.days == plain.days
    for facts, exam in zip(world.days, life.exams, strict=True):
        assert list(exam) == two_fact_exam(world, facts)
    assert {q.fact for q in life.known} <= set(world.pretrain)
    asked = [d for d in life.pretrain if "he one that " in d.prompt]
    assert len(asked) > 0.9 * len(world.pretrain)
    assert {d.fact for d in asked} <= set(world.pretrain)


def test_a_world_in_which_no_fact_tells_who_is_meant_is_refused_in_one_line():
    world = atlas(0, [40])
    same = [
        Fact(f.subject, "subregion", "Nowhere") for f in world.days[0] if f.relation == "subregion"
    ]
    lost = World(world.name, world.relations, world.pretrain, (tuple(same),))
    with pytest.raises(ConfigError, match="exam_facts = 2.*use 1") as refused:
        curriculum(lost, exam_facts=2)
    assert "\n" not in str(refused.value)
