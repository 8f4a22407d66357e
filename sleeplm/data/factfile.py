"""A world from a file of your own: ``--config.world=facts:FILE.jsonl``.

One fact a line::

    {"day": 1, "subject": "Ada Lund", "relation": "birth_city", "value": "Graz"}

Days are the different day numbers in rising order, of any size. Facts of day 0, null or none are
known before the first day. A subject belongs to one day, and has one value in a relation.

Wordings of a relation are a line too, anywhere in the file or in a second one
(``facts:FILE.jsonl,WORDINGS.jsonl``; or ``.json``, one object with the relations as keys)::

    {"relation": "birth_city", "statements": ["{s} was born in {v}."],
     "questions": ["{s} was born where?", "Where was {s} born?"], "held_out_questions": [...]}

All three lists may be short or missing. Wordings made from statements that end in the value
("{s} was born in what?") and from the relation's name ("birth city") fill up to
:data:`LEAST_STATEMENTS` statements and :data:`LEAST_QUESTIONS` questions. Exams ask in the
held-out questions; without any, the last of two or more questions is held out, and without
those two made-up ones are. What is held out is never trained. Texts are re-told from their
beginning: start most wordings with ``{s}``.

A model must have met the wordings before the first day. Invented facts fill pretraining up to
``pretrain_facts`` facts of every relation: subjects are new, put together from pieces of the
words of the file's own subjects, and values are drawn from those that the relation has in the
file. They depend on the file and the seed alone.
"""

from __future__ import annotations

import dataclasses
import pathlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from sleeplm.core.errors import ConfigError
from sleeplm.data import wordings_generic as made_up
from sleeplm.data.facts import Fact, Relation, World
from sleeplm.data.files import (
    check_keys,
    check_name,
    did_you_mean,
    json_lines,
    place,
    read_json,
    words_of,
)

LEAST_STATEMENTS = len(made_up.STATEMENTS)
LEAST_QUESTIONS = len(made_up.QUESTIONS)

_FACT = ("subject", "relation", "value")
_WORDINGS = ("statements", "questions", "held_out_questions")
_DIGITS = "0123456789"
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
_EXAMPLE = '{"day": 1, "subject": "Ada Lund", "relation": "birth_city", "value": "Graz"}'


@dataclasses.dataclass
class _Content:
    """What the lines say. Places are what errors name."""

    facts: dict[Fact, int] = dataclasses.field(default_factory=dict)  # with its day
    filesof: dict[Fact, str] = dataclasses.field(default_factory=dict)
    wordings: dict[str, dict[str, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    wordings_place: dict[str, str] = dataclasses.field(default_factory=dict)


def read_facts(files: str, seed: int = 0, pretrain_facts: int = 200) -> World:
    """The world of ``FILE.jsonl`` or ``FILE.jsonl,WORDINGS.json``, with all days of the file.

    Args:
      seed: of the invented facts. pretrain_facts: facts of each relation before the first day,
        at least.

    Raises:
      ConfigError: FILE:LINE with the field, the value and what would be right.
    """
    path, comma, wordings = files.partition(",")
    if comma and not wordings:
        raise ConfigError("world", f"facts:{files}", "name a wordings file after the comma")
    content = _Content()
    _read_lines(content, path)
    if wordings:
        _read_wordings(content, wordings)
    relations = _relations(content)
    numbers = sorted({day for day in content.facts.values() if day})
    if not numbers:
        remedy = 'has no day: give some facts a "day" of 1 or more'
        raise ConfigError("world", f"facts:{files}", remedy)
    parts = [tuple(f for f, day in content.facts.items() if day == n) for n in (0, *numbers)]
    invented = invent(content.facts, known=parts[0], least=pretrain_facts, seed=seed)
    return World(pathlib.Path(path).stem, relations, parts[0] + invented, tuple(parts[1:]))


def _read_lines(content: _Content, path: str) -> None:
    one_value: dict[tuple[str, str], Fact] = {}
    home: dict[str, Fact] = {}
    for number, line in json_lines(path, "world", _EXAMPLE):
        if any(key in line for key in _WORDINGS):
            _add_wordings(content, place(path, number), line)
            continue
        check_keys(place(path, number), line, _FACT, ["day"])
        for key in _FACT:
            check_name(place(path, number, key), line[key])
        day = _day(place(path, number, "day"), line.get("day"))
        fact = Fact(**{key: line[key] for key in _FACT})
        first = home.setdefault(fact.subject, fact)
        if content.facts.get(first, day) != day:
            remedy = f"{fact.subject!r} is of day {content.facts[first]} in "
            remedy += f"{content.filesof[first]}: keep a subject on one day"
            raise ConfigError(place(path, number, "day"), day, remedy)
        other = one_value.setdefault((fact.subject, fact.relation), fact)
        if other != fact:
            remedy = f"{fact.relation!r} of {fact.subject!r} is {other.value!r} in "
            remedy += f"{content.filesof[other]}: give it one value"
            raise ConfigError(place(path, number, "value"), fact.value, remedy)
        content.facts.setdefault(fact, day)
        content.filesof.setdefault(fact, place(path, number))


def _day(where: str, day: Any) -> int:
    if day is None:
        return 0
    if not isinstance(day, int) or isinstance(day, bool):
        remedy = "must be a whole number: 1, 2, ...; 0 or null for what is known before"
        raise ConfigError(where, day, remedy)
    if day < 0:
        raise ConfigError(where, day, "must be at least 0")
    return day


def _read_wordings(content: _Content, path: str) -> None:
    if not path.endswith(".json"):
        example = '{"relation": "birth_city", "statements": ["{s} was born in {v}."]}'
        for number, line in json_lines(path, "world", example):
            _add_wordings(content, place(path, number), line)
        return
    relations = read_json(path, "world")
    if not isinstance(relations, dict) or not all(isinstance(v, dict) for v in relations.values()):
        remedy = 'must be one object: {"birth_city": {"statements": [...]}, ...}'
        raise ConfigError(place(path), type(relations).__name__, remedy)
    for name, line in relations.items():
        _add_wordings(content, place(path, None, name), {**line, "relation": name})


def _add_wordings(content: _Content, where: str, line: Mapping[str, Any]) -> None:
    check_keys(where, line, ["relation"], _WORDINGS)
    relation = line["relation"]
    check_name(f"{where}: relation", relation)
    if relation in content.wordings:
        remedy = f"has its wordings in {content.wordings_place[relation]}: give them once"
        raise ConfigError(f"{where}: relation", relation, remedy)
    for key in _WORDINGS:
        _check_templates(f"{where}: {key}", line.get(key, []), values=int(key == "statements"))
    content.wordings[relation] = {key: tuple(line.get(key, ())) for key in _WORDINGS}
    content.wordings_place[relation] = where


def _check_templates(where: str, templates: Any, values: int) -> None:
    if not isinstance(templates, list):
        raise ConfigError(where, templates, 'must be a list: ["...", "..."]')
    for template in templates:
        if not isinstance(template, str):
            raise ConfigError(where, template, "must be text")
        rest = template.replace("{s}", "", 1).replace("{v}", "", values)
        whole = template.count("{s}") == 1 and template.count("{v}") == values
        if not whole or "{" in rest or "}" in rest:
            marks = "one {s} and one {v}" if values else "one {s} and no {v}: the value follows it"
            raise ConfigError(where, template, f"needs {marks}, and no other brace")
        if template != " ".join(template.split()) or not template.isprintable():
            raise ConfigError(where, template, "must be one line with single spaces")


def _relations(content: _Content) -> dict[str, Relation]:
    """Own and made-up wordings of every relation that has facts."""
    first: dict[str, Fact] = {}
    for fact in content.facts:
        first.setdefault(fact.relation, fact)
    for name in content.wordings:
        if name not in first:
            where = content.wordings_place[name]
            remedy = "no fact has this relation" + did_you_mean(name, first)
            raise ConfigError(f"{where}: relation", name, remedy)
    relations = {}
    owner: dict[str, str] = {}
    in_words: dict[str, str] = {}
    by_plain_name: dict[str, str] = {}
    everyones = {
        made_up.plain(template)
        for own in content.wordings.values()
        for template in own["questions"] + own["held_out_questions"]
    }
    for name in first:
        where = content.wordings_place.get(name, content.filesof[first[name]])
        same = in_words.setdefault(words_of(name), name)
        if same != name:
            remedy = f"reads as {words_of(name)!r}, as {same!r} does: use one name"
            raise ConfigError(f"{where}: relation", name, remedy)
        alike = by_plain_name.setdefault(made_up.plain(words_of(name)), name)
        if alike != name:
            remedy = f"differs from {alike!r} in signs alone, which wordings leave out: rename one"
            raise ConfigError(f"{where}: relation", name, remedy)
        relations[name] = _relation(name, where, content.wordings.get(name, {}), everyones)
        for template in relations[name].training + relations[name].held_out_questions:
            if owner.setdefault(made_up.plain(template), name) != name:
                remedy = f"is a wording of {owner[made_up.plain(template)]!r} too: use it once"
                raise ConfigError(where, template, remedy)
    return relations


def _relation(
    name: str, where: str, own: Mapping[str, tuple[str, ...]], everyones: Set[str]
) -> Relation:
    """The wordings of a relation; ``everyones`` are the plain questions that the file has."""
    asked, held_out = own.get("questions", ()), own.get("held_out_questions", ())
    if not held_out and len(asked) >= 2:
        asked, held_out = asked[:-1], asked[-1:]
    held_out = held_out or made_up.generic(made_up.HELD_OUT_QUESTIONS, name)
    apart = {made_up.plain(template) for template in held_out}
    for template in asked:
        if made_up.plain(template) in apart:
            remedy = "is held out too: word the two differently"
            raise ConfigError(f"{where}: questions", template, remedy)
    made_up_questions = made_up.generic(made_up.QUESTIONS, name)
    return Relation(
        name=name,
        statements=made_up.filled(
            tuple(dict.fromkeys(own.get("statements", ()))),
            made_up.generic(made_up.STATEMENTS, name),
            LEAST_STATEMENTS,
            held_out,
        ),
        questions=made_up.filled(
            tuple(dict.fromkeys(asked)),
            (*_from_statements(own.get("statements", ()), everyones), *made_up_questions),
            LEAST_QUESTIONS,
            held_out,
        ),
        held_out_statements=(),
        held_out_questions=tuple(dict.fromkeys(held_out)),
    )


def _from_statements(statements: Iterable[str], not_as: Set[str]) -> list[str]:
    """Questions of statements' own words: "{s} carries what?" for "{s} carries {v}.".

    Args:
      not_as: what no question may repeat, as :func:`~sleeplm.data.wordings_generic.plain` has it.
    """
    bodies = (template.rstrip(".!") for template in statements)
    found = (f"{body.removesuffix(' {v}')} what?" for body in bodies if body.endswith(" {v}"))
    return [question for question in dict.fromkeys(found) if made_up.plain(question) not in not_as]


def invent(
    facts: Iterable[Fact], known: tuple[Fact, ...], least: int, seed: int
) -> tuple[Fact, ...]:
    """Facts about invented subjects, so that ``known`` and they have ``least`` of each relation.

    An invented subject has relations that some real subject has together, as far as they are
    wanting. No invented subject is a real one.
    """
    rng = random.Random(f"invented {seed}")
    values: dict[str, list[str]] = {}
    relations_of: dict[str, list[str]] = {}
    for fact in facts:
        values.setdefault(fact.relation, []).append(fact.value)
        relations_of.setdefault(fact.subject, []).append(fact.relation)
    values = {relation: sorted(set(found)) for relation, found in values.items()}
    owners = {r: [s for s in relations_of if r in relations_of[s]] for r in values}
    told = Counter(fact.relation for fact in known)
    names = _new_names(list(relations_of), rng)
    out: list[Fact] = []
    while wanting := [relation for relation in values if told[relation] < least]:
        rarest = min(wanting, key=lambda relation: told[relation])
        model, subject = rng.choice(owners[rarest]), next(names)
        for relation in relations_of[model]:
            if told[relation] < least:
                out.append(Fact(subject, relation, rng.choice(values[relation])))
                told[relation] += 1
    return tuple(out)


def _new_names(subjects: list[str], rng: random.Random) -> Iterator[str]:
    """Ever new names: each word begins as a word of a subject and ends as another one does.

    Where that gives too few, names grow by syllables or digits.
    """
    taken = {subject.casefold() for subject in subjects}
    split = [subject.split() for subject in subjects]
    at = [[words[i] for words in split if len(words) > i] for i in range(max(map(len, split)))]
    growth, misses = 0, 0
    while True:
        length = len(rng.choice(split))
        words = [_half(rng.choice(w), 0) + _half(rng.choice(w), 1) for w in at[:length]]
        name = " ".join(words)
        pieces = _DIGITS if name[-1].isdigit() else _SYLLABLES
        name += "".join(rng.choice(pieces) for _ in range(growth))
        if name.casefold() in taken:
            misses += 1
            growth += misses % 50 == 0
            continue
        taken.add(name.casefold())
        yield name


def _half(word: str, which: int) -> str:
    middle = (len(word) + 1) // 2
    return word[middle:] if which else word[:middle]
