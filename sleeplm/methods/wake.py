"""Awake: every level absorbs the stream at its own pace (Eq. 2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sleeplm.core.phase import chain, consolidate, from_function, tick
from sleeplm.core.types import Array, Params, Phase, State
from sleeplm.memory.levels import due, get_level, with_levels
from sleeplm.methods.extract import wake_batch
from sleeplm.methods.objectives import language_model
from sleeplm.methods.update import level_updates, moves_awake
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model


def wake(model: Model, *, chunk: int = 128, axis_name: str | None = None) -> Phase:
    """One wake step on a batch {"tokens", "segments"}: absorb it, then count it.

    Each level gathers its update directions and moves at its own boundary; everything else is
    bit-frozen. In the nested wiring a level then restarts from the next slower one that moved.
    """
    levels = model.config.levels
    absorb = consolidate(
        wake_batch(),
        language_model(model, chunk),
        level_updates(levels, model.config.wiring),
        trainable=moves_awake(levels),
        axis_name=axis_name,
    )
    if model.config.wiring != "nested":
        return chain(absorb, tick("step"))
    return chain(absorb, from_function(restart_from_slower(model.config)), tick("step"))


def restart_from_slower(config: ModelConfig):
    """Nested wiring: when level l + 1 has moved, level l starts again from its weights.

    Faster levels restart last, so that a move of the slowest reaches all of them.
    """

    def step(state: State, batch, key: Array):
        del batch, key
        now = state.counters["step"] + 1
        params = state.params
        for fast, slow in reversed(list(zip(config.levels[:-1], config.levels[1:], strict=True))):
            moved = jnp.asarray(due(now, slow.period, slow.offset))
            params = _copy_if(params, moved, slow.name, fast.name)
        return state.replace(params=params), {}

    return step


def _copy_if(params: Params, moved: Array, source: str, target: str) -> Params:
    donor, taker = get_level(params, source), get_level(params, target)
    changed = {
        part: jax.tree.map(lambda new, old: jnp.where(moved, new, old), donor[part], taker[part])
        for part in ("base", "norm")
    }
    return with_levels(params, {target: {**taker, **changed}})
