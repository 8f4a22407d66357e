"""Reading files that a person wrote: every complaint names the file, the line and the remedy."""

from __future__ import annotations

import difflib
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sleeplm.core.errors import ConfigError

_SHOWN = 80  # characters of a broken line that an error shows


def place(path: str | pathlib.Path, line: int | None = None, field: str = "") -> str:
    """``FILE:LINE: field``, what an error calls a place in a file."""
    where = f"{path}" if line is None else f"{path}:{line}"
    return f"{where}: {field}" if field else where


def read_text(path: str | pathlib.Path, setting: str) -> str:
    """The text of a UTF-8 file (a byte-order mark is dropped), line ends as they are.

    A file whose name ends in ``.gz`` is unpacked.

    Raises:
      ConfigError: ``setting``, when the file is missing, unreadable, not UTF-8 or empty.
    """
    path = pathlib.Path(path).expanduser()
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        bad = f"byte 0x{error.object[error.start]:02x}"
        raise ConfigError(place(path, line), bad, "is not UTF-8: save the file as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        remedy = f"cannot be read ({getattr(error, 'strerror', None) or error}): name a file"
        raise ConfigError(setting, str(path), remedy) from None
    if not text.strip():
        raise ConfigError(setting, str(path), "is empty")
    return text


def read_json(path: str | pathlib.Path, setting: str) -> Any:
    """The content of a JSON file.

    Raises:
      ConfigError: FILE:LINE, for what is not JSON, or FILE, for an object with a key twice.
    """
    path = pathlib.Path(path)
    text = read_text(path, setting)
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        remedy = f"is not JSON ({error.msg} at column {error.colno})"
        raise ConfigError(place(path, error.lineno), path.name, remedy) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(place(path), path.name, f"is not usable JSON ({error})") from None


def json_lines(path: str | pathlib.Path, setting: str, example: str) -> Iterator[tuple[int, dict]]:
    """The objects of a JSON-lines file with their line numbers; empty lines are passed over.

    Args:
      example: a right line, shown to who wrote a wrong one.

    Raises:
      ConfigError: FILE:LINE, for what is not one JSON object in one line.
    """
    for number, line in enumerate(read_text(path, setting).split("\n"), start=1):
        if line.strip():
            yield number, _object(place(path, number), line.strip(), example)


def _object(where: str, line: str, example: str) -> dict:
    shown = line if len(line) <= _SHOWN else line[:_SHOWN] + "..."
    try:
        content = json.loads(line, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        remedy = (
            f"is not JSON ({error.msg} at column {error.colno}): write a line such as {example}"
        )
        raise ConfigError(where, shown, remedy) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(where, shown, f"is not usable JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(where, shown, f"must be an object such as {example}")
    return content


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {key!r} stands in it twice")
    return dict(pairs)


def check_keys(
    where: str, content: Mapping[str, Any], required: Iterable[str], optional: Iterable[str]
) -> None:
    """Every required key must be there, and none that is neither required nor optional.

    Raises:
      ConfigError: ``where``, with the key that was probably meant.
    """
    required, optional = list(required), list(optional)
    for key in content:
        if key not in required + optional:
            remedy = f"is not a key here: use {', '.join(required + optional)}"
            raise ConfigError(where, key, remedy + did_you_mean(key, required + optional))
    for key in required:
        if key not in content:
            remedy = f"lacks the key {key!r}: needs {', '.join(required)}"
            raise ConfigError(where, sorted(content), remedy)


def did_you_mean(given: str, possible: Iterable[str]) -> str:
    """``" (did you mean 'subject'?)"``, or nothing."""
    close = difflib.get_close_matches(given, list(possible), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_name(where: str, value: Any) -> None:
    """A name or value: text in one line, not empty, no outer or doubled spaces, no braces."""
    if not isinstance(value, str):
        shown = json.dumps(value)
        hint = f": write {json.dumps(shown)}" if isinstance(value, int | float) else ""
        raise ConfigError(where, value, f"must be text{hint}")
    if not value.strip():
        raise ConfigError(where, value, "must not be empty")
    if value != value.strip():
        raise ConfigError(where, value, f"must not have outer spaces: write {value.strip()!r}")
    if "{" in value or "}" in value:
        raise ConfigError(where, value, "must not have braces: they mark places in wordings")
    if value != " ".join(value.split()) or not value.isprintable():
        remedy = "must be one line of printable text with single spaces"
        raise ConfigError(where, value, remedy)


def words_of(name: str) -> str:
    """A name in words: ``birth_city`` and ``birthCity`` as ``birth city``, ``CEO`` as it is."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = re.split(r"[\s_]+", spaced.strip(" _\t"))
    return " ".join(w if len(w) > 1 and w.isupper() else w.lower() for w in words)
