"""Planted falsehoods: statements of a day that contradict the rest of it, and who repeats them.

Surprise alone picks junk and falsehoods; a world that has some says whether a selection does.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sleeplm.data.facts import Document, Fact, World
from sleeplm.data.facts import statements as statements_of
from sleeplm.data.two_facts import NAMELESS

#: What a text can be, see :class:`Truth`.
TRUE, PLANTED, FALSE, SILENT = "true", "planted", "false", "silent"
_NAMELESS = re.compile(rf"\b{NAMELESS}\b", re.IGNORECASE)


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

    A text that names no subject may describe one (:mod:`sleeplm.data.two_facts`): "the one that has
    Lima as its capital city". It is about the only subject with that value, in the relation whose
    statements are worded so, or in any if none are; what it says is the rest. Where a planted value
    describes, the rest may be false of the one whom it fits, and what is told of the one of whom it
    was planted: that is ``planted`` too.

    Args:
      documents: all training texts, true and planted ones.
      choices: relation -> its values.
    """

    def __init__(self, documents: Sequence[Document], choices: Mapping[str, Sequence[str]]):
        facts = {document.fact for document in documents}
        self.true: dict[str, set[str]] = collections.defaultdict(set)
        self._possible: dict[str, set[str]] = collections.defaultdict(set)
        self._planted = {(d.fact.subject, d.answer) for d in falsehoods(documents)}
        self._owners: dict[str, dict[str, set[str]]] = collections.defaultdict(dict)
        for fact in facts:
            self.true[fact.subject].add(fact.value)
            self._possible[fact.subject] |= set(choices[fact.relation])
            self._owners[fact.value].setdefault(fact.relation, set()).add(fact.subject)
        self._wordings = {wording for d in documents if (wording := _wording(d))}
        names = {*self.true, *(value for values in choices.values() for value in values)}
        longest = sorted(map(re.escape, names), key=lambda name: (-len(name), name))
        self._names = re.compile(rf"(?<!\w)(?:{'|'.join(longest)})(?!\w)")

    def __call__(self, text: str) -> str:
        """What ``text`` is: one of the four words above."""
        named = self._names.findall(text)
        subject = next((name for name in named if name in self.true), None)
        if subject is None:
            return self._of_described(text)
        return self._said_of(subject, {name for name in named if name != subject})

    def _said_of(self, subject: str, named: set[str]) -> str:
        told = named & self._possible[subject]
        wrong = told - self.true[subject]
        if not told:
            return SILENT
        if not wrong:
            return TRUE
        return PLANTED if any((subject, value) in self._planted for value in wrong) else FALSE

    def _of_described(self, text: str) -> str:
        """What a text is that says who is meant instead of naming a subject."""
        if (mark := _NAMELESS.search(text)) is None:
            return SILENT
        if (value := self._names.search(text, mark.end())) is None:
            return SILENT
        if (subject := self._described(text, mark.end(), value)) is None:
            return SILENT
        rest = set(self._names.findall(f"{text[: value.start()]} {text[value.end() :]}"))
        said = self._said_of(subject, rest)
        of_lies = [one for one, planted in self._planted if planted == value.group()]
        follows = any(self._said_of(one, rest) in (TRUE, PLANTED) for one in of_lies)
        return PLANTED if said == FALSE and follows else said

    def _described(self, text: str, start: int, value: re.Match[str]) -> str | None:
        """The only subject whom that value, in the wording around it, describes."""
        owners = self._owners.get(value.group(), {})
        before, behind = text[start : value.start()], text[value.end() :]
        found = [w for w in self._wordings if w.before == before and behind.startswith(w.behind)]
        longest = max((len(w.behind) for w in found), default=0)
        worded = {w.relation for w in found if len(w.behind) == longest} or owners.keys()
        subjects = {one for relation in worded for one in owners.get(relation, ())}
        return subjects.pop() if len(subjects) == 1 else None


class _Wording(NamedTuple):
    """What stands between a statement's subject and its value, and behind that."""

    before: str
    behind: str
    relation: str


def _wording(document: Document) -> _Wording | None:
    """How a statement that begins with its subject goes on; see ``two_facts.composed``."""
    subject = f"{document.fact.subject} "
    if document.prompt or not document.text.startswith(subject):
        return None
    before, value, behind = document.text[len(subject) - 1 :].partition(f" {document.answer}")
    if not value:
        return None
    return _Wording(f"{before} ", behind.removesuffix("."), document.fact.relation)
