"""Grid tasks as tokens, and as words that people can read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleeplm.core.errors import ConfigError
from sleeplm.data import grids
from sleeplm.data.grids import GridTokenizer, Pair, answer_tokens, grid_of, pair_tokens, read_grid

GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(0, 9), min_size=size[1], max_size=size[1]),
        min_size=size[0],
        max_size=size[0],
    )
)


@given(GRIDS)
def test_an_answer_is_read_back_as_the_grid_it_was(rows):
    assert read_grid(answer_tokens(grid_of(rows))) == grid_of(rows)


def test_a_grid_of_numpy_is_one_of_plain_integers():
    grid = grid_of(np.array([[1, 2], [3, 4]]))
    assert grid == ((1, 2), (3, 4))
    assert all(type(colour) is int for row in grid for colour in row)


@pytest.mark.parametrize(
    "words",
    ["", "1 2 /", "1 2 / 3 / <eos>", "1 2 <eos>", "1 in / <eos>", "<eos>", "/ <eos>"],
    ids=[
        "nothing",
        "no end",
        "ragged",
        "a row without its end",
        "a mark",
        "no row",
        "an empty row",
    ],
)
def test_what_is_no_grid_is_read_as_none(words):
    assert read_grid([grids.WORDS.index(word) for word in words.split()]) is None


def test_a_pair_reads_as_it_is_documented():
    pair = Pair(((1, 2), (3, 4)), ((3, 1), (4, 2)))
    words = "in 1 2 / 3 4 / out 3 1 / 4 2 /"
    assert GridTokenizer().decode(pair_tokens(pair)) == words
    assert pair_tokens(pair) == [*GridTokenizer().encode(words), grids.EOS]


def test_every_word_but_the_special_ones_is_a_token_and_comes_back():
    tokenizer = GridTokenizer()
    text = " ".join(grids.WORDS[3:])
    assert tokenizer.encode(text) == list(range(3, tokenizer.vocab_size))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("word", ["11", "<eos>", "turn"])
def test_a_word_without_a_token_is_refused_by_name(word):
    with pytest.raises(ConfigError, match=f"text = '{word}': is not among 0 1 2"):
        GridTokenizer().encode(f"1 {word} 2")
