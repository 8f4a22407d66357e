"""A whole learner: one state, and the pure functions that take it through days and nights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sleeplm.core import checks
from sleeplm.core.phase import scope
from sleeplm.core.shares import Axis
from sleeplm.core.types import Array, Metrics, Params, Phase, PyTree, State, Variables
from sleeplm.memory.anchors import init_anchor
from sleeplm.memory.cues import BEFORE, Cues, empty_cues, remember
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.memory.slots import first_day, open_all
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.reinforce import with_writer
from sleeplm.methods.dreams.stage import Dreaming, dreaming
from sleeplm.methods.extract import own_cues
from sleeplm.methods.merge import merge_night
from sleeplm.methods.rewards import Judge
from sleeplm.methods.sleep import Night, Step, kept_in_anchor, night
from sleeplm.methods.update import level_updates, restart_level
from sleeplm.methods.wake import wake
from sleeplm.models.transformer import Model

#: A rest whose nights follow every day, however long it was.
AT_DAYS_END = 0
#: ``today``: good nights of the fastest sender, the number that cues are filed under. ``asleep``
#: and ``merging``: 1 while a night, or the merging before it, is under way; whoever drives many
#: learners at once lets only these move. ``dreaming``: 1 from a good night to the end of its
#: dreaming, where there is any; ``dreamt`` and ``undone``: nights whose dreams were learned, and
#: nights whose dreaming was undone.
COUNTERS = (
    *("step", "nights", "skipped", "rolled_back", "today", "asleep", "merging"),
    *("dreaming", "dreamt", "undone"),
)


class Rest(NamedTuple):
    """The nights of one (sender, receiver) pair, on the whole learner's state.

    ``begin``, ``seed`` and ``end`` are steps with the batch ``{"rows", "today"}``; ``merge`` are
    the same three for freeing a slot first, or None where pools are not merged.

    Attributes:
      every: wake steps between two nights, or ``AT_DAYS_END``.
      blocks: how often ``seed`` is done in one night.
      expands: whether a night opens a slot of the receiver.
      before_life: whether there is a night before the first day too, of day -1: about what was
        known by then.
    """

    sender: str
    receiver: str
    every: int
    begin: Step
    seed: Step
    end: Step
    merge: tuple[Step, Step, Step] | None
    blocks: int = 1
    expands: bool = True
    before_life: bool = False


class Learner(NamedTuple):
    """Pure functions of one learner.

    Attributes:
      init: ``(params, key) -> State``, a newborn learner around (pretrained) parameters.
      wake: step on {"tokens", "segments" int32 [B, L]}.
      rests: nights, fastest sender first.
      remember: step on {"tokens" [n, C], "length" [n], "today"}: offers cues to the reservoir.
      write_cues: step on {"today"}: offers beginnings of texts that the learner writes itself, or
        None: it writes none.
      view: variables as the model runs them (adapters that live beside the parameters join them).
      dreaming: the second stage of the first rest's nights, on the whole learner's state, or None.
        It follows a night that ended well, while ``counters["dreaming"]`` is 1.
    """

    init: Callable[[Params, Array], State]
    wake: Step
    rests: tuple[Rest, ...]
    remember: Step
    write_cues: Step | None
    view: Callable[[Variables], Variables] = lambda variables: variables
    dreaming: Dreaming | None = None


def learner(
    model: Model,
    config: SleepConfig,
    *,
    dream: DreamConfig | None = None,
    awake: Phase | None = None,
    method: Callable[[str, str], Mapping[str, Any]] | None = None,
    judge: Judge | None = None,
    chunk: int = 128,
    axis_name: Axis = None,
) -> Learner:
    """Composes wake and the nights of every level that has one (Eq. 1, sections 3 to 5).

    Args:
      dream: of the dreaming that follows the nights of the fastest sender (section 6); None: none.
      awake: a wake phase of one's own, see :func:`~sleeplm.methods.wake.wake`. Nights leave what
        it keeps between steps alone, also where they restore the sender.
      method: ``(sender, receiver) -> {"extract", "objective", "update"}``, any of them: pieces of
        one's own for the nights of that pair, see :func:`~sleeplm.methods.sleep.night`.
      judge: of imitations in all nights, instead of the one that ``config.judge`` names.
      chunk: positions whose logits stand in memory at once, awake.
      axis_name: mapped axis over rows, inside ``shard_map`` or ``pmap``.
    """
    own = method or (lambda sender, receiver: {})
    levels = model.config.levels
    usual = awake is None
    awake = awake or wake(model, chunk=chunk, axis_name=axis_name)
    pairs = [(fast.name, slow.name) for fast, slow in itertools.pairwise(levels) if fast.night]
    usually: dict[str, Any] = {"axis_name": axis_name, "judge": judge}
    several = len(pairs) > 1  # the nights of one pair are its days
    counted = {"counted": "today"} if several else {}
    nights = {
        s: night(
            model, config, s, r,
            **usually | ({"born": _first_day(s)} if several else {}) | dict(own(s, r)),
        )
        for s, r in pairs
    }  # fmt: skip
    merges = {
        s: merge_night(model, config, s, r, axis_name=axis_name, **counted)
        for s, r in pairs
        if config.merges
    }

    dreams = None
    if dream is not None:
        names = [level.name for level in levels]
        checks.require(bool(pairs), "model.levels", names, "no level has a night to dream in")
        dreams = dreaming(model, config, dream, pairs[0], axis_name=axis_name)

    def init(params: Params, key: Array) -> State:
        private_key, root, pool_key = jax.random.split(key, 3)
        slots = model.init_slots()
        if dream is not None and dream.reinforce:
            params = with_writer(params, dream.writer_rank, jax.random.fold_in(private_key, 1))
        if config.into == "pool":
            for i, (_, r) in enumerate(pairs):
                bias, own_key = model.config.level(r).gate_bias, jax.random.fold_in(pool_key, i)
                opened, slots[r] = open_all(get_level(params, r), own_key, bias)
                params = with_levels(params, {r: opened})
        keep = kept_in_anchor(config)
        # 1 is the writer's; whatever else draws has a key of its own.
        keys = (jax.random.fold_in(private_key, i) for i in itertools.count(2))
        private = {
            "wake": awake.init(params, next(keys)),
            "night": {s: nights[s].seed.init(params, next(keys)) for s, _ in pairs},
            "merge": {s: merges[s].seed.init(params, next(keys)) for s in merges},
        }
        if dreams is not None:
            private["dream"] = dreams.init(params)
        return State(
            params=params,
            slots=slots,
            anchors={s: init_anchor(params, slots, s, r, keep) for s, r in pairs},
            cues=empty_cues(config.reservoir, config.cue_tokens, model.config.bos),
            private=private,
            counters={name: jnp.int32(0) for name in COUNTERS},
            key=root,
        )

    rests = []
    for i, (sender, receiver) in enumerate(pairs):
        parts = nights[sender]
        begin, seed, end = _on_learner(parts, "night", sender)
        if i == 0:
            end = _counting_nights(end, dreams is not None)
        if config.becomes == "start" and usual:
            end = _waking_empty(end, model, sender)
        merge = _on_learner(merges[sender], "merge", sender) if config.merges else None
        every = model.config.level(sender).night
        expands = config.into == "expert"
        rests.append(Rest(sender, receiver, every, begin, seed, end, merge, config.blocks, expands))
    return Learner(
        init,
        scope(awake.step, "wake"),
        tuple(rests),
        remember_cues,
        own_cues(model, config),
        dreaming=None if dreams is None else _dreaming_on_learner(dreams),
    )


def _first_day(sender: str) -> Callable[[State], Array]:
    """The first day that a sender is about to hand on: its oldest expert's, else today.

    So experts of all levels are filed by days, as cues are, however many levels sleep.
    """

    def born(state: State) -> Array:
        return first_day(state.slots[sender], state.counters["today"])

    return born


def _on_learner(parts: Night, *path: str) -> tuple[Step, Step, Step]:
    return scope(parts.begin, *path), scope(parts.seed.step, *path), scope(parts.end, *path)


def _dreaming_on_learner(dreams: Dreaming) -> Dreaming:
    """Its steps on the whole state; whoever has dreamt to the end dreams no longer."""

    def last(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        state, metrics = dreams.end(state, batch, key)
        return state.replace(counters={**state.counters, "dreaming": jnp.int32(0)}), metrics

    steps = (dreams.begin, dreams.round, dreams.absorb, last)
    begin, a_round, absorb, end = (scope(step, "dream") for step in steps)
    return dreams._replace(begin=begin, round=a_round, absorb=absorb, end=end)


def _counting_nights(end: Step, dreams: bool) -> Step:
    """After a good night of the fastest sender a new day begins, or a dream first."""

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        before = state.counters["nights"]
        state, metrics = end(state, batch, key)
        good = (state.counters["nights"] > before).astype(jnp.int32)
        counters = {**state.counters, "today": state.counters["today"] + good}
        counters |= {"dreaming": good} if dreams else {}
        return state.replace(counters=counters), metrics

    return step


def _waking_empty(end: Step, model: Model, sender: str) -> Step:
    """After a good night that restored the sender, also its optimiser starts afresh."""
    update = level_updates(model.config.levels, model.config.wiring)

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        nights = state.counters["nights"]
        state, metrics = end(state, batch, key)
        good = state.counters["nights"] > nights
        # ``wake`` is a chain whose first phase is the learning one.
        learning, *others = state.private["wake"]
        fresh = restart_level(update, learning.update, state.params, sender)
        kept = jax.tree.map(lambda n, o: jnp.where(good, n, o), fresh, learning.update)
        private = {**state.private, "wake": (learning._replace(update=kept), *others)}
        return state.replace(private=private), metrics

    return step


def remember_cues(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
    """Offers the day's cues to the reservoir; "today" of -1 marks cues from before day 0."""
    cues: Cues = remember(state.cues, batch["tokens"], batch["length"], batch["today"], key)
    kept = (cues.day >= BEFORE).sum().astype(jnp.float32)
    return state.replace(cues=cues), {"cues": (kept, jnp.ones(()))}
