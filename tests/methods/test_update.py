"""Updates: move every k steps (Eq. 2), move only this slot, start a level afresh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sleeplm.core import tree
from sleeplm.memory.levels import LevelConfig, get_level
from sleeplm.memory.slots import take_slot
from sleeplm.methods.update import (
    every_k,
    fading,
    level_updates,
    moves_awake,
    only_slot,
    optimizer,
    restart_level,
)

INNER = {
    "sgd": lambda: optax.sgd(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.01),
    "clipped": lambda: optimizer(LevelConfig(optimizer="sgd", clip=0.5, learning_rate=0.1)),
}


def gradients(steps, seed=0):
    return np.random.default_rng(seed).normal(size=(steps, 3)).astype(np.float32)


def boundaries(steps, period, offset):
    """Steps, counted from 1, at which a level moves."""
    return [i for i in range(1, steps + 1) if (i - offset) % period == 0]


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize(("period", "offset"), [(1, 0), (4, 0), (4, 3), (16, 5)])
def test_every_k_applies_the_sum_of_a_chunk_at_its_boundary(name, period, offset):
    inner, steps = INNER[name](), 37
    wrapped = every_k(inner, period, offset)
    update = jax.jit(lambda g, s, p, i: wrapped.update(g, s, p, step=i))
    params = {"w": jnp.array([1.0, 2.0, -3.0])}
    state = wrapped.init(params)
    w, inner_state, chunk = params["w"], inner.init(params["w"]), jnp.zeros(3)
    moved = []
    for i, g in enumerate(gradients(steps), start=1):
        updates, state = update({"w": g}, state, params, i - 1)
        after = optax.apply_updates(params, updates)
        if tree.differing(after, params):
            moved.append(i)
        params = after
        # the same by hand, with the weights held through the chunk
        direction, inner_state = inner.update(jnp.asarray(g), inner_state, w)
        chunk = chunk + direction
        if (i - offset) % period == 0:
            w, chunk = w + chunk, jnp.zeros(3)
        np.testing.assert_allclose(params["w"], w, rtol=2e-5, atol=1e-6)
    assert moved == boundaries(steps, period, offset)
    np.testing.assert_allclose(state.gathered["w"], chunk, rtol=2e-5, atol=1e-6)


def test_with_sgd_a_chunk_is_the_sum_of_its_plain_gradients_not_their_mean():
    update = every_k(optax.sgd(0.1), period=4)
    params = jnp.zeros(3)
    state, total = update.init(params), jnp.zeros(3)
    for i, g in enumerate(gradients(4)):
        moved, state = update.update(g, state, params, step=jnp.int32(i))
        total = total + moved
    np.testing.assert_allclose(total, -0.1 * gradients(4).sum(0), rtol=1e-5)


def test_long_sums_of_bfloat16_directions_do_not_stand_still():
    params = {"w": jnp.zeros(1, jnp.bfloat16)}
    wrapped = every_k(optax.sgd(1.0), 1000)

    def step(carry, i):
        params, state = carry
        grads = {"w": jnp.full(1, -1e-3, jnp.bfloat16)}
        updates, state = wrapped.update(grads, state, params, step=i)
        return (optax.apply_updates(params, updates), state), None

    carry = params, wrapped.init(params)
    (params, _), _ = jax.lax.scan(step, carry, jnp.arange(1000))
    assert params["w"].dtype == jnp.bfloat16
    assert float(params["w"][0]) == pytest.approx(1.0, abs=0.01)


def test_what_does_not_move_keeps_even_the_sign_of_its_zeros():
    params = {"w": jnp.array([-0.0, 0.0])}
    wrapped = every_k(optax.sgd(1.0), 2)
    updates, _ = wrapped.update({"w": jnp.ones(2)}, wrapped.init(params), params, step=jnp.int32(0))
    assert np.signbit(optax.apply_updates(params, updates)["w"]).tolist() == [True, False]


def test_a_period_of_zero_never_moves_and_keeps_nothing():
    update = every_k(optax.adamw(0.1, weight_decay=0.5), period=0)
    params = {"w": jnp.ones(3)}
    state = update.init(params)
    assert jax.tree.leaves(state) == []
    for i, g in enumerate(gradients(20)):
        updates, state = update.update({"w": g}, state, params, step=jnp.int32(i))
        assert tree.differing(optax.apply_updates(params, updates), params) == []


# --- one slot ------------------------------------------------------------------------------------

LAYERS, SLOTS, WIDTH, RANK = 2, 3, 4, 2


def pool(seed=0):
    random = np.random.default_rng(seed)
    return {
        "experts": {
            "a": jnp.asarray(random.normal(size=(LAYERS, SLOTS, WIDTH, RANK))),
            "b": jnp.asarray(random.normal(size=(LAYERS, SLOTS, RANK, WIDTH))),
        },
        "router": {
            "w": jnp.asarray(random.normal(size=(LAYERS, WIDTH, SLOTS))),
            "bias": jnp.asarray(random.normal(size=(LAYERS, SLOTS))),
        },
    }


@pytest.mark.parametrize("nested", [False, True], ids=["pool", "params with None elsewhere"])
def test_only_slot_moves_one_expert_and_its_router_column_like_the_inner_optimiser(nested):
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.1))
    update, slot = only_slot(inner), jnp.int32(1)
    full = {"embed": None, "levels": {"slow": {"base": None, **pool()}}}

    def dress(x):
        return full | {"levels": {"slow": {"base": None, **x}}} if nested else x

    params, state = pool(), update.init(dress(pool()))
    mine, inner_state = take_slot(pool(), slot), inner.init(take_slot(pool(), slot))
    for seed in (1, 2):
        grads = pool(seed)
        got, state = update.update(dress(grads), state, dress(params), slot=slot)
        assert jax.tree.structure(got) == jax.tree.structure(dress(grads))
        got = {name: got["levels"]["slow"][name] for name in params} if nested else got
        want, inner_state = inner.update(take_slot(grads, slot), inner_state, mine)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), take_slot(got, slot), want
        )
        for other in (0, 2):
            for x in jax.tree.leaves(take_slot(got, jnp.int32(other))):
                np.testing.assert_array_equal(x, 0.0)
        params, mine = optax.apply_updates(params, got), optax.apply_updates(mine, want)


def test_only_slot_keeps_state_for_one_expert_however_many_slots_there_are():
    state = only_slot(optax.adam(0.1)).init(pool())
    one = LAYERS * (2 * WIDTH * RANK + WIDTH + 1)
    assert tree.size(state) == 2 * one + 1  # two moments and a count


# --- levels --------------------------------------------------------------------------------------


def three_levels(tiny):
    return [
        tiny.level("fast", kind="graft", period=1, night=4),
        tiny.level("middle", kind="graft", period=4, optimizer="sgd", slots=2),
        tiny.level("slow", period=0),
    ]


def moving(params, levels):
    return tree.split(params, moves_awake(levels))[0]


def test_awake_only_the_mlps_of_levels_with_a_finite_period_move(tiny):
    levels = three_levels(tiny)
    params = tiny.params(tiny.model(levels))
    chosen, rest = tree.split(params, moves_awake(levels))
    moving = {k for k, v in chosen["blocks"]["levels"].items() if jax.tree.leaves(v)}
    assert moving == {"fast", "middle"}
    middle = get_level(rest, "middle")
    assert jax.tree.leaves(middle["experts"]) and not jax.tree.leaves(middle["base"])
    assert tree.size(chosen) == sum(
        tree.size([get_level(params, name)[part] for part in ("base", "norm")])
        for name in ("fast", "middle")
    )


def test_restart_level_forgets_moments_and_gathered_directions_of_that_level_only(tiny):
    levels = three_levels(tiny)
    params = tiny.params(tiny.model(levels))
    update = level_updates(levels)
    chosen = moving(params, levels)
    fresh = update.init(chosen)
    state = fresh
    for i in range(3):
        grads = jax.tree.map(lambda x, i=i: jnp.full_like(x, i + 1.0), chosen)
        _, state = update.update(grads, state, chosen, step=jnp.int32(i))
    restarted = restart_level(update, state, params, "fast")
    assert jax.tree.structure(restarted) == jax.tree.structure(state)
    for name in state.inner_states:
        source = fresh if name == "fast/base" else state
        assert tree.differing(restarted.inner_states[name], source.inner_states[name]) == []
    assert tree.differing(state.inner_states["fast/base"], fresh.inner_states["fast/base"])
    assert tree.differing(state.inner_states["middle/base"], fresh.inner_states["middle/base"])


def test_restarting_a_level_that_never_moves_changes_nothing(tiny):
    levels = three_levels(tiny)
    params = tiny.params(tiny.model(levels))
    update = level_updates(levels)
    state = update.init(moving(params, levels))
    assert restart_level(update, state, params, "slow") is state


# --- nights of any length ------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [4, 10])
def test_fading_is_a_learning_rate_that_falls_linearly_to_zero_over_the_night(updates):
    faded = optax.chain(optax.adamw(0.1, weight_decay=0.5), fading())
    schedule = optax.linear_schedule(0.1, 0.0, updates)
    usual = optax.adamw(schedule, weight_decay=0.5)
    step = jax.jit(lambda g, s, p, n: faded.update(g, s, p, total=n))
    params = {"w": jnp.array([1.0, 2.0, -3.0])}
    state, wanted_state, wanted = faded.init(params), usual.init(params), params
    for g in gradients(updates):
        moved, state = step({"w": g}, state, params, jnp.int32(updates))
        params = optax.apply_updates(params, moved)
        moved, wanted_state = usual.update({"w": jnp.asarray(g)}, wanted_state, wanted)
        wanted = optax.apply_updates(wanted, moved)
        np.testing.assert_allclose(params["w"], wanted["w"], rtol=1e-5)
    moved, _ = step({"w": g}, state, params, jnp.int32(updates))
    np.testing.assert_array_equal(moved["w"], 0.0)  # beyond its end


def test_fading_one_program_serves_nights_of_all_lengths():
    transform = fading()
    traces = []

    def update(g, state, n):
        traces.append(1)
        return transform.update(g, state, total=n)

    run = jax.jit(update)
    for n in (2, 8, 0):
        moved, _ = run(jnp.ones(2), jnp.int32(1), jnp.int32(n))
        np.testing.assert_allclose(moved, max(1 - 1 / max(n, 1), 0.0))
    assert len(traces) == 1
