"""A full pool: two experts become one, so that a night has a slot to go to."""

from __future__ import annotations

import jax.numpy as jnp

from sleeplm.core import tree
from sleeplm.core.shares import Axis
from sleeplm.core.types import Array, Metrics, PyTree, State
from sleeplm.memory.anchors import Anchor
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.memory.slots import (
    SlotTable,
    balanced_neighbours,
    clear_slot,
    close_slot,
    oldest,
)
from sleeplm.methods.config import SleepConfig, merging
from sleeplm.methods.held_days import of_two_experts
from sleeplm.methods.sleep import (
    Night,
    evening_of,
    fall_asleep,
    forget_moments,
    seeding_step,
    teachings,
    usual_update,
    went_well,
)
from sleeplm.methods.update import only_slot
from sleeplm.models.transformer import Model


def merge_night(
    model: Model,
    config: SleepConfig,
    sender: str,
    receiver: str,
    *,
    counted: str = "nights",
    axis_name: Axis = None,
) -> Night:
    """Distils two of the receiver's experts into one, which frees a slot.

    Which two, ``config.pool`` says. The teacher is the learner with its whole pool; the student
    keeps the older slot, trained on, and loses the other. The sender sleeps through it at its
    state of dawn. What the teachers tell, see :func:`~sleeplm.methods.config.merging`.

    Args:
      counted: the counter that experts are filed by, as ``born`` of the pair's nights has it.
    """
    pair = (sender, receiver)
    config = merging(config)

    def chosen(table: SlotTable, nights: Array) -> Array:
        by_age = config.pool == "merge_oldest"
        return oldest(table, 2) if by_age else balanced_neighbours(table, nights)

    extract = of_two_experts(teachings(model, config, pair, config.teachers, axis_name), pair)
    update = only_slot(usual_update(config))
    seed = seeding_step(model, config, pair, extract, None, update, axis_name, steady=True)

    def begin(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        first, second = chosen(state.slots[receiver], state.counters[counted])
        state = fall_asleep(state, pair, first, config.updates)
        anchor: Anchor = state.anchors[sender]
        return state.replace(
            params=with_levels(state.params, {sender: anchor.dawn}),
            slots={
                **state.slots,
                sender: anchor.dawn_slots,
                receiver: close_slot(state.slots[receiver], second),
            },
            private=forget_moments(state, update, pair, config.into),
        ), {}

    def end(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        anchor: Anchor = state.anchors[sender]
        good = went_well(anchor, config.rollback)
        before = evening_of(state, pair)
        first, second = chosen(anchor.receiver_slots, state.counters[counted])
        freed = clear_slot(get_level(state.params, receiver), second)
        merged = state.replace(
            params=with_levels(state.params, {sender: anchor.dusk, receiver: freed}),
            slots={**state.slots, sender: anchor.dusk_slots},
        )
        one, since = jnp.ones(()), anchor.receiver_slots.since
        metrics = {
            "merge_failed": (1.0 - good, one),
            # The experts by the nights that opened them, which is how they are known.
            "kept": (since[first] * one, one),
            "freed": (since[second] * one, one),
        }
        return tree.where(good, merged, before), metrics

    return Night(begin, seed, end)
