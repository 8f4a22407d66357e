"""Wordings made from a relation's name obey the rules of written ones."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from rapidfuzz.distance import Levenshtein

from sleeplm.data import wordings_generic
from sleeplm.data.files import words_of


def parts(text: str) -> list[str]:
    return re.findall(r"\{\w\}|\w+", text.lower())


def test_made_up_wordings_mostly_start_with_the_subject():
    training = wordings_generic.STATEMENTS + wordings_generic.QUESTIONS
    assert sum(t.startswith("{s}") for t in training) >= 0.7 * len(training)
    assert any(t.startswith("{s}") for t in wordings_generic.HELD_OUT_QUESTIONS)


def test_made_up_wordings_have_the_marks_of_their_kind():
    for template in wordings_generic.STATEMENTS:
        assert sorted(re.findall(r"\{.\}", template)) == ["{r}", "{s}", "{v}"]
    for template in wordings_generic.QUESTIONS + wordings_generic.HELD_OUT_QUESTIONS:
        assert sorted(re.findall(r"\{.\}", template)) == ["{r}", "{s}"]
        assert template.endswith("?")


def test_made_up_held_out_questions_are_new_wordings_of_known_words():
    training = wordings_generic.STATEMENTS + wordings_generic.QUESTIONS
    known = {word for template in training for word in parts(template)}
    for held_out in wordings_generic.HELD_OUT_QUESTIONS:
        assert set(parts(held_out)) <= known
        for trained in wordings_generic.QUESTIONS:
            ours, theirs = Counter(parts(trained)), Counter(parts(held_out))
            assert Levenshtein.distance(parts(trained), parts(held_out)) >= 3
            assert ((ours - theirs) + (theirs - ours)).total() >= 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("birth_city", "birth city"),
        ("birthCity", "birth city"),
        ("LegalCase", "legal case"),
        ("CEO", "CEO"),
        ("home town", "home town"),
        ("rollover_401k", "rollover 401k"),
    ],
)
def test_a_name_is_read_in_words(name, words):
    assert words_of(name) == words
    assert wordings_generic.generic(["{s}: {r}?"], name) == (f"{{s}}: {words}?",)


def test_own_wordings_come_first_and_are_filled_up_without_doubles():
    templates = ["{s} a?", "{s} b?", "{s} c?"]
    filled = wordings_generic.filled(["{s} x?", "{s} B"], templates, least=4, not_as=["{s} c?"])
    assert filled == ("{s} x?", "{s} B", "{s} a?")
