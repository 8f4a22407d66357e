"""Checks of single settings, shared by every configuration dataclass.

Each raises :class:`~sleeplm.core.errors.ConfigError` with the field, the value and what would be
right, and returns nothing. A ``bool`` never counts as a number, and NaN is never in range.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

from sleeplm.core.errors import ConfigError


def require(ok: bool, field: str, value: Any, remedy: str) -> None:
    """Raises ``ConfigError(field, value, remedy)`` unless ``ok``."""
    if not ok:
        raise ConfigError(field, value, remedy)


def is_integer(value: Any) -> bool:
    """Whether ``value`` is an integer number; ``True`` and ``False`` are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether ``value`` is a real number other than NaN and the infinities; a bool is not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def is_constant(value: Any, number: float) -> bool:
    """Whether ``value`` is that very number, known before anything is traced; an array never is.

    What such a number decides about a program (a weight of 0 leaves its term out) it decides by
    this. An array of the same value leaves the program whole.
    """
    return isinstance(value, int | float) and value == number


def integer(field: str, value: Any) -> None:
    """``value`` must be an integer."""
    require(is_integer(value), field, value, "must be an integer")


def finite(field: str, value: Any) -> None:
    """``value`` must be a finite real number."""
    require(is_finite(value), field, value, "must be a finite number")


def positive(field: str, value: Any) -> None:
    """``value`` must be a finite number above zero."""
    require(is_finite(value) and value > 0, field, value, "must be a number above 0")


def positive_integer(field: str, value: Any) -> None:
    """``value`` must be an integer of at least 1."""
    require(is_integer(value) and value >= 1, field, value, "must be an integer of at least 1")


def at_least(field: str, value: Any, low: float) -> None:
    """``value`` must be a finite number of at least ``low``."""
    require(is_finite(value) and value >= low, field, value, f"must be a number of at least {low}")


def in_range(field: str, value: Any, low: float, high: float) -> None:
    """``value`` must be a number of the closed interval ``[low, high]``."""
    ok = is_finite(value) and low <= value <= high
    require(ok, field, value, f"must be a number between {low} and {high}")


def fraction(field: str, value: Any) -> None:
    """``value`` must be a number of the closed interval ``[0, 1]``."""
    in_range(field, value, 0, 1)


def decay(field: str, value: Any) -> None:
    """``value`` must be a decay rate of moments, in ``[0, 1)``: at 1 their correction is 0 / 0."""
    fraction(field, value)
    require(value < 1, field, value, "must be less than 1")


def one_of(field: str, value: Any, choices: Iterable[object]) -> None:
    """``value`` must be one of ``choices``; a string close to one of them is pointed at it."""
    choices = list(choices)
    if any(value == c and isinstance(value, bool) == isinstance(c, bool) for c in choices):
        return
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ConfigError(field, value, f"must be one of {', '.join(names)}{hint}")


def divides(field: str, value: Any, whole: int, whole_field: str) -> None:
    """``value`` must be a positive integer that divides ``whole``, the value of ``whole_field``."""
    positive_integer(field, value)
    remedy = f"must divide {whole_field} = {whole} without remainder"
    require(whole % value == 0, field, value, remedy)
