"""Objectives on one memory, and sums of them."""

from __future__ import annotations

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


def test_seeding_refuses_a_memory_without_a_teacher(told):
    model, variables, memory = told
    with pytest.raises(ConfigError, match="teacher"):
        seeding(model, forward_kl, alpha=1.0)(variables, memory)
