"""Labelled texts whose labels arrive day after day, as a curriculum.

A row becomes the question :data:`QUESTION` about its text, which the label in words answers
("direct_deposit" as "direct deposit"). Training and exam ask alike and never say the day: what
is new in an exam is the text. Rows come from files (:mod:`sleeplm.data.labelfiles`) or from
public data sets (:mod:`sleeplm.data.tasks`).
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from sleeplm.core.checks import require
from sleeplm.core.errors import ConfigError
from sleeplm.data.curriculum import Curriculum, check_curriculum, spread
from sleeplm.data.facts import Document, Fact
from sleeplm.data.files import words_of
from sleeplm.data.plain import CUE_WORDS, TEXT, first_words

LABEL = "label"  # the relation of a text and its label
QUESTION = "| What is this about?"
MAX_WORDS = 40
MOST_CUES = 1024

Row = tuple[str, str]  # text, label


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A labelled data set.

    Attributes:
      days: the labels of each day. train, test: (text, label) rows; those of labels that belong
        to no day are left out of a life.
    """

    name: str
    days: tuple[tuple[str, ...], ...]
    train: tuple[Row, ...]
    test: tuple[Row, ...]


def split_evenly(labels: Sequence[str], days: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """Labels in alphabetical order, shuffled by ``seed`` and cut into ``days`` almost equal days.

    Raises:
      ConfigError: ``days`` is not between 1 and the number of labels.
    """
    remedy = f"split {len(labels)} labels into 1 to {len(labels)} days"
    require(1 <= days <= len(labels), "days", days, remedy)
    order = sorted(labels)
    random.Random(f"labels {seed}").shuffle(order)
    edges = [len(order) * i // days for i in range(days + 1)]
    return tuple(tuple(order[a:b]) for a, b in itertools.pairwise(edges))


def label_curriculum(
    data: Labelled,
    *,
    pretrain: Sequence[Document],
    known: Sequence[Document],
    known_cues: Sequence[str],
    choices: Mapping[str, tuple[str, ...]],
    exam_per_day: int = 0,
    max_words: int = MAX_WORDS,
) -> Curriculum:
    """Days of labelled texts, after a pretraining that knows none of them.

    Texts are cut to their first ``max_words`` words. The labels of a day are mixed
    evenly, in training and in exams.

    Args:
      pretrain, known, known_cues, choices: what is read and asked besides: see
        :class:`~sleeplm.data.curriculum.Curriculum`.
      exam_per_day: test rows of each day that every exam asks, as many of each label as
        possible; 0 asks them all.

    Raises:
      ConfigError: two labels with the same words, or a day without test rows.
    """
    words = _in_words([label for day in data.days for label in day])
    days, exams = [], []
    train, test = _by_label(data.train), _by_label(data.test)
    for number, labels in enumerate(data.days, start=1):
        told = [_question(text, words[label], max_words) for text, label in _mixed(train, labels)]
        asked = [_question(text, words[label], max_words) for text, label in _turns(test, labels)]
        remedy = "no test row has a label of this day"
        require(bool(asked), f"{data.name}: day {number}", list(labels), remedy)
        days.append(tuple(told))
        exams.append(tuple(asked[: exam_per_day or None]))
    curriculum = Curriculum(
        name=data.name,
        pretrain=tuple(pretrain),
        days=tuple(days),
        exams=tuple(exams),
        known=tuple(known),
        cues=tuple(beginnings(document.fact.subject for document in day) for day in days),
        known_cues=tuple(spread(known_cues, MOST_CUES)),
        choices={**choices, LABEL: tuple(sorted(words.values()))},
    )
    check_curriculum(curriculum)
    return curriculum


def beginnings(texts: Iterable[str]) -> tuple[str, ...]:
    """The first words of texts, each beginning once, at most :data:`MOST_CUES` of them."""
    different = dict.fromkeys(first_words(text, CUE_WORDS) for text in texts)
    return tuple(spread(list(different), MOST_CUES))


def cut_to_rows(
    curriculum: Curriculum,
    encode: Callable[[Sequence[str]], list[list[int]]],
    pretrain_room: int,
    room: int,
) -> Curriculum:
    """Shortens labelled and plain texts to as many of their first words as fit into a row.

    Args:
      encode: tokens of texts. pretrain_room, room: tokens of a row of pretraining, and of days
        and exams; two of them are for the begin and the end of the text.
    """

    def cut(documents: Sequence[Document], most: int) -> tuple[Document, ...]:
        sizes = map(len, encode([document.text for document in documents]))
        return tuple(
            document if size <= most - 2 else _shortened(document, most - 2, encode)
            for document, size in zip(documents, sizes, strict=True)
        )

    return dataclasses.replace(
        curriculum,
        pretrain=cut(curriculum.pretrain, pretrain_room),
        days=tuple(cut(day, room) for day in curriculum.days),
        exams=tuple(cut(part, room) for part in curriculum.exams),
    )


def _shortened(document: Document, most: int, encode: Callable) -> Document:
    """The document with as many of its text's words as ``most`` tokens hold.

    If its first word alone is too long, as a web address can be, that word is cut too.
    """
    relation = document.fact.relation
    if relation not in (LABEL, TEXT):
        return document
    words = (document.fact.subject if relation == LABEL else document.text).split()
    rest = f"{QUESTION} {document.answer}" if relation == LABEL else ""
    *sizes, fixed = map(len, encode([*words, rest]))  # no token spans a space between words
    kept = sum(total <= most - fixed for total in itertools.accumulate(sizes))
    text = " ".join(words[:kept]) or words[0]
    while not kept and len(text) > 1 and len(encode([text])[0]) > most - fixed:
        text = text[: len(text) * 3 // 4]
    if relation == LABEL:
        return _question(text, document.answer, len(words))
    return dataclasses.replace(document, text=text)


def _question(text: str, answer: str, max_words: int) -> Document:
    text = first_words(text, max_words)
    prompt = f"{text} {QUESTION}"
    return Document(f"{prompt} {answer}", prompt, answer, Fact(text, LABEL, answer))


def _in_words(labels: Iterable[str]) -> dict[str, str]:
    words: dict[str, str] = {}
    for label in labels:
        other = next((o for o, w in words.items() if w == words_of(label)), label)
        if other != label:
            remedy = f"reads as {words_of(label)!r}, as {other!r} does: rename one"
            raise ConfigError(LABEL, label, remedy)
        words[label] = words_of(label)
    return words


def _by_label(rows: Iterable[Row]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for text, label in rows:
        texts.setdefault(label, []).append(text)
    return texts


def _mixed(texts: Mapping[str, list[str]], labels: Iterable[str]) -> list[Row]:
    """All rows of ``labels``, each label spread evenly over them."""
    rows = [
        ((i + 0.5) / len(texts[label]), text, label)
        for label in labels
        for i, text in enumerate(texts.get(label, ()))
    ]
    return [(text, label) for _, text, label in sorted(rows, key=lambda row: row[0])]


def _turns(texts: Mapping[str, list[str]], labels: Iterable[str]) -> list[Row]:
    """All rows of ``labels``: the first of each label, then the second of each, and so on."""
    rows = [(i, text, label) for label in labels for i, text in enumerate(texts.get(label, ()))]
    return [(text, label) for _, text, label in sorted(rows, key=lambda row: row[0])]
