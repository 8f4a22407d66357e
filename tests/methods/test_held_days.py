"""What "today" is to a level that sleeps after many days, and what it is told of."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from sleeplm.core.types import Extract
from sleeplm.memory.slots import SlotTable, first_day
from sleeplm.methods.config import TeacherConfig, evening
from sleeplm.methods.learner import learner
from sleeplm.methods.sleep import night, teachings

KEY = jax.random.key(3)
DAYS = [-2, -1, 0, 1, 2, 3, 4]


class Told(Exception):
    """Carries the days of the cues that an extraction was given."""


@pytest.fixture(scope="module")
def chain(tiny):
    """Three levels, of which the middle one has taken in the nights of days 1 to 3."""
    model, config = tiny.model(tiny.three_levels()), tiny.config(evening)
    state = learner(model, config).init(tiny.params(model), KEY)
    cues = jax.tree.map(lambda x: x[: len(DAYS)], state.cues)
    held = SlotTable(jnp.asarray([True, True, False]), jnp.asarray([2, 1, -1], jnp.int32))
    return (
        model,
        config,
        state.replace(
            cues=dataclasses.replace(cues, day=jnp.asarray(DAYS, jnp.int32)),
            slots={**state.slots, "middle": held},
        ),
    )


def days_told(model, config, state, sender, receiver, today):
    """The days of cues as the night's extraction sees them."""

    def tell(variables, s, batch, key):
        raise Told(variables["cues"].day.tolist())

    extract = Extract(lambda params, key: (), tell)
    parts = night(model, config, sender, receiver, extract=extract)
    state = state.replace(private=parts.seed.init(state.params, KEY))
    rows = jnp.zeros((config.inner, config.rows), jnp.int32)
    batch = {"rows": rows, "today": jnp.int32(today)}
    state, _ = parts.begin(state, batch, KEY)
    with pytest.raises(Told) as told:
        parts.seed.step(state, batch, KEY)
    return told.value.args[0]


def test_to_a_slower_level_every_day_that_its_experts_hold_is_today(chain):
    """Its dusk knows them and its dawn does not: as a past they would be un-taught."""
    model, config, state = chain
    assert days_told(model, config, state, "middle", "slow", 3) == [-2, -1, 0, 3, 3, 3, 4]


def test_to_the_fastest_level_today_is_one_day(chain):
    model, config, state = chain
    assert days_told(model, config, state, "fast", "middle", 3) == DAYS


def test_a_level_without_an_open_expert_holds_nothing_before_today():
    table = SlotTable(jnp.zeros(2, bool), jnp.asarray([-1, -1], jnp.int32))
    assert int(first_day(table, jnp.int32(5))) == 5
    opened = SlotTable(jnp.asarray([False, True]), jnp.asarray([0, 3], jnp.int32))
    assert int(first_day(opened, jnp.int32(5))) == 3


@pytest.mark.slow
def test_a_slower_night_tells_from_the_cues_of_the_days_that_it_hands_on(chain, tiny):
    """All rows are cued, and by cues of days 1 to 3: a teacher of today has something to tell."""
    model, config, state = chain
    config = dataclasses.replace(
        config, teachers=[TeacherConfig("dusk", "today", imitate=False)], lam=0.0, alpha=1.0
    )
    tokens = jnp.full_like(state.cues.tokens, 1).at[:, 1].set(5 + jnp.arange(len(DAYS)))
    cues = dataclasses.replace(
        state.cues, tokens=tokens, length=jnp.full_like(state.cues.length, 2)
    )
    usual, seen = teachings(model, config, ("middle", "slow"), config.teachers, None), []

    def spy(variables, s, batch, key):
        memory, s = usual.extract(variables, s, batch, key)
        seen.append(memory.tokens[:, :2])
        return memory, s

    parts = night(model, config, "middle", "slow", extract=Extract(usual.init, spy))
    state = state.replace(cues=cues, private=parts.seed.init(state.params, KEY))
    batch = {**tiny.rows(config), "today": jnp.int32(3)}
    state, _ = parts.begin(state, batch, KEY)
    parts.seed.step(state, batch, KEY)
    firsts = {tuple(row) for row in seen[0].tolist()}
    assert {first for first, _ in firsts} == {1}
    assert {cue for _, cue in firsts} == {5 + DAYS.index(day) for day in (1, 2, 3)}
