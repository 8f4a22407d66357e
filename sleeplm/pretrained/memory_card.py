"""What a card of memories must say, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError

#: Kinds of values, as messages call them.
IS: Mapping[str, Callable[[Any], bool]] = {
    "a text": lambda x: isinstance(x, str),
    "true or false": lambda x: isinstance(x, bool),
    "an integer": checks.is_integer,
    "an object": lambda x: isinstance(x, Mapping),
    "a list of integers": lambda x: isinstance(x, list) and all(map(checks.is_integer, x)),
    "a list of objects": lambda x: isinstance(x, list) and all(isinstance(y, Mapping) for y in x),
}
CARD = {
    "base": "a text",
    "whole": "true or false",
    "nights": "a list of objects",
    "origin": "an object",
    "model": "an object",
    "file": "an object",
}
FILE = {"name": "a text", "sha256": "a text"}
NIGHT = {"level": "a text", "slot": "an integer", "night": "an integer", "sha256": "a text"}
EARLIER = {"night": "an integer", "sha256": "a text"}
#: Of a night; what is not there is not known.
MAY = {
    "nights": "a list of integers",
    "days": "a list of integers",
    "earlier": "a list of objects",
    "origin": "an object",
}


def check_card(card: Mapping[str, Any], path: str) -> None:
    """All that is read of a card is there, in types that can be right, and no slot is there twice.

    Args:
      path: of the card, for messages.

    Raises:
      ConfigError: it names the first entry that is missing or wrong.
    """
    _check(card, CARD, f"{path}: ")
    _check(card["file"], FILE, f"{path}: file.")
    taken: set[tuple[str, int]] = set()
    for i, night in enumerate(card["nights"]):
        field = f"{path}: nights[{i}]."
        _check(night, NIGHT, field)
        _check(night, {name: kind for name, kind in MAY.items() if name in night}, field)
        for j, one in enumerate(night.get("earlier", ())):
            _check(one, EARLIER, f"{field}earlier[{j}].")
        checks.in_range(f"{field}night", night["night"], 0, 2**31 - 1)
        place = (night["level"], night["slot"])
        remedy = f"is damaged: another night is in this slot of {night['level']} already"
        checks.require(place not in taken, f"{field}slot", night["slot"], remedy)
        taken.add(place)


def _check(entries: Mapping[str, Any], kinds: Mapping[str, str], field: str) -> None:
    for name, kind in kinds.items():
        if name not in entries:
            raise ConfigError(field + name, None, "is damaged: there must be such an entry")
        value = entries[name]
        checks.require(IS[kind](value), field + name, value, f"is damaged: must be {kind}")
