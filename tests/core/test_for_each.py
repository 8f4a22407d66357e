"""Many learners in one program: as a batch or one after the other, each as if alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.side_by_side import for_each

LEARNERS = 3


def walk(state, steps):
    """A learner that takes as many random steps as its sum allows: a loop of its own length."""
    position, key = state["position"], state["key"]

    def go_on(carry):
        return (carry[0] < steps.sum()) & (carry[0] < 9)

    def step(carry):
        count, at = carry
        return count + 1, at + jax.random.normal(jax.random.fold_in(key, count), at.shape)

    count, position = jax.lax.while_loop(go_on, step, (0, position))
    return {"position": position, "key": key}, {"count": count}


@pytest.fixture(scope="module")
def learners():
    keys = jax.random.split(jax.random.key(0), LEARNERS)
    state = {"position": jnp.arange(LEARNERS * 2.0).reshape(LEARNERS, 2), "key": keys}
    return state, jnp.asarray([[1, 2], [0, 0], [4, 4]])


@pytest.mark.parametrize("batched", [True, False, None])
def test_every_learner_ends_as_if_alone(learners, batched):
    state, steps = learners
    together, found = jax.jit(for_each(walk, batched))(state, steps)
    assert found["count"].tolist() == [3, 0, 8]
    for e in range(LEARNERS):
        alone, _ = walk(jax.tree.map(lambda x, e=e: x[e], state), steps[e])
        np.testing.assert_allclose(together["position"][e], alone["position"], rtol=1e-6)
        assert together["key"][e] == alone["key"]


def test_a_cpu_takes_them_one_after_the_other_and_an_accelerator_as_a_batch(learners, monkeypatch):
    def loops(platform):
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        many = for_each(lambda x, w: x @ w)
        program = jax.make_jaxpr(many)(jnp.ones((5, 2, 3)), jnp.ones((5, 3, 4)))
        return "scan" in str(program)

    assert loops("cpu")
    assert not loops("tpu")
