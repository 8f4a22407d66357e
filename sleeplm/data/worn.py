"""Worn wordings: questions as people in a hurry ask them.

With ten wordings of a question a small model learns ten sentences, and a held-out one may fall
between them. Every question is therefore also asked with a word dropped, two neighbours swapped, or
the subject at the other end: what stays the same is the words that tell which relation is meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from sleeplm.data.facts import Document, Fact, World

SUBJECT, COLON = "{s}", ":"
TRIES = 20
#: A worn wording differs from every held-out one in at least this many words.
LEAST_APART = 3


def worn(template: str, held_out: Iterable[str], rng: np.random.Generator) -> str:
    """A question template with one of the three kinds of wear.

    ``template`` itself where no try is far enough from the held-out wordings.
    """
    avoided = [Counter(_words(other)) for other in held_out]
    words = _words(template)
    for _ in range(TRIES):
        changed = _wear(words, rng)
        bag = Counter(changed)
        far = all(((bag - o) + (o - bag)).total() >= LEAST_APART for o in avoided)
        if changed != words and far:
            return " ".join(changed).replace(f" {COLON}", COLON) + "?"
    return template


def worn_questions(
    world: World, facts: Sequence[Fact], count: int, rng: np.random.Generator
) -> list[Document]:
    """``count`` worn questions a fact, of different training questions where there are so many."""
    documents = []
    for fact in facts:
        relation = world.relations[fact.relation]
        order = rng.permutation(len(relation.questions))
        for i in range(count):
            template = relation.questions[order[i % len(order)]]
            template = worn(template, relation.held_out_questions, rng)
            prompt = template.replace(SUBJECT, fact.subject)
            documents.append(Document(f"{prompt} {fact.value}", prompt, fact.value, fact))
    return documents


def _words(template: str) -> list[str]:
    return template.rstrip("?").replace(COLON, f" {COLON}").split()


def _wear(words: list[str], rng: np.random.Generator) -> list[str]:
    kind = rng.integers(3)
    others = [i for i, word in enumerate(words) if word not in (SUBJECT, COLON)]
    if kind == 0 and len(others) > 2:
        dropped = int(rng.choice(others))
        return words[:dropped] + words[dropped + 1 :]
    if kind == 1 and len(words) > 3:
        i = int(rng.integers(len(words) - 1))
        return [*words[:i], words[i + 1], words[i], *words[i + 2 :]]
    rest = [words[i] for i in others]
    return [SUBJECT, *rest] if words[0] != SUBJECT else [*rest, SUBJECT]
