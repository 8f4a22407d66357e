"""Plain text to pretrain on: sentences or paragraphs, cut into pieces of a few words."""

from __future__ import annotations

import gzip
import json
import pathlib
import random
import zlib
from collections.abc import Iterator

from sleeplm.core.checks import positive_integer
from sleeplm.core.errors import ConfigError
from sleeplm.data.facts import Document, Fact
from sleeplm.data.files import place

TEXT = "text"  # the relation of documents that are text and nothing else
CUE_WORDS = 4


def read_pieces(path: str, limit: int, words: int, seed: int) -> list[Document]:
    """At most ``limit`` pieces of a file, a seeded choice in the order of the file.

    Args:
      path: UTF-8 text, a sentence or paragraph a line, or JSON lines (``.jsonl``) with a field
        ``text``; ``.gz`` at the end of either is unpacked.
      words: the longest piece. A longer paragraph becomes several pieces; spaces and line ends
        become single spaces.

    Raises:
      ConfigError: when the file cannot be read, is empty, or has lines without text.
    """
    positive_integer("text_lines", limit)
    pieces = [piece for line in _paragraphs(path) for piece in _cut(line.split(), words)]
    if not pieces:
        raise ConfigError("text", path, "has no text")
    rng = random.Random(f"text {seed}")
    chosen = sorted(rng.sample(range(len(pieces)), min(limit, len(pieces))))
    return [
        Document(pieces[i], "", "", Fact(first_words(pieces[i], CUE_WORDS), TEXT, ""))
        for i in chosen
    ]


def read_text(path: str, field: str = "text") -> str:
    """All of a file, as :func:`read_pieces` reads it, its paragraphs on lines of their own.

    Args:
      field: the setting that names it, for messages.

    Raises:
      ConfigError: when the file cannot be read, or has no text.
    """
    text = "\n".join(_paragraphs(path, field))
    if not text:
        raise ConfigError(field, path, "has no text")
    return text


def first_words(text: str, count: int) -> str:
    """The first ``count`` words of a text."""
    return " ".join(text.split()[:count])


def _cut(words: list[str], most: int) -> Iterator[str]:
    """Pieces of almost equal length, none longer than ``most`` words."""
    count = -(-len(words) // most)
    for i in range(count):
        yield " ".join(words[len(words) * i // count : len(words) * (i + 1) // count])


def _paragraphs(path: str, field: str = "text") -> Iterator[str]:
    is_json = ".jsonl" in pathlib.Path(path).suffixes
    for number, line in enumerate(_lines(path, field), start=1):
        if not line.strip():
            continue
        if not is_json:
            yield line
            continue
        where = place(path, number, "text")
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            remedy = 'each line needs a text: {"text": "..."}'
            raise ConfigError(where, line[:60], remedy) from None
        if not isinstance(text, str):
            raise ConfigError(where, text, "must be text")
        yield from text.splitlines()


def _lines(path: str, field: str) -> list[str]:
    file = pathlib.Path(path).expanduser()
    try:
        raw = file.read_bytes()
        if file.suffix == ".gz":
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        bad = f"byte 0x{raw[error.start]:02x}"
        raise ConfigError(place(path, line), bad, "is not UTF-8: save the file as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        remedy = f"cannot be read ({getattr(error, 'strerror', None) or error}): name a text file"
        raise ConfigError(field, path, remedy) from None
