from __future__ import annotations

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.memory.levels import LevelConfig
from sleeplm.models.config import ModelConfig
from sleeplm.models.decode import explore_noise, generate, invert_cdf, sample
from sleeplm.models.transformer import Model

V, C, NEW, EOS = 40, 5, 6, 2
NEVER = -1  # a stop token that no model writes
CONFIG = ModelConfig(
    vocab_size=V,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    levels=[LevelConfig(name="slow", width=16, slots=3, rank=2, top_k=2)],
)
PROMPTS = jnp.array(
    [[1, 7, 9, 0, 0], [1, 5, 30, 12, 8], [1, 0, 0, 0, 0], [1, 22, 0, 0, 0]], jnp.int32
)
LENGTHS = jnp.array([3, C, 1, 2], jnp.int32)


def model(**changes):
    return Model(dataclasses.replace(CONFIG, **changes))


def variables(opened=2, seed=0):
    """Weights large enough for lively logits; the first slots open."""
    params = jax.jit(model().init)(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noise = jax.jit(lambda k, x: x + 0.3 * jax.random.normal(k, x.shape))
    params = jax.tree.unflatten(tree, [noise(k, x) for k, x in zip(keys, leaves, strict=True)])
    slots = model().init_slots()
    table = dataclasses.replace(slots["slow"], active=jnp.arange(3) < opened)
    return {"params": params, "slots": {"slow": table}}


@pytest.fixture(scope="module")
def living():
    return variables()


def keys_of(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def write(m, living, prompts=PROMPTS, lengths=LENGTHS, keys=None, **settings):
    keys = keys_of(len(prompts)) if keys is None else keys
    settings = {"max_new": NEW, "eos": NEVER, **settings}
    return jax.jit(lambda *a: generate(m, *a, **settings))(living, prompts, lengths, keys)


def full_logits(m, living, samples):
    return jax.jit(m.logits)(living, samples.tokens, samples.segments)


@pytest.mark.parametrize(
    "changes",
    [{}, {"scan_layers": True}, {"remat": True}, {"n_kv_heads": 4}, {"n_kv_heads": 1}],
    ids=["unrolled", "scanned", "remat", "multi-head", "multi-query"],
)
def test_written_log_probabilities_are_those_of_a_full_forward_pass(changes):
    m = model(**changes)
    own = {**variables(), "params": variables()["params"]}
    if "n_kv_heads" in changes:
        own = {**own, "params": jax.jit(m.init)(jax.random.key(4))}
    samples = write(m, own)
    logp = jax.nn.log_softmax(full_logits(m, own, samples))
    before = jnp.take_along_axis(logp[:, :-1], samples.tokens[:, 1:, None], 2)[..., 0]
    wanted = jnp.where(samples.written[:, 1:], before, 0.0)
    np.testing.assert_allclose(samples.logp[:, 1:], wanted, atol=2e-5, rtol=2e-5)
    assert not np.any(samples.logp[:, 0])


@pytest.mark.parametrize("scan_layers", [False, True])
def test_greedy_writing_equals_recomputing_everything_for_every_token(living, scan_layers):
    m = model(scan_layers=scan_layers)
    samples = write(m, living, temperature=0.0)
    logits = jax.jit(m.logits)
    for row, length in enumerate(LENGTHS.tolist()):
        text = np.zeros((1, C + NEW), np.int32)
        text[0, :length] = PROMPTS[row, :length]
        for t in range(length, length + NEW):
            text[0, t] = np.argmax(logits(living, jnp.asarray(text))[0, t - 1])
        np.testing.assert_array_equal(samples.tokens[row], text[0])
        assert int(samples.start[row]) == length
        assert int(samples.length[row]) == length + NEW


def test_bfloat16_writing_follows_its_own_full_forward_pass(living):
    m = model(dtype="bfloat16")
    samples = write(m, living)
    logp = jax.nn.log_softmax(full_logits(m, living, samples))
    before = jnp.take_along_axis(logp[:, :-1], samples.tokens[:, 1:, None], 2)[..., 0]
    wanted = jnp.where(samples.written[:, 1:], before, 0.0)
    np.testing.assert_allclose(samples.logp[:, 1:], wanted, atol=0.3)


def test_prompts_are_kept_padding_is_zero_and_masks_say_which_is_which(living):
    # junk behind a prompt's end must not be read
    junk = jnp.where(jnp.arange(C) < LENGTHS[:, None], PROMPTS, 33)
    samples = write(model(), living, prompts=junk)
    clean = write(model(), living)
    np.testing.assert_array_equal(samples.tokens, clean.tokens)
    index = np.arange(C + NEW)
    for row, length in enumerate(LENGTHS.tolist()):
        np.testing.assert_array_equal(samples.tokens[row, :length], PROMPTS[row, :length])
        assert not np.any(samples.tokens[row, length + NEW :])
        np.testing.assert_array_equal(
            samples.written[row], (index >= length) & (index < length + NEW)
        )
        np.testing.assert_array_equal(samples.segments[row], index < length + NEW)


def test_the_stop_token_ends_a_row_and_counts_and_only_zeros_follow(living):
    free = write(model(), living)
    stop = int(free.tokens[1, C + 2])  # what row 1 writes third
    samples = write(model(), living, eos=stop)
    for row, start in enumerate(LENGTHS.tolist()):
        written = np.asarray(free.tokens[row, start : start + NEW])
        hits = np.flatnonzero(written == stop)
        new = hits[0] + 1 if len(hits) else NEW
        assert int(samples.length[row]) == start + new
        np.testing.assert_array_equal(samples.tokens[row, start : start + new], written[:new])
        assert not np.any(samples.tokens[row, start + new :])
        assert not np.any(samples.logp[row, start + new :])
    assert int(samples.length[1]) <= C + 3


def test_a_stop_at_once_writes_one_token_and_at_most_max_new_are_written(living):
    first = write(model(), living, max_new=1, temperature=0.0)
    np.testing.assert_array_equal(first.length, LENGTHS + 1)
    assert first.tokens.shape == (4, C + 1)
    stop = int(first.tokens[1, C])
    samples = write(model(), living, temperature=0.0, eos=stop)
    assert int(samples.length[1]) == C + 1


def test_zero_may_be_the_stop_token(living):
    free = write(model(), living, keys=keys_of(4, 8))
    samples = write(model(), living, keys=keys_of(4, 8), eos=0)
    for row, start in enumerate(LENGTHS.tolist()):
        written = np.asarray(free.tokens[row, start : start + NEW])
        hits = np.flatnonzero(written == 0)
        assert int(samples.length[row]) == start + (hits[0] + 1 if len(hits) else NEW)


def test_top_k_of_one_is_greedy_and_greedy_does_not_depend_on_the_key(living):
    greedy = write(model(), living, temperature=0.0)
    np.testing.assert_array_equal(write(model(), living, top_k=1).tokens, greedy.tokens)
    other = write(model(), living, temperature=0.0, keys=keys_of(4, 5))
    np.testing.assert_array_equal(other.tokens, greedy.tokens)


def test_temperature_may_be_traced_and_log_probabilities_stay_those_of_temperature_one(living):
    traces = []

    @jax.jit
    def run(temperature):
        traces.append(1)
        return generate(
            model(),
            living,
            PROMPTS,
            LENGTHS,
            keys_of(4),
            max_new=NEW,
            eos=NEVER,
            temperature=temperature,
        )

    cold, hot = run(jnp.float32(0.0)), run(jnp.float32(5.0))
    np.testing.assert_array_equal(cold.tokens, write(model(), living, temperature=0.0).tokens)
    assert not np.array_equal(cold.tokens, hot.tokens)
    assert len(traces) == 1
    logp = jax.nn.log_softmax(full_logits(model(), living, hot))
    before = jnp.take_along_axis(logp[:, :-1], hot.tokens[:, 1:, None], 2)[..., 0]
    np.testing.assert_allclose(
        hot.logp[:, 1:], jnp.where(hot.written[:, 1:], before, 0.0), atol=2e-5, rtol=2e-5
    )


def test_a_row_is_written_from_its_own_key_wherever_it_stands(living):
    keys = keys_of(4, 3)
    whole = write(model(), living, keys=keys)
    order = jnp.array([2, 0, 3, 1])
    moved = write(model(), living, PROMPTS[order], LENGTHS[order], keys[order])
    np.testing.assert_array_equal(moved.tokens, whole.tokens[order])
    for row in (1, 2):  # alone: a batch of one; row 1 fills its whole prompt
        one = slice(row, row + 1)
        alone = write(model(), living, PROMPTS[one], LENGTHS[one], keys[one])
        np.testing.assert_array_equal(alone.tokens, whole.tokens[one])


def test_other_keys_write_other_texts(living):
    prompts, lengths = jnp.tile(PROMPTS[1:2], (64, 1)), jnp.full((64,), C)
    samples = write(model(), living, prompts, lengths, keys_of(64))
    assert len({tuple(row) for row in samples.tokens.tolist()}) > 32


@pytest.mark.parametrize("explore", [False, True])
def test_mapping_over_learners_equals_a_loop_even_when_rows_stop_at_different_times(explore):
    learners = [variables(seed=s) for s in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *learners)
    keys = jnp.stack([keys_of(4, s) for s in range(3)])

    def run(living, keys):
        return generate(
            model(), living, PROMPTS, LENGTHS, keys, max_new=NEW, eos=EOS + 7, explore=explore
        )

    together = jax.jit(jax.vmap(run))(stacked, keys)
    for i, living in enumerate(learners):
        alone = jax.jit(run)(living, keys[i])
        np.testing.assert_array_equal(together.tokens[i], alone.tokens)
        np.testing.assert_array_equal(together.length[i], alone.length)
        np.testing.assert_allclose(together.logp[i], alone.logp, atol=2e-5, rtol=2e-5)


def test_exploring_changes_what_is_written_only_when_experts_are_open(living):
    closed = variables(opened=0)
    plain, exploring = (write(model(), closed, explore=e) for e in (False, True))
    np.testing.assert_array_equal(plain.tokens, exploring.tokens)
    np.testing.assert_array_equal(plain.logp, exploring.logp)
    plain, exploring = (write(model(), living, explore=e) for e in (False, True))
    assert not np.array_equal(plain.logp, exploring.logp)


def test_exploration_noise_belongs_to_the_row_and_differs_by_layer():
    keys = keys_of(4)
    noise = explore_noise(model(), keys)["slow"]
    assert noise.shape == (2, 4, 3)
    np.testing.assert_array_equal(explore_noise(model(), keys[2:])["slow"], noise[:, 2:])
    assert not np.array_equal(noise[0], noise[1])


def test_exploring_is_the_full_forward_pass_with_the_same_noise(living):
    m = model()
    samples = write(m, living, explore=True)
    noise = explore_noise(m, keys_of(4))
    hidden = m.hidden(living, samples.tokens, samples.segments, explore=noise)
    logp = jax.nn.log_softmax(hidden @ m.unembed(living["params"]))
    before = jnp.take_along_axis(logp[:, :-1], samples.tokens[:, 1:, None], 2)[..., 0]
    wanted = jnp.where(samples.written[:, 1:], before, 0.0)
    np.testing.assert_allclose(samples.logp[:, 1:], wanted, atol=3e-5, rtol=3e-5)


def test_opening_an_expert_does_not_recompile_generation(living):
    traces = []

    @jax.jit
    def run(living):
        traces.append(1)
        return generate(model(), living, PROMPTS, LENGTHS, keys_of(4), max_new=2, eos=NEVER)

    for opened in range(4):
        table = dataclasses.replace(living["slots"]["slow"], active=jnp.arange(3) < opened)
        run({**living, "slots": {"slow": table}})
    assert len(traces) == 1


def test_kept_hidden_states_are_those_that_each_token_was_drawn_from(living):
    m = model()
    stop = int(write(m, living).tokens[1, C + 2])  # row 1 stops early: no states behind its end
    samples = write(m, living, eos=stop, keep_hidden=True)
    plain = write(m, living, eos=stop)
    assert plain.hidden is None
    np.testing.assert_array_equal(samples.tokens, plain.tokens)

    assert samples.hidden.shape == (*samples.tokens.shape, CONFIG.d_model)
    read = jax.jit(m.hidden)(living, samples.tokens, samples.segments)
    before = np.pad(np.asarray(samples.written)[:, 1:], ((0, 0), (0, 1)))
    assert before.sum() == int((samples.length - LENGTHS).sum())
    np.testing.assert_allclose(samples.hidden[before], read[before], atol=2e-5, rtol=2e-5)
    assert not np.any(np.asarray(samples.hidden)[~before])


# --- one draw ---------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2, 7, 16, 50])
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (2.0, 3)])
def test_frequencies_match_the_softmax_of_what_is_allowed(classes, temperature, top_k):
    logits = jax.random.normal(jax.random.key(classes), (classes,)) * 1.5
    n = 20_000
    uniform = (jnp.arange(n) + 0.5) / n  # a grid: no luck involved
    drawn = sample(jnp.tile(logits, (n, 1)), uniform, temperature, top_k)
    p = np.exp(np.asarray(logits, np.float64) / temperature)
    if top_k:
        p[np.argsort(-p)[top_k:]] = 0
    counts = np.bincount(drawn, minlength=classes)
    assert drawn.dtype == jnp.int32
    assert np.all(counts[p == 0] == 0)
    np.testing.assert_allclose(counts / n, p / p.sum(), atol=5e-4)


def test_random_draws_follow_the_softmax_within_five_standard_deviations(living):
    n = 4000
    prompts, lengths = jnp.tile(PROMPTS[1:2], (n, 1)), jnp.full((n,), C)
    samples = write(model(), living, prompts, lengths, keys_of(n), max_new=1)
    counts = np.bincount(samples.tokens[:, C], minlength=V)
    p = np.asarray(jax.nn.softmax(jax.jit(model().logits)(living, PROMPTS[1:2])[0, C - 1]))
    assert np.all(np.abs(counts - n * p) < 5 * np.sqrt(n * p * (1 - p)) + 2)


def test_exactly_k_classes_are_kept_even_between_equals():
    uniform = (jnp.arange(300) + 0.5) / 300
    drawn = sample(jnp.zeros((300, 9)), uniform, 1.0, 4)
    assert len(set(drawn.tolist())) == 4
    assert set(sample(jnp.zeros((300, 9)), uniform, 1.0, 99).tolist()) == set(range(9))


@pytest.mark.parametrize("u", [0.0, 1e-7, 0.5, 1 - 2**-23, 1.0])
def test_a_class_without_mass_is_never_drawn_not_even_at_the_ends(u):
    for support in ([0], [11], [4, 5], [0, 11], [3, 4, 8]):
        mass = jnp.zeros((1, 12)).at[:, jnp.array(support)].set(0.1)
        assert int(invert_cdf(mass, jnp.array([u]))[0]) in support


def test_the_likeliest_of_equals_is_the_first():
    logits = jnp.array([[0.0, 3.0, 1.0, 3.0]])
    assert int(sample(logits, jnp.array([0.9]), 0.0, 0)[0]) == 1
    assert math.isfinite(float(invert_cdf(jnp.exp(logits - 3.0), jnp.array([0.9]))[0]))


@pytest.mark.parametrize(
    ("scan_layers", "learners"), [(True, 0), (False, 2)], ids=["scanned", "two learners"]
)
def test_long_rows_of_a_large_batch_go_on_among_themselves_and_say_the_same(
    monkeypatch, scan_layers, learners
):
    """Once a quarter or less are unfinished, the others are left behind: nothing else changes."""
    m, own, n = model(scan_layers=scan_layers), variables(), 96
    prompts, lengths, keys = PROMPTS[jnp.arange(n) % 4], LENGTHS[jnp.arange(n) % 4], keys_of(n)
    own["params"]["embed"] = own["params"]["embed"].at[3].mul(4.0)  # a stop token that is likely
    settings = {"max_new": 24, "eos": 3, "keep_hidden": True, "explore": True}

    def both(few):
        monkeypatch.setattr("sleeplm.models.decode._few", few)
        one = lambda v, key: generate(m, v, prompts, lengths, key, **settings)  # noqa: E731
        if not learners:
            return jax.jit(one)(own, keys)
        many = jnp.stack([keys, keys[::-1]])
        return jax.jit(jax.vmap(one, in_axes=(None, 0)))(own, many)

    apart, together = both(lambda batch: batch // 4), both(lambda batch: 0)
    new = np.asarray(together.length - together.start)
    assert (np.quantile(new, 0.75, axis=-1) < new.max(-1) - 2).all(), "a few rows are longer"
    np.testing.assert_array_equal(apart.tokens, together.tokens)
    np.testing.assert_array_equal(apart.length, together.length)
    np.testing.assert_allclose(apart.logp, together.logp, atol=1e-5)
    np.testing.assert_allclose(apart.hidden, together.hidden, atol=1e-5)


def test_on_a_cpu_no_step_copies_weights(living):
    """Cut out of the stack inside the loop, every layer's matrices were copied for every token."""
    m, keys = model(), keys_of(len(PROMPTS))
    write = jax.jit(lambda *a: generate(m, *a, max_new=NEW, eos=NEVER))
    program = write.lower(living, PROMPTS, LENGTHS, keys).compile().as_text()
    # What is cut out of a stack of layers, [1, D, F]; experts are cut inside their level.
    where = re.findall(r'f32\[1,\d+,\d+\]\S* slice\(.*op_name="([^"]*)"', program)
    assert [name for name in where if "while" not in name]  # before the loop
    assert not [name for name in where if name.endswith("while/body/slice")]
