"""Worn wordings: questions as people in a hurry ask them.

With ten wordings of a question a small model learns ten sentences, and a held-out one may fall
between them. Questions are therefore also asked with a word dropped, two neighbours swapped, or
the subject at the other end; and scrambled: in any order, in another inflection, among little words
that mean nothing. What stays the same is the words that tell which relation is meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from sleeplm.data.facts import Document, Fact, World

SUBJECT, COLON = "{s}", ":"
TRIES = 20
SCRAMBLED = 0.5  # share of worn wordings
#: Words that do not tell one relation from another.
LITTLE = ("a", "an", "the", "of", "in", "on", "at", "to", "for", "from", "by", "with", "as", "is",
          "was", "are", "be", "does", "do", "did", "has", "have", "it", "that")  # fmt: skip
ASKING = ("what", "which")
#: A worn wording differs from every held-out one in at least this many words.
LEAST_APART = 3


def worn(template: str, held_out: Iterable[str], rng: np.random.Generator) -> str:
    """A question template with one of the kinds of wear.

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
    if rng.random() < SCRAMBLED:
        return _scrambled(words, rng)
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


def _scrambled(words: list[str], rng: np.random.Generator) -> list[str]:
    """What matters of a wording in any order, one to three little words, and perhaps "what"."""
    kept = [word[:1].lower() + word[1:] for word in words if word not in (SUBJECT, COLON)]
    kept = [word for word in kept if word not in (*LITTLE, *ASKING)]
    kept = [_inflected(word) if rng.random() < 0.3 else word for word in kept]
    kept += [str(word) for word in rng.choice(LITTLE, rng.integers(1, 4))]
    kept += [str(rng.choice(ASKING))] if rng.random() < 0.7 else []
    out = [kept[i] for i in rng.permutation(len(kept))]
    out.insert(0 if rng.random() < 0.5 else int(rng.integers(len(out) + 1)), SUBJECT)
    if out[0] != SUBJECT:
        out[0] = out[0][:1].upper() + out[0][1:]
    return out


def _inflected(word: str) -> str:
    """Another form of a word, as often as not of the same verb or noun: carries, carry."""
    for end, other in (("ies", "y"), ("ss", "ss"), ("s", ""), ("ed", "")):
        if word.endswith(end) and len(word) > len(end) + 2:
            return word.removesuffix(end) + other
    return word + "s"
