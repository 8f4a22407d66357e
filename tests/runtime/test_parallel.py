"""Placing batches and states on devices; that the three forms agree is law 3 (test_laws)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sleeplm import testing
from sleeplm.core.errors import ConfigError
from sleeplm.methods.wake import wake
from sleeplm.runtime import parallel
from sleeplm.runtime.rules import place, state_specs

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
    contexts = {"length": np.ones(4), "tokens": np.zeros((4, 2))}
    dreams = {"contexts": contexts, "today": 0, "questions": {"answers": np.zeros((3, 2))}}
    assert specs(dreams) == {
        "contexts": {"tokens": P("data"), "length": P("data")},
        "today": P(),
        "questions": {"answers": P()},
    }
    assert specs({**dreams, "rows": np.zeros((1, 1))})["rows"] == P()
    assert specs(text(4), ("data", "fsdp"))["tokens"] == P(("data", "fsdp"))
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


class OnSlice:
    """A device of some slice, as far as it is asked where in a mesh it belongs."""

    device_kind, platform = "some GPU", "gpu"

    def __init__(self, number, slice_index):
        self.id, self.slice_index = number, slice_index


def on_slices(slices, each):
    """Devices that go round the slices: the next one is always on another."""
    return [OnSlice(number, number % slices) for number in range(slices * each)]


@pytest.mark.parametrize(
    ("shape", "slices", "want"),
    [
        ({"data": 2, "fsdp": 2}, 2, [[0, 0], [1, 1]]),
        ({"replica": 1, "data": 4}, 2, [[0, 0, 1, 1]]),
        ({"tensor": 3, "fsdp": 2}, 2, [[0, 1], [0, 1], [0, 1]]),  # 3 slices would do, 2 do not
        ({"data": 2, "fsdp": 4}, 4, [[0, 0, 1, 1], [2, 2, 3, 3]]),  # two by two
        ({"data": 2, "fsdp": 2}, 1, [[0, 0], [0, 0]]),
    ],
)
def test_slices_lie_along_the_outermost_axes_that_they_fit(shape, slices, want):
    count = np.prod([*shape.values()])
    found = parallel.laid_out(shape, on_slices(slices, count // slices))
    assert np.vectorize(lambda device: device.slice_index)(found).tolist() == want
    assert {device.id for device in found.flat} == set(range(count))
    assert parallel.mesh(shape, on_slices(slices, count // slices)).shape == shape


def test_a_mesh_takes_as_many_devices_of_each_slice():
    with pytest.raises(
        ConfigError, match=r"mesh = \{'data': 3\}: takes 2 and 1 devices of 2 slices"
    ):
        parallel.mesh({"data": 3}, on_slices(2, 2))


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


# --- learners in pieces, and learners side by side -----------------------------------------------


def test_rows_are_spread_over_the_axes_of_a_mesh_that_are_for_rows():
    shapes = {"data": 2}, {"fsdp": 2}, {"data": 2, "fsdp": 2}, {"replica": 2, "tensor": 2}
    axes = [parallel.row_axes(parallel.mesh(shape)) for shape in shapes]
    assert axes == ["data", "fsdp", ("data", "fsdp"), None]
    mesh = parallel.mesh({"data": 2, "fsdp": 2})
    placed = parallel.shard(text(8), mesh)["tokens"]
    assert [s.data.shape for s in placed.addressable_shards] == [(2, 3)] * 4
    whole = parallel.shard(text(3), parallel.mesh({"tensor": 2}))["tokens"]
    assert [s.data.shape for s in whole.addressable_shards] == [(3, 3)] * 2
    with pytest.raises(ConfigError, match="= 6: use a multiple of the 4 devices of"):
        parallel.jit_step(step, mesh)({"w": jnp.zeros(2)}, text(6), KEY)


@pytest.fixture(scope="module")
def waking(tiny):
    """A learner, batches, and the state that wake steps on one device come to."""
    model = tiny.model()
    state = tiny.learner(model, tiny.config())[1]
    phase = wake(model, chunk=8)
    state, batches = testing.begin(phase, state), tiny.texts(2)
    return model, state, batches, testing.run(jax.jit(phase.step), state, batches)


def test_a_learner_in_pieces_stays_in_pieces_and_its_old_buffers_are_given_away(waking):
    model, state, batches, want = waking
    mesh = parallel.mesh({"fsdp": 2, "tensor": 2})
    step = parallel.jit_step(wake(model, chunk=8).step, mesh, state_specs=state_specs)
    start = place(state, mesh)
    old = jax.tree.leaves(start)
    got = testing.run(step, start, batches)
    assert all(x.is_deleted() for x in old)
    testing.same("3 (pieces)", got, want, testing.Tolerance(1e-5, 1e-5))
    pieces = got.state.params["blocks"]["levels"]["fast"]["base"]["gate"]["kernel"]
    assert {s.data.shape for s in pieces.addressable_shards} == {(1, 8, 8)}


def test_the_explicit_form_gathers_a_learner_that_lies_in_pieces(waking):
    model, state, batches, want = waking
    mesh = parallel.mesh({"data": 2, "fsdp": 2})
    seen = []

    def make_step(axis):
        seen.append(axis)
        return wake(model, chunk=8, axis_name=axis).step

    step = parallel.shard_map_step(make_step, mesh, state_specs=state_specs)
    got = testing.run(step, place(state, mesh), batches)
    assert seen == [("data", "fsdp")]
    testing.same("3 (gathered)", got, want, testing.Tolerance(1e-5, 1e-5))
    assert {s.data.shape for s in got.state.params["embed"].addressable_shards} == {(40, 8)}


def alone(state, batch, key):
    noise = jax.random.normal(key, state["w"].shape)
    return {"w": state["w"] + batch["tokens"].sum() + noise}, {"rows": batch["tokens"].shape[0]}


def test_learners_side_by_side_each_have_a_device_and_hear_of_no_other():
    states = {"w": jnp.arange(8.0).reshape(4, 2)}
    batches = jax.tree.map(lambda x: np.stack([x] * 4), text(2))
    batches["tokens"] *= np.arange(1, 5, dtype=np.int32)[:, None, None]
    keys = jax.random.split(KEY, 4)
    want = jax.vmap(alone)(states, batches, keys)[0]["w"]
    mapped, _ = parallel.pmap_learners(alone, donate=False)(states, batches, keys)
    np.testing.assert_allclose(mapped["w"], want, rtol=1e-6)
    mesh = parallel.mesh({"replica": 4})
    over = parallel.jit_step(
        jax.vmap(alone, out_axes=(0, None)),
        mesh,
        specs=parallel.of_learners(),
        state_specs=lambda state, mesh: {"w": P("replica")},
    )
    got, _ = over(states, batches, keys)
    np.testing.assert_allclose(got["w"], want, rtol=1e-6)
    assert [s.data.shape for s in got["w"].addressable_shards] == [(1, 2)] * 4
    program = over.lower(got, batches, keys).compile().as_text()
    assert "all-reduce" not in program and "all-gather" not in program


class OnProcess:
    """A device of some process, as far as a mesh is asked about it."""

    def __init__(self, process_index):
        self.process_index = process_index


@pytest.mark.parametrize(
    ("axes", "good"), [(("data", "tensor"), True), (("tensor", "data"), False)]
)
def test_processes_that_would_have_to_give_the_same_rows_are_refused(monkeypatch, axes, good):
    class Two:
        devices = np.array([OnProcess(0), OnProcess(0), OnProcess(1), OnProcess(1)]).reshape(2, 2)
        axis_names, shape = axes, dict.fromkeys(axes, 2)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    if good:
        parallel._check_processes(Two(), P(None, "data"))
        return
    with pytest.raises(ConfigError, match=r"processes share rows: name data first"):
        parallel._check_processes(Two(), P(None, "data"))


def test_a_mesh_without_axes_is_one_device_also_for_what_is_mapped(tiny):
    model = tiny.model(scan_layers=True)
    tokens = jnp.ones((3, 2, tiny.length), jnp.int32)

    def read(params, batch, key):
        variables = {"params": params, "slots": model.init_slots()}
        return params, {"read": jax.vmap(lambda one: model.hidden(variables, one))(batch)}

    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    alone = read(params, tokens, key)[1]["read"]
    step = parallel.jit_step(read, parallel.mesh({}), specs=lambda batch, axis: P(), donate=False)
    np.testing.assert_allclose(step(params, tokens, key)[1]["read"], alone, atol=1e-6)
