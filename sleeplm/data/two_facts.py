"""Questions that need two facts: one says who is meant, the other is asked for.

Of "Peru has Lima as its capital city." and "Peru lies in South America." comes::

    The one that has Lima as its capital city lies in which region? South America

No wording is new: the subject of a question is replaced by what a statement says of it.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from sleeplm.data.facts import Document, Fact, Relation, World

T = TypeVar("T")
SUBJECT = "{s}"
NAMELESS = "the one that"


def describable(relation: Relation, held_out: bool = False) -> tuple[str, ...]:
    """The statements that can say who is meant: a subject, then what it does.

    Args:
      held_out: those that no training text uses, if there are any.
    """
    wordings = (relation.held_out_statements, relation.statements)
    for templates in wordings if held_out else wordings[1:]:
        if found := tuple(t for t in templates if t.startswith(f"{SUBJECT} ")):
            return found
    return ()


def composed(statement: str, first: Fact, question: str, second: Fact) -> Document:
    """The question about ``second`` whose subject is told by ``first``.

    Args:
      statement, question: templates; the first begins with its subject, and neither are the
        question's subject and a colon one word.
    """
    told = statement.removeprefix(f"{SUBJECT} ").removesuffix(".").replace("{v}", first.value)
    prompt = question.replace(SUBJECT, f"{NAMELESS} {told}")
    prompt = prompt[:1].upper() + prompt[1:]
    return Document(f"{prompt} {second.value}", prompt, second.value, second)


def partners(world: World, facts: Iterable[Fact]) -> dict[Fact, list[Fact]]:
    """For each fact the others of its subject that tell who is meant.

    Their values must be the subject's alone, among all facts of the world, and their relation have
    a statement that :func:`describable` finds. Facts without one are left out.
    """
    facts = list(facts)
    owners = collections.Counter((fact.relation, fact.value) for fact in world.facts)
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        unique = owners[fact.relation, fact.value] == 1
        if unique and describable(world.relations[fact.relation]):
            by_subject.setdefault(fact.subject, []).append(fact)
    found = {fact: [o for o in by_subject.get(fact.subject, []) if o != fact] for fact in facts}
    return {fact: others for fact, others in found.items() if others}


def two_fact_exam(world: World, facts: Sequence[Fact]) -> list[Document]:
    """A question that needs two facts about each fact that has one, in held-out wordings.

    Which wordings, and which other fact, depends on the fact alone.
    """
    documents = []
    for fact, others in partners(world, facts).items():
        rng = np.random.default_rng(list(f"{fact.subject}\0{fact.relation}".encode()))
        documents.append(_about(world, fact, others, True, rng))
    return documents


def two_fact_questions(
    world: World, facts: Sequence[Fact], count: int, rng: np.random.Generator
) -> list[Document]:
    """``count`` questions that need two facts about each fact that has one; training wordings."""
    return [
        _about(world, fact, others, False, rng)
        for fact, others in partners(world, facts).items()
        for _ in range(count)
    ]


def _about(
    world: World, fact: Fact, others: Sequence[Fact], held_out: bool, rng: np.random.Generator
) -> Document:
    first = drawn(others, rng)
    statement = drawn(describable(world.relations[first.relation], held_out), rng)
    return composed(
        statement, first, drawn(askable(world.relations[fact.relation], held_out), rng), fact
    )


def askable(relation: Relation, held_out: bool = False) -> tuple[str, ...]:
    """The questions that a described subject fits into: not "{s}: what is its capital?"."""
    templates = relation.held_out_questions if held_out else relation.questions
    return tuple(t for t in templates if f"{SUBJECT}:" not in t) or templates


def drawn(choices: Sequence[T], rng: np.random.Generator) -> T:
    """One of the choices, each with equal chance."""
    return choices[int(rng.integers(len(choices)))]
