"""Worn wordings: what may change in a question, and what it must stay away from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sleeplm.data.biographies import biographies
from sleeplm.data.curriculum import from_world
from sleeplm.data.worn import ASKING, LEAST_APART, LITTLE, worn, worn_questions

WORLD = biographies(0, 2, 16, 3)


def bag(text: str) -> Counter:
    return Counter(text.rstrip("?").replace(":", " :").split())


def stems(text: str) -> set[str]:
    """The words that matter, without case and ending."""
    words = {word.casefold() for word in bag(text)} - {"{s}", ":", *LITTLE, *ASKING}
    return {word[:4].removesuffix("s") for word in words}


def apart(one: str, other: str) -> int:
    a, b = bag(one), bag(other)
    return ((a - b) + (b - a)).total()


@pytest.mark.parametrize("relation", WORLD.relations.values(), ids=lambda r: r.name)
def test_a_worn_wording_keeps_what_tells_its_relation_and_the_subject_once(relation):
    rng = np.random.default_rng(0)
    for template in relation.questions:
        for _ in range(30):
            changed = worn(template, relation.held_out_questions, rng)
            assert changed.count("{s}") == 1
            assert changed.endswith("?")
            # At most one word that matters is gone; others may have another ending.
            lost = stems(template) - stems(changed)
            assert len(lost) <= 1
            assert stems(changed) <= stems(template)


def test_lightly_worn_wordings_add_no_word(monkeypatch):
    monkeypatch.setattr("sleeplm.data.worn.SCRAMBLED", 0.0)
    rng = np.random.default_rng(0)
    template = "{s}: which of the games is liked?"
    for _ in range(100):
        changed = worn(template, (), rng)
        assert bag(changed) - bag(template) == Counter()
        assert (bag(template) - bag(changed)).total() <= 2  # a word, and perhaps the colon


def test_scrambled_wordings_move_everything_among_little_words(monkeypatch):
    monkeypatch.setattr("sleeplm.data.worn.SCRAMBLED", 1.0)
    rng = np.random.default_rng(0)
    seen = [worn("{s} carries which cargo?", (), rng) for _ in range(200)]
    first = {text.split()[0].casefold() for text in seen}
    assert {"{s}", "cargo", "carries", "carry", "which"} <= first
    assert sum(text.startswith("{s}") for text in seen) > 80
    for text in seen:
        words = [word.casefold() for word in text.rstrip("?").split() if word != "{s}"]
        matter = [word for word in words if word not in (*LITTLE, *ASKING)]
        assert sorted(matter) in [
            [cargo, carries] for cargo in ("cargo", "cargos") for carries in ("carries", "carry")
        ]
        assert 1 <= sum(word in LITTLE for word in words) <= 3
        assert sum(word in ASKING for word in words) <= 1
        assert text[0] == "{" or text[0].isupper()


@pytest.mark.parametrize("relation", WORLD.relations.values(), ids=lambda r: r.name)
def test_a_worn_wording_stays_away_from_what_is_held_out(relation):
    rng = np.random.default_rng(1)
    for template in relation.questions:
        for _ in range(30):
            changed = worn(template, relation.held_out_questions, rng)
            distances = [apart(changed, other) for other in relation.held_out_questions]
            assert min(distances) >= min(LEAST_APART, *[apart(template, o) for o in
                                                        relation.held_out_questions])  # fmt: skip


def test_light_wear_is_of_three_kinds():
    rng = np.random.default_rng(2)
    seen = {worn("{s} likes which of the games?", (), rng) for _ in range(200)}
    assert "{s} likes which of games?" in seen  # dropped
    assert "{s} likes of which the games?" in seen  # swapped
    assert "likes which of the games {s}?" in seen  # the subject at the other end
    assert "{s} likes which of the games?" not in seen


def test_a_question_that_cannot_be_worn_far_enough_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("sleeplm.data.worn.SCRAMBLED", 0.0)
    template = "{s} likes which game?"
    near = ("{s} likes which game so?",)
    assert worn(template, near, np.random.default_rng(0)) == template


def test_worn_questions_are_answered_and_come_from_different_questions():
    facts = WORLD.days[0][:4]
    documents = worn_questions(WORLD, facts, 5, np.random.default_rng(3))
    assert [d.fact for d in documents] == [fact for fact in facts for _ in range(5)]
    for document in documents:
        assert document.text == f"{document.prompt} {document.fact.value}"
        assert document.fact.subject in document.prompt
    assert len({d.prompt for d in documents}) == len(documents)


def test_a_curriculum_wears_a_share_of_its_questions():
    def made(wear):
        rng = np.random.default_rng(4)
        sizes = {"statements": 2, "questions": 4, "exam_pretrain": 4}
        return from_world(WORLD, **sizes, rng=rng, wear=wear)

    plain, half = made(0.0), made(0.5)
    trained = {
        template.replace("{s}", fact.subject)
        for fact in WORLD.facts
        for template in WORLD.relations[fact.relation].questions
    }
    assert len(plain.pretrain) == len(half.pretrain)
    tired = [d for d in half.pretrain if d.prompt and d.prompt not in trained]
    assert 0.3 < len(tired) / (4 * len(WORLD.pretrain)) <= 0.5
    assert all(d.prompt in trained for d in plain.pretrain if d.prompt)
    assert len(half.days[0]) == len(plain.days[0]) + 6 * len(WORLD.days[0])  # of 12
    assert set(plain.days[0]) <= set(half.days[0])
