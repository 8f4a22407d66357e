"""A whole learner: one state, and the pure functions that take it through days and nights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sleeplm.core.phase import scope
from sleeplm.core.types import Array, Metrics, Params, PyTree, State
from sleeplm.memory.anchors import init_anchor
from sleeplm.memory.cues import BEFORE, Cues, empty_cues, remember
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.sleep import Night, Step, merge_night, night
from sleeplm.methods.update import level_updates, restart_level
from sleeplm.methods.wake import wake
from sleeplm.models.transformer import Model

COUNTERS = ("step", "nights", "skipped", "rolled_back")


class Rest(NamedTuple):
    """The nights of one (sender, receiver) pair, on the whole learner's state.

    ``begin``, ``seed`` and ``end`` are steps with the batch ``{"rows", "today"}``; ``merge`` are
    the same three for freeing a slot first, or None where pools are not merged.
    """

    sender: str
    receiver: str
    every: int
    begin: Step
    seed: Step
    end: Step
    merge: tuple[Step, Step, Step] | None


class Learner(NamedTuple):
    """Pure functions of one learner.

    Attributes:
      init: ``(params, key) -> State``, a newborn learner around (pretrained) parameters.
      wake: step on {"tokens", "segments" int32 [B, L]}.
      rests: nights, fastest sender first.
      remember: step on {"tokens" [n, C], "length" [n], "today"}: offers cues to the reservoir.
    """

    init: Callable[[Params, Array], State]
    wake: Step
    rests: tuple[Rest, ...]
    remember: Step


def learner(
    model: Model,
    config: SleepConfig,
    *,
    method: Callable[[str, str], Mapping[str, Any]] | None = None,
    chunk: int = 128,
    axis_name: str | None = None,
) -> Learner:
    """Composes wake and the nights of every level that has one (Eq. 1, sections 3 to 5).

    Args:
      method: ``(sender, receiver) -> {"extract", "objective", "update"}``, any of them: pieces of
        one's own for the nights of that pair, see :func:`~sleeplm.methods.sleep.night`.
      chunk: positions whose logits stand in memory at once, awake.
      axis_name: mapped axis over rows, inside ``shard_map`` or ``pmap``.
    """
    own = method or (lambda sender, receiver: {})
    levels = model.config.levels
    awake = wake(model, chunk=chunk, axis_name=axis_name)
    pairs = [(fast.name, slow.name) for fast, slow in itertools.pairwise(levels) if fast.night]
    nights = {s: night(model, config, s, r, axis_name=axis_name, **own(s, r)) for s, r in pairs}
    merging = config.pool == "merge_oldest"
    merges = {s: merge_night(model, config, s, r, axis_name=axis_name) for s, r in pairs if merging}

    def init(params: Params, key: Array) -> State:
        slots = model.init_slots()
        anchors = {s: init_anchor(params, slots, s, r, merging) for s, r in pairs}
        private_key, root = jax.random.split(key)
        private = {
            "wake": awake.init(params, private_key),
            "night": {s: nights[s].seed.init(params, private_key) for s, _ in pairs},
            "merge": {s: merges[s].seed.init(params, private_key) for s in merges},
        }
        return State(
            params=params,
            slots=slots,
            anchors=anchors,
            cues=empty_cues(config.reservoir, config.cue_tokens, bos=1),
            private=private,
            counters={name: jnp.int32(0) for name in COUNTERS},
            key=root,
        )

    rests = []
    for sender, receiver in pairs:
        parts = nights[sender]
        begin, seed, end = _on_learner(parts, "night", sender)
        if config.becomes == "start":
            end = _waking_empty(end, model, sender)
        merge = _on_learner(merges[sender], "merge", sender) if merging else None
        every = model.config.level(sender).night
        rests.append(Rest(sender, receiver, every, begin, seed, end, merge))
    return Learner(init, scope(awake.step, "wake"), tuple(rests), remember_cues)


def _on_learner(parts: Night, *path: str) -> tuple[Step, Step, Step]:
    return scope(parts.begin, *path), scope(parts.seed.step, *path), scope(parts.end, *path)


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
