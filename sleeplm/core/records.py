"""From plain values, as JSON holds them, back to the dataclasses that they were."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from sleeplm.core.errors import ConfigError


def from_plain(kind: type, values: Any, field: str) -> Any:
    """The dataclass whose ``dataclasses.asdict`` is ``values``, nested ones and lists included.

    Fields that are not there take their defaults: what was written before they existed meant
    those. Types of single values are not looked at: the record's own checks do that.

    Args:
      field: where the values stand, for messages.

    Raises:
      ConfigError: a field that the dataclass has not, or something else than a mapping.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(field, values, f"must be an object with the fields of {kind.__name__}")
    kinds = typing.get_type_hints(kind)
    names = {one.name for one in dataclasses.fields(kind)}
    if unknown := [name for name in values if name not in names]:
        remedy = f"{kind.__name__} has no such field: it was written by another version"
        raise ConfigError(f"{field}.{unknown[0]}", values[unknown[0]], remedy)
    given = {name: _value(kinds[name], value, f"{field}.{name}") for name, value in values.items()}
    try:
        return kind(**given)
    except TypeError as error:
        raise ConfigError(field, sorted(given), str(error)) from error


def _value(kind: Any, value: Any, field: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_plain(typing.cast(type, kind), value, field)
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is list and dataclasses.is_dataclass(inner[0]):
        if not isinstance(value, list):
            raise ConfigError(field, value, "must be a list")
        parts = enumerate(value)
        return [from_plain(typing.cast(type, inner[0]), one, f"{field}[{i}]") for i, one in parts]
    return value
