"""The one form that worlds, files and data sets take."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.data.atlas import atlas
from sleeplm.data.biographies import biographies
from sleeplm.data.curriculum import (
    Curriculum,
    check_curriculum,
    digest,
    facts_of,
    from_world,
    repeated,
    spread,
)
from sleeplm.data.facts import (
    Document,
    Fact,
    Relation,
    World,
    exam,
    questions,
    statements,
    subjects,
)

SIZES = {"statements": 2, "questions": 5, "exam_pretrain": 12}
WORLD = biographies(0, [8, 16, 3], pretrain_people=5)


def life(world=WORLD, seed=0, **settings) -> Curriculum:
    return from_world(world, **{**SIZES, **settings}, rng=np.random.default_rng(seed))


# --- a world as a curriculum ---------------------------------------------------------------------


def test_days_are_told_in_every_training_wording():
    for facts, documents in zip(WORLD.days, life().days, strict=True):
        assert list(documents) == statements(WORLD, facts) + questions(WORLD, facts)


def test_pretraining_tells_each_fact_in_some_statements_and_questions():
    documents = life().pretrain
    assert facts_of(documents) == WORLD.pretrain
    for fact in WORLD.pretrain:
        asked = [bool(document.prompt) for document in documents if document.fact == fact]
        assert sorted(asked) == [False] * 2 + [True] * 5


def test_exams_ask_every_fact_of_a_day_in_held_out_wordings():
    assert [list(part) for part in life().exams] == [exam(WORLD, facts) for facts in WORLD.days]


def test_a_short_exam_asks_facts_from_all_over_the_day():
    world = biographies(0, [80], pretrain_people=2)
    asked = facts_of(life(world, exam_per_day=9).exams[0])
    places = [world.days[0].index(fact) for fact in asked]
    assert (len(places), places[0], places[-1]) == (9, 0, 79)
    assert {b - a for a, b in itertools.pairwise(places)} <= {9, 10}


def test_what_is_known_from_before_is_asked_from_all_over_pretraining():
    known = life().known
    assert len(known) == 12
    assert [known[0].fact, known[-1].fact] == [WORLD.pretrain[0], WORLD.pretrain[-1]]
    assert len(life(exam_pretrain=1000).known) == len(WORLD.pretrain)


def test_cues_are_the_subjects():
    curriculum = life()
    assert curriculum.cues == tuple(subjects(facts) for facts in WORLD.days)
    assert curriculum.known_cues == subjects(WORLD.pretrain)


def test_choices_are_the_different_values_of_each_relation():
    choices = life().choices
    for relation in WORLD.relations:
        values = {fact.value for fact in WORLD.facts if fact.relation == relation}
        assert set(choices[relation]) == values and len(choices[relation]) == len(values)


def test_nothing_that_is_asked_is_read():
    assert repeated(life()) == []


def test_the_digest_sees_every_part():
    curriculum = life()
    assert digest(curriculum) == digest(life())
    seen = {digest(curriculum)}
    for name, value in {
        "name": "x",
        "pretrain": curriculum.pretrain[1:],
        "days": curriculum.days[::-1],
        "exams": curriculum.exams[::-1],
        "known": curriculum.known[1:],
        "cues": curriculum.cues[::-1],
        "known_cues": curriculum.known_cues[1:],
        "choices": {},
    }.items():
        seen.add(digest(dataclasses.replace(curriculum, **{name: value})))
    assert len(seen) == 9


def test_another_seed_draws_other_wordings_for_pretraining_and_leaves_the_days():
    one, other = life(seed=0), life(seed=1)
    assert one.pretrain != other.pretrain
    assert (one.days, one.exams) == (other.days, other.exams)


@pytest.mark.parametrize(
    ("count", "wanted", "chosen"),
    [(5, 5, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (9, 1, [0]), (0, 3, [])],
)
def test_spreading_takes_both_ends_and_what_lies_evenly_between(count, wanted, chosen):
    assert spread(range(count), wanted) == chosen


# --- days of unequal size ------------------------------------------------------------------------


@pytest.mark.parametrize("build", [atlas, biographies])
def test_days_may_be_of_any_sizes(build):
    assert [len(day) for day in build(0, [5, 40, 13]).days] == [5, 40, 13]


@pytest.mark.parametrize("build", [atlas, biographies])
def test_a_list_of_equal_sizes_is_the_same_world_as_their_number(build):
    assert build(3, [20, 20, 20]).digest() == build(3, 3, 20).digest()


@pytest.mark.parametrize("build", [atlas, biographies])
def test_sizes_out_of_range_are_refused(build):
    for sizes in (([4, 0],), ([4], 4), (3,)):
        with pytest.raises(ConfigError, match="a list of sizes|needs days"):
            build(0, *sizes)


def test_days_that_do_not_fit_into_the_atlas_are_refused_with_the_first_of_them():
    with pytest.raises(ConfigError, match=r"at most 2 days of these sizes .*\(day 3: 900\)"):
        atlas(0, [20, 30, 900])


# --- checks --------------------------------------------------------------------------------------

ASKED = Document("Ann lives where? Rome", "Ann lives where?", "Rome", Fact("Ann", "home", "Rome"))
TOLD = Document("Ann is at home in Rome.", "", "Rome", ASKED.fact)
GOOD = Curriculum(
    name="tiny",
    pretrain=(TOLD,),
    days=((TOLD,),),
    exams=((ASKED,),),
    known=(ASKED,),
    cues=(("Ann",),),
    known_cues=("Ann",),
    choices={"home": ("Oslo", "Rome")},
)


def test_a_curriculum_of_your_own_passes():
    check_curriculum(GOOD)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"days": ()}, "curriculum.days = 0: needs at least one day"),
        ({"exams": ()}, "curriculum.exams = 0: needs one for each of 1 days"),
        ({"cues": (("Ann",),) * 2}, "curriculum.cues = 2: needs one for each of 1 days"),
        ({"pretrain": ()}, "curriculum.pretrain = 0: must not be empty"),
        ({"known": ()}, "curriculum.known = 0: must not be empty"),
        ({"days": ((),)}, "curriculum.days[0] = 0: must not be empty"),
        ({"exams": ((),)}, "curriculum.exams[0] = 0: must not be empty"),
        ({"cues": ((),)}, "curriculum.cues[0] = 0: must not be empty"),
        ({"cues": (("",),)}, "curriculum.cues = '': use text without outer spaces"),
        ({"known_cues": ("Ann ",)}, "curriculum.cues = 'Ann ': use text without outer spaces"),
        ({"days": ((dataclasses.replace(TOLD, text=" x"),),)}, "use texts without outer spaces"),
        ({"exams": ((dataclasses.replace(ASKED, answer="Oslo"),),)}, "its prompt, a space and it"),
        ({"known": (TOLD,)}, "an exam's documents need a prompt and an answer"),
        ({"choices": {"home": ("Oslo",)}}, "curriculum.choices = 'Rome': must be named once"),
        ({"choices": {"home": ("Rome", "Rome")}}, "must be named once in the curriculum's choices"),
        ({"choices": {}}, "must be named once in the curriculum's choices of 'home'"),
    ],
)
def test_an_unsound_curriculum_is_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError) as caught:
        check_curriculum(dataclasses.replace(GOOD, **changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_question_that_is_read_as_well_as_asked_is_found():
    leaking = dataclasses.replace(GOOD, days=((TOLD, ASKED),))
    assert repeated(leaking) == [ASKED, ASKED]


def test_a_world_whose_exam_is_read_is_refused():
    relation = Relation("home", ("{s} lives in {v}.",), ("{s} now?", "{s}?"), (), ("{s} now?",))
    world = World("leak", {"home": relation}, (Fact("Bo", "home", "Oslo"),), ((ASKED.fact,),))
    with pytest.raises(ConfigError, match=r"exam = 'Ann now\?': a training text asks the same"):
        life(world)
