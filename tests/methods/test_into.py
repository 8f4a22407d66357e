"""What learns at night: a whole pool, the receiver's own MLP, a fresh expert, or nothing."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import optax
import pytest

from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.memory.anchors import BASE, POOL, TEACHERS, parts_of, pool_of, teacher_variables
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.methods.config import evening
from sleeplm.methods.learner import learner
from sleeplm.methods.wake import wake

PAIR = ("fast", "slow")
KEY = jax.random.key(8)
pytestmark = pytest.mark.slow


def assert_same(a, b):
    assert tree.differing(a, b) == []


def after_a_day(state):
    """The sender is no longer what it was at the start."""
    moved = jax.tree.map(lambda x: 1.7 * x, get_level(state.params, "fast"))
    return state.replace(params=with_levels(state.params, {"fast": moved}))


def counters(state, *names):
    return [int(state.counters[name]) for name in names]


def distilling(tiny, **settings):
    """Nights of one teacher and nothing but its samples."""
    return tiny.config(evening, **{"alpha": 1.0, "lam": 0.0, **settings})


# --- a night into the pool, and into the base ----------------------------------------------------


@pytest.fixture(scope="module", params=["pool", "base"])
def slept(request, tiny):
    """A night as the learner lives it: newborn, at dusk, asleep; well and badly ended."""
    into = request.param
    config = distilling(tiny, into=into, updates=8, learning_rate=0.05)
    model = tiny.model(tiny.two_levels(slots=2))
    made, newborn = tiny.learner(model, config)
    # However well it went, it was not good enough.
    strict = learner(model, dataclasses.replace(config, rollback=1e-9), chunk=8)
    dusk, batch = after_a_day(newborn), tiny.rows(config)
    begin, seed = (jax.jit(getattr(made.rests[0], name)) for name in ("begin", "seed"))
    began, _ = begin(dusk, batch, KEY)
    asleep = began
    for i in range(config.blocks):
        asleep, _ = seed(asleep, batch, jax.random.fold_in(KEY, i))
    good, bad = (jax.jit(x.rests[0].end)(asleep, batch, KEY) for x in (made, strict))
    return types.SimpleNamespace(
        parts={"pool": POOL, "base": BASE}[into], into=into, model=model, made=made, batch=batch,
        begin=begin, newborn=newborn, dusk=dusk, began=began, asleep=asleep, good=good, bad=bad,
    )  # fmt: skip


def test_only_that_part_of_the_receiver_moves_and_the_sender_wakes_empty(slept):
    after, metrics = slept.good
    learned = parts_of(after.params, "slow", slept.parts)
    moved = tree.differing(learned, parts_of(slept.dusk.params, "slow", slept.parts))
    assert len(moved) == len(jax.tree.leaves(learned))  # all of it
    want = with_levels(
        slept.dusk.params,
        {
            "fast": get_level(slept.newborn.params, "fast"),
            "slow": {**get_level(slept.dusk.params, "slow"), **learned},
        },
    )
    assert_same(after.params, want)
    assert_same(
        (after.slots, after.cues, after.key), (slept.dusk.slots, slept.dusk.cues, slept.dusk.key)
    )
    assert counters(after, "nights", "today", "rolled_back") == [1, 1, 0]
    assert float(metrics["rolled_back"][0]) == 0.0
    assert_same(after.anchors["fast"].dawn, get_level(slept.newborn.params, "fast"))


def test_every_expert_of_a_pool_learns(slept):
    if slept.into == "base":
        assert not slept.good[0].slots["slow"].active.any()  # there no expert was ever opened
        return
    before, after = (pool_of(s.params, "slow") for s in (slept.dusk, slept.good[0]))
    for slot in range(2):
        gone = np.abs(after["experts"]["b"] - before["experts"]["b"])[:, slot]
        assert gone.max() > 1e-3


def test_a_rollback_restores_the_evening_bit_for_bit(slept):
    after, metrics = slept.bad
    learned, evening_ = (
        parts_of(s.params, "slow", slept.parts) for s in (slept.asleep, slept.dusk)
    )
    assert tree.differing(learned, evening_)  # there was something to undo
    assert_same(after.params, slept.dusk.params)
    assert_same((after.slots, after.cues), (slept.dusk.slots, slept.dusk.cues))
    for name in ("start", "dawn", "dawn_slots"):
        assert_same(getattr(after.anchors["fast"], name), getattr(slept.dusk.anchors["fast"], name))
    assert counters(after, "nights", "today", "rolled_back") == [0, 0, 1]
    assert float(metrics["rolled_back"][0]) == 1.0
    assert_same(after.private["wake"], slept.dusk.private["wake"])


def test_whoever_teaches_sees_the_receiver_of_the_evening(slept):
    before = parts_of(slept.dusk.params, "slow", slept.parts)
    for name in TEACHERS:
        teacher = teacher_variables(slept.asleep.variables, *PAIR, name)
        assert_same(parts_of(teacher["params"], "slow", slept.parts), before)
    dusk = teacher_variables(slept.asleep.variables, *PAIR, "dusk")
    assert_same((dusk["params"], dusk["slots"]), (slept.dusk.params, slept.dusk.slots))


def test_nothing_moves_when_a_night_begins_but_the_sender(slept):
    want = with_levels(slept.dusk.params, {"fast": get_level(slept.newborn.params, "fast")})
    assert_same(slept.began.params, want)
    assert_same(slept.began.slots, slept.dusk.slots)


def test_the_next_evening_is_remembered_in_place_of_the_last(slept):
    first = parts_of(slept.began.params, "slow", slept.parts)
    assert_same(slept.began.anchors["fast"].receiver, first)
    again, _ = slept.begin(slept.good[0], slept.batch, KEY)
    learned = parts_of(slept.good[0].params, "slow", slept.parts)
    assert_same(again.anchors["fast"].receiver, learned)


def test_a_night_opens_no_slot_so_that_no_one_has_to_ask_for_room(slept):
    (rest,) = slept.made.rests
    assert rest.expands is False and rest.merge is None


def test_a_pool_is_open_from_the_start_of_life_and_changes_nothing(slept, tiny):
    table, fresh = slept.newborn.slots["slow"], tiny.params(slept.model)
    assert table.active.tolist() == [slept.into == "pool"] * 2
    if slept.into == "base":
        assert_same(slept.newborn.params, fresh)
        return
    pool = pool_of(slept.newborn.params, "slow")
    assert np.any(pool["experts"]["a"][:, 0] != pool["experts"]["a"][:, 1])
    assert all(np.any(pool["experts"]["a"][:, slot]) for slot in range(2))
    assert not np.any(pool["experts"]["b"])
    assert table.since.tolist() == [0, 0]


# --- nights that learn nothing -------------------------------------------------------------------


def resting(tiny, model, **settings):
    """A learner whose nights only reset; its evening; and after its night."""
    config = distilling(tiny, updates=0, **settings)
    made, newborn = tiny.learner(model, config)
    return made, newborn, config


def test_a_pool_that_has_handed_on_is_open_again_and_learns_the_next_night(tiny):
    """Of three levels the middle one receives into a pool that it is itself cleared of."""
    config = distilling(tiny, into="pool", updates=2, rollback=0.0)
    model = tiny.model(tiny.three_levels(slots=2))
    made, state = tiny.learner(model, config)
    first, second = made.rests
    for rest in (first, second):
        for step in (rest.begin, rest.seed, rest.end):
            state, _ = jax.jit(step)(after_a_day(state), tiny.rows(config), KEY)
    table, pool = state.slots["middle"], pool_of(state.params, "middle")
    assert table.active.tolist() == [True, True]
    assert np.any(pool["experts"]["a"]) and not np.any(pool["experts"]["b"])
    for step in (first.begin, first.seed, first.end):
        state, _ = jax.jit(step)(after_a_day(state), tiny.rows(config), KEY)
    assert np.any(pool_of(state.params, "middle")["experts"]["b"])


def test_where_the_receivers_mlp_does_not_run_nothing_is_learned_into_it(tiny):
    levels = tiny.two_levels(kind="graft", period=2)
    model = tiny.model(levels, wiring="nested")
    with pytest.raises(ConfigError, match=r"sleep.into = 'base': .*nested.*'expert' or 'pool'"):
        learner(model, distilling(tiny, into="base"), chunk=8)


def test_in_the_nested_wiring_the_sender_wakes_as_the_receiver_is(tiny):
    """Whoever is faster starts from the next slower: not from the weights of its birth."""
    levels = tiny.two_levels(kind="graft", period=2)
    model = tiny.model(levels, wiring="nested")
    config = distilling(tiny)
    made, state = tiny.learner(model, config)
    awake = jax.jit(made.wake)
    for i in range(3):  # the slow level moves after two
        state, _ = awake(state, tiny.text(i), KEY)
    slow = get_level(state.params, "slow")
    assert tree.differing(slow["base"], state.anchors["fast"].start["base"])
    state, _ = jax.jit(made.rests[0].begin)(state, tiny.rows(config), KEY)
    fast = get_level(state.params, "fast")
    assert_same({part: fast[part] for part in BASE}, {part: slow[part] for part in BASE})


def test_a_night_of_no_updates_opens_an_expert_of_nothing_and_clears_the_sender(tiny):
    model = tiny.model()
    made, newborn, config = resting(tiny, model)
    (rest,) = made.rests
    dusk, batch = after_a_day(newborn), tiny.rows(config)
    assert rest.blocks == 0 and rest.expands is True
    state, _ = jax.jit(rest.begin)(dusk, batch, KEY)
    after, metrics = jax.jit(rest.end)(state, batch, KEY)

    assert after.slots["slow"].active.tolist() == [True, False, False]
    pool = pool_of(after.params, "slow")
    assert np.any(pool["experts"]["a"][:, 0])
    assert not any(np.any(x) for x in (pool["experts"]["b"], *pool["router"].values()))
    assert_same(get_level(after.params, "fast"), get_level(newborn.params, "fast"))
    assert counters(after, "nights", "today", "rolled_back") == [1, 1, 0]
    assert float(metrics["rolled_back"][0]) == 0.0

    # Who slept so is who it was at the start of life, and not who it was in the evening.
    text = tiny.text(0)
    logits = jax.jit(lambda v: model.logits(v, text["tokens"], text["segments"]))
    start, evening_, morning = (
        np.asarray(logits({"params": s.params, "slots": s.slots})) for s in (newborn, dusk, after)
    )
    np.testing.assert_array_equal(morning, start)
    assert np.abs(evening_ - start).max() > 0.01


def test_good_nights_of_the_fastest_sender_begin_a_new_day_and_others_do_not(tiny):
    made, state, config = resting(tiny, tiny.model(tiny.three_levels(slots=2)))
    batch, seen = tiny.rows(config), []
    assert counters(state, "today", "asleep", "merging") == [0, 0, 0]
    steps = [(jax.jit(r.begin), jax.jit(r.end)) for r in made.rests]
    for sender in (0, 1, 0):
        for step in steps[sender]:
            state, _ = step(state, batch, KEY)
        seen.append(counters(state, "nights", "today"))
    assert seen == [[1, 1], [2, 1], [3, 2]]
    assert counters(state, "asleep", "merging") == [0, 0]  # only who drives many sets these


# --- a wake phase of one's own -------------------------------------------------------------------


def test_a_wake_phase_of_ones_own_lives_with_nights_and_keeps_its_own_moments(tiny):
    model, config = tiny.model(), distilling(tiny, updates=0)
    mine = wake(
        model, update=optax.adam(0.1), chunk=8,
        trainable=lambda path: path[0].key == "final_norm",
    )  # fmt: skip
    made, newborn = tiny.learner(model, config, awake=mine)
    state, _ = jax.jit(made.wake)(newborn, tiny.text(0), KEY)
    moved = tree.differing(state.params, newborn.params)
    assert moved == ["['final_norm']"]
    (rest,) = made.rests
    kept = state.private["wake"]
    for step in (rest.begin, rest.end):
        state, _ = jax.jit(step)(state, tiny.rows(config), KEY)
    assert counters(state, "step", "nights") == [1, 1]
    assert_same(state.private["wake"], kept)


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"into": "bass"}, "into"), ({"updates": -8}, "updates"), ({"cues": "none"}, "cues")],
)
def test_nights_that_cannot_be_are_refused(tiny, settings, field):
    with pytest.raises(ConfigError, match=rf"sleep\.{field}"):
        tiny.config(**settings)
