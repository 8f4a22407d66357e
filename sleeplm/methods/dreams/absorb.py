"""Accepted dreams are learned into one expert, beside what the night's teachers tell.

The update is the night's own: ``consolidate`` over one slot. Dreams are learned by their
language-model loss; what teachers tell of today, of earlier days and of what came before is
distilled again in the same minibatches, so that an expert that takes dreams in keeps what it held.

Dimension letters: n dreams, L positions of a row.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sleeplm.core.losses import chunked_cross_entropy, chunked_divergence, divergence
from sleeplm.core.phase import consolidate
from sleeplm.core.shares import Axis
from sleeplm.core.types import Array, Extract, Memory, Metrics, Objective, Phase, PyTree, Variables
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.write import DREAM
from sleeplm.methods.extract import mix, stateless
from sleeplm.methods.sleep import learns_at_night, teachings, usual_update
from sleeplm.methods.update import only_slot
from sleeplm.models.transformer import Model


def absorb(
    model: Model,
    sleep: SleepConfig,
    config: DreamConfig,
    pair: tuple[str, str],
    slot: Array,
    axis_name: Axis = None,
) -> Phase:
    """``config.inner`` updates of the receiver's expert ``slot`` on accepted dreams.

    The batch is {"rows" int32 [inner, rows], "today" int32: the day that the cues of today are
    filed under, "dreams": a :class:`Memory` of which rows without weight are passed over}. The
    teachers are those of ``sleep``, as its last night has left them, told by their own samples
    alone: no rollouts, no imitation.

    Args:
      slot: int32 scalar, traced or not; nothing else moves.
      axis_name: mapped axis over rows, inside ``shard_map`` or ``pmap``; dreams are the
        same on all.
    """
    extract: Extract = from_dreams(model, config)
    if config.past > 0:
        extract = mix(
            extract,
            teachings(model, told_again(sleep, config), pair, _tellers(sleep, config), axis_name),
        )
    update = only_slot(usual_update(told_again(sleep, config)))
    return consolidate(
        extract,
        dreams_and_teachers(model, sleep),
        update,
        trainable=learns_at_night(pair[1], "expert"),
        extra=lambda state: {"slot": slot, "total": config.updates},
        inner=config.inner,
        axis_name=axis_name,
    )


def told_again(sleep: SleepConfig, config: DreamConfig) -> SleepConfig:
    """The settings of the night for the updates that take dreams in."""
    return dataclasses.replace(
        sleep,
        updates=config.updates,
        rows=config.rows,
        inner=config.inner,
        epochs=1,
        lam=0.0,
        alpha=1.0,
        pack=0,
        cues="subjects",
        into="expert",
        learning_rate=config.absorb_learning_rate,
    )


def _tellers(sleep: SleepConfig, config: DreamConfig) -> list:
    return [dataclasses.replace(t, weight=config.past * t.weight) for t in sleep.teachers]


def from_dreams(model: Model, config: DreamConfig) -> Extract:
    """Rows of ``batch["dreams"]`` in turn, beginning anywhere; those without weight never.

    Where teachers tell too, rows have a reference of zeros, which no loss looks at.
    """

    def extract(variables: Variables, batch: PyTree, key: Array) -> Memory:
        dreams: Memory = batch["dreams"]
        there = dreams.weights.sum(1) > 0
        order, count = jnp.argsort(~there, stable=True), jnp.maximum(there.sum(), 1)
        rows = batch["rows"].reshape(-1) + jax.random.randint(key, (), 0, count)
        taken = jax.tree.map(lambda x: x[order[rows % count]], dreams)
        if config.past == 0:
            return taken
        states = jnp.zeros((*taken.tokens.shape, model.config.d_model))
        return dataclasses.replace(taken, reference=states, logp=jnp.zeros(taken.tokens.shape))

    return stateless(extract)


def dreams_and_teachers(model: Model, sleep: SleepConfig) -> Objective:
    """Cross entropy of the rows that are dreams, divergence from the teachers of the others.

    One reading of the rows serves both; each token counts by its weight.
    """
    apart = divergence(sleep.divergence, sleep.beta)

    def objective(variables: Variables, memory: Memory) -> tuple[Array, Array, Metrics]:
        hidden = model.hidden(variables, memory.tokens, memory.segments)[:, :-1]
        unembed = model.unembed(variables["params"])
        weights, dreamt = memory.weights[:, 1:], (memory.source == DREAM)[:, None]
        loss, weight = chunked_cross_entropy(
            hidden, unembed, memory.tokens[:, 1:], weights * dreamt, sleep.chunk
        )
        if memory.reference is None:
            return loss, weight, {"dream_loss": (loss, weight)}
        kl, told = chunked_divergence(
            hidden,
            memory.reference[:, :-1],
            unembed,
            unembed,
            weights * ~dreamt,
            apart,
            sleep.chunk,
        )
        return loss + kl, weight + told, {"dream_loss": (loss, weight), "divergence": (kl, told)}

    return objective
