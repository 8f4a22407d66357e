"""Trials: isolated copies that share every weight of the learner."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from sleeplm.core import tree
from sleeplm.core.platform import written_for
from sleeplm.methods.adapters import ADAPTERS, adapted, beside, with_adapters
from sleeplm.methods.dreams.trials import Lesson, attempt, attempts, begin, sharing_experts
from sleeplm.methods.extract import wake_batch
from sleeplm.methods.objectives import language_model
from sleeplm.runtime import parallel
from sleeplm.runtime.rules import place, state_specs

RANK, STEPS, TRIALS = 3, 4, 5
KEYS = jax.random.split(jax.random.key(6), TRIALS)
UPDATE = optax.adam(0.02)


@pytest.fixture(scope="module")
def tried(tiny):
    """A model, its variables, and a memory [T, 1, L] of one text for each trial."""
    model = tiny.model()
    variables = {"params": tiny.params(model), "slots": model.init_slots()}
    text = jax.tree.map(lambda x: jnp.asarray(x[:TRIALS]), tiny.text(1))
    memory, _ = wake_batch().extract({}, (), text, KEYS[0])
    return model, variables, jax.tree.map(lambda x: x[:, None], memory)


PROGRAMS = {}  # most tests run the same one


def run(tried, memory=None, keys=KEYS, **settings):
    model, variables, texts = tried
    which = (id(model), *sorted(settings.items()))
    if which not in PROGRAMS:
        objective = language_model(model, chunk=8)
        PROGRAMS[which] = jax.jit(attempts(objective, UPDATE, rank=RANK, steps=STEPS, **settings))
    return PROGRAMS[which](variables, texts if memory is None else memory, keys)


def test_all_at_once_equals_a_loop_over_trials(tried):
    model, variables, memory = tried
    got = run(tried)
    one = jax.jit(attempt(language_model(model, chunk=8), UPDATE, rank=RANK, steps=STEPS))
    for i in range(TRIALS):
        want = one(variables, jax.tree.map(lambda x, i=i: x[i], memory), KEYS[i])
        mine = jax.tree.map(lambda x, i=i: x[i], got)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), mine, want
        )


def test_a_few_at_once_are_the_same_trials(tried):
    want = run(tried)
    for at_once in (1, 2):
        got = run(tried, at_once=at_once)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, want)


def test_on_a_mesh_every_device_makes_its_own_and_nothing_is_summed_over_them(tried):
    """Five trials, one at a time, fill four devices twice; parameters in pieces are gathered."""
    model, variables, memory = tried
    mesh = parallel.mesh({"fsdp": 4})
    specs = functools.partial(state_specs, learners=False)
    tries = attempts(language_model(model, chunk=8), UPDATE, rank=RANK, steps=STEPS, at_once=1)

    def step(params, batch, key):
        return params, tries({**variables, "params": params}, batch["memory"], batch["keys"])

    over = parallel.jit_step(
        step, mesh, donate=False, state_specs=specs,
        specs=lambda batch, axis: jax.tree.map(lambda _: PartitionSpec(), batch),
    )  # fmt: skip
    params = place(variables["params"], mesh, specs)
    batch = {"memory": memory, "keys": KEYS}
    want, (_, got) = run(tried), over(params, batch, KEYS[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, want)
    text = over.lower(params, batch, KEYS[0]).compile().as_text()
    assert "all-gather(" in text
    assert not re.findall(r"= \w+\[[\d,]*\d\S* (?:all-reduce|reduce-scatter)\(", text)


def test_a_trial_is_ordinary_lora_on_its_own_text(tried):
    """Held to adapters that are merged into the weights, and plain steps in Python."""
    model, variables, memory = tried
    trials, losses = run(tried)
    params = with_adapters(variables["params"], RANK, KEYS[2])
    adapters = params[ADAPTERS]
    moments, row = UPDATE.init(adapters), jax.tree.map(lambda x: x[2], memory)

    @jax.jit
    def loss_fn(adapters):
        total, weight, _ = adapted(language_model(model, chunk=8))(
            {**variables, "params": {**params, ADAPTERS: adapters}}, row
        )
        return total / weight

    for step in range(STEPS):
        loss, grads = jax.value_and_grad(loss_fn)(adapters)
        np.testing.assert_allclose(losses[2, step], loss, rtol=1e-3)
        updates, moments = UPDATE.update(grads, moments, adapters)
        adapters = optax.apply_updates(adapters, updates)
    after = language_model(model, chunk=8)(
        beside(variables, jax.tree.map(lambda x: x[2], trials.adapters)), row
    )
    np.testing.assert_allclose(after[0] / after[1], loss_fn(adapters), rtol=1e-3)
    assert (losses[:, -1] < losses[:, 0]).all()


def test_one_text_does_not_reach_another_trial(tried):
    _, _, memory = tried
    first = jnp.arange(TRIALS)[:, None, None] == 0
    other = type(memory)(**{**vars(memory), "tokens": jnp.where(first, 9, memory.tokens)})
    (want, _), (got, _) = run(tried), run(tried, other)
    moved = tree.differing(*(jax.tree.map(lambda x: x[:1], t.adapters) for t in (want, got)))
    assert moved
    assert not tree.differing(*(jax.tree.map(lambda x: x[1:], t) for t in (want, got)))


def test_a_trial_without_weight_adds_nothing(tried):
    _, _, memory = tried
    nothing = type(memory)(**{**vars(memory), "weights": memory.weights * 0})
    trials, losses = run(tried, nothing)
    assert not losses.any()
    named = jax.tree_util.tree_leaves_with_path(trials.adapters)
    assert all(not x.any() for path, x in named if path[-1].key == "b")


def test_a_trial_goes_at_the_pace_of_its_lesson(tried):
    """The pace multiplies updates, and where it is 0 nothing moves any more."""
    _, _, memory = tried
    first = jnp.tile(jnp.array([1.0, 1.0, 0.0, 0.0]), (TRIALS, 1))
    short, _ = run(tried, Lesson(memory, first))
    model, variables, _ = tried
    two = attempts(language_model(model, chunk=8), UPDATE, rank=RANK, steps=2)
    want, _ = jax.jit(two)(variables, memory, KEYS)
    assert_close(short.adapters, want.adapters)
    slow = attempts(language_model(model, chunk=8), optax.adam(0.01), rank=RANK, steps=STEPS)
    half, _ = run(tried, Lesson(memory, jnp.full((TRIALS, STEPS), 0.5)))
    want, _ = jax.jit(slow)(variables, memory, KEYS)
    assert_close(half.adapters, want.adapters)


def test_rows_take_turns_where_a_step_has_fewer(tried):
    """Two rows at a time of three: rows 0 1, 2 0, 1 2, 0 1; held to steps in Python."""
    model, variables, texts = tried
    memory = jax.tree.map(lambda x: jnp.stack([x[:3, 0]] * TRIALS), texts)
    got, losses = run(tried, memory, batch=2)
    adapters = begin(variables["params"], UPDATE, RANK, KEYS[1]).adapters
    moments = UPDATE.init(adapters)

    @jax.jit
    def loss_fn(adapters, rows):
        total, weight, _ = language_model(model, chunk=8)(beside(variables, adapters), rows)
        return total / weight

    for step in range(STEPS):
        turn = jnp.array([2 * step % 3, (2 * step + 1) % 3])
        rows = jax.tree.map(lambda x, turn=turn: x[1, turn], memory)
        loss, grads = jax.value_and_grad(loss_fn)(adapters, rows)
        np.testing.assert_allclose(losses[1, step], loss, rtol=1e-3)
        updates, moments = UPDATE.update(grads, moments, adapters)
        adapters = optax.apply_updates(adapters, updates)
    assert_close(jax.tree.map(lambda x: x[1], got.adapters), adapters)


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), got, want)


def test_the_keys_decide_how_adapters_begin(tried):
    same, _ = run(tried, keys=KEYS[jnp.array([0, 0, 1, 2, 3])])
    a = [x for path, x in jax.tree_util.tree_leaves_with_path(same.adapters) if path[-1].key == "a"]
    begun = begin(tried[1]["params"], UPDATE, RANK, KEYS[0]).adapters
    first = [x for path, x in jax.tree_util.tree_leaves_with_path(begun) if path[-1].key == "a"]
    for mine, start in zip(a, first, strict=True):
        assert np.abs(mine[0] - start).max() < 0.2 < np.abs(mine[2] - start).max()


def test_a_trial_keeps_its_adapters_and_their_moments_and_nothing_else(tried):
    params = tried[1]["params"]
    trials, _ = jax.eval_shape(lambda: run(tried))
    numbers = tree.size(with_adapters(params, RANK, KEYS[0])[ADAPTERS])
    # Adam: two moments of every number, and a count.
    assert tree.nbytes(trials) == TRIALS * (3 * 4 * numbers + 4)
    assert tree.nbytes(jax.eval_shape(lambda: begin(params, UPDATE, RANK, KEYS[0]))) * TRIALS == (
        tree.nbytes(trials)
    )


def test_no_copy_of_a_weight_stands_in_the_compiled_program(tiny, tried):
    """Neither T copies of a matrix, nor T gradients of one: these would be [T, in, out]."""
    model = tiny.model([tiny.level("fast", width=20, period=1)], d_model=24)  # as nothing else is
    variables = {"params": tiny.params(model), "slots": model.init_slots()}
    memory = jax.tree.map(lambda x: x[..., :10], tried[2])
    tries = attempts(language_model(model, chunk=8), UPDATE, rank=RANK, steps=STEPS)
    text = jax.jit(tries).lower(variables, memory, KEYS).compile().as_text()
    blocks = jax.tree_util.tree_leaves_with_path(variables["params"]["blocks"])
    kernels = {x.shape for path, x in blocks if path[-1].key == "kernel"}
    assert {(1, 24, 24), (1, 24, 20), (1, 20, 24)} < kernels
    shapes = {
        tuple(int(n) for n in shape.split(",") if int(n) != 1)
        for shape in re.findall(r"f32\[([\d,]+)\]", text)
    }
    assert (TRIALS, 24, RANK) in shapes  # adapters are found
    for _, *matrix in kernels:
        assert (TRIALS, *matrix) not in shapes and (TRIALS * matrix[0], matrix[1]) not in shapes


@pytest.mark.parametrize("length", [10, 80])
def test_on_accelerators_trials_share_the_experts_too(tiny, tried, length):
    """What is best for one text, short or long, would copy the chosen experts or all of them."""
    model = tiny.model(d_model=24, max_len=length)
    variables = {"params": tiny.params(model), "slots": model.init_slots()}
    row = jax.tree.map(lambda x: jnp.pad(x[..., :10], _to(x, length)), tried[2])
    pool = variables["params"]["blocks"]["levels"]["slow"]["experts"]["a"]

    def largest(model):
        """Elements of the largest array of expert matrices [..., D, R] in the program."""
        with written_for("tpu"):
            tries = attempts(language_model(model, chunk=8), UPDATE, rank=RANK, steps=1)
            text = jax.jit(tries).lower(variables, row, KEYS).compile().as_text()
        rank = pool.shape[-1]
        assert rank != RANK  # or adapters would be taken for experts
        shapes = re.findall(rf"f32\[((?:\d+,)*24,{rank})\]", text)
        return max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes)

    with written_for("tpu"):
        sharing = sharing_experts(model)
    assert largest(sharing) <= pool.size < TRIALS * pool.size <= largest(model)


def _to(x, length):
    """Padding of the last axis, if it is one of positions."""
    room = length - 10 if x.ndim > 2 else 0
    return [(0, 0)] * (x.ndim - 1) + [(0, room)]


def test_a_dispatch_that_was_chosen_stays_and_so_does_a_cpus(tiny):
    for dispatch in ("gather", "grouped", "dense"):
        chosen = tiny.model(dispatch=dispatch)
        with written_for("gpu"):
            assert sharing_experts(chosen) == chosen
    usual = tiny.model()
    assert sharing_experts(usual) == usual
    with written_for("gpu"):
        assert sharing_experts(usual).config.dispatch == "dense"
