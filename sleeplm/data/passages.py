"""Passages with questions: ``--config.world=passages:FILE``.

Three layouts, told apart by what they hold; each may be packed (``.gz``):

* SQuAD's own, ``{"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"question":
  ..., "answers": [{"text": ...}, ...]}]}]}]}``. Questions of version 2 that have no answer
  (``is_impossible``) are left out, and passages that have no others or none. Titles have spaces for
  ``_``.
* a list of ``{"context": ..., "questions": [{"question": ..., "answer": ...}, ...]}``, with a
  ``title`` if there is one; ``"answers": ["...", "..."]`` instead of ``answer`` names several that
  are accepted, the first of which is the one that an exam expects.
* the same objects as JSON lines, in a file named ``.jsonl``.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from sleeplm.core.checks import require
from sleeplm.core.errors import ConfigError
from sleeplm.data.files import check_keys, json_lines, place, read_json

SETTING = "world"  # that names the file
_EXAMPLE = '{"context": "...", "questions": [{"question": "...?", "answer": "..."}]}'


@dataclasses.dataclass(frozen=True)
class PassageQuestion:
    """A question about a passage, and the answers that are accepted; at least one."""

    question: str
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Passage:
    """A text to read, what it is about (may be empty), and questions; at least one."""

    title: str
    context: str
    questions: tuple[PassageQuestion, ...]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where something stands: a file, or a line of it, and the path in its JSON."""

    file: str
    path: str = ""

    def of(self, *keys: str | int) -> _Place:
        path = self.path
        for key in keys:
            path += f"[{key}]" if isinstance(key, int) else f".{key}"
        return _Place(self.file, path.removeprefix("."))

    def __str__(self) -> str:
        return place(self.file, None, self.path)


def read_passages(path: str) -> tuple[Passage, ...]:
    """The passages of a file, in its order.

    Raises:
      ConfigError: the file, the line or the path in its JSON, the value and what would be right.
    """
    if ".jsonl" in pathlib.Path(path).suffixes:
        lines = json_lines(path, SETTING, _EXAMPLE)
        found = [_passage(_Place(place(path, number)), line) for number, line in lines]
    else:
        found = list(_whole_file(_Place(path), read_json(path, SETTING)))
    require(bool(found), SETTING, path, "has no passage with a question that has an answer")
    return tuple(found)


def _whole_file(at: _Place, content: Any) -> Iterator[Passage]:
    if isinstance(content, dict) and "data" in content:
        yield from _squad(at, content)
    elif isinstance(content, list):
        for i, entry in enumerate(content):
            yield _passage(at.of(i), entry)
    else:
        remedy = f"must be a list of objects such as {_EXAMPLE}, or SQuAD's object with the key "
        remedy += '"data"; files of JSON lines are named .jsonl'
        raise ConfigError(str(at), type(content).__name__, remedy)


def _squad(at: _Place, content: Mapping[str, Any]) -> Iterator[Passage]:
    for i, article in _entries(at, content, "data"):
        title = _title(at.of("data", i), article).replace("_", " ")
        for j, paragraph in _entries(at.of("data", i), article, "paragraphs"):
            where = at.of("data", i, "paragraphs", j)
            context = _context(where, paragraph)
            if paragraph.get("qas") == []:
                continue
            questions = [
                PassageQuestion(*_squad_question(where.of("qas", k), qa))
                for k, qa in _entries(where, paragraph, "qas")
                if not qa.get("is_impossible")
            ]
            if questions:
                yield Passage(title, context, tuple(questions))


def _squad_question(at: _Place, qa: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    answers = [
        _line(at.of("answers", i, "text"), _value(at.of("answers", i), answer, "text"))
        for i, answer in _entries(at, qa, "answers")
    ]
    return _line(at.of("question"), _value(at, qa, "question")), tuple(dict.fromkeys(answers))


def _passage(at: _Place, content: Any) -> Passage:
    _check_object(at, content)
    check_keys(str(at), content, ("context", "questions"), ("title", "id"))
    questions = [
        PassageQuestion(*_question(at.of("questions", i), question))
        for i, question in _entries(at, content, "questions")
    ]
    return Passage(_title(at, content), _context(at, content), tuple(questions))


def _question(at: _Place, content: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    check_keys(str(at), content, ("question",), ("answer", "answers", "id"))
    question = _line(at.of("question"), content["question"])
    both = sorted({"answer", "answers"} & set(content))
    remedy = "use one of the two: answer for one, answers for a list of those that are accepted"
    require(len(both) == 1, str(at), both or sorted(content), remedy)
    if both == ["answer"]:
        return question, (_line(at.of("answer"), content["answer"]),)
    given = _list(at, content, "answers")
    answers = [_line(at.of("answers", i), answer) for i, answer in enumerate(given)]
    return question, tuple(dict.fromkeys(answers))


def _entries(at: _Place, content: Mapping[str, Any], key: str) -> Iterator[tuple[int, dict]]:
    """The objects of a list that must have some, with their numbers."""
    for i, entry in enumerate(_list(at, content, key)):
        _check_object(at.of(key, i), entry)
        yield i, entry


def _list(at: _Place, content: Mapping[str, Any], key: str) -> list:
    value = _value(at, content, key)
    if not isinstance(value, list):
        raise ConfigError(str(at.of(key)), type(value).__name__, "must be a list")
    require(bool(value), str(at.of(key)), value, "must not be empty")
    return value


def _value(at: _Place, content: Mapping[str, Any], key: str) -> Any:
    require(key in content, str(at), sorted(content), f"lacks the key {key!r}")
    return content[key]


def _check_object(at: _Place, content: Any) -> None:
    if not isinstance(content, dict):
        raise ConfigError(str(at), type(content).__name__, 'must be an object: {"...": ...}')


def _title(at: _Place, content: Mapping[str, Any]) -> str:
    title = content.get("title", "")
    require(isinstance(title, str), str(at.of("title")), title, "must be text, or left out")
    return " ".join(title.split())


def _context(at: _Place, content: Mapping[str, Any]) -> str:
    return _text(at.of("context"), _value(at, content, "context")).strip()


def _line(at: _Place, value: Any) -> str:
    """A text with single spaces."""
    return " ".join(_text(at, value).split())


def _text(at: _Place, value: Any) -> str:
    if not isinstance(value, str):
        hint = f': write "{value}"' if isinstance(value, int | float) else ""
        raise ConfigError(str(at), value, f"must be text{hint}")
    require(bool(value.strip()), str(at), value, "must not be empty")
    return value
