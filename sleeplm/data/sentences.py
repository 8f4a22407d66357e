"""Prose cut into sentences, and sentences put into overlapping pieces of a bounded size."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_END = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*\s+")
_OPENING = "\"'\u201c\u2018(["
#: Words that end in a full stop and end no sentence, in lower case.
_SHORT = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "gen", "col", "lt", "sgt", "capt"),
        *("rev", "hon", "gov", "sen", "rep", "vs", "etc", "cf", "al", "no", "vol", "fig", "ca"),
    )
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, with single spaces; joined by spaces they are the whole text.

    A line break ends a sentence. So do full stops, question marks and exclamation marks before a
    space and what is no small letter, but not the stops of initials and common short forms.
    """
    out = []
    for line in text.splitlines():
        line = " ".join(line.split())
        start = 0
        for match in _END.finditer(line):
            if _ends(line[start : match.start()], line[match.start()], line[match.end() :]):
                out.append(line[start : match.end()].strip())
                start = match.end()
        out.append(line[start:])
    return [sentence for sentence in out if sentence]


def overlapping(parts: Sequence[str], fits: Callable[[str], bool]) -> list[str]:
    """Every sentence together with its neighbours, in order, each piece once.

    Where the three do not fit, those that do: the sentence and the next one, the one before and
    it, or it alone. A sentence that does not fit is cut into pieces of its own, each of which
    shares a half with the next.

    Args:
      fits: whether a piece is short enough. Single words that are not come out all the same.
    """
    found: list[str] = []
    for i, part in enumerate(parts):
        for first, last in ((i - 1, i + 1), (i, i + 1), (i - 1, i), (i, i)):
            piece = " ".join(parts[max(first, 0) : last + 1])
            if fits(piece):
                found.append(piece)
                break
        else:
            found += _halves_shared(part.split(), fits)
    return list(dict.fromkeys(found))


def _halves_shared(words: list[str], fits: Callable[[str], bool]) -> list[str]:
    """The fewest pieces of two neighbouring parts, of almost equal parts, that all fit."""
    for count in range(3, len(words) + 1):
        cuts = [len(words) * i // count for i in range(count + 1)]
        pieces = [" ".join(words[a:b]) for a, b in zip(cuts, cuts[2:], strict=False)]
        if all(map(fits, pieces)):
            return pieces
    return words


def _ends(before: str, mark: str, after: str) -> bool:
    """Whether a mark ends the sentence ``before``, going by what comes ``after`` it."""
    following = after.lstrip(_OPENING)[:1]
    if following.islower():
        return False
    word = before.rsplit(" ", 1)[-1].lstrip(_OPENING)
    letters = word.split(".")
    initials = all(map(_is_letter, letters)) and (len(letters) > 1 or word.isupper())
    return mark != "." or not (initials or word.lower() in _SHORT)


def _is_letter(text: str) -> bool:
    return len(text) == 1 and text.isalpha()
