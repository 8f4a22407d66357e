"""Edit distance is exact, rewards follow Eq. 3 and 4, judges agree with hand-worked examples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from rapidfuzz.distance import Levenshtein

from sleeplm.core.errors import ConfigError
from sleeplm.methods.rewards import (
    cosine_judge,
    exact_match_judge,
    imitation_reward,
    levenshtein,
    mean_pool,
    surface_reward,
)

EOS = 9


def random_pairs(seed, batch, width_a, width_b, vocabulary):
    random = np.random.default_rng(seed)
    a = random.integers(0, vocabulary, (batch, width_a), dtype=np.int32)
    b = random.integers(0, vocabulary, (batch, width_b), dtype=np.int32)
    a_length = random.integers(0, width_a + 1, batch, dtype=np.int32)
    b_length = random.integers(0, width_b + 1, batch, dtype=np.int32)
    return a, a_length, b, b_length


def rows(*texts, width=8):
    """Token rows padded with a token that also occurs in texts, and their masks."""
    tokens, mask = np.full((len(texts), width), 1, np.int32), np.zeros((len(texts), width), bool)
    for i, text in enumerate(texts):
        tokens[i, : len(text)], mask[i, : len(text)] = text, True
    return jnp.asarray(tokens), jnp.asarray(mask)


# --- edit distance -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "want"), [("kitten", "sitting", 3), ("", "abc", 3), ("", "", 0)]
)
def test_levenshtein_of_textbook_words(a, b, want):
    a_tokens, a_mask = rows([ord(c) for c in a])
    b_tokens, b_mask = rows([ord(c) for c in b])
    got = levenshtein(a_tokens, a_mask.sum(1), b_tokens, b_mask.sum(1))
    assert got.dtype == jnp.int32 and int(got[0]) == want


@pytest.mark.parametrize("shape", [(2000, 9, 9, 2), (2000, 12, 7, 3), (1000, 5, 20, 50)])
def test_levenshtein_equals_rapidfuzz_on_thousands_of_pairs(shape):
    a, a_length, b, b_length = random_pairs(sum(shape), *shape)
    got = jax.jit(levenshtein)(a, a_length, b, b_length)
    want = [
        Levenshtein.distance(x[:n].tolist(), y[:m].tolist())
        for x, n, y, m in zip(a, a_length, b, b_length, strict=True)
    ]
    assert min(a_length) == 0 and min(b_length) == 0
    np.testing.assert_array_equal(got, want)


def test_levenshtein_does_not_look_at_padding():
    a, a_length, b, b_length = random_pairs(5, 200, 9, 11, 3)
    want = levenshtein(jnp.asarray(a), jnp.asarray(a_length), jnp.asarray(b), jnp.asarray(b_length))
    for fill in (0, 2, -7):
        a2, b2 = np.pad(a, ((0, 0), (0, 4))), np.pad(b, ((0, 0), (0, 1)))
        a2[np.arange(13) >= a_length[:, None]] = fill
        b2[np.arange(12) >= b_length[:, None]] = fill
        got = levenshtein(jnp.asarray(a2), jnp.asarray(a_length), jnp.asarray(b2), b_length)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("width_a", "width_b"), [(0, 4), (4, 0), (0, 0)])
def test_levenshtein_of_rows_without_any_width_is_the_other_length(width_a, width_b):
    a, a_length, b, b_length = random_pairs(1, 6, width_a, width_b, 3)
    got = levenshtein(jnp.asarray(a), a_length, jnp.asarray(b), b_length)
    np.testing.assert_array_equal(got, np.maximum(a_length, b_length))


def test_levenshtein_under_vmap_and_shard_map_equals_the_plain_call():
    args = [jnp.asarray(x) for x in random_pairs(3, 12, 6, 8, 3)]
    want = levenshtein(*args)
    stacked = [x.reshape(3, 4, *x.shape[1:]) for x in args]
    np.testing.assert_array_equal(jax.vmap(levenshtein)(*stacked).reshape(-1), want)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(levenshtein, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_array_equal(jax.jit(sharded)(*args), want)


# --- Eq. 4 and Eq. 3 ---------------------------------------------------------------------------


def test_surface_reward_follows_equation_4():
    distance = jnp.array([0, 1, 2, 3, 0])
    a_length, b_length = jnp.array([4, 4, 4, 3, 0]), jnp.array([4, 5, 2, 0, 0])
    got = surface_reward(distance, a_length, b_length, z0=2)
    # similar, similar, at the threshold, beyond it, both empty
    np.testing.assert_allclose(got, [1.0, 0.8, 0.5, 0.0, 1.0], rtol=1e-6)
    unlimited = surface_reward(distance, a_length, b_length, z0=float("inf"))
    np.testing.assert_allclose(unlimited, [1.0, 0.8, 0.5, 0.0, 1.0], rtol=1e-6)
    strict = surface_reward(distance, a_length, b_length, z0=jnp.float32(0))
    np.testing.assert_allclose(strict, [1.0, 0.0, 0.0, 0.0, 1.0])
    assert got.dtype == jnp.float32


def test_surface_reward_stays_between_zero_and_one():
    args = [jnp.asarray(x) for x in random_pairs(8, 500, 7, 9, 2)]
    got = surface_reward(levenshtein(*args), args[1], args[3], z0=5)
    assert float(got.min()) == 0.0 and float(got.max()) == 1.0


def test_imitation_reward_follows_equation_3():
    r_sem, r_abs = jnp.array([1.0, 0.0, 1.0]), jnp.array([0.5, 0.5, 0.0])
    np.testing.assert_allclose(imitation_reward(r_sem, r_abs, 0.25), [0.625, 0.375, 0.25])
    np.testing.assert_array_equal(imitation_reward(r_sem, r_abs, 1), r_sem)
    np.testing.assert_array_equal(imitation_reward(r_sem, r_abs, 0), r_abs)


# --- judges ------------------------------------------------------------------------------------


def test_exact_match_compares_what_stands_before_the_end_of_text():
    candidate, c_mask = rows(
        [2, 3, EOS, 7], [2, 3], [2, 3], [2, 3, 4], [3, 2], [EOS], [], [2, EOS], width=6
    )
    reference, r_mask = rows(
        [2, 3, EOS, 8, 8], [2, 3, EOS], [2, 3], [2, 3], [2, 3], [], [EOS, 5], []
    )
    got = jax.jit(exact_match_judge(EOS))(None, candidate, c_mask, reference, r_mask)
    np.testing.assert_array_equal(got, [1, 1, 1, 0, 0, 1, 1, 0])
    assert got.dtype == jnp.float32


def test_exact_match_of_the_tail_asks_for_the_value_only():
    candidate, c_mask = rows([5, 2, 3, EOS], [2, 3, 3], [3, EOS], [3, EOS], [2, 3], [])
    reference, r_mask = rows([6, 6, 2, 3, EOS, 4], [2, 3], [3], [2, 3], [3, 2], [EOS])
    got = exact_match_judge(EOS, tail=2)(None, candidate, c_mask, reference, r_mask)
    # the third pair is shorter than the tail and counts as a whole
    np.testing.assert_array_equal(got, [1, 0, 1, 0, 0, 1])
    wide = exact_match_judge(EOS, tail=50)(None, candidate, c_mask, reference, r_mask)
    np.testing.assert_array_equal(wide, [0, 0, 1, 0, 0, 1])


def test_exact_match_reads_a_continuation_wherever_its_mask_puts_it():
    whole_row = jnp.array([[EOS, 4, 2, 3, EOS, 1]])
    mask = jnp.array([[0, 0, 1, 1, 1, 0]])
    reference, r_mask = rows([2, 3])
    judge = exact_match_judge(EOS)
    assert float(judge(None, whole_row, mask, reference, r_mask)[0]) == 1.0
    assert float(judge(None, whole_row, jnp.ones_like(mask), reference, r_mask)[0]) == 0.0


def test_mean_pool_averages_masked_positions_only():
    hidden = jnp.array([[[1.0, 2.0], [3.0, 6.0], [jnp.nan, 9.0]], [[5.0, 5.0]] * 3])
    mask = jnp.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(mean_pool(hidden, mask), [[2.0, 4.0], [0.0, 0.0]])
    assert mean_pool(hidden.astype(jnp.bfloat16), mask).dtype == jnp.float32


def bag_of_tokens(variables, tokens, mask):
    return mean_pool(jax.nn.one_hot(tokens, 12), mask)


@pytest.mark.parametrize(
    ("threshold", "want"), [(1.0, [1, 0, 0, 1, 0]), (0.7, [1, 1, 0, 1, 0]), (0.9, [1, 0, 0, 1, 0])]
)
def test_cosine_judge_accepts_from_its_threshold_on(threshold, want):
    candidate, c_mask = rows([2, 3, 4], [2], [2, 3], [], [])
    reference, r_mask = rows([4, 3, 2], [2, 3], [4, 5], [], [2])
    # cosines: 1 (same bag), 1/sqrt(2), 0; then both empty, then one empty
    judge = cosine_judge(bag_of_tokens, threshold)
    got = jax.jit(judge)(None, candidate, c_mask, reference, r_mask)
    np.testing.assert_array_equal(got, want)


def test_cosine_judge_reads_its_threshold_off_an_array_too():
    candidate, c_mask = rows([2, 3, 4], [2], [2, 3], [], [])
    reference, r_mask = rows([4, 3, 2], [2, 3], [4, 5], [], [2])
    thresholds = [1.0, 0.7, 0.9]

    def judged(threshold):
        judge = cosine_judge(bag_of_tokens, threshold)
        return judge(None, candidate, c_mask, reference, r_mask)

    together = jax.jit(jax.vmap(judged))(jnp.asarray(thresholds))
    np.testing.assert_array_equal(together, [judged(threshold) for threshold in thresholds])
    assert len({tuple(row) for row in np.asarray(together).tolist()}) == 2


def test_cosine_judge_ignores_length_of_embeddings_and_survives_a_zero_one():
    def embed(variables, tokens, mask):
        return tokens.astype(jnp.float32)

    ones = jnp.ones((3, 2), bool)
    a, b = jnp.array([[1, 2], [1, 2], [0, 0]]), jnp.array([[100, 200], [-1, -2], [1, 1]])
    got = cosine_judge(embed, 0.5)(None, a, ones, b, ones)
    np.testing.assert_array_equal(got, [1, 0, 0])


@pytest.mark.parametrize(
    "bad",
    [
        lambda: surface_reward(jnp.zeros(1), jnp.ones(1), jnp.ones(1), -1),
        lambda: imitation_reward(jnp.zeros(1), jnp.zeros(1), 1.2),
        lambda: exact_match_judge(EOS, tail=0),
        lambda: cosine_judge(bag_of_tokens, 2.0),
    ],
    ids=["z0", "gamma", "tail", "threshold"],
)
def test_settings_that_cannot_work_are_refused(bad, request):
    with pytest.raises(ConfigError, match=request.node.callspec.id):
        bad()
