"""Numbers of a configuration as arrays: learners of many settings in one compiled program.

Whatever builds a step here is a pure function of its configuration, so it may as well run while
the step is traced, with arrays where numbers stood. :func:`tuned` does that with the numbers that
the learner's state carries: learners side by side then differ in values, not in programs, and a
checkpoint holds what each was told.

What a number decides about the program itself (a ``lam`` of 0 leaves rollouts out, an ``alpha`` of
1 imitation) only a Python number decides: with arrays everything is in the program.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp

from sleeplm.core.checks import require
from sleeplm.core.types import Array, Metrics, Params, PyTree, State
from sleeplm.methods.dreams.stage import Dreaming
from sleeplm.methods.learner import Learner, Rest
from sleeplm.methods.sleep import Step

C = TypeVar("C")
#: Where the numbers are in a learner's private state: ``{name: float32 scalar}``.
SETTINGS = "settings"


def value_of(config: Any, name: str) -> Any:
    """The setting with that dotted name, such as ``sleep.teachers[0].weight``.

    Raises:
      ConfigError: there is none.
    """
    for part in _parts(name):
        there = _has(config, part)
        require(there, name, None, "no such setting")
        config = config[part] if isinstance(part, int) else getattr(config, part)
    return config


def replaced(config: C, values: Mapping[str, Any]) -> C:
    """A copy of the configuration with other values, also arrays, of settings by dotted name.

    Raises:
      ConfigError: there is no such setting.
    """
    for name, value in values.items():
        value_of(config, name)
        config = _put(config, _parts(name), value)
    return config


def tuned(build: Callable[[C], Step], config: C) -> Step:
    """The step that ``build`` makes of the configuration with the numbers of the learner's state.

    Args:
      build: pure; it runs whenever the step is traced.
    """

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        return build(replaced(config, state.private[SETTINGS]))(state, batch, key)

    return step


def with_settings(state: State, values: Mapping[str, Any]) -> State:
    """The learner with these numbers as its settings; as it is, if there are none."""
    if not values:
        return state
    numbers = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
    return state.replace(private={**state.private, SETTINGS: numbers})


def tuned_learner(build: Callable[[C], Learner], config: C, names: Iterable[str]) -> Learner:
    """The learner that ``build`` makes of the configuration, with some numbers as arrays.

    All its steps read these from the state (:func:`tuned`), where ``init`` puts those of
    ``config`` and :func:`with_settings` any others. What is no step (``blocks`` of a rest, ...) is
    as ``config`` says.

    Args:
      names: dotted, of numbers in ``config`` whose value decides nothing about the program.
    """
    made, names = build(config), tuple(names)

    def late(pick: Callable[[Learner], Step]) -> Step:
        return tuned(lambda own: pick(build(own)), config)

    def init(params: Params, key: Array) -> State:
        return with_settings(made.init(params, key), {n: value_of(config, n) for n in names})

    def tuned_rest(i: int, rest: Rest) -> Rest:
        if rest.merge is not None:
            begin, seed, end = (late(functools.partial(_merge, i=i, k=k)) for k in range(3))
            rest = rest._replace(merge=(begin, seed, end))
        return rest._replace(
            begin=late(lambda own: own.rests[i].begin),
            seed=late(lambda own: own.rests[i].seed),
            end=late(lambda own: own.rests[i].end),
        )

    dreams = made.dreaming
    if dreams is not None:
        dreams = dreams._replace(
            begin=late(lambda own: _dreaming(own).begin),
            round=late(lambda own: _dreaming(own).round),
            absorb=late(lambda own: _dreaming(own).absorb),
            end=late(lambda own: _dreaming(own).end),
        )
    return made._replace(
        init=init,
        wake=late(lambda own: own.wake),
        rests=tuple(tuned_rest(i, rest) for i, rest in enumerate(made.rests)),
        write_cues=None if made.write_cues is None else late(_write_cues),
        dreaming=dreams,
    )


def _merge(own: Learner, i: int, k: int) -> Step:
    merge = own.rests[i].merge
    assert merge is not None  # whether pools merge is no number
    return merge[k]


def _write_cues(own: Learner) -> Step:
    assert own.write_cues is not None  # nor is whether it writes any
    return own.write_cues


def _dreaming(own: Learner) -> Dreaming:
    assert own.dreaming is not None  # nor is whether nights dream
    return own.dreaming


def _parts(name: str) -> list[str | int]:
    """``"teachers[0].weight"`` as ``["teachers", 0, "weight"]``; what is no name stays whole."""
    if not re.fullmatch(r"\w+(\[\d+\])*(\.\w+(\[\d+\])*)*", name):
        return [name]
    return [int(part) if part.isdigit() else part for part in re.findall(r"\w+", name)]


def _has(node: Any, part: str | int) -> bool:
    if isinstance(part, int):
        return isinstance(node, list) and part < len(node)
    return dataclasses.is_dataclass(node) and part in {f.name for f in dataclasses.fields(node)}


def _put(node: Any, parts: list[str | int], value: Any) -> Any:
    if not parts:
        return value
    part, rest = parts[0], parts[1:]
    if isinstance(part, int):
        return [_put(one, rest, value) if i == part else one for i, one in enumerate(node)]
    return dataclasses.replace(node, **{part: _put(getattr(node, part), rest, value)})
