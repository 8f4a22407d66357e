"""Dreaming as the second stage of a night: after consolidation, into the expert it has opened.

In the order of section 6, and undone as a whole if it cost memories::

    begin    what may move is remembered
    round    1 write   2 select   3 try   4 reward   5 reinforce      (config.rounds of them)
    absorb   accepted dreams are learned into one expert              (config.blocks of them)
    end      the gate: what was known must still be told, else all of it is undone

Each is a pure step of the learner whose private state is :class:`Working`. What it keeps lives for
one night: at the end nothing is left of it, the texts that were dreamt from least of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sleeplm.core import tree
from sleeplm.core.checks import require
from sleeplm.core.shares import Axis
from sleeplm.core.types import WRITER, Array, Memory, Metrics, Params, Phase, PyTree, State
from sleeplm.memory.anchors import pool_of
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.memory.slots import (
    SlotTable,
    first_free,
    fresh_slot,
    init_slots,
    open_slot,
    put_slot,
    take_slot,
)
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.dreams.absorb import absorb
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.dream import no_dreams
from sleeplm.methods.dreams.gate import judged
from sleeplm.methods.dreams.reinforce import tutor
from sleeplm.methods.dreams.rounds import whole_round
from sleeplm.methods.dreams.write import Dreams, once
from sleeplm.methods.sleep import Step
from sleeplm.models.transformer import Model

#: Metrics that hold texts, ``(tokens int32 [m, L], weights float32 [m, L])``: what was written,
#: tried and accepted in a round. Whoever drives the steps takes them out before numbers are
#: averaged.
TEXTS = ("written_texts", "tried_texts", "accepted_texts")


class Working(NamedTuple):
    """What a night's dreaming keeps between its steps.

    Attributes:
      accepted: the dreams of all rounds so far, weighed by reward.
      slot: int32, the receiver's expert that takes them in.
      expert, table, writer: that expert with its router column, the receiver's ledger, and the
        writer's adapters (or ()), as they were before: all that dreaming may move.
      learning: of the updates that take dreams in.
    """

    accepted: Dreams
    slot: Array
    expert: PyTree
    table: SlotTable
    writer: PyTree
    learning: PyTree


class Dreaming(NamedTuple):
    """The steps of a night's dreaming, on a state whose private part is ``init(params)``.

    The batch of all has ``"today"``, int32: the day that its cues are filed under, so that days
    before it are earlier ones; that of ``round`` also ``"round"``, int32, from 0, and what
    :func:`~sleeplm.methods.dreams.rounds.whole_round` asks for; that of ``absorb`` also ``"rows"``,
    int32 [inner, rows].

    Attributes:
      config: its settings. receiver: the level whose expert takes dreams in.
    """

    config: DreamConfig
    receiver: str
    init: Callable[[Params], Working]
    begin: Step
    round: Step
    absorb: Step
    end: Step


def dreaming(
    model: Model,
    sleep: SleepConfig,
    config: DreamConfig,
    pair: tuple[str, str],
    *,
    axis_name: Axis = None,
    **parts: Any,
) -> Dreaming:
    """The dreaming of a night of ``pair`` (sender, receiver), after its consolidation.

    The night must have opened an expert (``sleep.into="expert"``), and ended well. A night
    without consolidation (``sleep.updates=0``) opens an empty one. With ``config.reinforce`` the
    learner needs a writer (:func:`~sleeplm.methods.dreams.reinforce.with_writer`).

    Args:
      axis_name, parts: of :func:`~sleeplm.methods.dreams.rounds.whole_round`; rows of ``absorb``
        lie over the axis too.
    """
    remedy = "dreams are learned into an expert that the night has opened: use 'expert'"
    require(sleep.into == "expert", "sleep.into", sleep.into, remedy)
    earlier = any(teacher.state in ("dawn", "before_update") for teacher in sleep.teachers)
    remedy = (
        "its dawn is then tonight's, and cannot tell of the past while dreams are learned: use "
    )
    remedy += "'start', or dream.past = 0"
    kept = sleep.becomes == "dusk" and sleep.updates > 0 and earlier and config.past > 0
    require(not kept, "sleep.becomes", sleep.becomes, remedy)
    receiver, teach = pair[1], tutor(model, config, axis_name)
    dream = whole_round(model, config, axis_name=axis_name, **parts)
    bias = model.config.level(receiver).gate_bias

    def learn(slot: Array) -> Phase:
        return absorb(model, sleep, config, pair, slot, axis_name)

    def init(params: Params) -> Working:
        some = WRITER in params or not config.reinforce
        remedy = "a writer is reinforced: give the learner one (with_writer)"
        require(some, "dream.reinforce", config.reinforce, remedy)
        key = jax.random.key(0)  # nothing of it is random
        return Working(
            accepted=no_dreams(config, config.rounds),
            slot=jnp.int32(0),
            expert=jax.tree.map(jnp.zeros_like, take_slot(pool_of(params, receiver), jnp.int32(0))),
            table=init_slots([model.config.level(receiver)])[receiver],
            writer=jax.tree.map(jnp.zeros_like, params[WRITER]) if config.reinforce else (),
            learning=learn(jnp.int32(0)).init(params, key),
        )

    def begin(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        table, level = state.slots[receiver], get_level(state.params, receiver)
        new = config.into == "new"
        slot = first_free(table) if new else state.anchors[pair[0]].slot
        kept = init(state.params)._replace(
            slot=slot,
            expert=take_slot(pool_of(state.params, receiver), slot),
            table=table,
            writer=state.params[WRITER] if config.reinforce else (),
        )
        if new:
            level = fresh_slot(level, slot, key, bias)
            table = open_slot(table, slot, batch["today"])
        state = state.replace(
            params=with_levels(state.params, {receiver: level}),
            slots={**state.slots, receiver: table},
            private=kept,
        )
        return state, {}

    def round_step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        working: Working = state.private
        dream_key, learn_key = jax.random.split(key)
        outcome = dream(state.variables, batch, dream_key)
        place = batch["round"] * config.kept
        accepted = jax.tree.map(
            lambda all_, mine: jax.lax.dynamic_update_slice_in_dim(all_, mine, place, 0),
            working.accepted,
            outcome.accepted,
        )
        metrics = dict(outcome.metrics)
        accepted, repeated = _once(accepted)
        metrics["repeated"] = (repeated, outcome.accepted.mask.sum() * 1.0)
        if config.reinforce:
            state, taught = teach.step(state, outcome.accepted, learn_key)
            metrics |= taught
        texts = (outcome.written, outcome.tried, outcome.accepted)
        metrics |= {name: _text(dreams, config) for name, dreams in zip(TEXTS, texts, strict=True)}
        return state.replace(private=working._replace(accepted=accepted)), metrics

    def absorb_step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        working: Working = state.private
        now = state.replace(private=working.learning)
        given = {**batch, "dreams": working.accepted.told}
        now, metrics = learn(working.slot).step(now, given, key)
        now = now.replace(private=working._replace(learning=now.private))
        some = working.accepted.mask.any()
        # Without a dream to learn nothing is, not even what teachers tell again.
        metrics = jax.tree.map(lambda x: jnp.where(some, x, jnp.zeros_like(x)), metrics)
        return tree.where(some, now, state), metrics

    def end(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        working: Working = state.private
        before, one = undone(state, receiver), jnp.ones(())
        some = working.accepted.mask.any()
        good, metrics = some, Metrics()
        if config.gate:
            verdict, metrics = judged(
                model, config, before.variables, state.variables, batch["today"], key,
                length=sleep.length, axis_name=axis_name,
            )  # fmt: skip
            metrics = {name: (total * some, one * some) for name, (total, _) in metrics.items()}
            good = some & verdict.good
            metrics["undone_recall"] = (some & verdict.recall) * one, one
            metrics["undone_cluster"] = (some & verdict.cluster) * one, one
        state = tree.where(good, state, before)
        counters = {
            **state.counters,
            "dreamt": state.counters["dreamt"] + good,
            "undone": state.counters["undone"] + (some & ~good),
        }
        metrics |= {"absorbed": (good * one, one), "undone": ((some & ~good) * one, one)}
        return state.replace(counters=counters, private=init(state.params)), metrics

    return Dreaming(config, receiver, init, begin, round_step, absorb_step, end)


def _once(accepted: Dreams) -> tuple[Dreams, Array]:
    """Accepted dreams without those that an earlier one is, and how many these were."""
    there = accepted.mask
    fresh = once(accepted.told.tokens, jnp.arange(len(there)), there)
    return accepted.only(fresh), jnp.sum(there * (1.0 - fresh))


def undone(state: State, receiver: str) -> State:
    """The learner as it was before it dreamt, bit for bit: expert, ledger and writer.

    Args:
      state: in the middle of a night's dreaming.
    """
    working: Working = state.private
    level = get_level(state.params, receiver)
    pool = put_slot(pool_of(state.params, receiver), working.slot, working.expert)
    params: Mapping[str, Any] = with_levels(state.params, {receiver: {**level, **pool}})
    if not isinstance(working.writer, tuple):
        params = {**params, WRITER: working.writer}
    return state.replace(params=params, slots={**state.slots, receiver: working.table})


def _text(dreams: Dreams, config: DreamConfig) -> tuple[Array, Array]:
    """Dreams behind their contexts as tokens, or alone if so they are learned; their weights."""
    memory: Memory = dreams.told if config.alone else dreams.written
    inside = memory.segments > 0
    return jnp.where(inside, memory.tokens, 0), memory.weights
