"""Placing batches and states on devices; that the three forms agree is law 3 (test_laws)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sleeplm.core.errors import ConfigError
from sleeplm.runtime import parallel

KEY = jax.random.key(0)


def step(state, batch, key):
    return {"w": state["w"] + batch["tokens"].sum()}, {"rows": batch["tokens"].shape[0]}


def text(rows):
    tokens = np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)
    return {"tokens": tokens, "segments": np.ones_like(tokens)}


def test_rows_are_found_in_every_batch_that_the_library_makes():
    specs = parallel.batch_specs
    assert specs(text(4)) == {"tokens": P("data"), "segments": P("data")}
    night = {"rows": np.zeros((2, 4)), "today": 0}
    assert specs(night, "d") == {"rows": P(None, "d"), "today": P()}
    cues = {"tokens": np.zeros((4, 2)), "length": np.ones(4), "today": 0}
    assert set(specs(cues).values()) == {P()}
    stacked = {name: x[None] for name, x in text(4).items()}
    assert specs(stacked)["tokens"] == P(None, "data")
    with pytest.raises(ConfigError, match=r"batch = \['images'\].*give specs"):
        specs({"images": np.zeros(3)})


def test_a_mesh_needs_the_devices_it_asks_for():
    assert parallel.mesh().shape == {"data": 4}
    assert parallel.mesh({"data": 2, "model": 2}).axis_names == ("data", "model")
    with pytest.raises(ConfigError, match="needs 8 devices; there are 4"):
        parallel.mesh({"data": 8})
    with pytest.raises(ConfigError, match=r"mesh\.data"):
        parallel.mesh({"data": 0})


def test_a_batch_lies_in_pieces_and_a_state_everywhere():
    mesh = parallel.mesh({"data": 4})
    batch = parallel.shard(text(8), mesh)
    assert [s.data.shape for s in batch["tokens"].addressable_shards] == [(2, 3)] * 4
    state = parallel.replicate({"w": jnp.ones(3)}, mesh)
    assert [s.data.shape for s in state["w"].addressable_shards] == [(3,)] * 4


@pytest.mark.parametrize("place", [True, False], ids=["placed", "from the host"])
def test_a_step_over_a_mesh_takes_placed_and_host_batches_alike(place):
    mesh = parallel.mesh({"data": 4})
    compiled = parallel.jit_step(step, mesh)
    state = parallel.replicate({"w": jnp.zeros(2)}, mesh)
    got, _ = compiled(state, parallel.shard(text(8), mesh) if place else text(8), KEY)
    np.testing.assert_array_equal(got["w"], [276.0, 276.0])
    assert got["w"].sharding.is_fully_replicated
    assert "all-reduce" in compiled.lower(got, text(8), KEY).compile().as_text()


def test_the_old_state_is_given_away_unless_asked_otherwise():
    state = {"w": jnp.zeros(2)}
    parallel.jit_step(step, donate=False)(state, text(2), KEY)
    assert not state["w"].is_deleted()
    parallel.jit_step(step)(state, text(2), KEY)
    assert state["w"].is_deleted()


def test_rows_that_cannot_be_spread_evenly_are_refused_in_one_line():
    mesh = parallel.mesh({"data": 4})
    with pytest.raises(ConfigError, match=r"\['(segments|tokens)'\] = 6: use a multiple of the 4"):
        parallel.jit_step(step, mesh)({"w": jnp.zeros(2)}, text(6), KEY)
    with pytest.raises(ConfigError, match="= 6: use a multiple of the 4"):
        parallel.stack_batch(text(6), 4)


def test_pieces_for_pmap_keep_the_order_of_rows():
    night = {"rows": np.arange(16, dtype=np.int32).reshape(2, 8), "today": np.int32(3)}
    pieces = parallel.stack_batch(night, 4)
    assert pieces["rows"].shape == (4, 2, 2) and pieces["today"].tolist() == [3] * 4
    np.testing.assert_array_equal(np.concatenate(list(pieces["rows"]), axis=1), night["rows"])
    assert parallel.first(parallel.stack_state({"w": jnp.ones(5)}, 4))["w"].shape == (5,)
