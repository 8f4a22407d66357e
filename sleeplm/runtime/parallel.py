"""Running a step on many devices: one step body, three forms.

* :func:`jit_step`, the default: the compiler spreads the work, led by the sharding of the batch.
* :func:`shard_map_step`: every device runs the step on its own rows; sums cross devices where the
  phase says so (``axis_name``).
* :func:`pmap_step`: literal ``jax.pmap``, for code that is built on it.

Rows of a batch are spread over the axis ``data``; the learner is the same on every device. All
three give the same step, up to the order of floating-point sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sleeplm.core.checks import positive_integer
from sleeplm.core.errors import ConfigError
from sleeplm.core.types import PyTree

DATA = "data"  # name of the axis over which rows are spread

Step = Callable[..., Any]
#: ``specs(batch, axis) -> tree of PartitionSpec`` in the structure of the batch.
Specs = Callable[[PyTree, str], PyTree]


def mesh(
    shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A device mesh.

    Args:
      shape: axis names and sizes, e.g. ``{"data": 4}``; None: all devices on ``data``.
      devices: which ones, in order; None: the first that there are, of all processes.

    Raises:
      ConfigError: there are fewer devices than the shape asks for.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = {DATA: len(devices)} if shape is None else dict(shape)
    for axis, size in shape.items():
        positive_integer(f"mesh.{axis}", size)
    count = math.prod(shape.values())
    if count > len(devices):
        raise ConfigError("mesh", shape, f"needs {count} devices; there are {len(devices)}")
    return jax.make_mesh(
        tuple(shape.values()),
        tuple(shape),
        axis_types=(AxisType.Auto,) * len(shape),
        devices=devices[:count],
    )


def batch_specs(batch: PyTree, axis: str = DATA) -> PyTree:
    """Where the rows of a batch are, for the batches that this library makes.

    * night, ``{"rows" [T, B], "today"}``: B over the devices, the rest on every device;
    * wake, ``{"tokens", "segments" [B, L]}``: B over the devices;
    * cues, ``{"tokens" [n, C], "length" [n], "today"}``: all on every device.

    More axes may stand in front, as :func:`sleeplm.core.phase.repeat` wants them.

    Returns:
      A tree of ``PartitionSpec`` in the structure of ``batch``.

    Raises:
      ConfigError: a batch of another kind, which needs specs of its own.
    """
    names = set(batch) if isinstance(batch, Mapping) else set()
    if "rows" in names:
        split = {"rows": _at(np.ndim(batch["rows"]) - 1, axis)}
    elif names == {"tokens", "segments"}:
        split = {name: _at(np.ndim(batch[name]) - 2, axis) for name in names}
    elif names == {"tokens", "length", "today"}:
        split = {}
    else:
        what = sorted(names) or type(batch).__name__
        raise ConfigError("batch", what, "give specs(batch, axis): no rule knows this batch")
    return {name: split.get(name, PartitionSpec()) for name in batch}


def _at(position: int, axis: str) -> PartitionSpec:
    return PartitionSpec(*[None] * position, axis)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies of all leaves on every device of the mesh, as the steps of this file want a state."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(batch: PyTree, mesh: Mesh, *, axis: str = DATA, specs: Specs = batch_specs) -> PyTree:
    """Places a batch: rows over the devices of ``axis``, the rest on every device.

    With several processes each gives its own share of the rows, and the same rest.

    Args:
      batch: host (numpy) or jax arrays.
    """
    parts = specs(batch, axis)

    def place(x: Any, spec: PartitionSpec) -> jax.Array:
        return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), np.asarray(x))

    return jax.tree.map(place, batch, parts)


def jit_step(
    step: Step,
    mesh: Mesh | None = None,
    donate: bool = True,
    *,
    axis: str = DATA,
    specs: Specs = batch_specs,
) -> Step:
    """The step compiled, on one device or over a mesh.

    Args:
      step: ``(state, batch, key) -> (state, metrics)``, built with ``axis_name=None``.
      mesh: None for the default device.
      donate: give the memory of the old state to the new one; the caller's old state is then
        gone (and with it the arrays that it was built around).
      specs: where the rows of a batch are.

    Returns:
      A function like ``step``; it has ``lower(state, batch, key)`` like ``jax.jit``.
    """
    donated = (0,) if donate else ()
    if mesh is None:
        return jax.jit(step, donate_argnums=donated)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def build(batch: PyTree) -> Step:
        rows = jax.tree.map(lambda x, spec: NamedSharding(mesh, spec), batch, specs(batch, axis))
        return jax.jit(
            step,
            in_shardings=(everywhere, rows, everywhere),
            out_shardings=everywhere,
            donate_argnums=donated,
        )

    return _PerStructure(build, mesh.shape[axis], axis, specs)


def shard_map_step(
    make_step: Callable[[str], Step],
    mesh: Mesh,
    axis: str = DATA,
    donate: bool = True,
    *,
    specs: Specs = batch_specs,
) -> Step:
    """The explicit per-device form: each device runs the step on its own rows.

    Args:
      make_step: ``make_step(axis_name)`` builds the step, which sums over that axis.

    Otherwise as :func:`jit_step`. That every device comes to the same state is checked when the
    step is traced: a phase that forgets to sum is refused.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())

    def build(batch: PyTree) -> Step:
        parts = specs(batch, axis)
        local = jax.shard_map(
            make_step(axis),
            mesh=mesh,
            in_specs=(PartitionSpec(), parts, PartitionSpec()),
            out_specs=PartitionSpec(),
        )
        rows = jax.tree.map(lambda x, spec: NamedSharding(mesh, spec), batch, parts)
        return jax.jit(
            local,
            in_shardings=(everywhere, rows, everywhere),
            out_shardings=everywhere,
            donate_argnums=(0,) if donate else (),
        )

    return _PerStructure(build, mesh.shape[axis], axis, specs)


def pmap_step(
    make_step: Callable[[str], Step],
    axis: str = DATA,
    devices: Sequence[jax.Device] | None = None,
    donate: bool = True,
) -> Step:
    """Literal ``jax.pmap``: state and batch carry a leading device axis, the key does not.

    See :func:`stack_state` and :func:`stack_batch` for that axis, and :func:`first` to leave it.

    Args:
      make_step: ``make_step(axis_name)`` builds the step, which sums over that axis.
      devices: None for all.
    """
    return jax.pmap(
        make_step(axis),
        axis_name=axis,
        in_axes=(0, 0, None),
        devices=devices,
        donate_argnums=(0,) if donate else (),
    )


def stack_state(state: PyTree, devices: int) -> PyTree:
    """The same state once per device, for :func:`pmap_step`: every leaf [...] -> [devices, ...]."""
    return jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * devices), state)


def stack_batch(batch: PyTree, devices: int, *, specs: Specs = batch_specs) -> PyTree:
    """A whole batch as one piece per device, for :func:`pmap_step`; pieces keep the row order."""
    _check_rows(batch, devices, DATA, specs)

    def cut(x: Any, spec: PartitionSpec) -> jax.Array:
        x = jnp.asarray(x)
        if DATA not in spec:
            return jnp.stack([x] * devices)
        return jnp.stack(jnp.split(x, devices, axis=list(spec).index(DATA)))

    return jax.tree.map(cut, batch, specs(batch, DATA))


def first(tree: PyTree) -> PyTree:
    """The first device's copy of what :func:`pmap_step` returns."""
    return jax.tree.map(lambda x: x[0], tree)


class _PerStructure:
    """A step compiled once for every structure of batch, with its shardings."""

    def __init__(self, build: Callable[[PyTree], Any], devices: int, axis: str, specs: Specs):
        self._build, self._devices, self._axis, self._specs = build, devices, axis, specs
        self._built: dict[Any, Any] = {}

    def _for(self, batch: PyTree) -> Any:
        structure = jax.tree.structure(batch)
        if structure not in self._built:
            self._built[structure] = self._build(batch)
        _check_rows(batch, self._devices, self._axis, self._specs)
        return self._built[structure]

    def __call__(self, state: PyTree, batch: PyTree, key: jax.Array) -> Any:
        return self._for(batch)(state, batch, key)

    def lower(self, state: PyTree, batch: PyTree, key: jax.Array) -> Any:
        return self._for(batch).lower(state, batch, key)


def _check_rows(batch: PyTree, devices: int, axis: str, specs: Specs) -> None:
    """Refuses, in one line, rows that cannot be spread evenly."""

    def check(path: tuple, x: Any, spec: PartitionSpec) -> None:
        if axis in spec and (rows := np.shape(x)[list(spec).index(axis)]) % devices:
            field = f"rows of batch{jax.tree_util.keystr(path)}"
            raise ConfigError(field, rows, f"use a multiple of the {devices} devices of {axis!r}")

    jax.tree_util.tree_map_with_path(check, batch, specs(batch, axis))
