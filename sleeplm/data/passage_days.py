"""Days of passages to read, as a curriculum: questions are asked without the text, never read.

A day's passages are cut into pieces, every sentence together with its neighbours, as far as they
fit into a row (:func:`in_pieces`). Each piece begins with the passage's title, without which
nothing would say what a question means.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Mapping, Sequence

from sleeplm.core.checks import require
from sleeplm.data.answers import is_in
from sleeplm.data.curriculum import Curriculum, check_curriculum, spread
from sleeplm.data.facts import Document, Fact
from sleeplm.data.labels import MOST_CUES
from sleeplm.data.passages import Passage, PassageQuestion
from sleeplm.data.plain import CUE_WORDS, first_words
from sleeplm.data.sentences import overlapping, sentences

PASSAGE, ANSWER = "passage", "answer"  # the relations of what is read, and of what is asked
ASK = "{q}"  # how a question is asked: as it is


def deal(
    passages: Sequence[Passage], sizes: Sequence[int], seed: int
) -> tuple[tuple[Passage, ...], ...]:
    """Days of ``sizes`` passages each, in an order of the seed.

    A single passage to read is number ``seed`` in the order of the file, beginning again behind
    the last one: learners with seeds in a row read all of them, one each.

    Raises:
      ConfigError: there are not as many.
    """
    check_enough(sizes, len(passages))
    if list(sizes) == [1]:
        return ((passages[seed % len(passages)],),)
    order = list(passages)
    random.Random(f"passages {seed}").shuffle(order)
    edges = [0, *itertools.accumulate(sizes)]
    return tuple(tuple(order[a:b]) for a, b in itertools.pairwise(edges))


def check_enough(sizes: Sequence[int], count: int) -> None:
    """Checks that days of ``sizes`` passages can be made of ``count``.

    Raises:
      ConfigError: they cannot.
    """
    remedy = f"{sum(sizes)} passages are asked for (facts_per_day of them a day), there are {count}"
    require(sum(sizes) <= count, "days", len(sizes), remedy)


def check_ask(field: str, ask: str) -> None:
    """Checks words around questions.

    Raises:
      ConfigError: they have no single place for the question, or outer spaces.
    """
    good = ask.count("{q}") == 1 and ask == ask.strip()
    require(good, field, ask, "needs one {q}, for the question, and no outer spaces")


def passage_curriculum(
    name: str,
    days: Sequence[Sequence[Passage]],
    *,
    pretrain: Sequence[Document],
    known: Sequence[Document],
    known_cues: Sequence[str],
    choices: Mapping[str, tuple[str, ...]],
    exam_per_day: int = 0,
    ask: str = ASK,
) -> Curriculum:
    """Days of whole passages, after a pretraining that knows none of them.

    Args:
      pretrain, known, known_cues, choices: what is read and asked besides: see
        :class:`~sleeplm.data.curriculum.Curriculum`.
      exam_per_day: questions about each day that every exam asks, spread evenly; 0 for all.
      ask: words around each question, in which ``{q}`` is the question; see :func:`check_ask`.

    Raises:
      ConfigError: a part is empty.
    """
    asked = [[question for passage in day for question in passage.questions] for day in days]
    asked = [spread(questions, exam_per_day or len(questions)) for questions in asked]
    exams = tuple(tuple(_question(question, ask) for question in part) for part in asked)
    curriculum = Curriculum(
        name=name,
        pretrain=tuple(pretrain),
        days=tuple(tuple(map(_whole, day)) for day in days),
        exams=exams,
        known=tuple(known),
        cues=tuple(tuple(dict.fromkeys(_cue(p.title, p.context, ()) for p in day)) for day in days),
        known_cues=tuple(spread(known_cues, MOST_CUES)),
        choices={**choices, ANSWER: tuple(sorted({d.answer for part in exams for d in part}))},
        accepted=tuple(tuple(question.answers for question in part) for part in asked),
    )
    check_curriculum(curriculum)
    return curriculum


def in_pieces(
    curriculum: Curriculum, encode: Callable[[Sequence[str]], list[list[int]]], room: int
) -> Curriculum:
    """The same with every passage cut into pieces, and a cue for each: its title, its first words.

    A cue ends before it would give an accepted answer of its day away, at the title at the latest.

    Args:
      encode: tokens of texts. room: tokens of a row; two of them are for the begin and the end of
        the text.
    """
    days = []
    for day, accepted in zip(curriculum.days, curriculum.accepted, strict=True):
        answers = list(dict.fromkeys(itertools.chain(*accepted)))
        cut = (_cut(whole, n, answers, encode, room - 2) for n, whole in enumerate(day))
        days.append([piece for pieces in cut for piece in pieces])
    cues = [list(dict.fromkeys(piece.fact.subject for piece in day)) for day in days]
    return dataclasses.replace(
        curriculum,
        days=tuple(map(tuple, days)),
        cues=tuple(tuple(spread(each, MOST_CUES)) for each in cues),
    )


def _whole(passage: Passage) -> Document:
    text = _titled(passage.title, passage.context)
    return Document(text, "", "", Fact(passage.title, PASSAGE, ""))


def _question(asked: PassageQuestion, ask: str) -> Document:
    prompt, answer = ask.replace("{q}", asked.question), asked.answers[0]
    return Document(f"{prompt} {answer}", prompt, answer, Fact(asked.question, ANSWER, answer))


def _cut(
    whole: Document, number: int, answers: Sequence[str], encode: Callable, room: int
) -> list[Document]:
    """Pieces of passage ``number`` of its day, which they name as the value of their fact."""
    title = whole.fact.subject
    context = whole.text.removeprefix(_titled(title, ""))

    def fits(piece: str) -> bool:
        return len(encode([_titled(title, piece)])[0]) <= room

    return [
        Document(
            _titled(title, piece), "", "", Fact(_cue(title, piece, answers), PASSAGE, str(number))
        )
        for piece in overlapping(sentences(context), fits)
    ]


def _titled(title: str, text: str) -> str:
    return f"{title}: {text}" if title else text


def _cue(title: str, text: str, answers: Sequence[str]) -> str:
    """Title and first words, as many as hold no answer; at least one word if there is no title."""
    least = 0 if title else 1
    for count in range(CUE_WORDS, least, -1):
        words = first_words(text, count)
        if not any(is_in(answer, words) for answer in answers):
            return _titled(title, words)
    return _titled(title, first_words(text, least)).strip()
