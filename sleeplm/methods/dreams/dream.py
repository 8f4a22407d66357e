"""A round of dreaming as what others are composed of (section 6).

``round_of`` is the round as one function, ``dream`` as a phase that keeps what was accepted, and
``dreams`` as an extraction, so that ``consolidate`` learns it. What happens in a round is in
:mod:`sleeplm.methods.dreams.rounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sleeplm.core.checks import require
from sleeplm.core.shares import Axis, own_share
from sleeplm.core.types import (
    Array,
    Extract,
    Memory,
    Metrics,
    Params,
    Phase,
    PyTree,
    State,
    Variables,
)
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.rounds import whole_round
from sleeplm.methods.dreams.write import Contexts, Dreams, only, whole
from sleeplm.methods.extract import stateless
from sleeplm.models.transformer import Model

Round = Callable[[Variables, Mapping[str, Any], Array], tuple[Dreams, Metrics]]


def round_of(model: Model, config: DreamConfig, **parts: Any) -> Round:
    """One round: ``(variables, batch, key) -> (k + b dreams, metrics)``.

    The tokens of each dream are weighed by its reward, so that those that were not accepted have
    no weight. It is :func:`whole_round`, of which only this is kept.
    """
    run = whole_round(model, config, **parts)

    def accepted(variables: Variables, batch: Mapping[str, Any], key: Array):
        outcome = run(variables, batch, key)
        return outcome.accepted, outcome.metrics

    return accepted


def dream(model: Model, config: DreamConfig, **parts: Any) -> Phase:
    """A round as a phase: what was accepted is its private state, :class:`Dreams`.

    ``state.private.told`` is the memory to learn. Nothing else of the learner moves.

    Args:
      parts: of :func:`whole_round`.
    """
    run = round_of(model, config, **parts)

    def init(params: Params, key: Array) -> Dreams:
        del params, key
        return no_dreams(config)

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        accepted, metrics = run(state.variables, batch, key)
        return state.replace(private=accepted), metrics

    return Phase(init, step)


def dreams(model: Model, config: DreamConfig, *, axis_name: Axis = None, **parts: Any) -> Extract:
    """A round as an extraction: the accepted dreams, of which the others have no weight.

    The memory has k + b rows. The batch is that of :func:`round_of`; a night's ``"rows"`` int32
    [T, B] may be in it, of which nothing is read but T: the minibatches that the memory is learned
    in, as many as the ``inner`` of ``consolidate``. Without, it is one minibatch. Each device of an
    ``axis_name`` has its share of every one of them.

    Raises:
      ConfigError: when it is traced, k + b rows that T minibatches cannot share.
    """
    run = round_of(model, config, axis_name=axis_name, **parts)

    def extract(variables: Variables, batch: Mapping[str, Any], key: Array) -> Memory:
        accepted, _ = run(variables, batch, key)
        minibatches = batch["rows"].shape[0] if "rows" in batch else 1
        return _own_rows(accepted.told, minibatches, axis_name)

    return stateless(extract)


def _own_rows(memory: Memory, minibatches: int, axis_name: Axis) -> Memory:
    """This device's share of every minibatch, one behind the other.

    With a share of the memory as a whole, its minibatches would hold other rows than those of one
    device alone.
    """
    rows = len(memory.tokens)
    remedy = f"must divide the rows of a memory ({rows}) into minibatches"
    require(rows % minibatches == 0, "inner", minibatches, remedy)
    groups = jax.tree.map(lambda x: x.reshape(minibatches, -1, *x.shape[1:]), memory)
    mine = jax.vmap(lambda group: only(*own_share(group, axis_name)))(groups)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mine)


def given() -> Extract:
    """The batch is the memory: for learning what a phase before has kept."""
    return stateless(lambda variables, batch, key: batch)


def no_dreams(config: DreamConfig, rounds: int = 1) -> Dreams:
    """k + b dreams of nothing for every round, of the shapes that one makes."""
    count = rounds * config.kept
    empty = Contexts(jnp.zeros((count, config.width), jnp.int32), jnp.zeros((count,), jnp.int32))
    width = 1 + config.new_tokens if config.alone else empty.tokens.shape[1]
    return Dreams(whole(empty), whole(empty._replace(tokens=empty.tokens[:, :width])))
