"""What the devices of an axis share is done once, and known to all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from sleeplm.core.shares import everyone, own_share, shared, summed, varying, varying_as

DEVICES, ALL = 4, P()


def on_all(fn, *arrays, rows=ALL, out=ALL):
    """``fn`` inside ``shard_map``, which refuses results that it cannot know to be alike."""
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=rows, out_specs=out))(*arrays)


@pytest.mark.parametrize("count", [1, 3, 4, 6, 8])
def test_every_entry_is_worked_on_by_one_device_and_known_to_all(count):
    entries = {"a": jnp.arange(count), "b": jnp.arange(2.0 * count).reshape(count, 2)}

    def work(part):
        # What a device adds of its own tells whose the entry was.
        device = jax.lax.axis_index("data")
        return {"a": part["a"] * 10, "b": part["b"].sum(1), "by": 0 * part["a"] + device}

    got = on_all(lambda given: shared(work, given, "data"), entries)
    np.testing.assert_array_equal(got["a"], 10 * np.arange(count))
    np.testing.assert_array_equal(got["b"], np.asarray(entries["b"]).sum(1))
    np.testing.assert_array_equal(got["by"], np.arange(count) // -(-count // DEVICES))


@pytest.mark.parametrize("count", [1, 3, 6, 8])
def test_shares_add_up_to_the_whole_with_no_entry_twice(count):
    def total(given):
        part, counts = own_share(given, "data")
        return summed(jnp.sum(part * counts), "data")

    values = 1.0 + jnp.arange(count)
    assert on_all(total, values) == values.sum()


def test_rows_of_all_devices_come_in_their_order():
    rows = jnp.arange(8).reshape(8, 1)
    got = on_all(lambda x: everyone(x, "data"), rows, rows=P("data"))
    np.testing.assert_array_equal(got, rows)


def test_gradients_of_what_varies_are_each_devices_own():
    def gradient(weight, rows):
        own = jax.grad(lambda w: jnp.sum(w * rows))
        return own(varying(weight, "data"))[None], own(weight)

    rows = jnp.arange(1.0, 1 + DEVICES)
    specs = (ALL, P("data"))
    each, together = on_all(gradient, jnp.float32(1), rows, rows=specs, out=(P("data"), P()))
    np.testing.assert_array_equal(each, rows)
    assert together == rows.sum()  # what varying is there to prevent


def test_what_a_loop_begins_with_varies_as_what_goes_in():
    def total(rows):
        start = varying_as(jnp.zeros(()), rows)
        return jax.lax.scan(lambda sum_, x: (sum_ + x, None), start, rows)[0][None]

    rows = jnp.arange(8.0)
    each = on_all(total, rows, rows=P("data"), out=P("data"))
    np.testing.assert_array_equal(each, rows.reshape(DEVICES, 2).sum(1))
    assert varying_as(rows, rows) is rows  # nowhere to vary over


def test_without_an_axis_one_device_does_it_all():
    entries = jnp.arange(3.0)
    assert everyone(entries, None) is entries and varying(entries, None) is entries
    assert summed(entries, None) is entries
    part, counts = own_share(entries, None)
    assert part is entries and counts.all()
    np.testing.assert_array_equal(shared(lambda x: x + 1, entries, None), entries + 1)
