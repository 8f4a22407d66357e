"""Free-text answers are scored as SQuAD scores them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleeplm.data.answers import exact_match, first_line, is_in, normalised, token_f1

WORDS = st.lists(st.sampled_from(["the", "a", "Graz", "graz.", "in", "(1842)", "an", "!", "ä"]))
TEXTS = st.one_of(st.text(max_size=30), WORDS.map(" ".join))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Shah's army", "shahs army"),
        ("  an  Apple,\n a day ", "apple day"),
        ("Theatre", "theatre"),
        ("theta-a", "thetaa"),
        ("U.S.A.", "usa"),
        ("20,000 men", "20000 men"),
        ("The", ""),
        ("Übung", "übung"),
    ],
)
def test_case_punctuation_articles_and_spaces_do_not_count(text, plain):
    assert normalised(text) == plain


@pytest.mark.parametrize(
    ("said", "accepted", "em", "f1"),
    [
        ("silver", ["silver"], 1, 1),
        ("Molten silver.", ["silver"], 0, 2 / 3),
        ("Subutai", ["Subutai and Jebe"], 0, 1 / 2),
        ("the Shah", ["a shah"], 1, 1),
        ("Otrar", ["silver", "the town of Otrar", "otrar"], 1, 1),
        ("in the town of Otrar", ["silver", "town of Otrar", "Otrar"], 0, 6 / 7),
        ("silver silver", ["silver and gold"], 0, 2 / 5),  # a word counts as often as in both
        ("fled", ["silver"], 0, 0),
        ("", ["silver"], 0, 0),
        ("silver", ["The"], 0, 0),
        ("The", ["a"], 1, 1),
        ("x", [], 0, 0),
    ],
)
def test_scores_by_hand(said, accepted, em, f1):
    assert exact_match(said, accepted) == em
    assert token_f1(said, accepted) == pytest.approx(f1)


@given(TEXTS, st.lists(TEXTS, max_size=3))
def test_scores_are_shares_and_an_exact_match_has_an_f1_of_one(said, accepted):
    em, f1 = exact_match(said, accepted), token_f1(said, accepted)
    assert 0 <= em <= f1 <= 1
    assert exact_match(said, [*accepted, said]) == token_f1(said, [*accepted, said]) == 1


@given(TEXTS, st.lists(TEXTS, max_size=3), TEXTS)
def test_more_accepted_answers_never_lower_a_score(said, accepted, another):
    more = [*accepted, another]
    assert exact_match(said, more) >= exact_match(said, accepted)
    assert token_f1(said, more) >= token_f1(said, accepted)


@given(TEXTS, TEXTS)
def test_f1_of_two_texts_does_not_depend_on_which_was_said(one, other):
    assert token_f1(one, [other]) == token_f1(other, [one])


@given(TEXTS)
def test_what_is_left_of_a_text_is_words_in_lower_case_without_articles(text):
    once = normalised(text)
    assert once == once.lower() == " ".join(once.split())
    assert not set(once.split()) & {"a", "an", "the"}


@pytest.mark.parametrize(
    ("answer", "text", "inside"),
    [
        ("Ikh Zasag", '"Ikh Zasag law adopted', True),
        ("the Shah", "A shah fled", True),
        ("fragment", "This fragmentation was", False),
        ("Zasag law", "Ikh Zasag", False),
        ("The", "the the", False),
    ],
)
def test_an_answer_is_in_a_text_that_has_its_words_in_a_row(answer, text, inside):
    assert is_in(answer, text) is inside


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Graz", "Graz"),
        (" Graz \nand more", "Graz"),
        ("\n\n Graz\r\nx", "Graz"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_the_first_line_is_what_counts_of_an_answer(text, line):
    assert first_line(text) == line
