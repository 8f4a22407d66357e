"""The score-function loss against the exact gradient of E[r], on a model small enough to count."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.core.losses import leave_one_out, score_function_loss

VOCABULARY, EOS = 3, 0


def sequences(length):
    return np.array(list(itertools.product(range(VOCABULARY), repeat=length)))


def token_logp(table, tokens):
    """Autoregressive with one free row of logits per prefix: table [prefixes, V] -> [..., L]."""
    logp = jax.nn.log_softmax(table)
    context, out = jnp.zeros(tokens.shape[:-1], jnp.int32), []
    for t in range(tokens.shape[-1]):
        out.append(logp[context, tokens[..., t]])
        context = context * VOCABULARY + tokens[..., t] + 1
    return jnp.stack(out, -1)


def up_to_eos(tokens):
    """1 up to and with the first end-of-text token, 0 after it."""
    ended = np.cumsum(tokens == EOS, axis=-1) - (tokens == EOS)
    return (ended == 0).astype(np.float64)


class Toy:
    """All sequences of a length, an arbitrary reward for each, and the exact gradient of E[r]."""

    def __init__(self, length, stops=False):
        self.tokens = sequences(length)
        prefixes = sum(VOCABULARY**t for t in range(length))
        random = np.random.default_rng(length)
        self.table = jnp.asarray(random.normal(size=(prefixes, VOCABULARY)))
        self.reward = random.normal(size=len(self.tokens)) + 2.0
        self.weights = np.ones(self.tokens.shape)
        if stops:
            # What follows the end may not matter: the reward is that of the text before it.
            self.weights = up_to_eos(self.tokens)
            text = [tuple(row[w > 0]) for row, w in zip(self.tokens, self.weights, strict=True)]
            self.reward = np.array([self.reward[text.index(t)] for t in text])

    def probability(self, table):
        return jnp.exp(token_logp(table, self.tokens).sum(-1))

    def exact_gradient(self):
        return jax.grad(lambda table: jnp.sum(self.probability(table) * self.reward))(self.table)

    def estimates(self, rows, baseline=leave_one_out):
        """Minus the gradient of the loss for each group of sequence numbers, rows [N, group]."""

        def loss(table, row):
            logp = token_logp(table, jnp.asarray(self.tokens)[row])
            advantage = baseline(jnp.asarray(self.reward)[row], row.shape[0])
            total, weight = score_function_loss(logp, jnp.asarray(self.weights)[row], advantage)
            return total / weight

        return -jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(self.table, jnp.asarray(rows))

    def expected_estimate(self, group, baseline=leave_one_out):
        """The mean of the estimator over every possible group, weighted by its probability."""
        rows = np.array(list(itertools.product(range(len(self.tokens)), repeat=group)))
        weight = np.prod(np.asarray(self.probability(self.table))[rows], axis=1)
        return np.einsum("n,nij->ij", weight, self.estimates(rows, baseline))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("length", "group", "stops"), [(3, 2, False), (3, 2, True), (2, 3, False)])
def test_the_expectation_over_all_groups_is_the_exact_gradient(length, group, stops):
    toy = Toy(length, stops)
    exact = toy.exact_gradient()
    assert np.abs(exact).max() > 0.01
    np.testing.assert_allclose(toy.expected_estimate(group), exact, atol=1e-10)


def test_a_baseline_that_sees_its_own_sample_would_be_caught_as_biased():
    toy = Toy(3)
    biased = toy.expected_estimate(2, lambda reward, _: reward - reward.mean())
    np.testing.assert_allclose(biased, toy.exact_gradient() / 2, atol=1e-10)


@pytest.fixture
def samples():
    toy = Toy(3)
    draw = np.random.default_rng(1).choice
    p = np.asarray(toy.probability(toy.table))
    return toy, draw(len(p), size=(20_000, 2), p=p / p.sum())


def test_sampled_groups_agree_with_the_exact_gradient_within_their_standard_error(samples):
    toy, rows = samples
    estimates = np.asarray(toy.estimates(rows))
    error = estimates.std(0) / np.sqrt(len(rows))
    assert error.max() < 0.02
    assert (np.abs(estimates.mean(0) - toy.exact_gradient()) < 5 * error + 1e-12).all()


def test_leaving_one_out_lowers_the_variance_of_a_reward_with_an_offset(samples):
    toy, rows = samples
    plain = toy.estimates(rows, lambda reward, _: reward).var(0).sum()
    assert toy.estimates(rows).var(0).sum() < 0.7 * plain


def test_leave_one_out_matches_a_hand_worked_example():
    reward = jnp.array([1.0, 0.0, 0.5, 3.0, 3.0, 0.0])
    got = leave_one_out(reward, 3)
    np.testing.assert_allclose(got, [0.75, -0.75, 0.0, 1.5, 1.5, -3.0])


def test_equal_rewards_give_an_advantage_of_exactly_zero():
    for value in (0.1, 1 / 3, 0.7):
        advantage = leave_one_out(jnp.full((14,), value, jnp.float32), 7)
        np.testing.assert_array_equal(advantage, 0.0)


@pytest.mark.parametrize("group", [0, 1, 4])
def test_groups_that_cannot_leave_one_out_are_refused(group):
    with pytest.raises(ConfigError, match="group"):
        leave_one_out(jnp.zeros(6), group)


def test_the_weight_counts_rows_with_any_weight_not_tokens():
    logp = jnp.array([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]])
    weights = jnp.array([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    loss, rows = score_function_loss(logp, weights, jnp.array([2.0, 100.0, -1.0]))
    assert (float(loss), float(rows)) == (-(2 * -3.0 + -1 * -6.0), 2.0)


def test_no_gradient_flows_through_the_advantage():
    grad = jax.grad(lambda a: score_function_loss(-jnp.ones((2, 3)), jnp.ones((2, 3)), a)[0])
    np.testing.assert_array_equal(grad(jnp.array([1.0, 2.0])), 0.0)


def gradient(logp, advantage, **kw):
    return jax.grad(lambda x: score_function_loss(x, jnp.ones_like(x), advantage, **kw)[0])(logp)


def test_ratios_of_one_give_the_on_policy_gradient():
    logp, advantage = -jnp.arange(1.0, 7.0).reshape(2, 3), jnp.array([1.5, -2.0])
    got = gradient(logp, advantage, old_logp=logp, clip=0.2)
    np.testing.assert_allclose(got, gradient(logp, advantage))


def test_ratios_correct_samples_of_an_older_policy_exactly_for_one_token():
    toy = Toy(1)
    old = token_logp(toy.table + jnp.array([0.5, -0.3, 0.1]), toy.tokens)

    def loss(table):
        # Weights hold the old policy's probability, so the sum over rows is the expectation.
        logp = token_logp(table, toy.tokens)
        return score_function_loss(logp, jnp.exp(old), toy.reward, old_logp=old)[0]

    np.testing.assert_allclose(-jax.grad(loss)(toy.table), toy.exact_gradient(), atol=1e-12)


@pytest.mark.parametrize(
    ("shift", "advantage", "moves"),
    [(0.5, 1.0, False), (-0.5, 1.0, True), (0.5, -1.0, True), (-0.5, -1.0, False)],
)
def test_clipping_stops_only_what_moves_further_away(shift, advantage, moves):
    logp = jnp.full((1, 1), -1.0)
    got = gradient(logp, jnp.array([advantage]), old_logp=logp - shift, clip=0.2)
    assert bool(np.any(got)) is moves


def test_unweighted_tokens_cannot_overflow_the_ratio():
    logp, old = jnp.zeros((1, 2)), jnp.array([[0.0, -1e5]])
    weights = jnp.array([[1.0, 0.0]])

    def loss(x):
        return score_function_loss(x, weights, jnp.ones(1), old_logp=old)[0]

    value, grad = jax.value_and_grad(loss)(logp)
    assert float(value) == -1.0 and np.isfinite(grad).all()


@pytest.mark.parametrize("kw", [{"clip": 0.2}, {"clip": 0.0, "old_logp": jnp.zeros((1, 1))}])
def test_a_clip_that_cannot_work_is_refused(kw):
    with pytest.raises(ConfigError, match="clip"):
        score_function_loss(jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.ones(1), **kw)
