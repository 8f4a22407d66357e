"""Earlier states of a sender: who can teach tonight, at the cost of the sender's subtree only.

A teacher is never a second model. It is today's variables with the sender's subtree, and the
ledgers of open slots, as they were at another time.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sleeplm.core import checks
from sleeplm.core.types import Array, Params, PyTree, Variables
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.memory.slots import SlotTable, close_all

#: Parts of a level that may move in a night.
POOL, BASE = ("experts", "router"), ("base", "norm")
#: States that can teach. ``dusk``: the sender as it is when the night begins (it knows today).
#: ``dawn``: as it woke up after its last night. ``before_update``: its base as at dawn, its
#: experts as at dusk (the teacher of section 5, v2). ``origin``: as at the start of life, with no
#: expert of any level open; what other levels' own MLPs have learned since is in it.
TEACHERS = ("dusk", "dawn", "before_update", "origin")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Anchor:
    """What is remembered of a sender (subtrees of the sender's level) and of tonight.

    Attributes:
      start, dawn, dusk: the sender's subtree at the start of life, after its last night, and when
        this night began.
      dawn_slots, dusk_slots: the sender's ledger at those times.
      receiver_slots: the receiver's ledger when this night began.
      receiver: what of the receiver may move tonight beyond one slot, as it was then: its
        {"experts", "router"} where pools are merged or learn as a whole, its {"base", "norm"}
        where that learns; else None.
      slot: int32, the receiver's expert that tonight writes.
      updates: int32, parameter updates that tonight has.
      first_loss, last_loss: float32, divergence at the first minibatch tonight (before anything
        moved) and over the latest extraction.
    """

    start: PyTree
    dawn: PyTree
    dusk: PyTree
    dawn_slots: SlotTable
    dusk_slots: SlotTable
    receiver_slots: SlotTable
    receiver: PyTree | None
    slot: Array
    updates: Array
    first_loss: Array
    last_loss: Array


def init_anchor(
    params: Params, slots: dict[str, SlotTable], sender: str, receiver: str, keep: tuple[str, ...]
) -> Anchor:
    """The anchor of a newborn sender: start, dawn and dusk are the present.

    Args:
      keep: parts of the receiver to remember every evening (``POOL``, ``BASE`` or none).
    """
    now = jax.tree.map(jnp.copy, get_level(params, sender))
    return Anchor(
        start=now,
        dawn=jax.tree.map(jnp.copy, now),
        dusk=jax.tree.map(jnp.copy, now),
        dawn_slots=jax.tree.map(jnp.copy, slots[sender]),
        dusk_slots=jax.tree.map(jnp.copy, slots[sender]),
        receiver_slots=jax.tree.map(jnp.copy, slots[receiver]),
        receiver=jax.tree.map(jnp.copy, parts_of(params, receiver, keep)) if keep else None,
        slot=jnp.int32(0),
        updates=jnp.int32(0),
        first_loss=jnp.float32(jnp.nan),
        last_loss=jnp.float32(jnp.nan),
    )


def parts_of(params: Params, level: str, parts: tuple[str, ...]) -> PyTree:
    """Some parts of one level, by name."""
    subtree = get_level(params, level)
    return {part: subtree[part] for part in parts}


def pool_of(params: Params, level: str) -> PyTree:
    """{"experts", "router"} of one level."""
    return parts_of(params, level, POOL)


def teacher_variables(variables: Variables, sender: str, receiver: str, state: str) -> Variables:
    """``variables`` of a teacher: the sender, and who is open, as in ``state`` (see TEACHERS)."""
    checks.one_of("state", state, TEACHERS)
    anchor: Anchor = variables["anchors"][sender]
    slots = {**variables["slots"], receiver: anchor.receiver_slots}
    if state == "dusk":
        subtree, slots[sender] = anchor.dusk, anchor.dusk_slots
    elif state == "dawn":
        subtree, slots[sender] = anchor.dawn, anchor.dawn_slots
    elif state == "before_update":
        subtree = {**anchor.dusk, "base": anchor.dawn["base"], "norm": anchor.dawn["norm"]}
        slots[sender] = anchor.dusk_slots
    else:
        subtree = anchor.start
        slots = {name: close_all(table) for name, table in slots.items()}
    changed = {sender: subtree}
    if anchor.receiver is not None:
        changed[receiver] = {**get_level(variables["params"], receiver), **anchor.receiver}
    return {**variables, "params": with_levels(variables["params"], changed), "slots": slots}
