"""Answers in free text, scored as SQuAD scores them (Rajpurkar et al. 2016, arXiv:1606.05250).

Case, punctuation, articles and spaces do not count; of several accepted answers the best match
does. Beyond the published rules, two texts of which nothing is left ("The" and "a") are equal.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """The text in lower case, without punctuation (ASCII) and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(said: str, accepted: Iterable[str]) -> float:
    """1 if the normalised text is that of an accepted answer, else 0."""
    return float(normalised(said) in map(normalised, accepted))


def token_f1(said: str, accepted: Iterable[str]) -> float:
    """Harmonic mean of precision and recall of words, against the best accepted answer; 0 to 1."""
    words = normalised(said).split()
    return max((_f1(words, normalised(answer).split()) for answer in accepted), default=0.0)


def is_in(answer: str, text: str) -> bool:
    """Whether the normalised text has the words of the answer, in a row; never those of none."""
    words = normalised(answer)
    return bool(words) and f" {words} " in f" {normalised(text)} "


def first_line(text: str) -> str:
    """What is said before the first line break that comes after it has begun."""
    return next(iter(text.strip().splitlines()), "").strip()


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted))
