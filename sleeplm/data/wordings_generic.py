"""Wordings that fit any relation, from its name alone.

They obey the same rules as those of the built-in worlds: most training wordings start with the
subject, and every held-out question differs from every training question by at least three words,
all of which training uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sleeplm.data.files import words_of

STATEMENTS = (
    "{s} has the {r} {v}.",
    "{s}: {r} {v}.",
    "{s} has {v} as {r}.",
    "{s} is listed with the {r} {v}.",
    "{s} is recorded with {v} as the {r}.",
    "{s} goes with {v} as {r}.",
    "The {r} of {s} is {v}.",
    "On record, {v} is the {r} of {s}.",
)
QUESTIONS = (
    "{s} has which {r}?",
    "{s}: what is the {r}?",
    "{s} is listed with what {r}?",
    "{s} is recorded with which {r}?",
    "{s} goes with what as {r}?",
    "{s} has what on record as {r}?",
    "{s} stands in the list with which {r}?",
    "What is the {r} of {s}?",
    "Which {r} does {s} have?",
    "As {r}, what is listed for {s}?",
)
HELD_OUT_QUESTIONS = (
    "{s}: which {r} is on record?",
    "What does the record list as {r} for {s}?",
)


def generic(templates: Iterable[str], relation: str) -> tuple[str, ...]:
    """The templates with the relation's name in words in place of ``{r}``."""
    words = words_of(relation)
    return tuple(template.replace("{r}", words) for template in templates)


def plain(template: str) -> str:
    """What two templates have in common that differ only in case, spaces or punctuation."""
    kept = [c for c in template.casefold() if c.isalnum() or c in "{} "]
    return " ".join("".join(kept).split())


def filled(
    own: Sequence[str], templates: Iterable[str], least: int, not_as: Iterable[str]
) -> tuple[str, ...]:
    """``own`` wordings, and as many further ``templates`` as ``least`` wordings need.

    Args:
      not_as: wordings that no template may repeat: those that are held out.

    Returns:
      A tuple of at least ``least`` wordings, if the templates suffice.
    """
    taken = {plain(template) for template in (*own, *not_as)}
    free = [template for template in templates if plain(template) not in taken]
    return (*own, *free[: max(least - len(own), 0)])
