"""Worlds of facts, and the documents that tell them and ask for them.

A world is read in two parts: the facts of pretraining, and days of new facts. Every relation has
many wordings; some of them are held out and appear only in exams, so that an exam asks whether
the *fact* was kept and not whether a sentence was.

The worlds here train each relation on 8 statements and 10 or 12 questions: with few question
wordings a small model learns the wordings, not that a question may be worded freely. Most start
with the subject: a short cue (the subject, never an answer) then makes a model re-tell what it
knows. The others name it later; the value alone, without further words, answers all questions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sleeplm.core.errors import ConfigError

MIN_STATEMENTS = 8
MIN_QUESTIONS = 6
MIN_HELD_OUT = 2
MIN_SUBJECT_FIRST = 0.7


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """``subject`` stands in ``relation`` to ``value``; (subject, relation) has one value."""

    subject: str
    relation: str
    value: str


@dataclasses.dataclass(frozen=True)
class Relation:
    """The wordings of one relation.

    Attributes:
      name: the relation's name in :class:`Fact`.
      statements: templates with one ``{s}`` and one ``{v}``, used in training.
      questions: templates with one ``{s}``; the answer follows after one space. Training.
      held_out_statements: statements that no training document uses.
      held_out_questions: questions that no training document uses: the exam's wordings.
    """

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out_statements: tuple[str, ...]
    held_out_questions: tuple[str, ...]

    @property
    def training(self) -> tuple[str, ...]:
        return self.statements + self.questions

    @property
    def held_out(self) -> tuple[str, ...]:
        return self.held_out_statements + self.held_out_questions


@dataclasses.dataclass(frozen=True)
class World:
    """Facts known from the start, days of new facts, and the wordings of their relations."""

    name: str
    relations: Mapping[str, Relation]
    pretrain: tuple[Fact, ...]
    days: tuple[tuple[Fact, ...], ...]

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All facts: pretraining first, then day after day."""
        return self.pretrain + tuple(fact for day in self.days for fact in day)

    def digest(self) -> str:
        """sha256 (hex) of the whole content; equal worlds have equal digests."""
        content = {
            "name": self.name,
            "relations": {k: dataclasses.astuple(r) for k, r in self.relations.items()},
            "pretrain": [dataclasses.astuple(f) for f in self.pretrain],
            "days": [[dataclasses.astuple(f) for f in day] for day in self.days],
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One text about one fact.

    Attributes:
      text: the full text. For questions it is ``prompt + " " + answer``.
      prompt: the text up to the answer; empty for statements.
      answer: the fact's value.
      fact: what the text is about.
    """

    text: str
    prompt: str
    answer: str
    fact: Fact


def subjects(facts: Iterable[Fact]) -> tuple[str, ...]:
    """The subjects of ``facts``, each once, in order of first appearance."""
    return tuple(dict.fromkeys(fact.subject for fact in facts))


def day_sizes(field: str, days: int | Sequence[int], facts_per_day: int | None) -> list[int]:
    """Facts of each day, from a list of them or from a number of days of equal size.

    Raises:
      ConfigError: ``field``, with sizes that are out of range.
    """
    if isinstance(days, int):
        if facts_per_day is None or days < 0 or facts_per_day < 1:
            raise ConfigError(field, (days, facts_per_day), "needs days >= 0, facts_per_day >= 1")
        return [facts_per_day] * days
    if facts_per_day is not None or any(size < 1 for size in days):
        raise ConfigError(field, list(days), "a list of sizes, each >= 1, says all about the days")
    return list(days)


def statements(world: World, facts: Iterable[Fact], held_out: bool = False) -> list[Document]:
    """Every statement of every fact: training wordings, or the held-out ones."""
    documents: list[Document] = []
    for fact in facts:
        relation = _relation(world, fact)
        templates = relation.held_out_statements if held_out else relation.statements
        for template in templates:
            documents.append(Document(filled(template, fact), "", fact.value, fact))
    return documents


def filled(template: str, fact: Fact) -> str:
    """A wording with its subject and, where it tells one, its value."""
    return template.replace("{s}", fact.subject).replace("{v}", fact.value)


def questions(world: World, facts: Iterable[Fact]) -> list[Document]:
    """Every question of every fact with its answer, in training wordings only."""
    return [_question(t, fact) for fact in facts for t in _relation(world, fact).questions]


def exam(
    world: World, facts: Iterable[Fact], key_seed: int = 0, per_fact: int = 1
) -> list[Document]:
    """``per_fact`` questions a fact, in held-out wordings only.

    Which wordings a fact is asked with depends on ``key_seed`` and the fact alone, so a fact is
    asked the same way whatever else is in the exam.

    Raises:
      ConfigError: when a relation has fewer than ``per_fact`` held-out questions.
    """
    documents: list[Document] = []
    for fact in facts:
        templates = _relation(world, fact).held_out_questions
        if not 1 <= per_fact <= len(templates):
            remedy = f"choose 1 to {len(templates)}: the held-out questions of {fact.relation!r}"
            raise ConfigError("exam.per_fact", per_fact, remedy)
        text = f"{key_seed}\0{fact.subject}\0{fact.relation}"
        start = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        chosen = [templates[(start + i) % len(templates)] for i in range(per_fact)]
        documents.extend(_question(template, fact) for template in chosen)
    return documents


def check_world(world: World) -> None:
    """Checks a world, your own too.

    Raises:
      ConfigError: a subject in two parts of the world, two values for one (subject, relation),
        a relation that is unknown or that pretraining never shows, a name or value with braces
        or outer spaces, or wordings that are malformed, too few, shared or not held out.
    """
    for name, relation in world.relations.items():
        if name != relation.name:
            raise ConfigError(f"relations[{name!r}]", relation.name, "use one name for both")
        _check_wordings(relation)
    _check_shared_wordings(world.relations.values())
    _check_facts(world)
    _check_parts(world)


def _relation(world: World, fact: Fact) -> Relation:
    try:
        return world.relations[fact.relation]
    except KeyError:
        remedy = f"this world has {sorted(world.relations)}"
        raise ConfigError("fact.relation", fact.relation, remedy) from None


def _question(template: str, fact: Fact) -> Document:
    prompt = filled(template, fact)
    return Document(f"{prompt} {fact.value}", prompt, fact.value, fact)


def _check_wordings(relation: Relation) -> None:
    field = f"relations[{relation.name!r}]"
    counts = (
        ("statements", relation.statements, relation.held_out_statements, MIN_STATEMENTS),
        ("questions", relation.questions, relation.held_out_questions, MIN_QUESTIONS),
    )
    for kind, training, held_out, least in counts:
        values = int(kind == "statements")
        for template in training + held_out:
            _check_template(f"{field}.{kind}", template, values)
        if len(set(training + held_out)) < least:
            total = len(set(training + held_out))
            raise ConfigError(f"{field}.{kind}", total, f"write at least {least} wordings")
        if len(held_out) < MIN_HELD_OUT:
            remedy = f"hold out at least {MIN_HELD_OUT} wordings"
            raise ConfigError(f"{field}.held_out_{kind}", len(held_out), remedy)
    _check_subject_first(field, relation)


def _check_template(field: str, template: str, values: int) -> None:
    rest = template.replace("{s}", "", 1).replace("{v}", "", values)
    well_formed = template.count("{s}") == 1 and template.count("{v}") == values
    if not well_formed or "{" in rest or "}" in rest or template != template.strip():
        marks = "one {s} and one {v}" if values else "one {s} and no {v}"
        raise ConfigError(field, template, f"needs {marks}, no other brace and no outer space")


def _check_subject_first(field: str, relation: Relation) -> None:
    first = [template.startswith("{s}") for template in relation.training]
    if sum(first) < MIN_SUBJECT_FIRST * len(first):
        remedy = f"start at least {MIN_SUBJECT_FIRST:.0%} of the training wordings with {{s}}"
        raise ConfigError(f"{field}.training", f"{sum(first)} of {len(first)}", remedy)
    if not any(template.startswith("{s}") for template in relation.held_out_questions):
        remedy = "start at least one held-out question with {s}"
        raise ConfigError(f"{field}.held_out_questions", relation.held_out_questions, remedy)


def _check_shared_wordings(relations: Iterable[Relation]) -> None:
    owner: dict[str, str] = {}
    for relation in relations:
        for template in relation.training + relation.held_out:
            if template in owner:
                remedy = f"already a wording of {owner[template]!r}: write each wording once"
                raise ConfigError(f"relations[{relation.name!r}]", template, remedy)
            owner[template] = relation.name


def _check_facts(world: World) -> None:
    seen: set[tuple[str, str]] = set()
    for fact in world.facts:
        _relation(world, fact)
        for part in (fact.subject, fact.value):
            if not part or part != part.strip() or "{" in part or "}" in part:
                remedy = "use text without braces and outer spaces"
                raise ConfigError(f"fact of {fact.subject!r}", part, remedy)
        if (fact.subject, fact.relation) in seen:
            remedy = "one value for each (subject, relation)"
            raise ConfigError(f"{fact.relation} of {fact.subject}", fact.value, remedy)
        seen.add((fact.subject, fact.relation))


def _check_parts(world: World) -> None:
    home: dict[str, str] = {}
    for name, part in _parts(world):
        for subject in subjects(part):
            if subject in home:
                remedy = f"already a subject of {home[subject]}: keep the parts disjoint"
                raise ConfigError(f"{name}.subject", subject, remedy)
            home[subject] = name
    known = Counter(fact.relation for fact in world.pretrain)
    for name, part in _parts(world):
        for fact in part:
            if not known[fact.relation]:
                remedy = "pretraining must show every relation that a day uses"
                raise ConfigError(f"{name}.relation", fact.relation, remedy)


def _parts(world: World) -> Sequence[tuple[str, tuple[Fact, ...]]]:
    days = [(f"days[{i}]", day) for i, day in enumerate(world.days)]
    return [("pretrain", world.pretrain), *days]
