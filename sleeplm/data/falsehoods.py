"""Planted falsehoods: statements of a day that contradict the rest of it, and who repeats them.

Surprise alone picks junk and falsehoods; a world that has some says whether a selection does.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sleeplm.data.facts import Document, Fact, World
from sleeplm.data.facts import statements as statements_of

#: What a text can be, see :class:`Truth`.
TRUE, PLANTED, FALSE, SILENT = "true", "planted", "false", "silent"


def with_falsehoods(
    world: World,
    facts: Sequence[Fact],
    choices: Mapping[str, Sequence[str]],
    share: float,
    rng: np.random.Generator,
) -> list[Document]:
    """Every statement of ``facts``, of which a share names the value of another subject.

    Wordings stay as they are, and so does ``fact``: a falsehood is a statement whose ``answer`` is
    not the value of its fact. No two falsehoods are about the same statement.

    Args:
      choices: relation -> its values. Where all of them are true, so is the statement.
      share: of the statements, to the nearest one. rng: draws which, and the values.
    """
    documents = statements_of(world, facts)
    wordings = [
        (fact, i) for fact in facts for i in range(len(world.relations[fact.relation].statements))
    ]
    true = {(fact.subject, fact.value) for fact in facts}
    for n in rng.permutation(len(documents))[: round(share * len(documents))]:
        fact, wording = wordings[n]
        others = [v for v in choices[fact.relation] if (fact.subject, v) not in true]
        if not others:
            continue
        false = dataclasses.replace(fact, value=others[int(rng.integers(len(others)))])
        told = statements_of(world, [false])[wording]
        documents[n] = dataclasses.replace(told, fact=fact)
    return documents


def falsehoods(documents: Iterable[Document]) -> list[Document]:
    """The planted ones among training texts."""
    return [d for d in documents if not d.prompt and d.answer != d.fact.value]


class Truth:
    """Tells whether a text is true, as far as it says anything that is known.

    A text is about the first subject that it names. It is ``true`` if it names one of that
    subject's values and, of the values that its relations may have, no other; ``planted`` if it
    names a value that some statement was made to say of it; ``false`` if another one; and
    ``silent`` if it names no such value, or no subject. Longer names come before those inside them;
    a word that is spelt as a value (As, the symbol of arsenic) is taken for it.

    Args:
      documents: all training texts, true and planted ones.
      choices: relation -> its values.
    """

    def __init__(self, documents: Sequence[Document], choices: Mapping[str, Sequence[str]]):
        facts = {document.fact for document in documents}
        self.true: dict[str, set[str]] = collections.defaultdict(set)
        self._possible: dict[str, set[str]] = collections.defaultdict(set)
        self._planted = {(d.fact.subject, d.answer) for d in falsehoods(documents)}
        for fact in facts:
            self.true[fact.subject].add(fact.value)
            self._possible[fact.subject] |= set(choices[fact.relation])
        names = {*self.true, *(value for values in choices.values() for value in values)}
        longest = sorted(map(re.escape, names), key=lambda name: (-len(name), name))
        self._names = re.compile(rf"(?<!\w)(?:{'|'.join(longest)})(?!\w)")

    def __call__(self, text: str) -> str:
        """What ``text`` is: one of the four words above."""
        named = self._names.findall(text)
        subject = next((name for name in named if name in self.true), None)
        if subject is None:
            return SILENT
        told = {name for name in named if name != subject and name in self._possible[subject]}
        wrong = told - self.true[subject]
        if not told:
            return SILENT
        if not wrong:
            return TRUE
        return PLANTED if any((subject, value) in self._planted for value in wrong) else FALSE
