"""Phases: how they are put together, and the one learning step, in numbers worked by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.phase import (
    add_metrics,
    chain,
    consolidate,
    every,
    from_function,
    repeat,
    scope,
    tick,
    when,
)
from sleeplm.core.types import Extract, Memory, Phase, State
from sleeplm.runtime.parallel import mesh

KEY = jax.random.key(0)
RATE = 0.1


def state_of(phase, params=None):
    params = {"w": jnp.array([1.0, -2.0]), "still": jnp.ones(2)} if params is None else params
    return State(
        params=params,
        slots={},
        anchors={},
        cues=(),
        private=phase.init(params, KEY),
        counters={"step": jnp.int32(0), "skipped": jnp.int32(0)},
        key=KEY,
    )


# --- a regression as a phase: rows (x0, x1, y) with weights, loss = sum w (x.w - y)^2 -------------


def rows_as_memory(variables, seen, batch, key):
    """Rows in ``reference``; counts its extractions in its own private state."""
    rows = batch["rows"]
    shape = rows.shape[:1]
    memory = Memory(
        tokens=jnp.zeros((*shape, 1), jnp.int32),
        weights=batch["weights"][:, None],
        segments=jnp.zeros((*shape, 1), jnp.int32),
        reference=rows[:, None],
        reward=jnp.zeros(shape),
        source=jnp.zeros(shape, jnp.int32),
    )
    return memory, seen + 1


def squares(variables, memory):
    x, y = memory.reference[:, 0, :2], memory.reference[:, 0, 2]
    w, weight = variables["params"]["w"], memory.weights[:, 0]
    loss = jnp.sum(weight * (x @ w - y) ** 2)
    return loss, weight.sum(), {"rows": (jnp.sum(weight > 0), jnp.float32(weight.size))}


def only_w(path):
    return path[0].key == "w"


def regression(update=None, **kwargs):
    extract = Extract(lambda params, key: jnp.int32(0), rows_as_memory)
    update = optax.sgd(RATE) if update is None else update
    return consolidate(extract, squares, update, trainable=only_w, **kwargs)


def data(n, seed=0, ragged=True):
    random = np.random.default_rng(seed)
    weights = random.integers(1, 4, n) if ragged else np.ones(n)
    rows = random.normal(size=(n, 3)).astype(np.float32)
    return {"rows": rows, "weights": weights.astype(np.float32)}


def gradient(w, batch):
    x, y, weight = batch["rows"][:, :2], batch["rows"][:, 2], batch["weights"]
    return 2 * (weight * (x @ w - y)) @ x / weight.sum()


def part(batch, rows):
    return {name: x[rows] for name, x in batch.items()}


def test_one_step_is_one_update_by_the_weighted_mean_gradient():
    batch, phase = data(6), regression()
    state, metrics = phase.step(state_of(phase), batch, KEY)
    w = np.array([1.0, -2.0])
    np.testing.assert_allclose(state.params["w"], w - RATE * gradient(w, batch), rtol=1e-5)
    x, y, weight = batch["rows"][:, :2], batch["rows"][:, 2], batch["weights"]
    np.testing.assert_allclose(metrics["loss"][0], (weight * (x @ w - y) ** 2).sum(), rtol=1e-5)
    assert float(metrics["loss"][1]) == weight.sum()
    np.testing.assert_allclose(
        metrics["gradient_norm"][0], np.linalg.norm(gradient(w, batch)), rtol=1e-5
    )
    assert int(state.private.extract) == 1


def test_what_is_not_trainable_keeps_its_bits_and_has_no_optimiser_state():
    phase = regression(optax.adamw(RATE, weight_decay=0.1))
    start = state_of(phase)
    state, _ = jax.jit(phase.step)(start, data(6), KEY)
    assert tree.differing(state.params, start.params) == ["['w']"]
    assert sorted(x.shape for x in jax.tree.leaves(start.private.update)) == [(), (2,), (2,)]


def test_sums_of_ragged_minibatches_equal_one_big_batch():
    """Gradient accumulation: add the (sum, weight) of three unequal parts, divide once."""
    batch, w = data(12), {"w": jnp.array([1.0, -2.0])}
    parts = [part(batch, slice(*edges)) for edges in ((0, 5), (5, 6), (6, 12))]

    def memory_of(piece):
        return rows_as_memory(None, 0, piece, None)[0]

    def total(w, piece):
        loss, weight, _ = squares({"params": w}, memory_of(piece))
        return loss, weight

    grads = [jax.grad(total, has_aux=True)(w, piece) for piece in parts]
    mean = sum(g["w"] for g, _ in grads) / sum(weight for _, weight in grads)
    phase = regression()
    state, _ = phase.step(state_of(phase), batch, KEY)
    np.testing.assert_allclose(state.params["w"], w["w"] - RATE * mean, rtol=1e-5)
    naive = sum(gradient(np.asarray(w["w"]), piece) for piece in parts)
    assert np.abs(naive / 3 - mean).max() > 1e-3  # a mean of means would have been another step


@pytest.mark.parametrize("form", ["shard_map", "pmap"])
def test_ragged_rows_on_four_devices_equal_one_big_batch(form):
    batch = data(8)
    batch["weights"][:2] = 0.0  # one device has nothing to say
    alone, spread = regression(), regression(axis_name="data")
    start = state_of(alone)
    want = alone.step(start, batch, KEY)
    if form == "shard_map":
        step = jax.shard_map(
            spread.step, mesh=mesh({"data": 4}), in_specs=(P(), P("data"), P()), out_specs=P()
        )
        got = jax.jit(step)(start, batch, KEY)
    else:
        pieces = {name: x.reshape(4, 2, *x.shape[1:]) for name, x in batch.items()}
        step = jax.pmap(spread.step, "data", in_axes=(None, 0, None))
        got = jax.tree.map(lambda x: x[0], step(start, pieces, KEY))
    np.testing.assert_allclose(got[0].params["w"], want[0].params["w"], rtol=1e-5)
    for name in want[1]:
        np.testing.assert_allclose(got[1][name], want[1][name], rtol=1e-5)


def test_inner_and_epochs_take_the_minibatches_in_order_again_and_again():
    batch, phase = data(9), regression(optax.sgd(RATE, momentum=0.9), inner=3, epochs=2)
    state, metrics = jax.jit(phase.step)(state_of(phase), batch, KEY)
    w, momentum = np.array([1.0, -2.0]), np.zeros(2)
    for group in [0, 1, 2, 0, 1, 2]:
        momentum = gradient(w, part(batch, slice(3 * group, 3 * group + 3))) + 0.9 * momentum
        w = w - RATE * momentum
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-4)
    assert float(metrics["loss"][1]) == 2 * batch["weights"].sum()
    assert float(metrics["gradient_norm"][1]) == 6
    assert int(state.private.extract) == 1  # one extraction for all six updates


def test_extra_arguments_reach_the_update():
    seen = {}

    def update(grads, state, params=None, **extra):
        seen.update(extra)
        return jax.tree.map(jnp.zeros_like, grads), state

    transform = optax.GradientTransformationExtraArgs(lambda params: (), update)
    phase = regression(transform, extra=lambda state: {"slot": state.counters["skipped"] + 7})
    phase.step(state_of(phase), data(4), KEY)
    assert int(seen["slot"]) == 7 and int(seen["step"]) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_moves_nothing_and_is_counted(bad):
    phase = regression(optax.adam(RATE))
    step = jax.jit(phase.step)
    state, _ = step(state_of(phase), data(4), KEY)
    poisoned = data(4, seed=1)
    poisoned["rows"][1, 0], poisoned["weights"][1] = bad, 1.0
    hurt, metrics = step(state, poisoned, KEY)
    assert tree.differing(hurt.params, state.params) == []
    assert tree.differing(hurt.private.update, state.private.update) == []
    assert int(hurt.counters["skipped"]) == 1
    assert [float(x) for x in metrics["skipped"]] == [1.0, 1.0]
    for name in ("loss", "gradient_norm", "rows"):
        assert [float(x) for x in metrics[name]] == [0.0, 0.0]
    # and it goes on as if the bad batch had not been
    went_on, _ = step(hurt, data(4, seed=2), KEY)
    spared, _ = step(state, data(4, seed=2), KEY)
    assert tree.differing(went_on.params, spared.params) == []
    assert int(went_on.counters["skipped"]) == 1


def test_a_bad_minibatch_among_good_ones_is_skipped_alone():
    phase = regression(inner=3)
    batch = data(9, ragged=False)
    batch["rows"][4, 0] = np.nan
    state, metrics = phase.step(state_of(phase), batch, KEY)
    w = np.array([1.0, -2.0])
    for group in (0, 2):
        w = w - RATE * gradient(w, part(batch, slice(3 * group, 3 * group + 3)))
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
    assert float(metrics["loss"][1]) == 6 and int(state.counters["skipped"]) == 1


def test_the_last_of_several_updates_is_told_apart_if_it_was_refused():
    phase = regression(inner=3)
    for bad, last in ((4, 0.0), (8, 1.0)):
        batch = data(9, ragged=False)
        batch["rows"][bad, 0] = np.nan
        _, metrics = phase.step(state_of(phase), batch, KEY)
        assert [float(x) for x in metrics["last_skipped"]] == [last, 1.0]
        assert [float(x) for x in metrics["skipped"]] == [1.0, 3.0]


def test_an_update_that_is_not_finite_moves_nothing():
    broken = optax.stateless(lambda updates, params: jax.tree.map(lambda x: x * np.nan, updates))
    phase = regression(broken)
    before = state_of(phase)
    after, metrics = phase.step(before, data(4), KEY)
    assert tree.differing(after.params, before.params) == []
    assert float(metrics["skipped"][0]) == 1


def test_a_minibatch_without_weight_moves_nothing_not_even_by_momentum():
    phase = regression(optax.adam(RATE))
    state, _ = phase.step(state_of(phase), data(4), KEY)
    nothing = {**data(4, seed=1), "weights": np.zeros(4, np.float32)}
    after, metrics = phase.step(state, nothing, KEY)
    assert tree.differing(after.params, state.params) == []
    assert tree.differing(after.private.update, state.private.update) == []
    assert float(metrics["skipped"][0]) == 0 and int(after.counters["skipped"]) == 0


def test_of_several_updates_the_first_that_had_anything_to_learn_says_how_it_began():
    phase = regression(inner=3)
    batch = data(9, ragged=False)
    batch["weights"][:3] = 0.0
    _, metrics = phase.step(state_of(phase), batch, KEY)
    x, y = batch["rows"][3:6, :2], batch["rows"][3:6, 2]
    total, weight = metrics["first_loss"]
    np.testing.assert_allclose(total, ((x @ np.array([1.0, -2.0]) - y) ** 2).sum(), rtol=1e-5)
    assert float(weight) == 3


def test_rows_that_make_no_equal_minibatches_are_refused():
    phase = regression(inner=3)
    with pytest.raises(ConfigError, match=r"inner = 3: must divide the rows of a memory \(8\)"):
        phase.step(state_of(phase), data(8), KEY)


@pytest.mark.parametrize("settings", [{"inner": 0}, {"epochs": 0}])
def test_no_updates_at_all_are_refused(settings):
    with pytest.raises(ConfigError, match="inner, epochs"):
        regression(**settings)


# --- combinators ---------------------------------------------------------------------------------


def noisy(scale):
    """Adds noise to w and remembers it: depends on its key, its private state, and counters."""

    def step(state, batch, key):
        noise = scale * jax.random.normal(key, (2,)) + batch["add"]
        params = {**state.params, "w": state.params["w"] + noise + state.private}
        counters = {**state.counters, "step": state.counters["step"] + 1}
        metrics = {"noise": (noise.sum(), jnp.float32(2))}
        return state.replace(params=params, private=noise, counters=counters), metrics

    return Phase(lambda params, key: jax.random.normal(key, (2,)), step)


def add(value=0.0):
    return {"add": jnp.float32(value)}


def test_chain_does_one_after_the_other_each_with_its_own_key_and_private_state():
    a, b = noisy(1.0), noisy(2.0)
    both = chain(a, b)
    start = state_of(both)
    got, metrics = both.step(start, add(0.5), KEY)
    assert [bool((x == y).all()) for x, y in zip(
        start.private, [p.init(None, jax.random.fold_in(KEY, i)) for i, p in enumerate((a, b))],
        strict=True)] == [True, True]  # fmt: skip
    one, first = a.step(
        start.replace(private=start.private[0]), add(0.5), jax.random.fold_in(KEY, 0)
    )
    two, second = b.step(
        one.replace(private=start.private[1]), add(0.5), jax.random.fold_in(KEY, 1)
    )
    want = two.replace(private=(one.private, two.private))
    assert tree.differing(got, want) == []
    np.testing.assert_allclose(metrics["noise"][0], first["noise"][0] + second["noise"][0])
    assert float(metrics["noise"][1]) == 4


def test_repeat_equals_a_loop():
    phase = noisy(1.0)
    start = state_of(phase)
    got, metrics = repeat(4, phase).step(start, {"add": jnp.arange(4.0)}, KEY)
    state, total = start, []
    for i in range(4):
        state, part = phase.step(state, add(i), jax.random.fold_in(KEY, i))
        total.append(part)
    np.testing.assert_allclose(got.params["w"], state.params["w"], rtol=1e-5)
    np.testing.assert_allclose(got.private, state.private, rtol=1e-5)
    np.testing.assert_allclose(metrics["noise"], add_metrics(*total)["noise"], rtol=1e-5)
    assert int(got.counters["step"]) == 4


def test_when_the_condition_fails_nothing_moves_and_metrics_weigh_nothing():
    phase = when(lambda state, batch: batch["add"] > 0, noisy(1.0))
    start = state_of(phase)
    skipped, metrics = jax.jit(phase.step)(start, add(-1.0), KEY)
    assert tree.differing(skipped, start) == []
    assert [float(x) for x in metrics["noise"]] == [0.0, 0.0]
    done, metrics = jax.jit(phase.step)(start, add(1.0), KEY)
    want, _ = jax.jit(noisy(1.0).step)(start, add(1.0), KEY)
    np.testing.assert_allclose(done.params["w"], want.params["w"], rtol=1e-6)
    assert float(metrics["noise"][1]) == 2


def test_every_third_step_acts_at_counts_0_3_6():
    phase = chain(every(3, noisy(1.0)), tick("skipped"))
    start = state_of(phase)
    step = jax.jit(phase.step)
    # ``noisy`` itself counts steps; start from each count.
    acted = []
    for count in range(7):
        counters = {**start.counters, "step": jnp.int32(count)}
        state, _ = step(start.replace(counters=counters), add(), KEY)
        acted.append(int(state.counters["step"]) > count)
    assert acted == [True, False, False, True, False, False, True]


def test_periods_and_times_below_one_are_refused():
    with pytest.raises(ConfigError, match="period"):
        every(0, noisy(1.0))
    with pytest.raises(ConfigError, match="times"):
        repeat(0, noisy(1.0))


def test_scope_shows_a_phase_its_own_private_state_and_keeps_the_rest():
    phase = noisy(1.0)
    own = phase.init(None, KEY)
    start = state_of(phase).replace(private={"day": {"a": own, "b": 1}, "night": 2})
    got, _ = scope(phase.step, "day", "a")(start, add(), KEY)
    want, _ = phase.step(start.replace(private=own), add(), KEY)
    np.testing.assert_array_equal(got.params["w"], want.params["w"])
    np.testing.assert_array_equal(got.private["day"]["a"], want.private)
    assert got.private["day"]["b"] == 1 and got.private["night"] == 2


def test_metrics_of_the_same_name_are_added_as_sums_and_weights():
    got = add_metrics({"a": (1.0, 2.0)}, {"a": (3.0, 4.0), "b": (5.0, 6.0)}, {})
    assert got == {"a": (4.0, 6.0), "b": (5.0, 6.0)}


def test_a_phase_from_a_function_has_no_private_state():
    phase = from_function(lambda state, batch, key: (state, {}))
    assert phase.init({}, KEY) == ()
