"""A sweep inside a run: learners side by side that differ in numbers of their configuration.

``config.sweep`` has a list for every number that varies; the first values of all lists are the
first setting, and so on. Every seed lives with every setting: learner ``k * seeds + s`` has setting
k, and the seed, world and backbone of seed s.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.methods.settings import replaced, value_of

#: Numbers that learners of one program may differ in, and values at which a number decides what
#: there is to compute: none of these stands beside another value in one program.
MAY_VARY: dict[str, tuple[float, ...]] = {
    "model.levels[*].learning_rate": (),
    "model.levels[*].weight_decay": (),
    "sleep.learning_rate": (),
    "sleep.weight_decay": (),
    "sleep.lam": (0.0, 1.0),
    "sleep.alpha": (1.0,),
    "sleep.gamma": (),
    "sleep.z0": (),
    "sleep.temperature": (),
    "sleep.teachers[*].weight": (),
    "sleep.teachers[*].uncued": (),
    "sleep.teachers[*].balance": (),
    "baselines.sft_learning_rate": (),
    "baselines.ewc_strength": (),
    "baselines.lora_learning_rate": (),
    "baselines.slow_learning_rate": (),
    "baselines.base_learning_rate": (),
    "baselines.pool_learning_rate": (),
}

Settings = dict[str, float]


def settings_of(config: Any) -> list[Settings]:
    """What each setting of a run changes; a run without a sweep has one, which changes nothing."""
    lists = config.sweep.values()
    each = zip(*lists, strict=True) if lists else [()]
    return [dict(zip(config.sweep, values, strict=True)) for values in each]


def with_setting(config: Any, settings: Mapping[str, float]) -> Any:
    """The configuration of a run that has this one setting only."""
    return replaced(dataclasses.replace(config, sweep={}), settings)


def varying(config: Any) -> list[str]:
    """Names of the numbers that a program must read from its learners.

    What decides the program is the same in all settings, and stays a constant.
    """
    return [
        name
        for name, values in config.sweep.items()
        if not any(checks.is_constant(values[0], decides) for decides in _decisive(name))
    ]


def arm_name(arm: str, settings: Mapping[str, float]) -> str:
    """How results call an arm with a setting: ``sleep@sleep.lam=0.5``; without one, as it is."""
    said = ",".join(f"{name}={value!r}" for name, value in settings.items())
    return f"{arm}@{said}" if said else arm


def check_sweep(config: Any) -> None:
    """Checks the setting ``sweep``, and every configuration that it stands for.

    Raises:
      ConfigError: a name that cannot vary, lists of unequal length, a value that cannot work, or
        values that ask for different programs.
    """
    lengths = {name: len(values) for name, values in config.sweep.items()}
    for name, values in config.sweep.items():
        field = f"sweep[{name!r}]"
        if _pattern(name) not in MAY_VARY:
            raise ConfigError(field, values, _cannot(name))
        value_of(config, name)
        checks.require(len(values) > 0, field, values, "give at least one value")
        remedy = f"all lists have a value for every setting, but lengths are {lengths}"
        checks.require(len(values) == max(lengths.values()), field, values, remedy)
        for value in values:
            checks.finite(field, value)
        for decides in _decisive(name):
            at = sum(value == decides for value in values)
            remedy = f"{decides:g} leaves a part of the night out: sweep it in a run of its own"
            checks.require(at in (0, len(values)), field, values, remedy)
    found = settings_of(config)
    for i, settings in enumerate(found):
        checks.require(settings not in found[:i], "sweep", settings, "is there twice")
        own = with_setting(config, settings)
        for part in ("model", "sleep", "baselines"):
            getattr(own, part).check(part)


def _decisive(name: str) -> tuple[float, ...]:
    return MAY_VARY[_pattern(name)]


def _pattern(name: str) -> str:
    return re.sub(r"\[\d+\]", "[*]", name)


def _cannot(name: str) -> str:
    close = difflib.get_close_matches(_pattern(name), MAY_VARY, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"cannot vary in one program{hint}; these can: {', '.join(MAY_VARY)}"
