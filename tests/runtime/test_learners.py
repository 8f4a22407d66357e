"""Learners side by side: the same on a mesh as on one device, whatever of them can be spread."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.side_by_side import for_each
from sleeplm.methods.judges import text_judge
from sleeplm.runtime import learners, parallel

MESHES = [{"data": 2, "fsdp": 2}, {"replica": 2, "data": 2}, {"tensor": 4}]


@pytest.fixture(scope="module")
def living(tiny):
    """Two learners, and texts for each."""
    model, config = tiny.model(), tiny.config()
    made, state = tiny.learner(model, config)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    texts = [tiny.text(seed) for seed in (0, 1)]
    return made, states, jax.tree.map(lambda *x: np.stack(x), *texts)


def copy(state):
    return jax.tree.map(jnp.copy, state)


def lies(x):
    return x.sharding.spec


@pytest.mark.parametrize("shape", MESHES)
def test_a_step_side_by_side_is_the_same_on_a_mesh(living, shape):
    made, states, texts = living
    mesh = parallel.mesh(shape)
    want, told = learners.side_by_side(made.wake)(copy(states), texts, {}, 3)
    step, spread = learners.side_by_side(made.wake, mesh), learners.born(lambda s: s, mesh, states)
    got, found = step(spread, texts, {}, 3)
    assert all(x.is_deleted() for x in jax.tree.leaves(spread.params))  # its memory was given away
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), got.params, want.params
    )
    assert tree.differing(jax.device_get(got.counters), jax.device_get(want.counters)) == []
    np.testing.assert_allclose(found["loss"][0], told["loss"][0], rtol=1e-5)
    assert lies(found["loss"][0]) == P()


def test_learners_lie_over_replica_and_their_matrices_by_the_rules(living):
    states = living[1]
    one = learners.born(lambda s: s, parallel.mesh({"replica": 2, "fsdp": 2}), states)
    assert lies(one.params["embed"]) == P("replica", None, "fsdp")
    other = learners.put_params(states.params, parallel.mesh({"fsdp": 2, "tensor": 2}))
    assert lies(other["embed"]) == P(None, "tensor", "fsdp")
    assert learners.put_params(states.params, None) is states.params


def test_learners_that_replica_does_not_divide_are_whole_on_each_device():
    """So are those that pretrain once for all settings of a sweep."""
    mesh = parallel.mesh({"replica": 4})
    assert lies(learners.put(np.zeros((2, 3)), mesh)) == P(None)
    assert lies(learners.put(np.zeros((4, 3)), mesh)) == P("replica")


def test_what_stays_whole_is_said_in_a_few_lines(living):
    states = living[1]
    assert learners.whole_lines(states, parallel.mesh({"fsdp": 2, "tensor": 2})) == []
    lines = learners.whole_lines(states, parallel.mesh({"tensor": 3}, jax.devices()[:3]))
    assert len(lines) == learners.SHOWN + 1 and lines[-1].startswith("and ")
    assert "params" not in lines[0] and "is whole on the devices of tensor" in lines[0]


def test_rows_that_a_mesh_does_not_divide_are_refused_before_anything_is_compiled(living):
    made, states, texts = living
    mesh = parallel.mesh({"data": 4})
    odd = jax.tree.map(lambda x: x[:, :6], texts)
    with pytest.raises(ConfigError, match="= 6: use a multiple of the 4 devices"):
        learners.side_by_side(made.wake, mesh)(states, odd, {}, 0)


@pytest.mark.parametrize("shape", MESHES)
def test_a_judge_of_texts_is_asked_on_the_host_for_all_devices(shape):
    asked = []

    def same(ours, theirs):
        asked.append(len(ours))
        return [
            sum(map(int, a)) % 2 == sum(map(int, b)) % 2 for a, b in zip(ours, theirs, strict=True)
        ]

    def decode(rows):
        return ["".join(map(str, row)) for row in rows]

    judge = text_judge(same, [decode, decode], eos=2, context=False)
    random = np.random.default_rng(0)
    ours, theirs = random.integers(3, 9, (2, 2, 8, 5)).astype(np.int32)
    inside = np.ones(ours.shape, bool)

    def one(reader, mine, other, mask):
        return judge({"reader": reader}, mine, mask, other, mask)

    given = (np.arange(2, dtype=np.int32), ours, theirs, inside)
    want = jax.jit(for_each(one))(*given)
    mesh, before = parallel.mesh(shape), len(asked)
    got = learners.ask_each(one, mesh)(*learners.put(given, mesh))
    assert np.asarray(got).tolist() == np.asarray(want).tolist()
    assert len(set(np.asarray(want).ravel())) == 2 and len(asked) > before
