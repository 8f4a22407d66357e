from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.errors import PoolFullError
from sleeplm.core.tree import differing
from sleeplm.memory import slots as ledger
from sleeplm.memory.levels import LevelConfig, get_level, with_levels
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model

S, R = 5, 2


def model(gate="sigmoid", top_k=3, dispatch="dense"):
    level = LevelConfig(name="slow", width=16, slots=S, rank=R, top_k=top_k, gate=gate)
    return Model(
        ModelConfig(
            vocab_size=40,
            d_model=16,
            n_layers=2,
            n_heads=2,
            n_kv_heads=1,
            levels=[level],
            dispatch=dispatch,
        )
    )


def grown(m, *which):
    """Params and slots with some experts open and all parameters of theirs random."""
    params = jax.jit(m.init)(jax.random.key(0))
    level = get_level(params, "slow")
    keys = iter(jax.random.split(jax.random.key(5), 100))
    for s in which:
        expert = jax.tree.map(
            lambda x: 0.3 * jax.random.normal(next(keys), x.shape), ledger.take_slot(pool(level), s)
        )
        level = {**level, **ledger.put_slot(pool(level), s, expert)}
    table = m.init_slots()["slow"]
    for night, s in enumerate(which):
        table = ledger.open_slot(table, s, night)
    return with_levels(params, {"slow": level}), table


def pool(level):
    return {"experts": level["experts"], "router": level["router"]}


def logits(m, params, table):
    tokens = jax.random.randint(jax.random.key(8), (2, 7), 0, 40)
    return jax.jit(m.logits)({"params": params, "slots": {"slow": table}}, tokens)


def test_a_newborn_ledger_is_all_free_and_levels_without_slots_have_an_empty_one():
    tables = ledger.init_slots([LevelConfig(name="fast"), LevelConfig(name="slow", slots=3)])
    assert tables["fast"].active.shape == (0,)
    assert not np.any(tables["slow"].active)
    assert np.all(np.asarray(tables["slow"].since) == ledger.FREE)


def test_opening_and_closing_change_one_entry_and_no_shape():
    table = ledger.init_slots([LevelConfig(slots=S)])["slow"]
    opened = ledger.open_slot(ledger.open_slot(table, 3, 7), 1, 8)
    np.testing.assert_array_equal(opened.active, [False, True, False, True, False])
    np.testing.assert_array_equal(opened.since, [-1, 8, -1, 7, -1])
    closed = ledger.close_slot(opened, 3)
    np.testing.assert_array_equal(closed.active, [False, True, False, False, False])
    np.testing.assert_array_equal(closed.since, [-1, 8, -1, -1, -1])
    assert differing(ledger.close_all(opened), table) == []


def test_the_first_free_slot_is_the_lowest_closed_one_and_the_oldest_were_opened_first():
    table = ledger.init_slots([LevelConfig(slots=S)])["slow"]
    for night, slot in enumerate([0, 4, 2, 1]):
        table = ledger.open_slot(table, slot, night)
    assert int(ledger.first_free(table)) == 3
    np.testing.assert_array_equal(ledger.oldest(table, 2), [0, 4])
    table = ledger.open_slot(ledger.close_slot(table, 0), 0, 9)
    np.testing.assert_array_equal(ledger.oldest(table, 4), [4, 2, 1, 0])
    assert not bool(ledger.is_full(table))
    assert bool(ledger.is_full(ledger.open_slot(table, 3, 10)))


def opened(*since):
    since = jnp.asarray(since, jnp.int32)
    return ledger.SlotTable(active=since >= 0, since=since)


@pytest.mark.parametrize(
    ("since", "nights", "merged"),
    [
        ([0, 1, 2, 3], 4, [0, 1]),  # all alike: the oldest two
        ([0, 2, 3, 4], 5, [1, 2]),  # 2, 1, 1 and 1 nights: two that hold one
        ([4, 0, 2, 3], 5, [2, 3]),  # the place of a slot means nothing
        ([0, 2, 4, 5], 6, [2, 3]),  # 2, 2, 1 and 1: the smaller pair
        ([0, 9, 10, 13], 14, [1, 2]),  # 9, 1, 3 and 1: neither alike; 1 and 3 are the fewest
        ([0, -1, 1, 2], 3, [0, 2]),  # a free slot is nobody's neighbour
    ],
)
def test_those_are_merged_that_hold_few_nights_and_about_as_many(since, nights, merged):
    found = jax.jit(ledger.balanced_neighbours)(opened(*since), jnp.int32(nights))
    assert found.tolist() == merged


def test_a_slot_holds_the_nights_up_to_the_next_older_open_one():
    table = opened(4, 0, -1, 2)
    held = [ledger.holds(table, slot, jnp.arange(-2, 8)).tolist() for slot in (0, 1, 3)]
    nights = [[night for night, one in enumerate(row, start=-2) if one] for row in held]
    assert nights == [[4, 5, 6, 7], [0, 1], [2, 3]]


def test_over_two_hundred_nights_no_memory_is_merged_more_than_a_few_times():
    choose, table = jax.jit(ledger.balanced_neighbours), opened(*[-1] * 8)
    held, times = {}, np.zeros(200, int)
    for night in range(200):
        if bool(ledger.is_full(table)):
            kept, freed = choose(table, jnp.int32(night)).tolist()
            held[kept] += held.pop(freed)
            times[held[kept]] += 1
            table = ledger.close_slot(table, freed)
        slot = int(ledger.first_free(table))
        table, held[slot] = ledger.open_slot(table, slot, night), [night]
    for slot, nights in held.items():
        found = np.flatnonzero(ledger.holds(table, slot, jnp.arange(200))).tolist()
        assert found == sorted(nights)
    assert times.max() <= 10 and times.mean() < 6
    assert max(map(len, held.values())) <= 50


def test_a_full_pool_refuses_a_night_in_one_line_that_says_what_to_do():
    table = ledger.init_slots([LevelConfig(slots=2)])["slow"]
    ledger.require_room(table, "slow")
    table = ledger.open_slot(table, 0, 0)
    ledger.require_room(table, "slow")
    with pytest.raises(PoolFullError) as error:
        ledger.require_room(ledger.open_slot(table, 1, 1), "slow")
    line = str(error.value)
    assert "\n" not in line
    assert "levels.slow.slots = 2" in line
    assert "merge_balanced" in line


@pytest.mark.parametrize("slot", range(S))
def test_putting_back_a_taken_slot_changes_no_bit(slot):
    params, _ = grown(model(), *range(S))
    whole = pool(get_level(params, "slow"))
    expert = ledger.take_slot(whole, jnp.int32(slot))
    assert expert["experts"]["a"].shape == (2, 16, R)
    assert expert["router"]["bias"].shape == (2,)
    assert differing(whole, ledger.put_slot(whole, jnp.int32(slot), expert)) == []


@pytest.mark.parametrize("change", ["fresh", "clear", "put"])
def test_changing_one_slot_keeps_shapes_and_every_bit_of_the_others(change):
    params, _ = grown(model(), *range(S))
    before = get_level(params, "slow")
    slot = jnp.int32(2)
    if change == "fresh":
        after = ledger.fresh_slot(before, slot, jax.random.key(3), gate_bias=0.5)
    elif change == "clear":
        after = ledger.clear_slot(before, slot)
    else:
        expert = jax.tree.map(lambda x: x + 1, ledger.take_slot(pool(before), slot))
        after = {**before, **ledger.put_slot(pool(before), slot, expert)}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )
    assert after["base"] is before["base"]
    assert after["norm"] is before["norm"]
    for other in (0, 1, 3, 4):
        kept = [ledger.take_slot(pool(x), other) for x in (before, after)]
        assert differing(*kept) == []
    assert differing(*[ledger.take_slot(pool(x), 2) for x in (before, after)])


def test_a_fresh_slot_is_random_inside_zero_outside_and_neutral_in_the_router():
    params, _ = grown(model(), *range(S))
    level = ledger.fresh_slot(get_level(params, "slow"), 2, jax.random.key(3), gate_bias=0.5)
    new = ledger.take_slot(pool(level), 2)
    assert not np.any(new["experts"]["b"])
    assert not np.any(new["router"]["w"])
    assert np.all(np.asarray(new["router"]["bias"]) == 0.5)
    a = np.asarray(new["experts"]["a"])
    assert 0.5 < a.std() * np.sqrt(16) < 1.5
    assert not np.array_equal(a[0], a[1])  # every layer has its own


@pytest.mark.parametrize("dispatch", ["dense", "gather", "grouped"])
@pytest.mark.parametrize("already", [(), (0,), (0, 3)])
def test_with_sigmoid_gates_a_fresh_slot_leaves_the_function_bit_for_bit(already, dispatch):
    m = model(top_k=3, dispatch=dispatch)
    params, table = grown(m, *already)
    level = ledger.fresh_slot(get_level(params, "slow"), 1, jax.random.key(3), gate_bias=0.0)
    after = logits(m, with_levels(params, {"slow": level}), ledger.open_slot(table, 1, 9))
    np.testing.assert_array_equal(logits(m, params, table), after)


def test_with_softmax_gates_a_fresh_slot_of_low_bias_takes_next_to_nothing():
    m = model(gate="softmax")
    params, table = grown(m, 0)
    before = logits(m, params, table)
    moved = []
    for bias in (0.0, -4.0, -30.0):
        level = ledger.fresh_slot(get_level(params, "slow"), 1, jax.random.key(3), bias)
        after = logits(m, with_levels(params, {"slow": level}), ledger.open_slot(table, 1, 9))
        moved.append(float(jnp.abs(after - before).max()))
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 1e-6


def test_a_cleared_slot_has_the_zeros_of_a_newborn_one():
    m = model()
    params, _ = grown(m, *range(S))
    cleared = ledger.clear_slot(get_level(params, "slow"), jnp.int32(4))
    newborn = get_level(jax.jit(m.init)(jax.random.key(0)), "slow")
    assert differing(*[ledger.take_slot(pool(x), 4) for x in (cleared, newborn)]) == []


def test_pruning_zeroes_every_expert_and_keeps_the_base():
    m = model()
    params, _ = grown(m, *range(S))
    level = get_level(params, "slow")
    assert differing(pool(ledger.reset_experts(level)), pool(level))
    newborn = get_level(jax.jit(m.init)(jax.random.key(0)), "slow")
    assert differing(ledger.reset_experts(level), newborn) == []
    bare = {"base": 1, "norm": 2}
    assert ledger.reset_experts(bare) is bare


def test_slots_open_close_and_reset_under_one_compilation():
    params, table = grown(model())
    traces = []

    @jax.jit
    def night(level, table, key):
        traces.append(1)
        slot = ledger.first_free(table)
        level = ledger.fresh_slot(level, slot, key, 0.0)
        table = ledger.open_slot(table, slot, table.active.sum())
        last = ledger.oldest(table, 1)[0]
        full = ledger.is_full(table)
        table = jax.tree.map(
            lambda a, b: jnp.where(full, a, b), ledger.close_slot(table, last), table
        )
        level = jax.tree.map(
            lambda a, b: jnp.where(full, a, b), ledger.clear_slot(level, last), level
        )
        return level, table

    level = get_level(params, "slow")
    for i in range(S + 2):
        level, table = night(level, table, jax.random.key(i))
    assert len(traces) == 1
    assert int(table.active.sum()) == S - 1
