"""Contexts that dreams are written from, in formats, and what is held back of them.

A context of the format ``free`` is a text whose end is held back. One of a marked format is a whole
statement and a mark behind it (:mod:`sleeplm.data.formats`), so what its dream is held against is
another statement of the same fact, or another piece of the same passage: the day's texts have to
agree with it. From a text that has no such other nothing is written: held against itself, a copy
of it would be the best of dreams.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sleeplm.bench.material import Material
from sleeplm.core import checks
from sleeplm.core.types import PyTree
from sleeplm.data.facts import Document, Fact
from sleeplm.data.formats import ASKED, CHATTING, SHOWN, Style
from sleeplm.data.passage_days import PASSAGE
from sleeplm.data.sentences import sentences
from sleeplm.data.text import token_lists
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.write import Contexts, hold_back


def style_of(config: Any) -> Style:
    """How the backbone of a run is asked for formats."""
    if not config.backbone:
        return SHOWN
    return CHATTING if config.chat or config.dream_chat else ASKED


def check_material(materials: Iterable[Material], config: DreamConfig, style: Style) -> None:
    """Checks that every day has something to be dreamt of, and rewarded by.

    Args:
      style: see :func:`style_of`.

    Raises:
      ConfigError: dreams are to be rewarded by questions, and some day has none; or written in a
        marked format, and no statement of some day fits into a context, or no text at all has
        another to be held against.
    """
    materials = list(materials)
    days = [documents for material in materials for documents in material.curriculum.days]
    if any(style.words[kind] for kind in config.formats):
        remedy = "no two texts of a day tell the same, to hold one against what is dreamt from the "
        remedy += "other: tell more statements of a fact (day_statements), or use ['free']"
        paired = any(
            _another(documents, range(len(documents)), i) is not None
            for documents in days
            for i in range(len(documents))
        )
        checks.require(paired, "dream.formats", config.formats, remedy)
    for material in materials:
        for day, documents in enumerate(material.curriculum.days):
            if config.reward == "questions":
                remedy = f"day {day + 1} has no question to hold back: use 'agreement'"
                some = any(document.prompt for document in documents)
                checks.require(some, "dream.reward", config.reward, remedy)
            for kind in config.formats:
                pairs = kind == "implication" and style.pairs
                what = "two statements about one subject" if pairs else "statement"
                remedy = f"no {what} of day {day + 1} fits with its mark ({kind}): use more"
                remedy += ", or leave it out of dream.formats" if pairs else ""
                found = written_from(material, day, range(len(documents)), kind, config, style)
                room = config.context_tokens
                checks.require(next(found, None) is not None, "dream.context_tokens", room, remedy)


def in_formats(
    material: Material, day: int, left: Sequence[int], config: DreamConfig, style: Style
) -> PyTree:
    """Contexts in the formats in turn, and the memory of what is held back, a row for each.

    Args:
      left: the day's texts to write from, in the order in which they are taken.

    Returns:
      {"contexts": {"tokens" int32 [n, C], "length" int32 [n]}, "held": a memory of n rows}; empty
      rows where there are fewer texts than contexts.
    """
    documents, rows = material.curriculum.days[day], material.days[day]

    def with_other(kind: str) -> Iterator[tuple[list[int], list[int]]]:
        """Contexts, and what each is held against: of a free one its own end."""
        for i, context in written_from(material, day, left, kind, config, style):
            other = _another(documents, left, i) if style.words[kind] else i
            if other is not None:
                yield context, rows[other]

    queues = {kind: with_other(kind) for kind in config.formats}
    contexts, against, free = [], [], []
    for n in range(config.contexts):
        kind = config.formats[n % len(config.formats)]
        context, other = next(queues[kind], ([], []))
        contexts.append(context)
        against.append(other)
        free.append(not style.words[kind])
    given, held = rows_of(contexts, config), rows_of(against, config)
    seen = plain(hold_back(Contexts(**given), config.hold)[0])
    seen["tokens"] = np.where(np.asarray(free)[:, None], seen["tokens"], given["tokens"])
    seen["length"] = np.where(free, seen["length"], given["length"])
    memory = hold_back(Contexts(**held), config.hold)[1]
    return {"contexts": seen, "held": jax.tree.map(np.asarray, memory)}


def written_from(
    material: Material,
    day: int,
    left: Sequence[int],
    kind: str,
    config: DreamConfig,
    style: Style,
) -> Iterator[tuple[int, list[int]]]:
    """The texts that can be written from in a format, with their contexts.

    Free ones go on from any text. Marked ones are whole statements that fit; of implications, where
    a backbone has seen examples, two of them, that tell two facts of one subject. Backbones that
    chat are asked in a turn of a conversation.
    """
    documents, pairs = material.curriculum.days[day], kind == "implication" and style.pairs
    for i in left:
        document = documents[i]
        if not style.words[kind]:
            yield i, material.days[day][i]
            continue
        if document.prompt:
            continue
        text = document.text
        if pairs:
            others = (j for j in left if _tells_another(documents[j], document.fact))
            if (j := next(others, None)) is None:
                continue
            text = f"{documents[j].text} {text}"
        row = _asking(material.asker, text, style.words[kind], style.chat)
        if len(row) <= config.context_tokens:
            yield i, row


def _asking(tokenizer: Any, text: str, words: str, chat: bool) -> list[int]:
    """A text and its mark; in a conversation the turn that asks, up to where the answer begins."""
    nobody = Fact("", "", "")
    if not chat:
        return token_lists(tokenizer, [Document(f"{text} {words}", "", "", nobody)])[0][:-1]
    asked = f"{words}\n\n{text}"
    row = token_lists(tokenizer, [Document(asked, asked, "", nobody)])[0]
    return row[: -1 - len(tokenizer.turns.end)]


def rows_of(rows: Sequence[Sequence[int]], config: DreamConfig) -> dict[str, Any]:
    """Texts as contexts, cut to ``config.context_tokens``: fields of ``Contexts``."""
    shape = (config.contexts, config.context_tokens)
    tokens, length = np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
    for i, row in enumerate(rows):
        cut = row[: shape[1]]
        tokens[i, : len(cut)], length[i] = cut, len(cut)
    return {"tokens": tokens, "length": length}


def plain(contexts: Contexts) -> dict[str, Any]:
    """The same as a mapping of arrays on the host."""
    return {name: np.asarray(x) for name, x in contexts._asdict().items()}


def _another(documents: Sequence[Document], left: Iterable[int], i: int) -> int | None:
    """Another text that tells what text ``i`` does: the first that repeats none of its sentences.

    Pieces of a passage overlap: of those that all share a sentence with it the first; None where
    nothing tells of the same.
    """
    found = [j for j in left if j != i and _tells_same(documents[j], documents[i])]
    apart = (j for j in found if not _share_a_sentence(documents[j].text, documents[i].text))
    return next(apart, found[0] if found else None)


def _tells_same(one: Document, other: Document) -> bool:
    """Whether both are statements of one fact, or pieces of one passage."""
    if one.prompt or one.text == other.text:
        return False
    if one.fact.relation == PASSAGE == other.fact.relation:
        return one.fact.value == other.fact.value
    return one.fact == other.fact


def _share_a_sentence(one: str, other: str) -> bool:
    both = ((one, other), (other, one))
    return any(sentence in text for text, told in both for sentence in sentences(told))


def _tells_another(document: Document, fact: Fact) -> bool:
    same_subject = document.fact.subject == fact.subject
    return not document.prompt and same_subject and document.fact != fact
