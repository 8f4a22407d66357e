"""What a dream is held against: another text that tells the same, and never the one it is about."""

from __future__ import annotations

import types

import numpy as np
import pytest

from sleeplm.bench.dream_contexts import check_material, in_formats
from sleeplm.core.errors import ConfigError
from sleeplm.core.types import PLAIN
from sleeplm.data.facts import Document, Fact
from sleeplm.data.formats import ASKED
from sleeplm.data.passage_days import PASSAGE
from sleeplm.data.text import token_lists
from sleeplm.methods.dreams.config import DreamConfig


class Words:
    """Every word is a token."""

    bos, eos, turns = 1, 2, PLAIN

    def __init__(self):
        self.known: list[str] = []

    def encode_batch(self, texts):
        self.known += [w for w in " ".join(texts).split() if w not in self.known]
        return [[3 + self.known.index(word) for word in text.split()] for text in texts]

    def words(self, tokens):
        return " ".join(self.known[t - 3] for t in tokens if t >= 3)


def piece(text: str, passage: int) -> Document:
    return Document(text, "", "", Fact(text[:8], PASSAGE, str(passage)))


def statement(text: str, value: str) -> Document:
    return Document(text, "", "", Fact("Peru", "capital", value))


def dreamt_of(documents, *, contexts=8, formats=("rewrite",)):
    """(context, what it is held against) of every context that is not empty, in words."""
    words = Words()
    material = types.SimpleNamespace(
        curriculum=types.SimpleNamespace(days=[documents]),
        tokenizer=words,
        asker=words,
        days=[token_lists(words, documents)],
    )
    config = DreamConfig(contexts=contexts, context_tokens=40, formats=list(formats), hold=0.5)
    check_material([material], config, ASKED)
    batch = in_formats(material, 0, range(len(documents)), config, ASKED)
    given, held = batch["contexts"], batch["held"]
    assert (np.asarray(held.weights).sum(1) > 0).tolist() == (given["length"] > 0).tolist()
    end = ASKED.words[formats[0]]
    return [
        (words.words(tokens).removesuffix(f" {end}"), words.words(row))
        for tokens, row, length in zip(given["tokens"], held.tokens, given["length"], strict=True)
        if length
    ]


TOWN = [
    piece("Ur: It was rich. It fell.", 0),
    piece("Ur: It was rich. It fell. It burned.", 0),
    piece("Ur: It fell. It burned. People left.", 0),
    piece("Ur: It burned. People left.", 0),
]


def test_a_piece_of_a_passage_is_held_against_another_that_repeats_none_of_its_sentences():
    first, second, third, last = (document.text for document in TOWN)
    assert dreamt_of(TOWN) == [(first, last), (second, first), (third, first), (last, first)]


def test_pieces_of_other_passages_tell_nothing_of_it_and_without_another_nothing_is_written():
    others = [piece("Ur: Nobody came back.", 1), *TOWN[:1], piece("Uruk: It stands.", 2), TOWN[3]]
    assert dreamt_of(others) == [(TOWN[0].text, TOWN[3].text), (TOWN[3].text, TOWN[0].text)]


def test_a_statement_is_held_against_another_wording_of_the_same_fact():
    peru = Fact("Peru", "capital", "Lima")
    told = [
        statement("Lima is the capital of Peru.", "Lima"),
        statement("Peru is governed from Cusco.", "Cusco"),  # another value: another fact
        statement("Lima is the capital of Peru.", "Lima"),  # word for word: no other text
        statement("Peru is governed from Lima.", "Lima"),
        Document("Where is it governed? Lima", "Where is it governed?", "Lima", peru),
    ]
    pairs = [(0, 3), (2, 3), (3, 0)]
    assert dreamt_of(told) == [(told[i].text, told[j].text) for i, j in pairs]


def test_days_without_two_texts_that_tell_the_same_are_refused_in_one_line():
    alone = [TOWN[0], piece("Uruk: It stands.", 1)]
    with pytest.raises(ConfigError, match=r"dream\.formats = \['rewrite'\]: no two texts of a day"):
        dreamt_of(alone)
    assert len(dreamt_of(alone, formats=["free"])) == 2  # what is held back is a text's own end
