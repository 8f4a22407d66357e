"""Dream-writing is reinforced by ReST^EM (section 6, step 5; arXiv:2312.06585).

Sample, keep what is rewarded, fine-tune the writer on it, repeat.

The writer is the learner with low-rank adapters of its own. Only these move: levels, experts,
routers and the backbone, which are the memories, keep every bit.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.phase import consolidate
from sleeplm.core.shares import Axis, own_share
from sleeplm.core.types import (
    WRITER,
    Array,
    Memory,
    Metrics,
    Objective,
    Params,
    Phase,
    PyTree,
    State,
    Variables,
)
from sleeplm.methods.adapters import in_adapters, with_adapters
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.dream import no_dreams, round_of
from sleeplm.methods.dreams.rounds import as_writer
from sleeplm.methods.dreams.write import Dreams, only
from sleeplm.methods.extract import stateless
from sleeplm.methods.objectives import in_pieces, language_model
from sleeplm.models.transformer import Model


def with_writer(params: Params, rank: int, key: Array) -> Params:
    """``params`` with a dream writer that still writes as the learner itself does."""
    return with_adapters(params, rank, key, WRITER)


def of_writer(objective: Objective) -> Objective:
    """The objective on the variables of the writer, so that gradients reach its adapters."""

    def run(variables: Variables, memory: Memory) -> tuple[Array, Array, Metrics]:
        return objective(as_writer(variables), memory)

    return run


def tutor(model: Model, config: DreamConfig, axis_name: Axis = None) -> Phase:
    """Fine-tunes the writer on the dreams that are its batch (:class:`Dreams`, weighed by reward).

    Every fine-tuning has an optimiser of its own and, with ``config.writer_restarts``, begins at
    the learner itself, as published; without accepted dreams the writer stays as it is, bit for
    bit.

    Args:
      axis_name: mapped axis whose devices share the dreams, which all of them are given.
    """
    learn = consolidate(
        stateless(lambda variables, batch, key: only(*own_share(batch, axis_name))),
        in_pieces(of_writer(language_model(model)), config.writer_rows),
        optax.adam(config.writer_learning_rate),
        trainable=in_adapters(WRITER),
        epochs=config.writer_epochs,
        axis_name=axis_name,
    )

    def step(state: State, batch: Dreams, key: Array) -> tuple[State, Metrics]:
        some = batch.mask.any()
        if config.writer_restarts:
            fresh = with_writer(state.params, config.writer_rank, key)
            state = state.replace(params=tree.where(some, fresh, state.params))
        state = state.replace(private=learn.init(state.params, key))
        state, learned = learn.step(state, batch.written, key)
        taught = (jnp.where(some, 1.0, 0.0), jnp.ones(()))
        return state, {"writer_loss": learned["loss"], "writer_taught": taught}

    return Phase(learn.init, step)


def reinforce(model: Model, config: DreamConfig, *, axis_name: Axis = None, **parts: Any) -> Phase:
    """One round of ReST^EM: dream, then fine-tune the writer on the accepted dreams.

    ``repeat(rounds, reinforce(...))`` is the algorithm. The writer learns to write a dream behind
    its context, see :func:`tutor`. The private state is that of
    :func:`~sleeplm.methods.dreams.dream.dream`: the round's accepted dreams.

    Args:
      axis_name, parts: of :func:`~sleeplm.methods.dreams.rounds.whole_round`.

    Raises:
      ConfigError: when it is initialised, parameters without a writer (:func:`with_writer`).
    """
    run = round_of(model, config, axis_name=axis_name, **parts)
    teach = tutor(model, config, axis_name)

    def init(params: Params, key: Array) -> Dreams:
        del key
        if WRITER not in params:
            have = ", ".join(params)
            raise ConfigError("params", have, "give the learner a writer: with_writer(params, ...)")
        return no_dreams(config)

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        dream_key, learn_key = jax.random.split(key)
        accepted, metrics = run(state.variables, batch, dream_key)
        state, taught = teach.step(state, accepted, learn_key)
        return state.replace(private=accepted), {**metrics, **taught}

    return Phase(init, step)
