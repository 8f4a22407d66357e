"""Axes of a sweep, for experiment files: each is a list of settings, ``{field: value}``.

An experiment file names its sweeps with functions; a plain generator is an axis too::

    from launch.axes import fixed, product, sweep, vmap, zipit

    def sweep_lr():
        for rate in (1e-3, 3e-3):
            yield {"sleep.learning_rate": rate}

    def sweep_grid():
        sizes = zipit(sweep("days", (4, 8)), sweep("facts_per_day", (60, 30)))
        return product(sizes, fixed("world", "biographies"), vmap(sweep("seed", range(4))))
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from sleeplm.core.checks import is_integer
from sleeplm.core.errors import ConfigError

Settings = dict[str, Any]
Axis = Iterable[Mapping[str, Any]]
#: What learners that live side by side differ in: learner e has both fields + e.
FUSED = ("seed", "world_seed")


def sweep(field: str, values: Iterable[Any]) -> list[Settings]:
    """One field, a trial for every value."""
    return [{field: value} for value in values]


def fixed(field: str, value: Any) -> list[Settings]:
    """One field with the same value in every trial."""
    return [{field: value}]


def product(*axes: Axis) -> list[Settings]:
    """Every settings of one axis with every settings of the others; the last axis varies fastest.

    Raises:
      ConfigError: two axes set the same field.
    """
    return [merge(parts) for parts in itertools.product(*[list(axis) for axis in axes])]


def zipit(*axes: Axis) -> list[Settings]:
    """The first settings of all axes together, then the second, and so on.

    Raises:
      ConfigError: axes of different length, or two that set the same field.
    """
    lists = [list(axis) for axis in axes]
    lengths = [len(one) for one in lists]
    if len(set(lengths)) > 1:
        raise ConfigError("zipit", lengths, "axes must have the same length")
    return [merge(parts) for parts in zip(*lists, strict=True)]


def vmap(axis: Axis) -> list[Settings]:
    """One trial for a whole axis: its learners live side by side in one compiled program.

    Args:
      axis: consecutive values of ``seed``. As with ``seeds`` in every experiment, learner e lives
        in the world ``world_seed + e``; the same trials one by one are therefore
        ``zipit(sweep("seed", ...), sweep("world_seed", ...))``, which may also be given here.

    Raises:
      ConfigError: the axis varies anything else, or its values are not consecutive.
    """
    entries = [dict(settings) for settings in axis]
    if not entries:
        raise ConfigError("vmap", [], "the axis has no settings to fuse")
    fields = sorted({field for settings in entries for field in settings})
    if "seed" not in fields or not set(fields) <= set(FUSED):
        remedy = "only seeds can be fused into one program: leave vmap out, each is then a trial"
        raise ConfigError("vmap", fields, remedy)
    for field in fields:
        values: list[Any] = [settings.get(field) for settings in entries]
        first = values[0]
        if not is_integer(first) or values != [first + e for e in range(len(values))]:
            raise ConfigError("vmap", values, f"must be consecutive integers of {field}")
    return [{field: entries[0][field] for field in fields} | {"seeds": len(entries)}]


def merge(parts: Iterable[Mapping[str, Any]]) -> Settings:
    """Settings of several axes in one.

    Raises:
      ConfigError: two of them set the same field.
    """
    merged: Settings = {}
    for part in parts:
        for field in part:
            if field in merged:
                remedy = "is set by two axes that are crossed: leave it out of one"
                raise ConfigError(field, part[field], remedy)
        merged |= part
    return merged
