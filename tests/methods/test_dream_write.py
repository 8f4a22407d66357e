"""Writing dreams: whose keys, from which contexts, what counts, and what is said of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.memory.slots import open_all
from sleeplm.methods.dreams.write import Contexts, as_contexts, copied, hold_back, whole, write

KEY = jax.random.key(3)
NEW = 5


@pytest.fixture(scope="module")
def dreamer(tiny):
    """A model whose slow level has three open experts that say something."""
    model = tiny.model()
    params = tiny.params(model)
    level, table = open_all(get_level(params, "slow"), jax.random.key(1), 0.0)
    b = 2.0 * jax.random.normal(jax.random.key(2), level["experts"]["b"].shape)
    level = {**level, "experts": {**level["experts"], "b": b}}
    slots = {**model.init_slots(), "slow": table}
    return model, {"params": with_levels(params, {"slow": level}), "slots": slots}


def contexts(tiny, n=3, seed=0):
    cues = tiny.cues(seed, 0, n)
    return Contexts(jnp.asarray(cues["tokens"]), jnp.asarray(cues["length"]))


def dreamt(dreamer, given, numbers=12, key=KEY, **settings):
    model, variables = dreamer
    numbers = jnp.arange(numbers) if isinstance(numbers, int) else jnp.asarray(numbers)

    def run(variables, given, numbers, key):
        return write(model, variables, given, numbers, key, new_tokens=NEW, **settings)

    return jax.jit(run)(variables, given, numbers, key)


def test_dreams_go_on_from_their_contexts_in_turn_and_only_what_is_new_has_weight(tiny, dreamer):
    given = contexts(tiny)
    dreams, _ = dreamt(dreamer, given)
    for i, (tokens, weights) in enumerate(
        zip(np.asarray(dreams.written.tokens), np.asarray(dreams.written.weights), strict=True)
    ):
        start = int(given.length[i % 3])
        np.testing.assert_array_equal(tokens[:start], given.tokens[i % 3][:start])
        assert not weights[:start].any()
        if dreams.mask[i]:
            stop = np.flatnonzero(tokens[start : start + NEW] == tiny.eos)
            written = stop[0] + 1 if len(stop) else NEW
            np.testing.assert_array_equal(np.flatnonzero(weights), start + np.arange(written))
    assert int(dreams.mask.sum()) > 6


def test_a_dream_ends_where_a_turn_does_and_is_learned_as_a_text_that_ends(tiny, dreamer):
    given = contexts(tiny)
    free, _ = dreamt(dreamer, given, alone=True)
    rows = np.asarray(free.told.tokens)
    stop = next(int(row[3]) for row in rows if not (row[1:4] == tiny.eos).any())
    cut, _ = dreamt(dreamer, given, alone=True, stop=stop)
    seen = 0
    for tokens, weights, before in zip(cut.told.tokens, cut.told.weights, rows, strict=True):
        told = np.asarray(tokens)[np.asarray(weights) > 0].tolist()
        if stop not in before[1:] or not told:
            continue
        end = before.tolist().index(stop)
        assert told == [*before[1:end].tolist(), tiny.eos]
        seen += 1
    assert seen
    assert stop in np.asarray(cut.written.tokens)  # as it was written, a turn ends


def test_what_ends_a_text_ends_a_dream_too_where_a_turn_does(tiny, dreamer):
    given = contexts(tiny)
    free, _ = dreamt(dreamer, given, numbers=range(60), alone=True, temperature=2.0)
    ended = (np.asarray(free.told.tokens[:, 1:-1]) == tiny.eos).any(1)
    assert ended.any()
    turned, _ = dreamt(
        dreamer, given, numbers=range(60), alone=True, temperature=2.0, stop=tiny.vocabulary - 1
    )
    for tokens, weights in zip(turned.told.tokens, turned.told.weights, strict=True):
        told = np.asarray(tokens)[np.asarray(weights) > 0].tolist()
        assert tiny.eos not in told[:-1]
    np.testing.assert_array_equal(turned.told.tokens[ended], free.told.tokens[ended])
    rows, weights = np.asarray(turned.written.tokens), np.asarray(turned.written.weights)
    assert ((rows == tiny.eos) * weights).sum(1).max() == 1


def test_every_dream_depends_on_its_own_key_alone(tiny, dreamer):
    given = contexts(tiny)
    every, _ = dreamt(dreamer, given)
    some, _ = dreamt(dreamer, given, numbers=[9, 4, 7])
    np.testing.assert_array_equal(some.written.tokens, every.written.tokens[jnp.array([9, 4, 7])])
    other, _ = dreamt(dreamer, given, key=jax.random.key(4))
    assert (np.asarray(other.written.tokens) != np.asarray(every.written.tokens)).any(1).all()


def test_one_random_extra_expert_changes_dreams_unless_it_is_off(tiny, dreamer):
    given = contexts(tiny)
    on, off = (dreamt(dreamer, given, explore=x)[0].written.tokens for x in (True, False))
    assert (np.asarray(on) != np.asarray(off)).any(1).sum() >= 2
    model, variables = dreamer
    closed = (model, {**variables, "slots": model.init_slots()})
    on, off = (dreamt(closed, given, explore=x)[0].written.tokens for x in (True, False))
    np.testing.assert_array_equal(on, off)  # there is none to be drawn


def test_repeats_and_dreams_without_a_word_are_masked(tiny, dreamer):
    given = contexts(tiny)
    dreams, metrics = dreamt(dreamer, given, temperature=0.0, explore=False)
    mask = np.asarray(dreams.mask)
    assert not mask[3:].any()  # greedy: every context has one dream
    assert metrics["unique"] == (mask.sum(), 12)
    model, variables = dreamer
    embed = variables["params"]["embed"].at[tiny.eos].mul(100.0)  # likeliest by far, where it is
    speechless = {**variables, "params": {**variables["params"], "embed": embed}}
    dreams, _ = dreamt((model, speechless), given)
    start = np.asarray(given.length)[np.arange(12) % 3]
    wordless = np.asarray(dreams.written.tokens)[np.arange(12), start] == tiny.eos
    assert wordless.any() and not np.asarray(dreams.mask)[wordless].any()


def test_a_dream_alone_is_what_was_written_behind_the_begin_of_text(tiny, dreamer):
    given = contexts(tiny)
    behind, _ = dreamt(dreamer, given)
    alone, _ = dreamt(dreamer, given, alone=True)
    np.testing.assert_array_equal(alone.written.tokens, behind.written.tokens)
    assert alone.told.tokens.shape == (12, 1 + NEW)
    for i in np.flatnonzero(np.asarray(alone.mask)):
        words = alone.written.tokens[i][np.asarray(alone.written.weights[i]) > 0]
        np.testing.assert_array_equal(alone.told.tokens[i][: 1 + len(words)], [1, *words])
        want = (np.arange(1 + NEW) > 0) & (np.arange(1 + NEW) <= len(words))
        np.testing.assert_array_equal(np.asarray(alone.told.weights[i]) > 0, want)


def test_contexts_of_no_length_change_nothing(tiny, dreamer):
    given = contexts(tiny)
    junk = jnp.full_like(given.tokens[:2], 7)
    padded = Contexts(
        jnp.concatenate([junk, given.tokens]), jnp.concatenate([jnp.zeros(2, int), given.length])
    )
    want, metrics = dreamt(dreamer, given)
    got, same = dreamt(dreamer, padded)
    jax.tree.map(np.testing.assert_array_equal, (got, same), (want, metrics))
    nothing, metrics = dreamt(dreamer, Contexts(given.tokens, given.length * 0))
    assert not nothing.mask.any() and metrics["unique"] == (0, 0)


def test_what_is_copied_is_counted_in_n_grams_of_the_dream(dreamer):
    texts = jnp.array([[1, 5, 6, 7, 8], [9, 5, 6, 0, 0]])
    text_mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    dreams = jnp.array([[4, 5, 6, 7, 3, 0], [6, 9, 5, 6, 0, 0]])
    mask = jnp.array([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0]], bool)
    count = jax.jit(copied, static_argnums=4)
    assert count(dreams, mask, texts, text_mask, 2) == (2 + 2, 4 + 3)
    assert count(dreams, mask, texts, text_mask, 3) == (1 + 1, 3 + 2)
    assert count(dreams, mask, texts, text_mask, 6) == (0, 0)


def test_metrics_are_of_the_dreams_that_count(tiny, dreamer):
    given = contexts(tiny)
    dreams, metrics = dreamt(dreamer, given, ngram=1)
    kept = np.asarray(dreams.mask)
    weights = np.asarray(dreams.written.weights)
    assert metrics["length"] == (weights.sum(), kept.sum())
    known = {int(t) for row, n in zip(given.tokens, given.length, strict=True) for t in row[:n]}
    words = np.asarray(dreams.written.tokens)[weights > 0]
    assert metrics["copied"] == (sum(int(w) in known for w in words), len(words))


def test_learners_side_by_side_dream_as_each_does_alone(tiny, dreamer):
    model, variables = dreamer
    given, numbers = contexts(tiny), jnp.arange(6)
    others = jax.tree.map(lambda x: jnp.stack([x, x * 1.1]) if x.dtype == jnp.float32
                          else jnp.stack([x, x]), variables)  # fmt: skip
    keys = jax.random.split(KEY, 2)

    def run(variables, key):
        return write(model, variables, given, numbers, key, new_tokens=NEW)[0].written.tokens

    together = jax.jit(jax.vmap(run))(others, keys)
    for i in range(2):
        alone = jax.jit(run)(jax.tree.map(lambda x, i=i: x[i], others), keys[i])
        np.testing.assert_array_equal(together[i], alone)


def test_the_end_of_every_context_is_held_back_and_to_be_predicted():
    tokens = jnp.array([[1, 4, 5, 6, 7, 8], [1, 9, 3, 3, 3, 3], [1, 3, 3, 3, 3, 3], [5] * 6])
    given = Contexts(tokens, jnp.array([6, 2, 1, 0]))
    seen, held = hold_back(given, 0.5)
    np.testing.assert_array_equal(seen.length, [3, 1, 1, 0])
    np.testing.assert_array_equal(seen.tokens[0], [1, 4, 5, 0, 0, 0])
    np.testing.assert_array_equal(held.weights.sum(1), [3, 1, 0, 0])
    np.testing.assert_array_equal(held.weights[0], [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(held.tokens[1], [1, 9, 0, 0, 0, 0])
    np.testing.assert_array_equal(whole(given).weights.sum(1), [5, 1, 0, 0])


def test_contexts_that_are_too_wide_are_refused_and_narrow_ones_padded():
    given = {"tokens": np.ones((2, 3), np.int32), "length": np.array([3, 2])}
    assert as_contexts(given, 5).tokens.shape == (2, 5)
    with pytest.raises(ConfigError, match="context_tokens = 2: contexts have 3 columns"):
        as_contexts(given, 2)


def test_nothing_stands_behind_the_end_of_a_text_so_that_one_dream_is_learned_once(tiny, dreamer):
    """Where a turn ends a dream the sampler goes on behind the end of a text, otherwise each time.

    Two tokens are all there is to write, so that many dreams say the same before they end.
    """
    model, variables = dreamer
    embed = variables["params"]["embed"]
    alike = jnp.stack([embed[tiny.eos]] * 2) * 9 + jnp.asarray([[0.0], [0.01]])
    embed = embed.at[jnp.asarray([tiny.eos, 9])].set(alike)
    ender = model, {**variables, "params": {**variables["params"], "embed": embed}}
    settings = {"stop": tiny.vocabulary - 1, "top_k": 2, "temperature": 9.0, "explore": False}
    dreams, _ = dreamt(ender, contexts(tiny), numbers=30, **settings)
    tokens, inside = np.asarray(dreams.written.tokens), np.asarray(dreams.written.segments) > 0
    assert not tokens[~inside].any()
    texts = [tuple(row[there]) for row, there in zip(tokens, inside, strict=True)]
    ended = [text for text in texts if text[-1] == tiny.eos]
    assert len(set(ended)) < len(ended)  # else there is nothing to see
    counted = [text for text, counts in zip(texts, dreams.mask, strict=True) if counts]
    assert len(counted) == len(set(counted)) > 6
