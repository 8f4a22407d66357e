"""Formats: what pretraining shows of them, and that their examples tell nothing of anybody."""

from __future__ import annotations

import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.data.atlas import atlas
from sleeplm.data.biographies import biographies
from sleeplm.data.curriculum import Curriculum, check_curriculum, from_world
from sleeplm.data.facts import Fact
from sleeplm.data.formats import MARKS, examples, invented

WORLDS = {"biographies": biographies(0, [12, 9], pretrain_people=5), "atlas": atlas(0, [12, 9])}
COUNT = 2


@pytest.fixture(params=WORLDS)
def world(request):
    return WORLDS[request.param]


def life(world, **changes) -> Curriculum:
    settings = {"statements": 2, "questions": 5, "exam_pretrain": 12, "wear": 0.5} | changes
    return from_world(world, rng=np.random.default_rng(0), **settings)


def names_of(world) -> set[str]:
    return {name for fact in world.facts for name in (fact.subject, fact.value)}


def filled(templates, fact: Fact) -> set[str]:
    return {t.replace("{s}", fact.subject).replace("{v}", fact.value) for t in templates}


@pytest.mark.parametrize("kind", ["question", "rewrite"])
def test_an_example_is_a_statement_its_mark_and_the_same_fact_in_that_format(world, kind):
    shown = examples(world, world.pretrain, [kind], COUNT, [], np.random.default_rng(0))
    assert len(shown) == COUNT * len(world.pretrain)
    for document in shown:
        told, made = document.text.split(f" {MARKS[kind]} ")
        relation = world.relations[document.fact.relation]
        statements = filled(relation.statements, document.fact)
        asked = {f"{q} {document.fact.value}" for q in filled(relation.questions, document.fact)}
        assert told in statements and made in (asked if kind == "question" else statements - {told})
        assert not document.prompt  # no question of an exam, and nothing to be asked by day


def test_an_implication_follows_from_two_facts_of_a_subject_that_it_does_not_name(world):
    shown = examples(world, world.pretrain, ["implication"], 1, [], np.random.default_rng(0))
    for document in shown:
        told, made = document.text.split(f" {MARKS['implication']} ")
        fact = document.fact
        statements = filled(world.relations[fact.relation].statements, fact)
        assert any(told.startswith(one) or told.endswith(one) for one in statements)
        assert told.count(fact.subject) >= 2 and len(told) > max(map(len, statements))
        assert fact.subject not in made
        assert "he one that " in made and made.endswith(f" {fact.value}")


def test_an_implication_needs_two_relations():
    """With one there were two values for it, of which a text would tell both."""
    world = WORLDS["atlas"]
    alone = [fact for fact in world.pretrain if fact.relation == "capital"]
    with pytest.raises(ConfigError, match="formats = 'implication': needs two relations"):
        examples(world, alone, ["implication"], 1, [], np.random.default_rng(0))


def test_to_go_on_from_a_text_needs_no_example():
    world = WORLDS["atlas"]
    assert examples(world, world.pretrain, ["free"], 1, [], np.random.default_rng(0)) == []


def test_subjects_of_examples_are_nobody_and_each_is_told_of_once(world):
    names = names_of(world)
    shown = examples(world, world.pretrain, ["question"], COUNT, names, np.random.default_rng(0))
    subjects = [document.fact.subject for document in shown]
    assert len(set(subjects)) == len(subjects) and not names & set(subjects)
    # So do most values; some are symbols or regions, of which there are no others.
    new = [document for document in shown if document.fact.value not in names]
    assert len(new) > len(shown) / 2


def test_a_name_of_which_no_other_can_be_made_is_told_apart_by_a_number():
    assert invented(["A"], {"A"}, np.random.default_rng(0)) == "A"
    world = WORLDS["biographies"]
    one = [f for f in world.pretrain if f.subject == world.pretrain[0].subject]
    shown = examples(world, one, ["question"], 30, [one[0].subject], np.random.default_rng(0))
    subjects = [document.fact.subject for document in shown]
    assert one[0].subject not in subjects and len(set(subjects)) == len(subjects)


def test_with_formats_pretraining_has_examples_more_and_all_else_is_the_same(world):
    plain = life(world, falsehoods=0.3)
    shown = life(world, falsehoods=0.3, formats=["question"], format_examples=COUNT)
    check_curriculum(shown)
    assert shown.pretrain[: len(plain.pretrain)] == plain.pretrain
    assert len(shown.pretrain) == len(plain.pretrain) + COUNT * len(world.pretrain)
    for part in ("days", "exams", "known", "cues", "known_cues", "choices"):
        assert getattr(shown, part) == getattr(plain, part)


def test_days_tell_each_fact_in_as_many_wordings_as_asked_for(world):
    told = life(world, day_statements=3, day_questions=2, wear=0.5)
    for day, facts in zip(told.days, world.days, strict=True):
        for fact in facts:
            mine = [document for document in day if document.fact == fact]
            asked = [document for document in mine if document.prompt]
            assert len(mine) - len(asked) == 3 and len(asked) == 2 + 1  # half as many worn ones
            assert len({document.text for document in mine}) == len(mine)
    silent = life(world, day_statements=1, day_questions=0)
    assert [len(day) for day in silent.days] == [12, 9]
    assert not any(document.prompt for day in silent.days for document in day)


def test_an_unknown_format_is_refused_in_one_line():
    world = WORLDS["atlas"]
    with pytest.raises(ConfigError, match="formats.*'poem'.*question") as refused:
        examples(world, world.pretrain, ["poem"], 1, [], np.random.default_rng(0))
    assert "\n" not in str(refused.value)
