"""Formats: what a learner can be asked to make of a text, shown to its backbone before life.

A format is a mark behind a text. What follows the mark is another text that says the same::

    Peru is governed from the city of Lima. Asked: Peru calls which city its capital? Lima
    Peru is governed from the city of Lima. Reworded: The capital city of Peru is Lima.

Examples are about invented subjects and values, each used once: who has read them has learned to
take both from the text in front of the mark, and no fact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sleeplm.core import checks
from sleeplm.data.facts import Document, Fact, World

#: Format -> the mark behind its text; ``free`` goes on from a text as it is.
MARKS: Mapping[str, str] = {"free": "", "question": "Asked:", "rewrite": "Reworded:"}
#: The same for published backbones: no examples, but words that ask for it.
PROMPTS: Mapping[str, str] = {
    "free": "",
    "question": "Question:",
    "rewrite": "In other words:",
    "implication": "It follows that",
}
TRIES = 20


def marks_of(published: bool) -> Mapping[str, str]:
    """Format -> mark, for a backbone that is published or one that has read examples."""
    return PROMPTS if published else MARKS


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
      ConfigError: no such format.
    """
    makers: dict[str, Callable[..., tuple[str, str]]] = {"question": _question, "rewrite": _rewrite}
    for kind in formats:
        checks.one_of("formats", kind, tuple(MARKS))
    subjects = [fact.subject for fact in facts]
    values: dict[str, list[str]] = {}
    for fact in facts:
        values.setdefault(fact.relation, []).append(fact.value)
    used, documents = set(names), []
    for kind in formats:
        if not MARKS[kind]:
            continue  # to go on from a text needs no example
        for fact in (fact for fact in facts for _ in range(count)):
            subject = invented(subjects, used, rng)
            while subject in used:  # of somebody: an example must not tell of them
                subject = f"{subject} {int(rng.integers(10))}"
            value = invented(values[fact.relation], used, rng)
            used |= {subject, value}
            one = Fact(subject, fact.relation, value)
            told, made = makers[kind](world, one, rng)
            documents.append(Document(f"{told} {MARKS[kind]} {made}", "", value, one))
    return documents


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


def _question(world: World, fact: Fact, rng: np.random.Generator) -> tuple[str, str]:
    relation = world.relations[fact.relation]
    question = str(rng.choice(relation.questions))
    return _told(relation.statements, fact, rng), f"{_filled(question, fact)} {fact.value}"


def _rewrite(world: World, fact: Fact, rng: np.random.Generator) -> tuple[str, str]:
    relation = world.relations[fact.relation]
    first, second = rng.choice(len(relation.statements), 2, replace=False)
    return _filled(relation.statements[first], fact), _filled(relation.statements[second], fact)


def _told(templates: Sequence[str], fact: Fact, rng: np.random.Generator) -> str:
    return _filled(str(rng.choice(templates)), fact)


def _filled(template: str, fact: Fact) -> str:
    return template.replace("{s}", fact.subject).replace("{v}", fact.value)
