"""The ledger of experts: opening, closing and resetting slots without changing a shape.

Every function is pure and takes the slot as an array, so that one compiled night serves all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sleeplm.core.errors import PoolFullError
from sleeplm.core.types import Array, PyTree
from sleeplm.memory.levels import LevelConfig

FREE = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotTable:
    """Which experts of one level are open.

    Attributes:
      active: bool [S].
      since: int32 [S], the night (counted from 0) in which the slot was opened, or, where several
        levels sleep, the first day that it took in; -1 while free.
    """

    active: Array
    since: Array


def init_slots(levels: Sequence[LevelConfig]) -> dict[str, SlotTable]:
    """An empty ledger for every level (S = 0 for levels without experts)."""
    return {
        level.name: SlotTable(
            active=jnp.zeros((level.slots,), bool),
            since=jnp.full((level.slots,), FREE, jnp.int32),
        )
        for level in levels
    }


def first_free(table: SlotTable) -> Array:
    """int32 scalar: the lowest free slot (0 if there is none; ask :func:`is_full` first)."""
    return jnp.argmin(table.active).astype(jnp.int32)


def oldest(table: SlotTable, n: int) -> Array:
    """int32 [n]: the open slots that were opened first, oldest first."""
    age = jnp.where(table.active, table.since, jnp.iinfo(jnp.int32).max)
    return jnp.argsort(age)[:n].astype(jnp.int32)


def balanced_neighbours(table: SlotTable, nights: Array) -> Array:
    """int32 [2]: of the open slots that follow each other in age, the two that are best merged.

    A slot holds the nights from its own to that of the next older one that is open. Two slots with
    a and b nights cost ``(a + b) max(a, b) / min(a, b)``: few nights go first, and alike ones, so
    that experts grow evenly. A memory is then merged about log2(nights / slots) times, where
    always merging the oldest would distil the first night's again in every later one. Of equally
    good pairs the oldest is taken, its older slot first. Two slots have to be open.

    Args:
      nights: int32, how many nights there have been.
    """
    last = jnp.iinfo(jnp.int32).max
    since = jnp.where(table.active, table.since, last)
    order = jnp.argsort(since)
    edges = jnp.append(jnp.minimum(since[order], nights), nights)
    held = jnp.maximum(jnp.diff(edges), 1).astype(jnp.float32)
    a, b = held[:-1], held[1:]
    cost = (a + b) * jnp.maximum(a, b) / jnp.minimum(a, b)
    first = jnp.argmin(jnp.where(since[order][1:] < last, cost, jnp.inf))
    return order[jnp.stack([first, first + 1])].astype(jnp.int32)


def holds(table: SlotTable, slot: Array, night: Array) -> Array:
    """bool [...]: whether the open slot ``slot`` holds what came in a night (int32 [...])."""
    since = table.since[slot]
    later = table.active & (table.since > since)
    until = jnp.where(later, table.since, jnp.iinfo(jnp.int32).max).min()
    return (night >= since) & (night < until)


def first_day(table: SlotTable, today: Array) -> Array:
    """int32: the first day that a level holds in its open experts; ``today`` if none is open."""
    since = jnp.where(table.active, table.since, today)
    return jnp.append(since, today).min()


def is_full(table: SlotTable) -> Array:
    """bool scalar: every slot is open."""
    return table.active.all()


def require_room(table: SlotTable, level: str) -> None:
    """Refuses, on the host, a night that has no slot to go to."""
    if bool(jnp.all(table.active)):
        raise PoolFullError(
            f"levels.{level}.slots = {table.active.shape[-1]}: all are open and none can receive "
            "another night; give the level more slots or set sleep.pool = 'merge_balanced'"
        )


def open_slot(table: SlotTable, slot: Array, night: Array) -> SlotTable:
    """The ledger with ``slot`` open since ``night``."""
    return SlotTable(active=table.active.at[slot].set(True), since=table.since.at[slot].set(night))


def close_slot(table: SlotTable, slot: Array) -> SlotTable:
    """The ledger with ``slot`` free."""
    return SlotTable(active=table.active.at[slot].set(False), since=table.since.at[slot].set(FREE))


def close_all(table: SlotTable) -> SlotTable:
    """The ledger with every slot free."""
    return SlotTable(active=jnp.zeros_like(table.active), since=jnp.full_like(table.since, FREE))


def fresh_slot(level: PyTree, slot: Array, key: Array, gate_bias: float) -> PyTree:
    """A level whose expert ``slot`` is new: A random, B zero, router neutral.

    With sigmoid gates the function stays as it was, as long as ``top_k`` has room for every open
    expert. With softmax gates the newcomer takes its share of the one unit of weight; the lower
    ``gate_bias``, the smaller. ``level`` is the level's subtree (see :mod:`sleeplm.memory.levels`).
    """
    a, b = level["experts"]["a"], level["experts"]["b"]
    layers, _, d_model, rank = a.shape
    new_a = jax.random.normal(key, (layers, d_model, rank), jnp.float32) * d_model**-0.5
    return {
        **level,
        "experts": {
            "a": a.at[:, slot].set(new_a.astype(a.dtype)),
            "b": b.at[:, slot].set(0.0),
        },
        "router": {
            "w": level["router"]["w"].at[:, :, slot].set(0.0),
            "bias": level["router"]["bias"].at[:, slot].set(gate_bias),
        },
    }


def open_all(level: PyTree, key: Array, gate_bias: float) -> tuple[PyTree, SlotTable]:
    """A level whose experts are all fresh, and the ledger in which all are open since night 0."""
    slots = level["router"]["bias"].shape[-1]
    for slot in range(slots):
        level = fresh_slot(level, jnp.int32(slot), jax.random.fold_in(key, slot), gate_bias)
    return level, SlotTable(jnp.ones((slots,), bool), jnp.zeros((slots,), jnp.int32))


def clear_slot(level: PyTree, slot: Array) -> PyTree:
    """Zeroes one expert and its router column: the bits that every free slot has."""
    pool = {"experts": level["experts"], "router": level["router"]}
    zero = jax.tree.map(jnp.zeros_like, take_slot(pool, slot))
    return {**level, **put_slot(pool, slot, zero)}


def reset_experts(level: PyTree) -> PyTree:
    """Synaptic pruning: all of a level's experts and router columns back to zero."""
    if "experts" not in level:
        return level
    return {
        **level,
        "experts": jax.tree.map(jnp.zeros_like, level["experts"]),
        "router": jax.tree.map(jnp.zeros_like, level["router"]),
    }


#: Axis of the slot dimension in each leaf of {"experts": ..., "router": ...}.
SLOT_AXES = {"experts": {"a": 1, "b": 1}, "router": {"w": 2, "bias": 1}}


def take_slot(pool: PyTree, slot: Array) -> PyTree:
    """One expert with its router column, out of {"experts", "router"} (no slot axis left)."""
    return jax.tree.map(
        lambda x, axis: jax.lax.dynamic_index_in_dim(x, slot, axis, keepdims=False),
        pool,
        SLOT_AXES,
    )


def put_slot(pool: PyTree, slot: Array, expert: PyTree) -> PyTree:
    """The pool with one expert replaced; every other slot keeps its bits."""
    return jax.tree.map(
        lambda x, e, axis: jax.lax.dynamic_update_index_in_dim(x, e.astype(x.dtype), slot, axis),
        pool,
        expert,
        SLOT_AXES,
    )
