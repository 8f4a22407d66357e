"""What every world of facts promises."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest
from rapidfuzz.distance import Levenshtein

from sleeplm.core.errors import ConfigError
from sleeplm.data.atlas import atlas
from sleeplm.data.biographies import biographies
from sleeplm.data.facts import (
    Fact,
    Relation,
    World,
    check_world,
    exam,
    questions,
    statements,
    subjects,
)

WORLDS = {"atlas": atlas(3, 8, 80), "biographies": biographies(3, 8, 80, pretrain_people=150)}


@pytest.fixture(params=WORLDS, name="world")
def _world(request) -> World:
    return WORLDS[request.param]


def _words(templates) -> set[str]:
    return {word for t in templates for word in re.findall(r"[A-Za-z]+", re.sub("{.}", " ", t))}


def _pairs_of_questions(world: World) -> list[tuple[list[str], list[str]]]:
    """Word lists of every training question beside every held-out one of its relation."""
    relations = world.relations.values()
    pairs = ((t, h) for r in relations for t in r.questions for h in r.held_out_questions)
    return [tuple(re.findall(r"\{s\}|\w+", text.lower()) for text in pair) for pair in pairs]


def test_no_subject_is_in_two_parts_of_the_world(world):
    parts = [set(subjects(part)) for part in (world.pretrain, *world.days)]
    assert sum(map(len, parts)) == len(set().union(*parts))


def test_every_day_has_exactly_the_facts_asked_for(world):
    assert [len(day) for day in world.days] == [80] * 8


def test_each_subject_and_relation_has_one_value(world):
    assert len({(f.subject, f.relation) for f in world.facts}) == len(world.facts)


def test_pretraining_shows_each_relation_of_a_day_many_times(world):
    used = {fact.relation for day in world.days for fact in day}
    shown = [fact.relation for fact in world.pretrain]
    assert min(shown.count(relation) for relation in used) >= 20


def test_every_relation_has_enough_wordings_and_holds_some_out(world):
    for relation in world.relations.values():
        assert len({*relation.statements, *relation.held_out_statements}) >= 8
        assert len({*relation.questions, *relation.held_out_questions}) >= 6
        assert min(len(relation.held_out_statements), len(relation.held_out_questions)) >= 2


def test_each_relation_trains_on_eight_statements_and_at_least_ten_questions(world):
    for relation in world.relations.values():
        assert len(relation.statements) == 8
        assert 10 <= len(relation.questions) <= 12


def test_most_training_wordings_start_with_the_subject_and_some_do_not(world):
    for relation in world.relations.values():
        for templates in (relation.statements, relation.questions):
            first = sum(template.startswith("{s}") for template in templates)
            assert 0.65 <= first / len(templates) <= 0.75
        assert any(t.startswith("{s}") for t in relation.held_out_questions)


def test_every_question_ends_with_a_question_mark_so_that_the_bare_value_follows(world):
    for relation in world.relations.values():
        for template in relation.questions + relation.held_out_questions:
            assert template.endswith("?") and template.count("?") == 1


def test_held_out_wordings_use_only_words_that_training_wordings_use(world):
    training = _words(t for r in world.relations.values() for t in r.training)
    held_out = _words(t for r in world.relations.values() for t in r.held_out)
    assert held_out - training == set()


def test_every_training_question_is_three_word_edits_away_from_every_held_out_one(world):
    for trained, held_out in _pairs_of_questions(world):
        assert Levenshtein.distance(trained, held_out) >= 3, (trained, held_out)


def test_no_held_out_question_is_a_training_question_in_another_word_order(world):
    for trained, held_out in _pairs_of_questions(world):
        ours, theirs = Counter(trained), Counter(held_out)
        differing = (ours - theirs) + (theirs - ours)
        assert differing.total() >= 3, (trained, held_out)


def test_wordings_of_different_relations_differ(world):
    templates = [t for r in world.relations.values() for t in r.training + r.held_out]
    assert len(templates) == len(set(templates))


def test_no_exam_prompt_is_in_a_training_document(world):
    training = statements(world, world.facts) + questions(world, world.facts)
    prompts = {document.prompt for document in training}
    texts = {document.text for document in training}
    for document in exam(world, world.facts, per_fact=2):
        assert document.prompt not in prompts
        assert document.text not in texts


def test_held_out_statements_are_in_no_training_document(world):
    told = {document.text for document in statements(world, world.facts)}
    assert told.isdisjoint(d.text for d in statements(world, world.facts, held_out=True))


def test_a_statement_names_subject_and_value_and_asks_nothing(world):
    for document in statements(world, world.days[0]):
        assert document.fact.subject in document.text and document.answer in document.text
        assert document.prompt == ""


def test_a_question_is_its_prompt_a_space_and_the_value(world):
    for document in questions(world, world.days[0]) + exam(world, world.days[0]):
        assert document.text == f"{document.prompt} {document.fact.value}"
        assert document.answer == document.fact.value


def test_an_exam_asks_a_fact_the_same_way_whatever_else_is_asked(world):
    day = world.days[2]
    whole = {document.fact: document for document in exam(world, day, key_seed=5)}
    assert exam(world, day[10:12], key_seed=5) == [whole[day[10]], whole[day[11]]]


def test_key_seeds_choose_different_wordings(world):
    asked = [[d.prompt for d in exam(world, world.days[0], key_seed=seed)] for seed in (0, 1)]
    assert asked[0] != asked[1]


def test_two_questions_a_fact_are_two_wordings(world):
    documents = exam(world, world.days[0], per_fact=2)
    assert len({document.prompt for document in documents}) == 2 * len(world.days[0])


def test_more_questions_than_held_out_wordings_are_refused(world):
    with pytest.raises(ConfigError, match="choose 1 to 2"):
        exam(world, world.days[0], per_fact=3)


@pytest.mark.parametrize("build", [atlas, biographies])
def test_the_seed_alone_decides_the_world(build):
    assert build(7, 2, 40).digest() == build(7, 2, 40).digest()
    assert build(7, 2, 40).digest() != build(8, 2, 40).digest()


def test_the_digest_sees_a_change_of_one_wording(world):
    name, relation = next(iter(world.relations.items()))
    changed = dataclasses.replace(relation, statements=relation.statements[::-1])
    other = dataclasses.replace(world, relations={**world.relations, name: changed})
    assert other.digest() != world.digest()


RELATION = Relation(
    name="home",
    statements=("{s} a {v}", "{s} b {v}", "{s} c {v}", "{s} d {v}", "{s} e {v}", "{v} f {s}"),
    questions=("{s} g", "{s} h", "{s} i", "j {s}"),
    held_out_statements=("{s} k {v}", "{s} l {v}"),
    held_out_questions=("{s} m", "n {s}"),
)
GOOD = World(
    "tiny", {"home": RELATION}, (Fact("Ann", "home", "Rome"),), ((Fact("Bob", "home", "Oslo"),),)
)


def _with_wordings(**changes) -> World:
    return dataclasses.replace(GOOD, relations={"home": dataclasses.replace(RELATION, **changes)})


def _with_day(*facts: Fact) -> World:
    return dataclasses.replace(GOOD, days=(facts,))


def test_a_sound_world_of_your_own_passes():
    check_world(GOOD)


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (_with_day(Fact("Ann", "home", "Oslo")), "one value for each"),
        (_with_day(Fact("Bob", "home", "Oslo"), Fact("Bob", "home", "Rome")), "one value"),
        (dataclasses.replace(GOOD, days=GOOD.days * 2), "one value"),
        (_with_day(Fact("Bob", "pet", "cat")), "this world has"),
        (_with_day(Fact("Bob", "home", " Oslo")), "outer spaces"),
        (_with_day(Fact("B{s}b", "home", "Oslo")), "braces"),
        (_with_day(Fact("Bob", "home", "")), "use text"),
        (dataclasses.replace(GOOD, pretrain=()), "pretraining must show"),
        (dataclasses.replace(GOOD, relations={"house": RELATION}), "one name for both"),
        (_with_wordings(questions=("{s} g", "{s} h", "{s} i", "j")), "one {s} and no {v}"),
        (_with_wordings(questions=("{s} g", "{s} h", "{s} i", "{s} {v}")), "one {s} and no {v}"),
        (_with_wordings(questions=("{s} g", "{s} h", "{s} i", "j {s} ")), "no outer space"),
        (_with_wordings(statements=("{s} a",) * 6), "one {s} and one {v}"),
        (_with_wordings(statements=("{s} {x} {v}",) * 6), "no other brace"),
        (_with_wordings(statements=("{s} a {v}",) * 6), "at least 8 wordings"),
        (_with_wordings(questions=("{s} g", "{s} h", "{s} m", "o {s}")), "at least 6 wordings"),
        (_with_wordings(held_out_statements=("{s} k {v}",)), "at least 8 wordings"),
        (
            _with_wordings(
                statements=(*RELATION.statements, "{s} o {v}"), held_out_statements=("{s} k {v}",)
            ),
            "hold out at least 2",
        ),
        (_with_wordings(questions=("g {s}", "h {s}", "i {s}", "j {s}")), "start at least 70%"),
        (_with_wordings(held_out_questions=("m {s}", "n {s}")), "one held-out question"),
    ],
)
def test_an_unsound_world_is_refused_in_one_clear_line(world, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        check_world(world)
    assert "\n" not in str(caught.value)


def test_a_held_out_wording_in_training_is_refused():
    training = (*RELATION.statements, RELATION.held_out_statements[0], "{s} o {v}")
    with pytest.raises(ConfigError, match="write each wording once"):
        check_world(_with_wordings(statements=training))


def test_a_subject_in_two_parts_is_refused_even_with_different_relations():
    second = dataclasses.replace(
        RELATION,
        name="job",
        **{
            field: tuple(f"{t}!" for t in getattr(RELATION, field))
            for field in ("statements", "questions", "held_out_statements", "held_out_questions")
        },
    )
    world = World(
        "tiny",
        {"home": RELATION, "job": second},
        (Fact("Ann", "home", "Rome"), Fact("Bob", "job", "cook")),
        ((Fact("Ann", "job", "nurse"),),),
    )
    with pytest.raises(ConfigError, match="keep the parts disjoint"):
        check_world(world)
