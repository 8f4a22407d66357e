"""Awake, every level follows Eq. 2 on the real model, against a plain Python loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sleeplm.core import tree
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.methods.objectives import language_model
from sleeplm.methods.wake import wake

STEPS = 42
BATCHES = 7


def cross_entropy(model, params, batch):
    """Mean next-token loss, written without the library's objectives."""
    variables = {"params": params, "slots": model.init_slots()}
    tokens, segments = batch["tokens"], batch["segments"]
    logp = jax.nn.log_softmax(model.logits(variables, tokens, segments))
    picked = jnp.take_along_axis(logp[:, :-1], tokens[:, 1:, None], 2)[..., 0]
    counts = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return -jnp.sum(picked * counts) / counts.sum()


def parts(level):
    return {"base": level["base"], "norm": level["norm"]}


def live(tiny, model, steps):
    """States after each wake step, the first one included."""
    phase = wake(model, chunk=8)
    state = tiny.learner(model, tiny.config())[1]
    state = state.replace(private=phase.init(state.params, jax.random.key(0)))
    step, states, metrics = jax.jit(phase.step), [], []
    states.append(state)
    for i in range(steps):
        state, values = step(state, tiny.text(i % BATCHES), jax.random.key(i))
        states.append(state)
        metrics.append(values)
    return states, metrics


def make(optimizer, level):
    if optimizer == "sgd":
        return optax.sgd(level.learning_rate)
    return optax.adamw(level.learning_rate, b1=0.9, b2=0.95, weight_decay=level.weight_decay)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_levels_of_periods_1_4_16_and_never_follow_equation_2_exactly(tiny, optimizer):
    settings = {"kind": "graft", "optimizer": optimizer, "weight_decay": 0.01}
    if optimizer == "sgd":
        settings = {"kind": "graft", "optimizer": "sgd", "learning_rate": 0.1}
    levels = [
        tiny.level("fast", period=1, **settings),
        tiny.level("middle", period=4, offset=3, **settings),
        tiny.level("slow", period=16, offset=5, **settings),
        tiny.level("frozen", period=0, slots=2, top_k=2),
    ]
    model = tiny.model(levels)
    states, _ = live(tiny, model, STEPS)
    assert [int(s.counters["step"]) for s in states] == list(range(STEPS + 1))

    # Eq. 2 by hand: e = sum over the chunk of directions taken at the chunk's weights.
    params = states[0].params
    learners = {lv.name: make(optimizer, lv) for lv in levels[:3]}
    inner = {n: opt.init(parts(get_level(params, n))) for n, opt in learners.items()}
    chunk = {n: jax.tree.map(jnp.zeros_like, parts(get_level(params, n))) for n in learners}
    grad = jax.jit(jax.grad(lambda p, b: cross_entropy(model, p, b)))
    for i in range(1, STEPS + 1):
        grads = grad(params, tiny.text((i - 1) % BATCHES))
        for lv in levels[:3]:
            own = parts(get_level(params, lv.name))
            direction, inner[lv.name] = learners[lv.name].update(
                parts(get_level(grads, lv.name)), inner[lv.name], own
            )
            chunk[lv.name] = jax.tree.map(jnp.add, chunk[lv.name], direction)
            before, after = (get_level(s.params, lv.name) for s in (states[i - 1], states[i]))
            if (i - lv.offset) % lv.period == 0:
                moved = optax.apply_updates(own, chunk[lv.name])
                params = with_levels(params, {lv.name: get_level(params, lv.name) | moved})
                chunk[lv.name] = jax.tree.map(jnp.zeros_like, moved)
                assert len(tree.differing(after, before)) == len(jax.tree.leaves(own))
            else:
                assert tree.differing(after, before) == []  # in between: bit for bit
    last = states[-1].params
    for lv in levels[:3]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            parts(get_level(last, lv.name)),
            parts(get_level(params, lv.name)),
        )
    for lv in levels[:3]:
        last = with_levels(last, {lv.name: get_level(states[0].params, lv.name)})
    assert tree.differing(last, states[0].params) == []  # the frozen level, and the backbone


def test_the_loss_is_a_mean_per_predicted_token_and_falls(tiny):
    model = tiny.model()
    states, metrics = live(tiny, model, 30)
    total, weight = metrics[0]["loss"]
    want = cross_entropy(model, states[0].params, tiny.text(0))
    np.testing.assert_allclose(total / weight, want, rtol=1e-5)
    first, last = (
        np.mean([float(m["loss"][0] / m["loss"][1]) for m in part])
        for part in (metrics[:BATCHES], metrics[-BATCHES:])
    )
    assert last < first - 0.05


def test_a_rate_of_nearly_nothing_gives_the_frozen_model_back(tiny):
    """Level stacking (section 3): what does not learn is an ordinary Transformer."""
    levels = [tiny.level("slow", period=0)]
    states, _ = live(tiny, tiny.model(levels), 3)
    assert tree.differing(states[-1].params, states[0].params) == []


def test_open_experts_do_not_learn_awake(tiny):
    model = tiny.model(tiny.two_levels(period=2))
    phase = wake(model, chunk=8)
    state = tiny.learner(model, tiny.config())[1]
    slow = get_level(state.params, "slow")
    noise = jax.tree.map(lambda x: x + 0.1, {k: slow[k] for k in ("experts", "router")})
    params = with_levels(state.params, {"slow": slow | noise})
    slots = {**state.slots, "slow": jax.tree.map(jnp.ones_like, state.slots["slow"])}
    state = state.replace(params=params, slots=slots, private=phase.init(params, jax.random.key(0)))
    start, step = state, jax.jit(phase.step)
    for i in range(2):
        state, _ = step(state, tiny.text(i), jax.random.key(i))
    after, before = get_level(state.params, "slow"), get_level(start.params, "slow")
    assert tree.differing(after["base"], before["base"])
    for part in ("experts", "router"):
        assert tree.differing(after[part], before[part]) == []


def test_in_the_nested_wiring_a_move_of_the_slowest_reaches_levels_with_other_boundaries(tiny):
    settings = {"kind": "graft", "optimizer": "sgd", "learning_rate": 0.2}
    levels = [
        tiny.level("fast", period=1, **settings),
        tiny.level("middle", period=2, offset=1, **settings),
        tiny.level("slow", period=4, **settings),
    ]
    states, _ = live(tiny, tiny.model(levels, wiring="nested"), 4)
    fast, middle, slow = (parts(get_level(states[4].params, lv.name)) for lv in levels)
    assert tree.differing(slow, middle) == [] and tree.differing(slow, fast) == []


def test_in_the_nested_wiring_nobody_restarts_from_a_level_whose_move_was_refused(tiny):
    settings = {"kind": "graft", "optimizer": "sgd", "learning_rate": 0.2}
    levels = [tiny.level("fast", period=1, **settings), tiny.level("slow", period=2, **settings)]
    model = tiny.model(levels, wiring="nested")
    usual = language_model(model, 8)

    def objective(variables, memory):
        loss, weight, aux = usual(variables, memory)
        return jnp.where(memory.tokens[0, 0] == 3, jnp.nan, loss), weight, aux

    phase = wake(model, objective=objective)
    state = tiny.learner(model, tiny.config())[1]
    state = state.replace(private=phase.init(state.params, jax.random.key(0)))
    step, batch = jax.jit(phase.step), tiny.text(0)
    batch["tokens"][0, 0] = 4
    once, _ = step(state, batch, jax.random.key(0))
    assert tree.differing(once.params, state.params)
    batch["tokens"][0, 0] = 3
    refused, metrics = step(once, batch, jax.random.key(1))  # a boundary of the slow level
    assert float(metrics["skipped"][0]) == 1
    assert tree.differing(refused.params, once.params) == []


def test_in_the_nested_wiring_the_fast_level_restarts_from_the_slow_one(tiny):
    settings = {"kind": "graft", "optimizer": "sgd", "learning_rate": 0.2}
    levels = [
        tiny.level("fast", period=1, **settings),
        tiny.level("middle", period=3, **settings),
        tiny.level("slow", period=6, **settings),
    ]
    model = tiny.model(levels, wiring="nested")
    steps = 13
    states, _ = live(tiny, model, steps)

    names = [lv.name for lv in levels]
    weights = {n: parts(get_level(states[0].params, n)) for n in names}
    chunk = {n: jax.tree.map(jnp.zeros_like, weights[n]) for n in names}

    def loss(fast, batch):
        level = get_level(states[0].params, "fast") | fast
        return cross_entropy(model, with_levels(states[0].params, {"fast": level}), batch)

    grad = jax.jit(jax.grad(loss))
    for i in range(1, steps + 1):
        g = grad(weights["fast"], tiny.text((i - 1) % BATCHES))  # shared by all levels
        moved = {}
        for lv in levels:
            chunk[lv.name] = jax.tree.map(lambda c, d: c - 0.2 * d, chunk[lv.name], g)
            moved[lv.name] = i % lv.period == 0
            if moved[lv.name]:
                weights[lv.name] = jax.tree.map(jnp.add, weights[lv.name], chunk[lv.name])
                chunk[lv.name] = jax.tree.map(jnp.zeros_like, chunk[lv.name])
        for fast, slow in (("middle", "slow"), ("fast", "middle")):
            if moved[slow]:
                weights[fast] = weights[slow]
        for n in names:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
                parts(get_level(states[i].params, n)),
                weights[n],
            )
        bits = [parts(get_level(states[i].params, n)) for n in names]
        assert (tree.differing(bits[0], bits[1]) == []) is moved["middle"]
        if moved["slow"]:
            assert tree.differing(bits[0], bits[2]) == []


def test_on_a_backbone_in_bfloat16_the_norm_of_a_level_learns_too(tiny):
    """A step of 5e-4 beside a number of about 1 is none in bfloat16."""
    moved = {}
    for dtype in ("float32", "bfloat16"):
        low = {"dtype": "bfloat16", "param_dtype": "bfloat16", "memory_dtype": dtype}
        levels = [
            tiny.level("fast", kind="graft", period=1, learning_rate=5e-4),
            tiny.level("slow"),
        ]
        states, _ = live(tiny, tiny.model(levels, **low), 6)
        norms = [get_level(s.params, "fast")["norm"]["scale"] for s in (states[0], states[-1])]
        moved[dtype] = float(np.abs(np.asarray(norms[1] - norms[0], np.float32)).max())
    assert moved["float32"] > 1e-3 and moved["bfloat16"] == 0
