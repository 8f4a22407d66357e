"""What a life is about, whatever it comes from: texts before it, its days, and its exams.

Worlds of facts, files of your own and labelled data sets all become one :class:`Curriculum`; a
run sees nothing else. Documents of ``pretrain`` and ``days`` are read; those of ``exams`` and
``known`` are only ever asked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.data.facts import Document, Fact, World, exam, subjects
from sleeplm.data.facts import questions as questions_of
from sleeplm.data.facts import statements as statements_of
from sleeplm.data.falsehoods import with_falsehoods
from sleeplm.data.formats import examples
from sleeplm.data.two_facts import two_fact_exam, two_fact_questions
from sleeplm.data.worn import worn_questions


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Days of texts, and the questions about them.

    Attributes:
      name: for people.
      pretrain: texts read before the first day.
      days: training texts of each day.
      exams: questions about each day, none of which is read: held-out wordings, or test rows.
      known: questions about what ``pretrain`` told; at least one.
      cues: per day, short texts that memory may be asked from: beginnings of the day's training
        texts (subjects of facts, first words of texts), never an answer.
      known_cues: the same of ``pretrain``.
      choices: relation -> its different values: ``log2(len(choices[r]))`` bits answer a question
        about ``r``.
      accepted: per day, for each question of its exam, all answers that count where answers are
        scored as text; empty where they are not.
    """

    name: str
    pretrain: tuple[Document, ...]
    days: tuple[tuple[Document, ...], ...]
    exams: tuple[tuple[Document, ...], ...]
    known: tuple[Document, ...]
    cues: tuple[tuple[str, ...], ...]
    known_cues: tuple[str, ...]
    choices: Mapping[str, tuple[str, ...]]
    accepted: tuple[tuple[tuple[str, ...], ...], ...] = ()


def digest(curriculum: Curriculum) -> str:
    """sha256 (hex) of the whole content; equal curricula have equal digests."""

    def plain(documents: Iterable[Document]) -> list:
        return [(d.text, d.prompt, d.answer, *dataclasses.astuple(d.fact)) for d in documents]

    content = {
        "name": curriculum.name,
        "pretrain": plain(curriculum.pretrain),
        "days": [plain(day) for day in curriculum.days],
        "exams": [plain(part) for part in curriculum.exams],
        "known": plain(curriculum.known),
        "cues": [curriculum.cues, curriculum.known_cues],
        "choices": dict(curriculum.choices),
    }
    if curriculum.accepted:
        content["accepted"] = curriculum.accepted
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def from_world(
    world: World,
    *,
    statements: int,
    questions: int,
    exam_pretrain: int,
    rng: np.random.Generator,
    exam_per_day: int = 0,
    wear: float = 0.0,
    falsehoods: float = 0.0,
    day_statements: int = 0,
    day_questions: int = -1,
    formats: Sequence[str] = (),
    format_examples: int = 0,
    exam_facts: int = 1,
) -> Curriculum:
    """The curriculum of a world of facts.

    Pretraining tells each of its facts in ``statements`` and ``questions`` of the training
    wordings, drawn per fact; days are told in all of them, unless you say otherwise.

    Args:
      exam_pretrain: pretraining facts that every exam asks, spread evenly.
      exam_per_day: facts of each day that every exam asks, spread evenly; 0 asks them all.
      wear: share of pretraining's questions whose wording is worn (:mod:`sleeplm.data.worn`);
        days are told as many worn questions on top of their own.
      falsehoods: share of a day's statements that name the value of another subject
        (:mod:`sleeplm.data.falsehoods`). Questions and exams stay true.
      day_statements, day_questions: wordings that a day tells each of its facts in, drawn per
        fact; 0 statements, or -1 questions, for all of them.
      formats, format_examples: which formats pretraining shows, and how many examples of each for
        every one of its facts (:mod:`sleeplm.data.formats`); with implications it also asks as
        many questions that need two facts.
      exam_facts: that a question of an exam needs: 1, or 2 (:mod:`sleeplm.data.two_facts`).

    Raises:
      ConfigError: a day has no question that needs two facts, or a setting does not suit.
    """
    names = [name for fact in world.facts for name in (fact.subject, fact.value)]
    before = told(world, world.pretrain, statements, questions, rng, wear)

    def day(facts: Sequence[Fact]) -> tuple[Document, ...]:
        return _day(world, facts, wear, falsehoods, day_statements, day_questions, rng)

    days = tuple(day(facts) for facts in world.days)
    # Last, and with their own generator: all else is the same with formats and without.
    own = rng.spawn(1)[0]
    before += examples(world, world.pretrain, formats, format_examples, names, own)
    if "implication" in formats:
        before += two_fact_questions(world, world.pretrain, format_examples, own)
    curriculum = Curriculum(
        name=world.name,
        pretrain=tuple(before),
        days=days,
        exams=tuple(_asked(world, facts, exam_facts, exam_per_day) for facts in world.days),
        known=_asked(world, world.pretrain, exam_facts, exam_pretrain),
        cues=tuple(subjects(facts) for facts in world.days),
        known_cues=subjects(world.pretrain),
        choices=choices_of(world.facts),
    )
    check_curriculum(curriculum)
    for document in repeated(curriculum):
        remedy = "a training text asks the same: word exams in a way that no text is worded"
        raise ConfigError("exam", document.prompt, remedy)
    return curriculum


def _asked(world: World, facts: Sequence[Fact], needed: int, most: int) -> tuple[Document, ...]:
    """An exam's questions about ``facts``, at most so many of them, spread evenly; 0: all."""
    found = exam(world, facts) if needed == 1 else two_fact_exam(world, facts)
    remedy = "no two facts of one subject of which one tells it from all others: use 1"
    checks.require(bool(found), "exam_facts", needed, remedy)
    return tuple(spread(found, most or len(found)))


def told(
    world: World,
    facts: Sequence[Fact],
    statements: int,
    questions: int,
    rng: np.random.Generator,
    wear: float = 0.0,
) -> list[Document]:
    """``facts`` in ``statements`` and ``questions`` training wordings each, drawn per fact.

    A share ``wear`` of the questions has a worn wording instead.
    """
    tired = round(questions * wear)
    texts = _some(statements_of(world, facts), statements, rng)
    texts += _some(questions_of(world, facts), questions - tired, rng)
    return texts + worn_questions(world, facts, tired, rng)


def _day(
    world: World,
    facts: Sequence[Fact],
    wear: float,
    share: float,
    statements: int,
    questions: int,
    rng: np.random.Generator,
) -> tuple[Document, ...]:
    """A day's facts in so many statements, a share of them false, questions, and worn ones."""
    asked = questions_of(world, facts)
    if questions >= 0:
        asked = _some(asked, questions, rng)
    tired = round(wear * len(asked) / max(len(facts), 1))
    worn = worn_questions(world, facts, tired, rng)
    # Their own generator: whatever else is drawn is the same with falsehoods and without.
    told = with_falsehoods(world, facts, choices_of(world.facts), share, rng.spawn(1)[0])
    return (*(_some(told, statements, rng) if statements else told), *asked, *worn)


def _some(documents: list[Document], count: int, rng: np.random.Generator) -> list[Document]:
    """``count`` of the wordings of every fact (documents come fact by fact)."""
    by_fact: dict[Fact, list[Document]] = {}
    for document in documents:
        by_fact.setdefault(document.fact, []).append(document)
    out = []
    for group in by_fact.values():
        chosen = rng.permutation(len(group))[: min(count, len(group))]
        out += [group[i] for i in chosen]
    return out


def choices_of(facts: Iterable[Fact]) -> dict[str, tuple[str, ...]]:
    """Relation -> its different values, in alphabetical order."""
    values: dict[str, set[str]] = {}
    for fact in facts:
        values.setdefault(fact.relation, set()).add(fact.value)
    return {relation: tuple(sorted(found)) for relation, found in sorted(values.items())}


def facts_of(documents: Iterable[Document]) -> tuple[Fact, ...]:
    """The facts that documents are about, each once, in order of first appearance."""
    return tuple(dict.fromkeys(document.fact for document in documents))


def spread(items: Sequence, wanted: int) -> list:
    """At most ``wanted`` items, spread evenly over the sequence."""
    count = len(items)
    where = np.linspace(0, count - 1, min(wanted, count)).round().astype(int)
    return [items[i] for i in np.unique(where)]


def repeated(curriculum: Curriculum) -> list[Document]:
    """Exam questions that some training text asks in the very same words.

    Real test sets can hold such rows; worlds of facts do not.
    """
    read = [document for part in (curriculum.pretrain, *curriculum.days) for document in part]
    prompts = {document.prompt for document in read if document.prompt}
    texts = {document.text for document in read}
    asked = [question for part in (*curriculum.exams, curriculum.known) for question in part]
    return [q for q in asked if q.prompt in prompts or q.text in texts]


def check_curriculum(curriculum: Curriculum) -> None:
    """Checks a curriculum, your own too.

    Raises:
      ConfigError: no days, parts that do not belong together, an empty part, a text that is not
        ``prompt + " " + answer``, an answer that is not among the choices or not accepted, or an
        unusable cue.
    """
    count = len(curriculum.days)
    checks.require(count > 0, "curriculum.days", count, "needs at least one day")
    for name in ("exams", "cues"):
        found = len(getattr(curriculum, name))
        checks.require(
            found == count, f"curriculum.{name}", found, f"needs one for each of {count} days"
        )
    parts: dict[str, tuple] = {"pretrain": curriculum.pretrain, "known": curriculum.known}
    for name in ("days", "exams", "cues"):
        parts |= {f"{name}[{i}]": part for i, part in enumerate(getattr(curriculum, name))}
    for name, part in parts.items():
        checks.require(len(part) > 0, f"curriculum.{name}", len(part), "must not be empty")
        if not name.startswith("cues"):
            _check_texts(f"curriculum.{name}", part)
    for cues in (*curriculum.cues, curriculum.known_cues):
        for cue in cues:
            good = bool(cue) and cue == cue.strip()
            checks.require(good, "curriculum.cues", cue, "use text without outer spaces")
    for question in (*curriculum.known, *(q for part in curriculum.exams for q in part)):
        _check_question(curriculum, question)
    if curriculum.accepted:
        asked = [[question.answer for question in part] for part in curriculum.exams]
        _check_accepted(asked, curriculum.accepted)


def _check_accepted(
    asked: Sequence[Sequence[str]], accepted: Sequence[Sequence[Sequence[str]]]
) -> None:
    field = "curriculum.accepted"
    sizes, wanted = list(map(len, accepted)), list(map(len, asked))
    checks.require(sizes == wanted, field, sizes, f"needs an entry for every question: {wanted}")
    for answers, entries in zip(asked, accepted, strict=True):
        for answer, entry in zip(answers, entries, strict=True):
            checks.require(answer in entry, field, entry, f"must have the exam's answer {answer!r}")


def _check_texts(field: str, documents: Iterable[Document]) -> None:
    for document in documents:
        if not document.text or document.text != document.text.strip():
            raise ConfigError(field, document.text, "use texts without outer spaces")
        if document.prompt and document.text != f"{document.prompt} {document.answer}":
            remedy = "the text of a question is its prompt, a space and its answer"
            raise ConfigError(field, document.text, remedy)


def _check_question(curriculum: Curriculum, question: Document) -> None:
    if not question.prompt or not question.answer:
        remedy = "an exam's documents need a prompt and an answer"
        raise ConfigError("curriculum.exams", question.text, remedy)
    relation = question.fact.relation
    choices = curriculum.choices.get(relation, ())
    if question.answer not in choices or len(set(choices)) != len(choices):
        remedy = f"must be named once in the curriculum's choices of {relation!r}"
        raise ConfigError("curriculum.choices", question.answer, remedy)
