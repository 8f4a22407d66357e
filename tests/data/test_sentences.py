"""Prose as sentences, and sentences as pieces that overlap."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleeplm.data.sentences import overlapping, sentences


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "Stop." Then (he left.) She', ['He said "Stop."', "Then (he left.)", "She"]),
        ("Dr. Who met J. R. R. Tolkien. They", ["Dr. Who met J. R. R. Tolkien.", "They"]),
        ("It cost 3.50 dollars. 20 men", ["It cost 3.50 dollars.", "20 men"]),
        ("The U.S. Senate met, e.g. Smith. Ok", ["The U.S. Senate met, e.g. Smith.", "Ok"]),
        ("so on etc. and more.", ["so on etc. and more."]),
        ("A line\nbreak ends it", ["A line", "break ends it"]),
        ("Wait... what? \u201cYes.\u201d No", ["Wait... what?", "\u201cYes.\u201d", "No"]),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_says_so(text, parts):
    assert sentences(text) == parts


@given(st.text(st.sampled_from("Ab. !?\"'(\n\u2019"), max_size=60))
def test_sentences_are_the_whole_text(text):
    parts = sentences(text)
    assert " ".join(parts).split() == text.split()
    assert all(part == " ".join(part.split()) and part for part in parts)


def short(words):
    return lambda piece: len(piece.split()) <= words


PARTS = ["a b", "c d", "e f", "g h"]


def test_every_sentence_stands_with_its_neighbours():
    whole = ["a b c d", "a b c d e f", "c d e f g h", "e f g h"]
    assert overlapping(PARTS, short(6)) == whole


def test_with_those_neighbours_that_fit():
    assert overlapping(PARTS, short(4)) == ["a b c d", "c d e f", "e f g h"]
    assert overlapping(["a b c d", "e", "f g"], short(5)) == ["a b c d e", "e f g"]
    assert overlapping(PARTS, short(3)) == PARTS


def test_a_sentence_that_is_too_long_is_cut_into_pieces_that_share_halves():
    assert overlapping(["a b c d e f g h"], short(4)) == ["a b c d", "c d e f", "e f g h"]
    assert overlapping(["a b c d e f g h", "i j"], short(4))[-1] == "i j"


def test_words_that_are_too_long_come_out_all_the_same():
    assert overlapping(["a b"], short(0)) == ["a", "b"]
    assert overlapping(["a", "b"], short(1)) == ["a", "b"]


@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=9), max_size=6),
       st.integers(1, 12))  # fmt: skip
def test_pieces_fit_and_leave_no_word_and_no_neighbourhood_out(parts, most):
    parts = [" ".join(f"{w}{i}.{j}" for j, w in enumerate(part)) for i, part in enumerate(parts)]
    pieces = overlapping(parts, short(most))
    assert len(set(pieces)) == len(pieces)
    assert all(len(piece.split()) <= most for piece in pieces)
    assert {w for p in pieces for w in p.split()} == {w for p in parts for w in p.split()}
    for first, second in itertools.pairwise(parts):
        if short(most)(f"{first} {second}"):
            assert any(f"{first} {second}" in piece for piece in pieces)
