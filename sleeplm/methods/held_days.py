"""Extractions to which "today" is more than one day: what is told of is what somebody holds.

Teachers tell of today and of the past, and cues are filed by days. Of a level that has taken in
several days, and of experts that are made one, all of these are what the night is about: their
cues are handed on as if they were today's.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from sleeplm.core.types import Array, Extract, Memory, PyTree, Variables
from sleeplm.memory.anchors import Anchor
from sleeplm.memory.cues import EMPTY, Cues
from sleeplm.memory.slots import first_day, holds


def of_all_its_days(extract: Extract, sender: str) -> Extract:
    """An extraction to which "today" is every day since the first that the sender's experts hold.

    A slower level sleeps after many days. Its teachers know them at dusk, and not at dawn: they
    are no past that dawn could tell of.

    Args:
      sender: a level with experts, filed by days as cues are.
    """

    def run(variables: Variables, s: PyTree, batch: PyTree, key: Array) -> tuple[Memory, PyTree]:
        cues, today = variables["cues"], batch["today"]
        if not isinstance(cues, Cues):
            return extract.extract(variables, s, batch, key)
        anchor: Anchor = variables["anchors"][sender]
        held = (cues.day >= first_day(anchor.dusk_slots, today)) & (cues.day <= today)
        filed = dataclasses.replace(cues, day=jnp.where(held, today, cues.day))
        return extract.extract({**variables, "cues": filed}, s, batch, key)

    return Extract(extract.init, run)


def of_two_experts(extract: Extract, pair: tuple[str, str]) -> Extract:
    """An extraction to which "today" is the nights of the expert that learns and of the closed one.

    Of the real today nothing is known at dawn: its cues are left out.
    """
    sender, receiver = pair

    def run(variables: Variables, s: PyTree, batch: PyTree, key: Array) -> tuple[Memory, PyTree]:
        cues, today = variables["cues"], batch["today"]
        anchor: Anchor = variables["anchors"][sender]
        table = anchor.receiver_slots
        closed = jnp.argmax(table.active & ~variables["slots"][receiver].active)
        lived = jnp.where(cues.day < today, cues.day, EMPTY)
        theirs = holds(table, anchor.slot, lived) | holds(table, closed, lived)
        cues = dataclasses.replace(cues, day=jnp.where(theirs, today, lived))
        return extract.extract({**variables, "cues": cues}, s, batch, key)

    return Extract(extract.init, run)
