"""Contexts that dreams are written from, in formats, and what is held back of them.

A context of the format ``free`` is a text whose end is held back. One of a marked format is a whole
statement and a mark behind it (:mod:`sleeplm.data.formats`), so what its dream is held against is
another statement of the same fact: the day's texts have to agree with it.
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
from sleeplm.data.text import token_lists
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.write import Contexts, hold_back


def style_of(config: Any) -> Style:
    """How the backbone of a run is asked for formats."""
    if not config.backbone:
        return SHOWN
    return CHATTING if config.chat else ASKED


def check_material(materials: Iterable[Material], config: DreamConfig, style: Style) -> None:
    """Checks that every day has something to be dreamt of, and rewarded by.

    Args:
      style: see :func:`style_of`.

    Raises:
      ConfigError: dreams are to be rewarded by questions, and some day has none; or written in a
        marked format, and no statement of some day fits into a context.
    """
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
    queues = {
        kind: written_from(material, day, left, kind, config, style) for kind in config.formats
    }
    contexts, against, free = [], [], []
    for n in range(config.contexts):
        kind = config.formats[n % len(config.formats)]
        i, context = next(queues[kind], (None, []))
        contexts.append(context)
        free.append(not style.words[kind])
        if i is None or free[-1]:
            against.append([] if i is None else rows[i])
            continue
        same = (j for j in left if j != i and _tells(documents[j], documents[i].fact))
        against.append(rows[next(same, i)])
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
        row = _asking(material.tokenizer, text, style.words[kind], style.chat)
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


def _tells(document: Document, fact: Fact) -> bool:
    return not document.prompt and document.fact == fact


def _tells_another(document: Document, fact: Fact) -> bool:
    same_subject = document.fact.subject == fact.subject
    return not document.prompt and same_subject and document.fact != fact
