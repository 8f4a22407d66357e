from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.memory.cues import BEFORE, EMPTY, SOURCES, draw, empty_cues, remember

BOS, WIDTH = 1, 3


def offer(ids):
    """Cue i reads [BOS, i, i]."""
    ids = jnp.asarray(ids, jnp.int32)
    return jnp.stack([jnp.full_like(ids, BOS), ids, ids], 1), jnp.full(ids.shape, WIDTH, jnp.int32)


def kept(cues):
    """Ids of the cues that are remembered."""
    return sorted(np.asarray(cues.tokens)[np.asarray(cues.day) != EMPTY][:, 1].tolist())


def reservoir(days, capacity=12):
    """A reservoir with cues 100 * day + i for every (day, count)."""
    cues = empty_cues(capacity, WIDTH, BOS)
    for day, count in days.items():
        tokens, length = offer(100 * (day + 2) + jnp.arange(count))
        cues = remember(cues, tokens, length, jnp.int32(day), jax.random.key(day + 5))
    return cues


def test_an_empty_reservoir_reads_as_begin_of_text_from_every_source():
    cues = empty_cues(4, WIDTH, BOS)
    for source in SOURCES:
        tokens, length = draw(cues, source, jnp.int32(0), jnp.arange(6), jax.random.key(0))
        np.testing.assert_array_equal(tokens, [[BOS, 0, 0]] * 6)
        np.testing.assert_array_equal(length, [1] * 6)


def test_a_reservoir_with_room_keeps_everything_with_day_and_length():
    cues = reservoir({BEFORE: 3, 0: 4})
    assert kept(cues) == [100, 101, 102, 200, 201, 202, 203]
    ids = np.asarray(cues.tokens)[:, 1].tolist()
    days = dict(zip(ids, np.asarray(cues.day).tolist(), strict=True))
    assert days[101] == BEFORE
    assert days[203] == 0
    assert int((cues.day == EMPTY).sum()) == 12 - 7


def test_rows_of_length_zero_are_not_offered():
    tokens, length = offer([7, 8, 9])
    cues = remember(empty_cues(5, WIDTH, BOS), tokens, length.at[1].set(0), 0, jax.random.key(0))
    assert kept(cues) == [7, 9]
    unused = np.asarray(cues.day) == EMPTY
    np.testing.assert_array_equal(np.asarray(cues.tokens)[unused], [[BOS, 0, 0]] * 3)


def test_remembering_keeps_shapes_and_never_more_than_the_capacity():
    cues = empty_cues(4, WIDTH, BOS)
    for day in range(3):
        before = jax.tree.map(lambda x: (x.shape, x.dtype), cues)
        cues = remember(cues, *offer(jnp.arange(6) + 10 * day), day, jax.random.key(day))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), cues) == before
    assert len(set(kept(cues))) == 4
    assert cues.nbytes == 4 * WIDTH * 4 + 4 * 4


def test_every_cue_ever_offered_is_kept_with_equal_chance():
    days, a_day, capacity, lives = 5, 6, 10, 2000

    def life(key):
        cues = empty_cues(capacity, WIDTH, BOS)
        for day in range(days):
            new = offer(jnp.arange(a_day) + a_day * day)
            cues = remember(cues, *new, jnp.int32(day), jax.random.fold_in(key, day))
        return cues.tokens[:, 1]

    ids = np.asarray(jax.jit(jax.vmap(life))(jax.random.split(jax.random.key(0), lives)))
    counts = np.bincount(ids.ravel(), minlength=days * a_day)
    p = capacity / (days * a_day)
    assert counts.sum() == lives * capacity
    assert np.abs(counts - lives * p).max() < 5 * math.sqrt(lives * p * (1 - p))


@pytest.mark.parametrize(
    ("source", "ids"),
    [
        ("today", [300, 301]),
        ("past", [100, 101, 102, 200, 201, 202, 203]),
        ("lived", [200, 201, 202, 203]),
        ("before", [100, 101, 102]),
        ("all", [100, 101, 102, 200, 201, 202, 203, 300, 301]),
        ("none", [0]),
    ],
)
@pytest.mark.parametrize("first", [0, 777, 50_000_000])
def test_a_source_draws_its_eligible_days_and_the_cues_of_a_day_equally_often(source, ids, first):
    cues = reservoir({BEFORE: 3, 0: 4, 1: 2})
    rows = first + jnp.arange(240)
    tokens, length = draw(cues, source, jnp.int32(1), rows, jax.random.key(3))
    got, times = np.unique(np.asarray(tokens)[:, 1], return_counts=True)
    assert got.tolist() == ids
    days = [i // 100 for i in ids]
    wanted = [240 / len(set(days)) / days.count(day) for day in days]
    assert np.abs(times - wanted).max() <= 3
    assert np.all(np.asarray(tokens)[:, 0] == BOS)
    assert np.all(np.asarray(length) == (1 if source == "none" else WIDTH))


def test_no_token_beyond_its_length_is_handed_out():
    cues = reservoir({0: 5}, capacity=5)
    tokens, length = draw(cues, "none", jnp.int32(0), jnp.arange(5), jax.random.key(0))
    np.testing.assert_array_equal(tokens, [[BOS, 0, 0]] * 5)
    np.testing.assert_array_equal(length, [1] * 5)


def test_a_row_draws_by_its_number_and_not_by_its_place():
    cues = reservoir({0: 7})
    key = jax.random.key(4)
    whole, _ = draw(cues, "all", jnp.int32(0), jnp.arange(10), key)
    halves = [draw(cues, "all", jnp.int32(0), jnp.arange(5) + 5 * i, key)[0] for i in (1, 0)]
    np.testing.assert_array_equal(whole, jnp.concatenate(halves[::-1]))


def test_a_share_of_rows_is_left_uncued_evenly():
    cues = reservoir({0: 12})
    for first in (0, 123_456_789):
        rows = first + jnp.arange(200)
        tokens, length = draw(cues, "all", jnp.int32(0), rows, jax.random.key(3), 0.25)
        bare = np.asarray(length) == 1
        assert abs(bare.sum() - 50) <= 3
        np.testing.assert_array_equal(np.asarray(tokens)[bare], [[BOS, 0, 0]] * bare.sum())


def test_another_key_draws_in_another_order():
    cues = reservoir({0: 12})
    orders = {
        tuple(draw(cues, "all", jnp.int32(0), jnp.arange(12), jax.random.key(i))[0][:, 1].tolist())
        for i in range(8)
    }
    assert len(orders) == 8


def test_drawing_and_remembering_compile_once_for_all_days():
    traces = []

    @jax.jit
    def day(cues, today, key):
        traces.append(1)
        cues = remember(cues, *offer(jnp.arange(3)), today, key)
        return cues, draw(cues, "past", today, jnp.arange(4), key)

    cues = empty_cues(4, WIDTH, BOS)
    for i in range(5):
        cues, (tokens, length) = day(cues, jnp.int32(i), jax.random.key(i))
        assert tokens.shape == (4, WIDTH)
        assert length.shape == (4,)
    assert len(traces) == 1


# --- balance between days ------------------------------------------------------------------------


balanced = jax.jit(draw, static_argnames="source")


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("first", [0, 12_345])
def test_a_day_of_n_cues_is_drawn_in_proportion_to_n_to_the_balance(balance, first):
    counts = {0: 2, 1: 3, 2: 7}
    cues = reservoir(counts)
    rows = first + jnp.arange(600)
    tokens, _ = balanced(cues, "all", jnp.int32(2), rows, jax.random.key(3), 0.0, balance)
    ids, times = np.unique(np.asarray(tokens)[:, 1], return_counts=True)
    assert len(ids) == 2 + 3 + 7
    whole = sum(n**balance for n in counts.values())
    for i, got in zip(ids.tolist(), times.tolist(), strict=True):
        n = counts[i // 100 - 2]
        assert abs(got - 600 * n**balance / whole / n) <= 4


def test_only_days_that_the_source_names_are_balanced():
    cues = reservoir({0: 2, 1: 3, 2: 7})
    rows = jnp.arange(600)
    tokens, _ = balanced(cues, "past", jnp.int32(2), rows, jax.random.key(1), 0.0, 1.0)
    ids, times = np.unique(np.asarray(tokens)[:, 1], return_counts=True)
    assert ids.tolist() == [200, 201, 300, 301, 302]
    assert np.abs(times - 120).max() <= 3


@pytest.mark.parametrize("source", SOURCES)
def test_many_cues_are_drawn_as_few_are(source, monkeypatch):
    cues = reservoir({BEFORE: 3, 0: 2, 1: 4, 2: 2}, capacity=14)
    rows = jnp.arange(40)

    def drawn():
        return draw(cues, source, jnp.int32(1), rows, jax.random.key(5), 0.1, 0.5)

    few = drawn()
    monkeypatch.setattr("sleeplm.memory.cues.FEW", 0)
    for ours, theirs in zip(drawn(), few, strict=True):
        np.testing.assert_array_equal(ours, theirs)
