"""Grid tasks as tokens, and as words that people can read."""

from __future__ import annotations

import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.data import grids
from sleeplm.data.grids import GridTokenizer, Pair, grid_of, pair_tokens


def test_a_grid_of_numpy_is_one_of_plain_integers():
    grid = grid_of(np.array([[1, 2], [3, 4]]))
    assert grid == ((1, 2), (3, 4))
    assert all(type(colour) is int for row in grid for colour in row)


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
