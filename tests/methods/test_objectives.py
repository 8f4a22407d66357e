"""Objectives on one memory, and sums of them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.core.losses import forward_kl
from sleeplm.methods.extract import wake_batch
from sleeplm.methods.objectives import in_pieces, language_model, seeding


@pytest.fixture(scope="module")
def told(tiny):
    """A tiny model, its variables, and a memory of the wake stream."""
    model = tiny.model()
    variables = {"params": tiny.params(model), "slots": model.init_slots()}
    memory, _ = wake_batch().extract(variables, (), tiny.text(0), jax.random.key(0))
    return model, variables, memory


def test_the_task_loss_is_the_cross_entropy_of_every_next_token_of_a_document(told):
    model, variables, memory = told
    loss, weight, _ = language_model(model, chunk=4)(variables, memory)
    logp = jax.nn.log_softmax(model.logits(variables, memory.tokens, memory.segments))
    targets = jnp.take_along_axis(logp[:, :-1], memory.tokens[:, 1:, None], -1)[..., 0]
    same = (memory.segments[:, 1:] == memory.segments[:, :-1]) & (memory.segments[:, 1:] > 0)
    np.testing.assert_allclose(loss, -jnp.sum(targets * same), rtol=1e-5)
    assert weight == same.sum()


@pytest.mark.parametrize("rows", [3, 4])
def test_in_pieces_it_is_the_same_loss_and_gradient_and_keeps_less(told, rows):
    """Eight rows, which three do not divide."""
    model, variables, memory = told
    whole = language_model(model, chunk=4)

    def both(objective):
        def loss(params):
            total, weight, aux = objective({**variables, "params": params}, memory)
            return total, (weight, aux)

        run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        program = run.lower(variables["params"]).compile()
        return program(variables["params"]), program.memory_analysis().temp_size_in_bytes

    (want, room), (got, less) = both(whole), both(in_pieces(whole, rows))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
    assert less < 0.8 * room


@pytest.mark.parametrize("rows", [0, 8, 9])
def test_a_memory_of_no_more_rows_is_one_piece(told, rows):
    model, variables, memory = told
    seen = []

    def spy(variables, memory):
        seen.append(memory)
        return language_model(model)(variables, memory)

    jax.eval_shape(lambda v: in_pieces(spy, rows)(v, memory), variables)
    assert [one is memory for one in seen] == [True]


# --- the night -----------------------------------------------------------------------------------

ALPHA, TEMPERATURE = 0.3, 0.7


def said(model, variables, memory, temperature=1.0):
    """The log-probabilities of whatever may come next, at every position but the last."""
    logits = model.logits(variables, memory.tokens, memory.segments)
    return jax.nn.log_softmax(logits[:, :-1] / temperature)


def of_tokens(logp, memory):
    return jnp.take_along_axis(logp, memory.tokens[:, 1:, None], -1)[..., 0]


@pytest.fixture(scope="module")
def a_night(tiny, told):
    """A teacher and what is learned from it: four rows to distil, and four continuations.

    Continuations have rewards of both signs, and the student that wrote them has moved on since:
    its tokens have become up to 1.6 times likelier, or less likely.
    """
    model, variables, memory = told
    blocks = tiny.params(model, seed=1)["blocks"]
    teacher = {**variables, "params": {**variables["params"], "blocks": blocks}}
    share = jnp.asarray([1.0, 0.5, 0.25, 1.0, 1.0, 0.5, 1.0, 0.25])
    reward = jnp.asarray([0.0, 0.0, 0.0, 0.0, 1.0, -0.5, 0.75, -1.25])
    now = of_tokens(said(model, variables, memory, TEMPERATURE), memory)
    drift = np.random.default_rng(0).uniform(-0.5, 0.5, now.shape)
    old = jnp.where(reward[:, None] != 0, now - drift, 0.0)
    return teacher, dataclasses.replace(
        memory,
        weights=memory.weights * share[:, None],
        reference=model.hidden(teacher, memory.tokens, memory.segments),
        reward=reward,
        logp=jnp.pad(old, ((0, 0), (1, 0))),
    )


def test_seeding_is_the_formula_of_the_night_in_value_and_gradient(told, a_night):
    """alpha D - (1 - alpha) E[r]: D at temperature 1, r by the ratios at that of the samples."""
    (model, variables, _), (teacher, memory) = told, a_night
    weights, gain = memory.weights[:, 1:], memory.reward[:, None]
    wanted = said(model, teacher, memory)

    def formula(params):
        student = {**variables, "params": params}
        logp = said(model, student, memory)
        apart = jnp.sum(weights * (jnp.exp(wanted) * (wanted - logp)).sum(-1))
        new = of_tokens(said(model, student, memory, TEMPERATURE), memory)
        ratio = jnp.exp(new - memory.logp[:, 1:])
        earned = jnp.minimum(ratio * gain, jnp.clip(ratio, 0.8, 1.2) * gain)
        clipped = (weights > 0) & (earned != ratio * gain)
        return ALPHA * apart - (1 - ALPHA) * jnp.sum(weights * earned), (apart, clipped)

    def night(params):
        objective = seeding(model, forward_kl, alpha=ALPHA, temperature=TEMPERATURE, chunk=4)
        loss, weight, told = objective({**variables, "params": params}, memory)
        return loss, (weight, told["divergence"][0])

    want, want_grads = jax.jit(jax.value_and_grad(formula, has_aux=True))(variables["params"])
    got, got_grads = jax.jit(jax.value_and_grad(night, has_aux=True))(variables["params"])
    (value, (apart, clipped)), (loss, (weight, divergence)) = want, got
    assert all(3 < clipped[memory.reward * sign > 0].sum() < 16 for sign in (1, -1))
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose((weight, divergence), (weights.sum(), apart), rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, got_grads, want_grads)


def test_seeding_refuses_a_memory_without_a_teacher(told):
    model, variables, memory = told
    with pytest.raises(ConfigError, match="teacher"):
        seeding(model, forward_kl, alpha=1.0)(variables, memory)
