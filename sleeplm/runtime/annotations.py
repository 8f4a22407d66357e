"""Type annotations of configuration dataclasses: what may stand in a field, in words and as a test.

Understood are ``int``, ``float``, ``bool``, ``str``, enums, dataclasses, ``Literal``, unions with
and without None, ``list``, ``tuple`` and ``dict`` of these. Anything else is let through.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from typing import Any

from sleeplm.core.errors import ConfigError

_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_PARSED = (int, float, bool, str, tuple)


def field_types(kind: type) -> dict[str, Any]:
    """``{field: annotation}`` of a dataclass, with annotations that are strings resolved."""
    try:
        hints = typing.get_type_hints(kind)
    except NameError as error:
        remedy = f"has an annotation that cannot be resolved: {error}"
        raise ConfigError("config", kind.__name__, remedy) from error
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def parse_by_annotation(kind: type) -> None:
    """Makes a dataclass ready for ``config_flags``, which reads ``Field.type`` and needs classes.

    Resolves annotations that are strings. What it has no parser for becomes a string (choices
    of strings) or a Python literal (``object``); :func:`matches` then decides.
    """
    hints = field_types(kind)
    for field in dataclasses.fields(kind):
        field.type = _parsed_type(hints[field.name])


def matches(value: Any, annotation: Any) -> bool:
    """Whether ``value`` may stand where ``annotation`` is; an int may stand for a float."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or annotation is object:
        return True
    if annotation is None or annotation is type(None):
        return value is None
    if is_union(annotation):
        return any(matches(value, option) for option in arguments)
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if annotation in (int, float):
        numbers = (int,) if annotation is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    if origin in (list, dict, tuple):
        return isinstance(value, origin) and _items_match(value, origin, arguments)
    return isinstance(value, annotation) if isinstance(annotation, type) else True


def is_union(annotation: Any) -> bool:
    """Whether the annotation is ``Union[...]``, ``Optional[...]`` or ``A | B``."""
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def is_optional(annotation: Any) -> bool:
    """Whether None may stand there."""
    return is_union(annotation) and type(None) in typing.get_args(annotation)


def without_none(annotation: Any) -> Any:
    """``T`` for ``T | None``; anything else as it is."""
    rest = [a for a in typing.get_args(annotation) if a is not type(None)]
    return rest[0] if is_optional(annotation) and len(rest) == 1 else annotation


def describe(annotation: Any) -> str:
    """What may stand there, in words: ``"an integer or none"``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "none"
    if is_union(annotation):
        return " or ".join(describe(option) for option in arguments)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (list, tuple):
        inner = [a for a in arguments if a is not Ellipsis]
        kinds = " / ".join(dict.fromkeys(map(describe, inner)))
        return f"a {origin.__name__}{_example(origin, inner)}, each element {kinds}"
    if origin is dict:
        return f"a dict such as {{'name': ...}}, each value {describe(arguments[-1])}"
    if isinstance(annotation, enum.EnumMeta):
        return f"one of {', '.join(annotation.__members__)}"
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return f"a {annotation.__name__}, whose fields are set one by one"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _example(origin: type, inner: list[Any]) -> str:
    """`` such as [1, 2]``; nothing for lists of records, which are not written so."""
    if any(_is_record(kind) for kind in inner):
        return ""
    words = any(kind is str or typing.get_origin(kind) is typing.Literal for kind in inner)
    return f" such as {origin(('a', 'b') if words else (1, 2))}"


def _parsed_type(annotation: Any) -> Any:
    inner = without_none(annotation)
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if origin is typing.Literal and all(isinstance(choice, str) for choice in arguments):
        parsed = str
    elif origin is tuple or inner in _PARSED or _is_record(inner):
        parsed = inner
    else:
        return object
    return parsed | None if is_optional(annotation) else parsed


def _is_record(kind: Any) -> bool:
    is_enum = isinstance(kind, enum.EnumMeta)
    return is_enum or (isinstance(kind, type) and dataclasses.is_dataclass(kind))


def _items_match(value: Any, origin: type, arguments: tuple[Any, ...]) -> bool:
    if not arguments:
        return True
    if origin is dict:
        return all(matches(k, arguments[0]) and matches(v, arguments[1]) for k, v in value.items())
    if origin is tuple and arguments[-1] is not Ellipsis:
        pairs = zip(value, arguments, strict=False)
        return len(value) == len(arguments) and all(matches(v, a) for v, a in pairs)
    return all(matches(item, arguments[0]) for item in value)
