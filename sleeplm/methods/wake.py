"""Awake: every level absorbs the stream at its own pace (Eq. 2)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sleeplm.core.phase import chain, consolidate, tick
from sleeplm.core.shares import Axis
from sleeplm.core.types import Array, Metrics, Objective, Params, Phase, PyTree, State
from sleeplm.memory.levels import due, get_level, with_levels
from sleeplm.methods.extract import wake_batch
from sleeplm.methods.objectives import language_model
from sleeplm.methods.update import level_updates, moves_awake
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model


def wake(
    model: Model,
    *,
    objective: Objective | None = None,
    update: optax.GradientTransformation | None = None,
    trainable: Callable[[tuple], bool] | None = None,
    chunk: int = 128,
    axis_name: Axis = None,
) -> Phase:
    """One wake step on a batch {"tokens", "segments"}: absorb it, then count it.

    Each level gathers its update directions and moves at its own boundary; everything else is
    bit-frozen. In the nested wiring a level then restarts from the next slower one that moved.

    Args:
      objective, update, trainable: each replaces the one of the method: the language-model loss,
        the levels' own optimisers, and the bases of the levels that have a period.
      chunk: positions whose logits stand in memory at once.
      axis_name: mapped axis over rows, inside ``shard_map`` or ``pmap``.
    """
    levels = model.config.levels
    absorb = consolidate(
        wake_batch(),
        objective or language_model(model, chunk),
        update or level_updates(levels, model.config.wiring),
        trainable=trainable or moves_awake(levels),
        axis_name=axis_name,
    )
    if model.config.wiring == "nested":
        absorb = restarting_from_slower(model.config, absorb)
    return chain(absorb, tick("step"))


def restarting_from_slower(config: ModelConfig, absorb: Phase) -> Phase:
    """Nested wiring: when level l + 1 has moved, level l starts again from its weights.

    Faster levels restart last, and so do those below one that has: a move of the slowest reaches
    all of them, wherever their own boundaries are. An update that was refused, or had nothing to
    learn, has moved nobody.
    """

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        now = state.counters["step"] + 1
        state, metrics = absorb.step(state, batch, key)
        applied = metrics["loss"][1] > 0
        params, moved = state.params, jnp.asarray(False)
        for fast, slow in reversed(list(zip(config.levels[:-1], config.levels[1:], strict=True))):
            moved = moved | (applied & due(now, slow.period, slow.offset))
            params = _copy_if(params, moved, slow.name, fast.name)
        return state.replace(params=params), metrics

    return Phase(absorb.init, step)


def _copy_if(params: Params, moved: Array, source: str, target: str) -> Params:
    donor, taker = get_level(params, source), get_level(params, target)
    changed = {
        part: jax.tree.map(lambda new, old: jnp.where(moved, new, old), donor[part], taker[part])
        for part in ("base", "norm")
    }
    return with_levels(params, {target: {**taker, **changed}})
