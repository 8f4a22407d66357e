"""Configuration: a typed dataclass made by a Python file, with overrides from the command line.

A configuration file defines ``get_config()``, which returns a dataclass; nested dataclasses and
lists of dataclasses are fine. Overrides are strings such as ``--config.sleep.updates=96`` or
``--config.model.levels[0].period=4``, parsed by ``ml_collections.config_flags``.

A configuration dataclass may define ``check(self, field: str) -> None``, which raises
:class:`~sleeplm.core.errors.ConfigError` when its values cannot work; ``field`` is the dotted path
at which it stands, such as ``"model"`` (empty for the outermost). :func:`check` calls them all.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import hashlib
import inspect
import json
import pathlib
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from sleeplm.core.checks import one_of
from sleeplm.core.errors import ConfigError, SleepError
from sleeplm.runtime.annotations import (
    describe,
    field_types,
    is_optional,
    matches,
    parse_by_annotation,
    without_none,
)

PREFIX = "--config."
ABSENT = object()
MAKE, MAKE_QUICK = "get_config", "get_quick_config"


def load_config(path: str, overrides: list[str], quick: bool = False) -> Any:
    """Reads a configuration file and applies overrides.

    Args:
      path: a Python file with ``get_config()``; ``file.py:name`` calls ``get_config("name")``.
      overrides: ``--config.FIELD=VALUE`` each; ``--config.FIELD VALUE`` in two strings also works.
        A later override of the same field wins.
      quick: the file's own short version instead, ``get_quick_config()``.

    Returns:
      The dataclass. Types are checked; call :func:`check` for values.

    Raises:
      ConfigError: with the field, the value and what would be right.
    """
    config = _get_config(path, MAKE_QUICK if quick else MAKE)
    assignments = [_split(text) for text in _join(overrides)]
    _refuse_lost(assignments)
    for field, text in assignments:
        config = _override(config, field, text)
    _check_types(config)
    return config


def check(config: Any, *, outermost: bool = True) -> None:
    """Checks types and values of a configuration and everything nested in it.

    Args:
      outermost: also by the configuration's own ``check``, which may look for files and data.

    Raises:
      ConfigError: the first setting that cannot work.
    """
    _check_types(config)
    for field, node in _nodes(config, ""):
        if callable(getattr(node, "check", None)) and (field or outermost):
            node.check(field)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts and lists of what JSON can hold."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=_plain))


def digest(config: Any) -> str:
    """SHA-256 of the configuration's values, in hexadecimal: equal for equal configurations."""
    return digest_of(to_dict(config))


def digest_of(values: dict[str, Any]) -> str:
    """SHA-256 of plain values (see :func:`to_dict`), in hexadecimal."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differing_fields(then: Any, now: Any, field: str = "") -> list[tuple[str, str, str]]:
    """``(dotted path, then, now)`` of the plain values that two configurations differ in.

    Args:
      then, now: see :func:`to_dict`.

    Returns:
      In the order of ``now``; values as text of at most 60 letters, ``absent`` for none.
    """
    if isinstance(then, dict) and isinstance(now, dict):
        pairs = [(part, then.get(part, ABSENT), now.get(part, ABSENT)) for part in {**now, **then}]
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = list(zip(range(len(now)), then, now, strict=True))
    elif repr(then) == repr(now):  # 1 is not 1.0, as in the digest
        return []
    else:
        return [(field, _short(then), _short(now))]
    return [one for part, a, b in pairs for one in differing_fields(a, b, _child(field, part))]


def read_module(path: str) -> types.ModuleType:
    """Executes a configuration file; what follows a colon in ``path`` is left out.

    Raises:
      ConfigError: it is not there, or cannot be run.
    """
    file = pathlib.Path(str(path).partition(":")[0])
    if not file.is_file():
        raise ConfigError("config", str(path), "no such file")
    if file.suffix != ".py":
        raise ConfigError("config", str(path), "must be a Python file, named *.py")
    module = types.ModuleType(_module_name(file))
    module.__file__ = str(file)
    # Dataclasses with postponed annotations look their module up by name.
    sys.modules[module.__name__] = module
    try:
        # Not imported: Python would leave what it has compiled in the folder, and take that again
        # for another file of the same length that was written within the same second.
        exec(compile(file.read_bytes(), file, "exec"), vars(module))
    except SleepError:
        raise
    except Exception as error:
        raise ConfigError("config", str(path), f"cannot be run: {_line(error)}") from error
    return module


def _get_config(path: str, maker: str) -> Any:
    module, argument = read_module(path), str(path).partition(":")[2]
    make = getattr(module, maker, None)
    if not callable(make):
        raise ConfigError("config", str(path), f"must define {maker}()")
    if argument and not inspect.signature(make).parameters:
        remedy = f"{maker}() takes no argument: leave out :{argument}"
        raise ConfigError("config", str(path), remedy)
    try:
        config = make(argument) if argument else make()
    except SleepError:
        raise
    except Exception as error:
        raise ConfigError("config", str(path), f"{maker}() failed: {_line(error)}") from error
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        kind = type(config).__name__
        raise ConfigError("config", str(path), f"{maker}() must return a dataclass, not {kind}")
    for field, node in _nodes(config, ""):
        if type(node).__dataclass_params__.frozen:
            remedy = "must be a dataclass that is not frozen, so that it can be overridden"
            raise ConfigError(field or "config", type(node).__name__, remedy)
    return config


def _module_name(file: pathlib.Path) -> str:
    return f"_config_{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"


def _join(overrides: list[str]) -> list[str]:
    """``["--config.a", "1"]`` as ``["--config.a=1"]``."""
    joined: list[str] = []
    for text in overrides:
        bare = joined and joined[-1].startswith(PREFIX) and "=" not in joined[-1]
        if bare and not text.startswith("--"):
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined


def _split(text: str) -> tuple[str, str]:
    if not text.startswith(PREFIX):
        close = f"; did you mean {PREFIX}{text.lstrip('-')}?" if "=" in text else ""
        raise ConfigError("override", text, f"must look like {PREFIX}FIELD=VALUE{close}")
    field, equals, value = text.removeprefix(PREFIX).partition("=")
    if not equals:
        raise ConfigError(field, None, f"has no value; write {PREFIX}{field}=VALUE")
    return field.strip(), value


def _refuse_lost(assignments: list[tuple[str, str]]) -> None:
    for index, (inner, value) in enumerate(assignments):
        for outer, _ in assignments[index + 1 :]:
            if inner.startswith((outer + ".", outer + "[")):
                remedy = f"would be lost, because {PREFIX}{outer} comes after it; change the order"
                raise ConfigError(inner, value, remedy)


def _override(config: Any, field: str, text: str) -> Any:
    annotation = _find(config, field, text)
    if text.lower() == "none" and is_optional(annotation):
        config_path.set_value(field, config, None)
        return config
    for _, node in _nodes(config, ""):
        parse_by_annotation(type(node))
    argv = ["config", f"{PREFIX}{field}={text}"]
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dataclass(
            "config", config, flag_values=values, sys_argv=argv
        )
        values(argv)
    except (flags.Error, ValueError, TypeError, KeyError, IndexError) as error:
        raise ConfigError(field, text, f"must be {describe(annotation)}") from error
    _check_type(config_path.get_value(field, holder.value), annotation, field)
    return holder.value


def _find(config: Any, field: str, text: str) -> Any:
    """The annotation of ``field``; names what is there when the field is not."""
    try:
        parts = config_path.split(field)
    except (ValueError, SyntaxError) as error:
        remedy = "is not a field; write it as in model.levels[0].period"
        raise ConfigError(field, text, remedy) from error
    node, annotation, walked = config, type(config), ""
    for part in parts:
        if isinstance(part, str) and dataclasses.is_dataclass(node):
            names = field_types(type(node))
            if part not in names:
                raise ConfigError(_child(walked, part), text, _unknown(part, list(names)))
            annotation = names[part]
        elif isinstance(node, list | dict):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if part not in keys:
                remedy = f"is not there; {walked} has {keys if keys else 'no elements'}"
                raise ConfigError(_child(walked, part), text, remedy)
            arguments = typing.get_args(without_none(annotation))
            annotation = arguments[-1] if arguments else type(node[part])
        else:
            raise ConfigError(_child(walked, part), text, _leaf(walked, node, annotation))
        walked = _child(walked, part)
        node = getattr(node, part) if dataclasses.is_dataclass(node) else node[part]
    return annotation


def _leaf(field: str, node: Any, annotation: Any) -> str:
    if node is None and dataclasses.is_dataclass(without_none(annotation)):
        return f"{field} is none; write {PREFIX}{field}=build before it"
    return f"is not there; {field} is {node!r} and has no fields"


def _unknown(part: str, names: list[str]) -> str:
    close = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"no such field; {hint}there are: {', '.join(names)}"


def _child(field: str, part: object) -> str:
    if isinstance(part, str):
        return f"{field}.{part}" if field else part
    return f"{field}[{part!r}]"


def _nodes(value: Any, field: str) -> Iterator[tuple[str, Any]]:
    """``(dotted path, dataclass)`` of every dataclass in ``value``, the outer before the inner."""
    if dataclasses.is_dataclass(value):
        yield field, value
        inner: list[tuple[Any, Any]] = [
            (f.name, getattr(value, f.name)) for f in dataclasses.fields(value)
        ]
    elif isinstance(value, dict):
        inner = list(value.items())
    else:
        inner = list(enumerate(value)) if isinstance(value, list | tuple) else []
    for part, child in inner:
        yield from _nodes(child, _child(field, part))


def _check_types(config: Any) -> None:
    for field, node in _nodes(config, ""):
        for name, annotation in field_types(type(node)).items():
            _check_type(getattr(node, name), annotation, _child(field, name))


def _check_type(value: Any, annotation: Any, field: str) -> None:
    if matches(value, annotation):
        return
    inner = without_none(annotation)
    if typing.get_origin(inner) is typing.Literal:
        one_of(field, value, typing.get_args(inner))
    raise ConfigError(field, value, f"must be {describe(annotation)}")


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    return repr(value) if not hasattr(value, "tolist") else value.tolist()


def _short(value: Any) -> str:
    text = "absent" if value is ABSENT else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
