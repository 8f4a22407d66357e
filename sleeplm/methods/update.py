"""Parameter updates, in optax's own contract: move every k steps, move only this slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sleeplm.core import tree
from sleeplm.core.types import Array, Params, PyTree
from sleeplm.memory.levels import NEVER, LevelConfig, due, get_level, label_of, with_levels
from sleeplm.memory.slots import put_slot, take_slot


class EveryK(NamedTuple):
    """State of :func:`every_k`: update directions gathered since the last move, and inner state."""

    gathered: PyTree
    inner: optax.OptState


def every_k(
    inner: optax.GradientTransformation, period: int, offset: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Gathers update directions and moves only at its own boundary (Eq. 2).

    Between boundaries the parameters do not move, so the C(l) directions of a chunk are all taken
    at the same point; at the boundary their sum is applied. ``inner`` turns each gradient into
    its direction: for SGD the sum is that of the plain gradients.

    Args:
      inner: any optax transform.
      period: C(l) in steps; 0 never moves (and keeps no state).
      offset: boundaries are the steps i with (i - offset) divisible by ``period``, i counted
        from 1.

    The update takes the extra argument ``step``: int32, steps taken before this one.
    """
    if period == NEVER:
        return optax.with_extra_args_support(optax.set_to_zero())
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> EveryK:
        # Of bfloat16 directions a long sum would stand still long before its boundary.
        wide = [jnp.promote_types(p.dtype, jnp.float32) for p in jax.tree.leaves(params)]
        nothing = [jnp.zeros_like(p, d) for p, d in zip(jax.tree.leaves(params), wide, strict=True)]
        return EveryK(jax.tree.unflatten(jax.tree.structure(params), nothing), inner.init(params))

    def update(grads: PyTree, state: EveryK, params: PyTree = None, *, step: Array, **extra):
        direction, inner_state = inner.update(grads, state.inner, params, step=step, **extra)
        gathered = jax.tree.map(lambda g, d: g + d.astype(g.dtype), state.gathered, direction)
        now = due(step + 1, period, offset)
        move = jax.tree.map(
            lambda g, d: jnp.where(now, g, _nothing(g)).astype(d.dtype), gathered, grads
        )
        left = jax.tree.map(lambda g: jnp.where(now, jnp.zeros_like(g), g), gathered)
        return move, EveryK(left, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def optimizer(config: Any) -> optax.GradientTransformation:
    """The optimiser named by ``optimizer, learning_rate, weight_decay, b1, b2, clip``."""
    rate = config.learning_rate
    if config.optimizer == "sgd":
        core = optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(rate),
        )
    else:
        core = optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip), core) if config.clip else core


def fading() -> optax.GradientTransformationExtraArgs:
    """Scales directions down to 0, linearly, over a night of however many updates.

    Put it behind an optimiser for a learning rate that ends at 0. The update takes the extra
    argument ``total``: int32, how many the night has; later ones move nothing.
    """

    def init(params: PyTree) -> Array:
        del params
        return jnp.int32(0)

    def update(directions: PyTree, count: Array, params: PyTree = None, *, total: Array, **extra):
        del params, extra
        left = jnp.maximum(1.0 - count / jnp.maximum(total, 1), 0.0)
        return jax.tree.map(lambda x: (x * left).astype(x.dtype), directions), count + 1

    return optax.GradientTransformationExtraArgs(init, update)


def base_label(level: str) -> str:
    """Label, in :func:`level_updates`, of what moves awake in a level."""
    return f"{level}/base"


def moves_awake(levels: Sequence[LevelConfig]) -> Callable[[tuple], bool]:
    """Predicate on key paths: the MLPs of levels with a finite period. Experts sleep awake."""
    moving = {base_label(lv.name) for lv in levels if lv.period != NEVER}
    return lambda path: label_of(path) in moving


def level_updates(
    levels: Sequence[LevelConfig], wiring: str = "sequential"
) -> optax.GradientTransformationExtraArgs:
    """Every level's own optimiser at its own period (Eq. 2), over the tree of their MLPs.

    In the nested wiring only the fastest level runs; the slower ones, its initial states, take
    its gradient (first order: the derivative of the adapted weights with respect to their
    initial state is taken as the identity).
    """
    transforms = {
        base_label(lv.name): every_k(optimizer(lv), lv.period, lv.offset)
        for lv in levels
        if lv.period != NEVER
    }
    by_label = optax.partition(
        transforms,
        lambda params: jax.tree_util.tree_map_with_path(lambda p, _: label_of(p), params),
    )
    if wiring != "nested":
        return by_label

    def update(grads: PyTree, state: optax.OptState, params: PyTree = None, **extra):
        fastest = get_level(grads, levels[0].name)
        shared = {lv.name: {**get_level(grads, lv.name), **_base(fastest)} for lv in levels[1:]
                  if lv.period != NEVER}  # fmt: skip
        return by_label.update(with_levels(grads, shared), state, params, **extra)

    return optax.GradientTransformationExtraArgs(by_label.init, update)


def _base(level: PyTree) -> PyTree:
    return {"base": level["base"], "norm": level["norm"]}


def restart_level(
    update: optax.GradientTransformation, state: optax.OptState, params: Params, level: str
) -> optax.OptState:
    """Forgets moments and gathered directions of one level in a :func:`level_updates` state."""
    label = base_label(level)
    if label not in state.inner_states:
        return state
    moving, _ = tree.split(params, lambda path: label_of(path) in state.inner_states)
    fresh = update.init(moving)
    return state._replace(inner_states={**state.inner_states, label: fresh.inner_states[label]})


def only_slot(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Moves one expert and its router column; every other slot gets an update of exactly zero.

    Works on trees {"experts": {"a", "b"}, "router": {"w", "bias"}}, and on a parameter tree that
    holds exactly one such pool, with None elsewhere. ``inner`` sees, and keeps state for, the one
    expert only; start it afresh when another slot is opened. The update takes the extra argument
    ``slot``: int32 scalar.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> optax.OptState:
        return inner.init(take_slot(only_pool(params), jnp.int32(0)))

    def update(
        grads: PyTree, state: optax.OptState, params: PyTree = None, *, slot: Array, **extra
    ):
        mine = None if params is None else take_slot(only_pool(params), slot)
        direction, state = inner.update(take_slot(only_pool(grads), slot), state, mine, **extra)
        zeros = jax.tree.map(_nothing, only_pool(grads))
        leaves = jax.tree.leaves(put_slot(zeros, slot, direction))
        return jax.tree.unflatten(jax.tree.structure(grads), leaves), state

    return optax.GradientTransformationExtraArgs(init, update)


def _nothing(x: Array) -> Array:
    """What leaves every bit alone when it is added: -0.0 + 0.0 would be 0.0."""
    return jnp.full_like(x, -0.0)


def only_pool(params: PyTree) -> PyTree:
    """The one {"experts", "router"} pair in a tree that has None everywhere else."""
    a, b, bias, w = jax.tree.leaves(params)
    return {"experts": {"a": a, "b": b}, "router": {"w": w, "bias": bias}}
