"""Axes of a sweep, for experiment files: each is a list of settings, ``{field: value}``.

An experiment file names its sweeps with functions; a plain generator is an axis too::

    from launch.axes import fixed, product, sweep, vmap, zipit

    def sweep_lr():
        for rate in (1e-3, 3e-3):
            yield {"sleep.learning_rate": rate}

    def sweep_grid():
        sizes = zipit(sweep("days", (4, 8)), sweep("facts_per_day", (60, 30)))
        return product(sizes, fixed("world", "biographies"), vmap(sweep("seed", range(4))))

    def sweep_fused():
        return vmap(product(sweep("sleep.lam", (0.2, 0.5)), sweep("sleep.alpha", (0.8, 0.9))))
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from sleeplm.core.checks import is_finite, is_integer, require
from sleeplm.core.errors import ConfigError

Settings = dict[str, Any]
Axis = Iterable[Mapping[str, Any]]
#: What seeds that live side by side differ in: seed e has both fields + e.
FUSED = ("seed", "world_seed")
#: The field in which an experiment takes other numbers that vary, ``{field: values}``.
SWEEP = "sweep"


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
      axis: consecutive values of ``seed``, or numbers of other fields (which ones an experiment
        can fuse it says when the sweep is expanded). As with ``seeds`` in every experiment,
        seed e lives in the world ``world_seed + e``; the same trials one by one are therefore
        ``zipit(sweep("seed", ...), sweep("world_seed", ...))``, which may also be given here.
        Seeds and numbers are crossed as two axes, ``product(vmap(...), vmap(...))``, in one trial.

    Raises:
      ConfigError: the axis varies anything else, or seeds are not consecutive.
    """
    entries = [dict(settings) for settings in axis]
    if not entries:
        raise ConfigError("vmap", [], "the axis has no settings to fuse")
    fields = sorted({field for settings in entries for field in settings})
    if not set(fields) & {*FUSED, "seeds"}:
        return _numbers(entries, fields)
    if "seed" not in fields or not set(fields) <= set(FUSED):
        remedy = "seeds and numbers are axes of their own: product(vmap(...), vmap(...))"
        raise ConfigError("vmap", fields, remedy)
    for field in fields:
        values: list[Any] = [settings.get(field) for settings in entries]
        first = values[0]
        if not is_integer(first) or values != [first + e for e in range(len(values))]:
            raise ConfigError("vmap", values, f"must be consecutive integers of {field}")
    return [{field: entries[0][field] for field in fields} | {"seeds": len(entries)}]


def _numbers(entries: list[Settings], fields: list[str]) -> list[Settings]:
    """Settings of numbers as one trial that sweeps them inside."""
    for settings in entries:
        for field in fields:
            value = settings.get(field)
            remedy = "only seeds and numbers, in every settings of the axis, can be fused"
            require(is_finite(value), field, value, f"{remedy}: leave vmap out")
    return [{SWEEP: {field: [settings[field] for settings in entries] for field in fields}}]


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
                if field == SWEEP:
                    remedy = "two fused axes: cross them inside, vmap(product(axis, axis))"
                raise ConfigError(field, part[field], remedy)
        merged |= part
    return merged
