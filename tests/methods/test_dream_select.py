"""Selecting dreams: exact gradients of every row, sketches of them, and who is chosen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.methods.dreams.rounds import in_bases
from sleeplm.methods.dreams.select import (
    choose,
    cosine,
    example_gradients,
    mean_gradient,
    norm,
    places,
    score,
    sketch,
)
from sleeplm.methods.extract import wake_batch
from sleeplm.methods.objectives import language_model

KEY = jax.random.key(2)


@pytest.fixture(scope="module")
def told(tiny):
    """A model, its objective, and five rows, the last of which has no weight."""
    model = tiny.model()
    variables = {"params": tiny.params(model), "slots": model.init_slots()}
    memory, _ = wake_batch().extract({}, (), jax.tree.map(lambda x: x[:5], tiny.text(0)), KEY)
    memory = jax.tree.map(jnp.asarray, memory)
    masked = memory.weights * jnp.array([1, 1, 1, 1, 0.0])[:, None]
    return (
        language_model(model, chunk=8),
        variables,
        type(memory)(**{**vars(memory), "weights": masked}),
    )


@pytest.fixture(scope="module")
def by_loop(told):
    """The gradients of the rows, one after the other, as float64 vectors."""
    objective, variables, memory = told
    chosen, rest = tree.split(variables["params"], in_bases)

    def loss(chosen, row):
        total, weight, _ = objective({**variables, "params": tree.merge(chosen, rest)}, row)
        return total / jnp.maximum(weight, 1e-8)

    gradient = jax.jit(jax.grad(loss))
    rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], memory) for i in range(5)]
    return np.stack([flat(gradient(chosen, row)) for row in rows])


def flat(gradient):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(gradient)])


def scored(told, kind, memory=None, **settings):
    objective, variables, rows = told

    def run(variables, memory, reference):
        return score(
            kind, objective, variables, memory, KEY,
            trainable=in_bases, **{"reference": reference, **settings},
        )  # fmt: skip

    return np.asarray(jax.jit(run)(variables, rows if memory is None else memory, rows))


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_the_gradient_of_every_row_is_that_of_a_loop_over_rows(told, by_loop, chunk):
    objective, variables, memory = told
    run = jax.jit(lambda v, m: example_gradients(objective, v, m, trainable=in_bases, chunk=chunk))
    every = run(variables, memory)
    got = np.stack([flat(jax.tree.map(lambda x, i=i: x[i], every)) for i in range(5)])
    assert np.linalg.norm(by_loop[:4], axis=1).min() > 0.01 and not by_loop[4].any()
    np.testing.assert_allclose(got, by_loop, rtol=1e-3, atol=1e-6)


def test_a_long_reference_needs_the_memory_of_a_chunk_of_it(told):
    objective, variables, memory = told
    many = jax.tree.map(lambda x: jnp.tile(x[:1], (400, *[1] * (x.ndim - 1))), memory)

    def needed(chunk: int) -> int:
        run = jax.jit(lambda v, m: mean_gradient(objective, v, m, trainable=in_bases, chunk=chunk))
        return run.lower(variables, many).compile().memory_analysis().temp_size_in_bytes

    assert needed(4) < needed(0) / 10


def test_nothing_has_a_gradient_but_what_is_trainable(told):
    objective, variables, memory = told
    shapes = jax.eval_shape(
        lambda v, m: example_gradients(objective, v, m, trainable=in_bases), variables, memory
    )
    chosen, _ = tree.split(variables["params"], in_bases)
    assert jax.tree.map(lambda x: (5, *x.shape), chosen) == jax.tree.map(lambda x: x.shape, shapes)
    names = jax.tree_util.tree_leaves_with_path(shapes)
    assert names and all("levels" in str(path) for path, _ in names)


@pytest.mark.parametrize("chunk", [0, 2, 5])
def test_the_mean_gradient_is_that_of_the_rows_with_weight(told, by_loop, chunk):
    objective, variables, memory = told
    run = jax.jit(lambda v, m: mean_gradient(objective, v, m, trainable=in_bases, chunk=chunk))
    np.testing.assert_allclose(
        flat(run(variables, memory)), by_loop[:4].mean(0), rtol=1e-3, atol=1e-6
    )


def test_scores_are_norms_and_cosines_of_those_gradients(told, by_loop):
    norms = np.linalg.norm(by_loop, axis=1)
    np.testing.assert_allclose(scored(told, "norm"), norms, rtol=1e-3, atol=1e-7)
    mean = by_loop[:4].mean(0)
    want = by_loop[:4] @ mean / (norms[:4] * np.linalg.norm(mean))
    np.testing.assert_allclose(scored(told, "alignment"), [*want, 0.0], atol=1e-4)


@pytest.mark.parametrize("kind", ["norm", "alignment"])
def test_scores_of_bfloat16_parameters_are_as_fine_as_those_of_float32(told, kind):
    """Their gradients have 8 bits; what is made of them has 24."""
    objective, variables, memory = told
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables["params"])
    coarse = (objective, {**variables, "params": low}, memory)
    run = jax.jit(lambda v, m: example_gradients(objective, v, m, trainable=in_bases))
    every = run(coarse[1], memory)
    rows = [flat(jax.tree.map(lambda x, i=i: x[i], every)) for i in range(4)]
    mean = flat(
        jax.jit(lambda v, m: mean_gradient(objective, v, m, trainable=in_bases))(*coarse[1:])
    )
    wanted = {
        "norm": [np.linalg.norm(row) for row in rows],
        "alignment": [row @ mean / np.linalg.norm(row) / np.linalg.norm(mean) for row in rows],
    }
    got = scored(coarse, kind)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[:4], wanted[kind], rtol=1e-5)


def test_norms_and_cosines_of_bfloat16_trees_tell_many_apart():
    trees = jax.random.normal(KEY, (60, 300)).astype(jnp.bfloat16)
    target = (jax.random.normal(jax.random.key(8), (300,)) + trees.mean(0)).astype(jnp.bfloat16)
    for number in (norm, lambda tree: cosine(tree, {"x": target})):
        numbers = jax.vmap(lambda x, number=number: number({"x": x}))(trees)
        assert numbers.dtype == jnp.float32 and len(set(numbers.tolist())) == 60


def test_what_has_no_weight_changes_no_score(told):
    memory = told[2]
    junk = jnp.where(jnp.arange(5)[:, None] == 4, 9, memory.tokens)
    other = type(memory)(**{**vars(memory), "tokens": junk})
    for kind in ("norm", "alignment"):
        np.testing.assert_array_equal(scored(told, kind), scored(told, kind, other))


def test_random_scores_are_the_keys(told):
    got = scored(told, "random")
    np.testing.assert_array_equal(got, scored(told, "random"))
    assert len(set(got.tolist())) == 5
    with pytest.raises(ConfigError, match="score = 'alignement'.*did you mean 'alignment'"):
        scored(told, "alignement")
    with pytest.raises(ConfigError, match="needs a reference"):
        scored(told, "alignment", reference=None)


def test_a_sketch_is_linear_and_the_same_for_the_same_key(told):
    a, b = ({"x": jax.random.normal(k, (30, 4)), "y": jax.random.normal(k, (7,))}
            for k in jax.random.split(KEY))  # fmt: skip
    project = sketch(16, KEY)
    both = jax.tree.map(lambda x, y: 2 * x - y, a, b)
    np.testing.assert_allclose(project(both), 2 * project(a) - project(b), atol=1e-5)
    np.testing.assert_array_equal(project(a), sketch(16, KEY)(a))
    assert np.abs(project(a) - sketch(16, jax.random.key(9))(a)).max() > 0.1


def test_sketches_keep_inner_products_on_average():
    a = {"x": jax.random.normal(KEY, (300,))}
    b = {"x": a["x"] + jax.random.normal(jax.random.key(8), (300,))}
    keys = jax.random.split(KEY, 500)
    products = jax.vmap(lambda key: sketch(32, key)(a) @ sketch(32, key)(b))(keys)
    exact = jnp.vdot(a["x"], b["x"])
    error = np.std(products) / len(keys) ** 0.5
    assert abs(products.mean() - exact) < 4 * error < 0.15 * exact


def test_scores_of_wide_sketches_are_close_to_exact_ones(told):
    for kind in ("norm", "alignment"):
        exact, close = scored(told, kind), scored(told, kind, size=4096)
        np.testing.assert_allclose(close, exact, rtol=0.1, atol=0.05)


# --- choosing ------------------------------------------------------------------------------------

SCORES = jnp.array([0.3, 9.0, jnp.nan, 0.5, -jnp.inf, 0.9, 0.1, 0.7])
MASK = jnp.array([1, 0, 1, 1, 1, 1, 1, 1], bool)


def test_the_best_are_chosen_then_others_at_random_and_no_masked_one_ever():
    run = jax.jit(choose, static_argnums=(2, 3))
    drawn = set()
    for seed in range(40):
        index, kept = run(SCORES, MASK, 3, 2, jax.random.key(seed))
        assert kept.all() and len(set(index.tolist())) == 5
        assert index[:3].tolist() == [5, 7, 3]
        drawn |= set(index[3:].tolist())
    assert drawn == {0, 2, 4, 6}  # every other one, also those whose scores are no numbers


def test_the_others_have_equal_chances():
    keys = jax.random.split(KEY, 2000)
    index, _ = jax.vmap(lambda key: choose(SCORES, MASK, 3, 1, key))(keys)
    counts = np.bincount(np.asarray(index[:, 3]), minlength=8)[[0, 2, 4, 6]]
    assert np.abs(counts - 500).max() < 100


def test_dreams_of_one_score_are_kept_with_equal_chances_wherever_they_stand():
    """Without a word to align with, all have one score, and the first the first contexts."""
    equal = jnp.array([0.0, 9.0, 0.0, 0.0, jnp.nan, 0.0, -jnp.inf, 0.0])
    keys = jax.random.split(KEY, 3000)
    index, kept = jax.vmap(lambda key: choose(equal, MASK, 2, 1, key))(keys)
    assert kept.all()
    counts = np.bincount(np.asarray(index[:, :2]).ravel(), minlength=8)
    assert counts[[1, 4, 6]].tolist() == [0, 0, 0]  # masked, and no numbers
    assert np.abs(counts[[0, 2, 3, 5, 7]] - 1200).max() < 150
    # Three of the five that are left have lost: each is drawn as often as one that stood below.
    others = np.bincount(np.asarray(index[:, 2]), minlength=8)
    assert np.abs(others[[0, 2, 3, 5, 7]] - 3000 / 5 * 3 / 5).max() < 80
    assert np.abs(others[[4, 6]] - 3000 / 5).max() < 100


def test_ties_are_broken_alike_for_one_key_and_apart_for_others():
    equal, run = jnp.zeros(8), jax.jit(choose, static_argnums=(2, 3))
    keys = jax.random.split(KEY, 20)
    each = [run(equal, MASK, 3, 2, key)[0].tolist() for key in keys]
    assert jax.vmap(lambda key: choose(equal, MASK, 3, 2, key)[0])(keys).tolist() == each
    assert len({tuple(one) for one in each}) > 15
    # Masked dreams behind them, as other shares have, change nothing.
    more, mask = jnp.zeros(11), jnp.concatenate([MASK, jnp.zeros(3, bool)])
    assert choose(more, mask, 3, 2, keys[0])[0].tolist() == each[0]


def test_places_among_some_keep_the_order_that_all_have():
    """What was chosen is compared once more: its best are in the order that chose them."""
    scores, some = jnp.array([1.0, 1, 0, 1, 0, 1, 0, 1]), jnp.arange(8) % 3 < 2
    for seed in range(10):
        whole, part = (places(scores, mask, jax.random.key(seed)) for mask in (MASK, MASK & some))
        there = np.flatnonzero(MASK & some)
        np.testing.assert_array_equal(
            there[np.argsort(whole[there])], there[np.argsort(part[there])]
        )


@pytest.mark.parametrize(("k", "b", "want"), [(8, 0, 7), (0, 8, 7), (5, 3, 7), (2, 1, 3)])
def test_where_there_are_too_few_the_rest_is_marked(k, b, want):
    index, kept = choose(SCORES, MASK, k, b, KEY)
    assert kept.sum() == want and len(set(index.tolist())) == k + b
    assert 1 not in index[kept].tolist()


def test_scores_of_masked_dreams_and_more_of_them_change_nothing():
    want = choose(SCORES, MASK, 3, 2, KEY)
    more = jnp.concatenate([SCORES.at[1].set(-5.0), jnp.array([99.0, jnp.nan])])
    got = choose(more, jnp.concatenate([MASK, jnp.zeros(2, bool)]), 3, 2, KEY)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_more_than_there_are_or_none_are_refused():
    for k, b in ((7, 2), (0, 0), (-1, 3)):
        with pytest.raises(ConfigError, match="choose between 1 and all 8"):
            choose(SCORES, MASK, k, b, KEY)


def test_the_cosine_of_nothing_is_zero():
    a, nothing = {"x": jnp.array([3.0, 4.0])}, {"x": jnp.zeros(2)}
    assert cosine(a, nothing) == 0.0 and cosine(nothing, nothing) == 0.0
    np.testing.assert_allclose(cosine(a, jax.tree.map(lambda x: -2 * x, a)), -1.0, rtol=1e-6)
    assert optax.global_norm(a) == 5.0
