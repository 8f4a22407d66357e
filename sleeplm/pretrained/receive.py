"""Taking in memories: all of a learner's, or one night of another learner of the same base.

Every function here is pure and works on the host. What does not fit is refused in one line before
anything has changed.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError, PoolFullError
from sleeplm.core.types import WRITER, Params, PyTree, State
from sleeplm.memory.anchors import Anchor, init_anchor, pool_of
from sleeplm.memory.cues import Cues
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.memory.slots import SlotTable, close_all, open_slot, put_slot, take_slot
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model
from sleeplm.pretrained.hf_export import base_digest, require_same_backbone
from sleeplm.pretrained.memories import Memories, NightMemory, named, open_experts, remembered

#: Settings of a level that its numbers mean nothing without, and those of its pool.
LEVEL, POOL = ("kind", "width"), ("rank", "gate", "activation")


def put_memories(model: Model, state: State, memories: Memories) -> State:
    """The learner with exactly these memories, whatever it remembered before.

    Its backbone, its random key and what its optimisers keep between steps stay; parts that the
    memories do not have stay too. A dream writer is for learners that have one.

    Args:
      state: of one learner, made by the ``init`` of one with the same settings.

    Raises:
      ConfigError: another base, or levels, anchors or cues of other shapes.
    """
    checks.require(memories.whole, "memories", "single nights", "add them with add_night")
    require_base(model, state.params, memories)
    require_levels(model.config, memories)
    params, slots = put_levels(state.params, state.slots, memories)
    parts = memories.parts
    if WRITER in parts and WRITER in params:
        params = {**params, WRITER: _like(params[WRITER], parts[WRITER], WRITER)}
    state = state.replace(params=params, slots=slots)
    anchors = dict(state.anchors)
    for sender, kept in parts.get("anchors", {}).items():
        old = anchors.get(sender)
        if not isinstance(old, Anchor):
            raise ConfigError("anchors", sender, "the learner has no such sender")
        anchors[sender] = _anchored(model.config, state, sender, old, kept)
    counters = parts.get("counters", {})
    known = {name: jnp.asarray(x) for name, x in counters.items() if name in state.counters}
    state = state.replace(anchors=anchors, counters={**state.counters, **known})
    if "cues" not in parts:
        return state
    return state.replace(cues=Cues(**_like(vars(state.cues), parts["cues"], "cues")))


def _anchored(config: ModelConfig, state: State, sender: str, old: Anchor, kept: PyTree) -> Anchor:
    names = [level.name for level in config.levels]
    pair = (sender, names[names.index(sender) + 1])
    fresh = init_anchor(state.params, dict(state.slots), *pair, tuple(old.receiver or ()))
    kept = _like(remembered(old), kept, f"anchors.{sender}")
    return dataclasses.replace(fresh, **{**kept, "dawn_slots": SlotTable(**kept["dawn_slots"])})


def put_levels(
    params: Params, slots: Mapping[str, SlotTable], memories: Memories
) -> tuple[Params, dict[str, SlotTable]]:
    """Parameters and ledgers with the memories' levels and experts: all that a model runs on."""
    levels = dict(memories.parts.get("levels", {}))
    changed: dict[str, Any] = {}
    if "mix" in levels:
        found = {"mix": params["blocks"]["levels"]["mix"]}
        changed |= _like(found, {"mix": levels.pop("mix")}, "levels")
    for name, kept in levels.items():
        old = get_level(params, name)
        changed[name] = {**old, **_like({part: old[part] for part in kept}, kept, f"levels.{name}")}
    params = with_levels(params, changed)
    out = {name: close_all(table) for name, table in slots.items()}
    for name in (level.name for level in memories.config.levels if level.slots):
        empty = jax.tree.map(jnp.zeros_like, pool_of(params, name))
        params = with_levels(params, {name: {**get_level(params, name), **empty}})
    for one in memories.nights:
        params = _put_expert(params, one, one.slot)
        out[one.level] = open_slot(out[one.level], jnp.int32(one.slot), jnp.int32(one.night))
    return params, out


def _put_expert(params: Params, one: NightMemory, slot: int) -> Params:
    pool = pool_of(params, one.level)
    newborn = take_slot(pool, jnp.int32(slot))
    expert = _like(newborn, one.expert, f"levels.{one.level}")
    level = {**get_level(params, one.level), **put_slot(pool, jnp.int32(slot), expert)}
    return with_levels(params, {one.level: level})


def _like(like: PyTree, found: PyTree, field: str) -> PyTree:
    """``found`` as device arrays, see :func:`_require_like`."""
    _require_like(like, found, field)
    return jax.tree.map(lambda _, x: jnp.asarray(x), like, found)


def _require_like(like: PyTree, found: PyTree, field: str) -> None:
    """Refuses arrays that have not the names, shapes and types of ``like``, arrays or their shapes.

    Raises:
      ConfigError: names the first that has not.
    """
    wanted = {t.name: f"{t.dtype.name}{list(t.shape)}" for t in named(like)}
    there = {t.name: f"{t.dtype.name}{list(t.shape)}" for t in named(found)}
    for name in {**wanted, **there}:
        if wanted.get(name) != there.get(name):
            must = f"the learner has {wanted.get(name, 'none')}"
            raise ConfigError(f"{field}.{name}", there.get(name), must)


def require_base(model: Model, params: Params, memories: Memories) -> None:
    """Refuses memories of another base.

    Raises:
      ConfigError: in one line.
    """
    require_same_backbone(model.config, memories.config, "base")
    found = base_digest(model.config, params)
    remedy = f"the memories belong to base {memories.base[:12]}: they mean nothing on another"
    checks.require(found == memories.base, "base", found[:12], remedy)


def require_levels(config: ModelConfig, memories: Memories) -> None:
    """Refuses a model whose levels are not those that the memories are of.

    Raises:
      ConfigError: names the first field that differs.
    """
    made = memories.config
    names = [[level.name for level in one.levels] for one in (config, made)]
    checks.require(names[0] == names[1], "model.levels", names[0], f"must be {names[1]}")
    checks.require(
        config.wiring == made.wiring, "model.wiring", config.wiring, f"must be {made.wiring!r}"
    )
    for level in made.levels:
        require_level(config, memories, level.name, (*LEVEL, "slots", "top_k", *POOL))


def require_level(
    config: ModelConfig, memories: Memories, name: str, fields: Iterable[str]
) -> None:
    """Refuses a model in which some settings of one level are not those of the memories.

    Raises:
      ConfigError: names the first that differs.
    """
    names = [level.name for level in config.levels]
    checks.require(name in names, "model.levels", names, f"the memories are of a level {name!r}")
    made = memories.config.level(name)
    for what in fields:
        if what in POOL and not made.slots:
            continue
        found, wanted = getattr(config.level(name), what), getattr(made, what)
        field = f"model.levels[{names.index(name)}].{what}"
        checks.require(found == wanted, field, found, f"the memories have {wanted!r}")


def add_night(
    model: Model,
    state: State,
    memories: Memories,
    slot: int | None = None,
    *,
    warn: Callable[[str], object] = warnings.warn,
) -> State:
    """The learner with the nights of another one of the same base added, in free slots.

    Nothing else of it moves, but that it counts the nights among its own.

    Args:
      memories: single nights of another learner.
      slot: of the receiver, for one night; None: the lowest that is free.
      warn: receives one line for every night that was slept in the presence of others which this
        learner lacks.

    Raises:
      ConfigError: another base, a pool of other shapes, a night that is there already, or a slot
        that is not free.
      PoolFullError: there are not as many free slots.
    """
    require_single(memories)
    require_base(model, state.params, memories)
    one = len(memories.nights) == 1
    checks.require(slot is None or one, "slot", slot, "name a slot for one night only")
    for night in memories.nights:
        table = state.slots.get(night.level)
        require_level(model.config, memories, night.level, POOL)
        assert table is not None
        require_new(night, _known(open_experts(model, state, {}, {})), warn)
        free = [int(i) for i in np.flatnonzero(~np.asarray(table.active))]
        at = place(night.level, free, len(table.active), slot)
        since = state.counters["nights"]
        params = _put_expert(state.params, night, at)
        slots = {**state.slots, night.level: open_slot(table, jnp.int32(at), since)}
        counters = {**state.counters, "nights": since + 1}
        state = state.replace(params=params, slots=slots, counters=counters)
    return state


def require_new(
    night: NightMemory, known: Mapping[str, str], warn: Callable[[str], object]
) -> None:
    """Refuses a night that the learner has already, and says what it builds on that is missing.

    Args:
      known: where each expert of the learner is, by its sha256.

    Raises:
      ConfigError: it is there.
    """
    remedy = f"is there already ({known.get(night.sha256)})"
    checks.require(night.sha256 not in known, "night", night.night, remedy)
    if missing := [e for e in night.earlier if e["sha256"] not in known]:
        named = ", ".join(str(e["night"]) for e in missing)
        warn(
            f"night {night.night} was slept in the presence of nights {named}, which this learner "
            "lacks: what it says may need them"
        )


def place(level: str, free: Sequence[int], slots: int, slot: int | None) -> int:
    """The slot that a night goes to: the one asked for, or the lowest that is free.

    Raises:
      ConfigError: that slot is not free. PoolFullError: none is.
    """
    if not free:
        raise PoolFullError(
            f"levels.{level}.slots = {slots}: all are open and none can receive another night; "
            "give the level more slots"
        )
    if slot is None:
        return free[0]
    checks.require(slot in free, "slot", slot, f"must be free: one of {', '.join(map(str, free))}")
    return slot


def join(
    memories: Memories, addition: Memories, warn: Callable[[str], object] = warnings.warn
) -> Memories:
    """The same as :func:`add_night`, on memories that no learner holds just now.

    Raises:
      ConfigError, PoolFullError: as there.
    """
    require_single(addition)
    checks.require(memories.whole, "into", "single nights", "name the memories of a whole learner")
    require_same_backbone(memories.config, addition.config, "base")
    remedy = f"the night belongs to base {addition.base[:12]}: it means nothing on another"
    checks.require(memories.base == addition.base, "base", memories.base[:12], remedy)
    nights, counters = list(memories.nights), dict(memories.parts.get("counters", {}))
    params = jax.eval_shape(Model(memories.config).init, jax.random.key(0))
    for night in addition.nights:
        require_level(memories.config, addition, night.level, POOL)
        require_new(night, _known(nights), warn)
        slots = memories.config.level(night.level).slots
        taken = {one.slot for one in nights if one.level == night.level}
        at = place(night.level, [i for i in range(slots) if i not in taken], slots, None)
        # What is written has to load again: levels learn in a type of their own, too.
        wanted = jax.eval_shape(take_slot, pool_of(params, night.level), jnp.int32(at))
        _require_like(wanted, night.expert, f"levels.{night.level}")
        since = int(counters.get("nights", 0))
        nights.append(dataclasses.replace(night, slot=at, night=since))
        counters["nights"] = np.int32(since + 1)
    parts = {**memories.parts, "counters": counters}
    return dataclasses.replace(memories, nights=tuple(nights), parts=parts)


def newborn(addition: Memories) -> Memories:
    """Memories of a learner of the same base and settings that has not lived yet."""
    return dataclasses.replace(addition, whole=True, nights=(), parts={}, origin={})


def require_single(memories: Memories) -> None:
    """Refuses the memories of a whole learner where one night is asked for.

    Raises:
      ConfigError: in one line.
    """
    remedy = "export single nights to add them; a whole learner's memories are put onto its base"
    checks.require(not memories.whole, "memories", "a whole learner", remedy)


def _known(nights: Iterable[NightMemory]) -> dict[str, str]:
    return {one.sha256: f"{one.level}, slot {one.slot}" for one in nights}
