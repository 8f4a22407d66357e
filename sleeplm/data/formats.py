"""Formats: what a learner can be asked to make of a text, shown to its backbone before life.

A format is a mark behind a text. What follows the mark is another text that says the same::

    Peru is governed from the city of Lima. Asked: Peru calls which city its capital? Lima
    Peru is governed from the city of Lima. Reworded: The capital city of Peru is Lima.
    Peru lies in South America. Peru calls Lima its capital. Implied: The one that has Lima as its
    capital city is found where on the map? South America

Examples are about invented subjects and values, each used once: who has read them has learned to
take both from the text in front of the mark, and no fact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sleeplm.core import checks
from sleeplm.data.facts import Document, Fact, World, filled
from sleeplm.data.two_facts import askable, composed, describable, drawn

#: Format -> the mark behind its text; ``free`` goes on from a text as it is.
MARKS: Mapping[str, str] = {
    "free": "",
    "question": "Asked:",
    "rewrite": "Reworded:",
    "implication": "Implied:",
}
#: The same for published backbones, which have seen no examples: words that ask for it, ...
PROMPTS: Mapping[str, str] = {
    "free": "",
    "question": "Question:",
    "rewrite": "In other words:",
    "implication": "It follows that",
}
#: ... and for those that chat what stands in front of a text, in a turn of the user's.
TURNS: Mapping[str, str] = {
    "free": "",
    "question": "Write one short question that this text answers, and its answer.",
    "rewrite": "Say this in other words, in one sentence.",
    "implication": "Write one sentence that follows from this text.",
}
TRIES = 20
NEEDS_TWO = (
    "needs two relations, one with a training statement that begins with '{s} ': leave it out"
)


class Style(NamedTuple):
    """How a backbone is asked for formats.

    Attributes:
      words: format -> its mark; none for what only goes on.
      pairs: implications follow from two statements about one subject, and not from one.
      chat: words stand in front of a text, in a turn of the user's, and not behind it.
    """

    words: Mapping[str, str]
    pairs: bool = False
    chat: bool = False


SHOWN, ASKED, CHATTING = Style(MARKS, pairs=True), Style(PROMPTS), Style(TURNS, chat=True)


def examples(
    world: World,
    facts: Sequence[Fact],
    formats: Sequence[str],
    count: int,
    names: Sequence[str],
    rng: np.random.Generator,
) -> list[Document]:
    """``count`` examples of every format for each of ``facts``, of which only the relation stays.

    Args:
      formats: of :data:`MARKS`. names: that no invented one may be.

    Raises:
      ConfigError: no such format, or no wordings for implications.
    """
    for kind in formats:
        checks.one_of("formats", kind, tuple(MARKS))
    inventor = _Inventor(facts, set(names), rng)
    documents = []
    for kind in formats:
        if not MARKS[kind]:
            continue  # to go on from a text needs no example
        told_in = facts if kind != "implication" else _with_others(world, facts)
        for fact in (fact for fact in told_in for _ in range(count)):
            one = inventor.fact(fact.relation)
            told, made = _MAKERS[kind](world, one, inventor, rng)
            documents.append(Document(f"{told} {MARKS[kind]} {made}", "", one.value, one))
    return documents


class _Inventor:
    """Facts of nobody, each of another subject."""

    def __init__(self, facts: Sequence[Fact], avoided: set[str], rng: np.random.Generator):
        self.subjects = [fact.subject for fact in facts]
        self.values: dict[str, list[str]] = {}
        for fact in facts:
            self.values.setdefault(fact.relation, []).append(fact.value)
        self.used, self.rng = avoided, rng

    def fact(self, relation: str, subject: str = "") -> Fact:
        """A fact of a new subject, or of one that was made before."""
        if not subject:
            subject = invented(self.subjects, self.used, self.rng)
            while subject in self.used:  # of somebody: an example must not tell of them
                subject = f"{subject} {int(self.rng.integers(10))}"
        value = invented(self.values[relation], self.used, self.rng)
        self.used |= {subject, value}
        return Fact(subject, relation, value)


def invented(names: Sequence[str], avoided: set[str], rng: np.random.Generator) -> str:
    """A name with the beginning of one of ``names`` and the end of another.

    Where nothing new comes out of some tries (symbols, years), any of ``names``.
    """
    for _ in range(TRIES):
        first, last = (names[int(i)] for i in rng.integers(len(names), size=2))
        cut, rest = (int(rng.integers(1, max(len(n), 2))) for n in (first, last))
        name = " ".join((first[:cut] + last[rest:]).split())
        if len(name) > 1 and name not in avoided:
            return name
    return names[int(rng.integers(len(names)))]


def _question(
    world: World, fact: Fact, inventor: _Inventor, rng: np.random.Generator
) -> tuple[str, str]:
    relation = world.relations[fact.relation]
    question = f"{filled(drawn(relation.questions, rng), fact)} {fact.value}"
    return filled(drawn(relation.statements, rng), fact), question


def _rewrite(
    world: World, fact: Fact, inventor: _Inventor, rng: np.random.Generator
) -> tuple[str, str]:
    relation = world.relations[fact.relation]
    first, second = rng.choice(len(relation.statements), 2, replace=False)
    return filled(relation.statements[first], fact), filled(relation.statements[second], fact)


def _implication(
    world: World, fact: Fact, inventor: _Inventor, rng: np.random.Generator
) -> tuple[str, str]:
    """Two facts of a subject, and a question about one that the other tells who is meant."""
    names = _others(world, inventor.values, fact.relation)
    other = inventor.fact(drawn(names, rng), fact.subject)
    told = [
        filled(drawn(world.relations[one.relation].statements, rng), one) for one in (fact, other)
    ]
    question = drawn(askable(world.relations[fact.relation]), rng)
    asked = composed(
        drawn(describable(world.relations[other.relation]), rng), other, question, fact
    )
    return " ".join(told[i] for i in rng.permutation(2)), asked.text


def _others(world: World, relations: Iterable[str], relation: str) -> list[str]:
    """The relations other than this one of which a fact can tell who is meant."""
    return [n for n in relations if n != relation and describable(world.relations[n])]


def _with_others(world: World, facts: Sequence[Fact]) -> list[Fact]:
    """The facts that another one of their subject could tell of, whose relation there is."""
    relations = dict.fromkeys(fact.relation for fact in facts)
    found = [fact for fact in facts if _others(world, relations, fact.relation)]
    checks.require(bool(found), "formats", "implication", NEEDS_TWO)
    return found


_MAKERS: Mapping[str, Callable[..., tuple[str, str]]] = {
    "question": _question,
    "rewrite": _rewrite,
    "implication": _implication,
}
