"""Running a step on many devices: one step body, three forms.

* :func:`jit_step`, the default: the compiler spreads the work over all axes of a mesh, led by where
  the batch and the learner lie.
* :func:`shard_map_step`: every device runs the step on its own rows; sums cross devices where the
  phase says so (``axis_name``).
* :func:`pmap_step` and :func:`pmap_learners`: literal ``jax.pmap``, for code that is built on it.

Rows of a batch are spread over the axes ``data`` and ``fsdp``. The learner is the same on every
device, or in pieces by the table of :mod:`sleeplm.runtime.rules` (``state_specs``). All forms give
the same step, up to the order of floating-point sums.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sleeplm.core import layout
from sleeplm.core.checks import positive_integer
from sleeplm.core.errors import ConfigError
from sleeplm.core.types import PyTree
from sleeplm.runtime import placing
from sleeplm.runtime.rules import DATA, REPLICA, StateSpecs, axes_with_rows, layout_of

Step = Callable[..., Any]
#: The mesh axis, or several, over which rows are spread; None: they are not.
RowAxis = str | tuple[str, ...] | None
#: ``specs(batch, axis) -> tree of PartitionSpec`` in the structure of the batch.
Specs = Callable[[PyTree, Any], PyTree]


def mesh(
    shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A device mesh.

    Args:
      shape: axis names and sizes, e.g. ``{"data": 2, "fsdp": 4}``, see
        :data:`~sleeplm.runtime.rules.AXES`; None: all devices on ``data``.
      devices: which ones, in order; None: the first that there are, of all processes. How they
        lie: :func:`laid_out`.

    Raises:
      ConfigError: there are fewer devices than the shape asks for, or the first ones are not as
        many of each slice.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = {DATA: len(devices)} if shape is None else dict(shape)
    for axis, size in shape.items():
        positive_integer(f"mesh.{axis}", size)
    count = math.prod(shape.values())
    if count > len(devices):
        raise ConfigError("mesh", shape, f"needs {count} devices; there are {len(devices)}")
    kinds = (AxisType.Auto,) * len(shape)
    return Mesh(laid_out(shape, devices[:count]), tuple(shape), axis_types=kinds)


def laid_out(shape: Mapping[str, int], devices: Sequence[Any]) -> np.ndarray:
    """Devices in the places that they have in a mesh.

    Slices (of TPUs; of GPUs each node is one) lie along the outermost axes, as far as their number
    divides: what crosses them takes a slower network, and inner axes have more to send.

    Args:
      shape: axis names and sizes, the outermost first. devices: as many as they make.

    Returns:
      Objects, with an axis of each of the sizes.

    Raises:
      ConfigError: slices of which not as many devices are taken.
    """
    slices = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(set(slices.values())) > 1:
        taken = " and ".join(str(slices[index]) for index in sorted(slices))
        remedy = f"takes {taken} devices of {len(slices)} slices: take as many of each"
        raise ConfigError("mesh", dict(shape), remedy)
    across, left = [], len(slices)
    for size in shape.values():
        across.append(math.gcd(size, left))
        left //= across[-1]
    within = [size // count for size, count in zip(shape.values(), across, strict=True)]
    # Where no axes of a torus have these sizes, some are cut.
    if len(slices) == 1:
        return create_device_mesh(within, devices, allow_split_physical_axes=True)
    return create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def row_axes(mesh: Mesh) -> RowAxis:
    """The axes of a mesh that rows are spread over: ``data``, ``fsdp``, both, or none."""
    over = axes_with_rows(mesh)
    return over[0] if len(over) == 1 else over or None


def batch_specs(batch: PyTree, axis: RowAxis = DATA) -> PyTree:
    """Where the rows of a batch are, for the batches that this library makes.

    * night, ``{"rows" [T, B], "today"}``: B over the devices, the rest on every device;
    * wake, ``{"tokens", "segments" [B, L]}``: B over the devices;
    * dreaming, ``{"contexts": {"tokens" [n, C], "length" [n]}, ...}``: n over the devices, the rest
      on every device (a night's rows too, of which dreams read how many minibatches they make);
    * cues, ``{"tokens" [n, C], "length" [n], "today"}``: all on every device.

    More axes may stand in front, as :func:`sleeplm.core.phase.repeat` wants them.

    Returns:
      A tree of ``PartitionSpec`` in the structure of ``batch``.

    Raises:
      ConfigError: a batch of another kind, which needs specs of its own.
    """
    names = set(batch) if isinstance(batch, Mapping) else set()
    split: dict[str, PyTree]
    if "contexts" in names:
        at = np.ndim(batch["contexts"]["length"]) - 1
        split = {"contexts": jax.tree.map(lambda _: _at(at, axis), batch["contexts"])}
    elif "rows" in names:
        split = {"rows": _at(np.ndim(batch["rows"]) - 1, axis)}
    elif names == {"tokens", "segments"}:
        split = {name: _at(np.ndim(batch[name]) - 2, axis) for name in names}
    elif names == {"tokens", "length", "today"}:
        split = {}
    else:
        what = sorted(names) or type(batch).__name__
        raise ConfigError("batch", what, "give specs(batch, axis): no rule knows this batch")
    whole = {name: jax.tree.map(lambda _: PartitionSpec(), part) for name, part in batch.items()}
    return {**whole, **split}


def _at(position: int, axis: RowAxis) -> PartitionSpec:
    return PartitionSpec(*[None] * position, axis)


def of_learners(specs: Specs = batch_specs) -> Specs:
    """Where the rows are in batches of learners side by side: every array has them in front."""

    def run(batch: PyTree, axis: RowAxis) -> PyTree:
        return jax.tree.map(lambda s: PartitionSpec(REPLICA, *s[1:]), specs(batch, axis))

    return run


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies of all leaves on every device of the mesh, as the steps of this file want a state."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(batch: PyTree, mesh: Mesh, *, axis: RowAxis = None, specs: Specs = batch_specs) -> PyTree:
    """Places a batch: rows over the devices of ``axis``, the rest on every device.

    With several processes each gives its own share of the rows, and the same rest.

    Args:
      batch: host (numpy) or jax arrays.
      axis: None: :func:`row_axes`.

    Raises:
      ConfigError: processes would have to give the same rows.
    """
    parts = specs(batch, axis or row_axes(mesh))

    def place(x: Any, spec: PartitionSpec) -> jax.Array:
        _check_processes(mesh, spec)
        return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), np.asarray(x))

    return jax.tree.map(place, batch, parts)


def jit_step(
    step: Step,
    mesh: Mesh | None = None,
    donate: bool = True,
    *,
    axis: RowAxis = None,
    specs: Specs = batch_specs,
    state_specs: StateSpecs | None = None,
) -> Step:
    """The step compiled, on one device or over a mesh.

    Learners side by side are ``jit_step(jax.vmap(step), mesh, specs=of_learners(),
    state_specs=state_specs)``, with E keys: each device of ``replica`` then has its own.

    Args:
      step: ``(state, batch, key) -> (state, metrics)``, built with ``axis_name=None``. With several
        processes batches are whole and the same in all, or placed already (:func:`shard`).
      mesh: None for the default device.
      donate: give the memory of the old state to the new one; the caller's old state is then
        gone (and with it the arrays that it was built around).
      axis: that rows are spread over; None: :func:`row_axes`.
      specs: where the rows of a batch are.
      state_specs: where the learner lies, :func:`sleeplm.runtime.rules.state_specs` or one's own;
        None: the same on every device.

    Returns:
      A function like ``step``; it has ``lower(state, batch, key)`` like ``jax.jit``.
    """
    if mesh is None:
        return jax.jit(step, donate_argnums=(0,) if donate else ())

    def laid_out(state: PyTree, batch: PyTree, key: jax.Array) -> Any:
        with layout.over(layout_of(mesh)):
            return step(state, batch, key)

    return _Compiled(lambda parts: laid_out, mesh, donate, axis, specs, state_specs)


def shard_map_step(
    make_step: Callable[[Any], Step],
    mesh: Mesh,
    axis: RowAxis = None,
    donate: bool = True,
    *,
    specs: Specs = batch_specs,
    state_specs: StateSpecs | None = None,
) -> Step:
    """The explicit per-device form: each device runs the step on its own rows.

    With ``state_specs`` the learner lies in pieces between steps, and is gathered whole for each:
    that saves memory at rest, not in the step (:func:`jit_step` gathers what it needs, when it
    does). Devices that differ in another axis than that of the rows do the same work.

    Args:
      make_step: ``make_step(axis_name)`` builds the step, which sums over that axis: a name, a
        tuple of them, or None.

    Otherwise as :func:`jit_step`. That every device comes to the same state is checked when the
    step is traced: a phase that forgets to sum is refused.
    """
    step = make_step(axis or row_axes(mesh))

    def build(parts: PyTree) -> Step:
        return jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(PartitionSpec(), parts, PartitionSpec()),
            out_specs=PartitionSpec(),
        )

    return _Compiled(build, mesh, donate, axis, specs, state_specs)


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


def pmap_learners(
    step: Step, devices: Sequence[jax.Device] | None = None, donate: bool = True
) -> Step:
    """Literal ``jax.pmap`` over learners: each device has one of its own, and none hears another.

    Args:
      step: ``(state, batch, key) -> (state, metrics)`` of one learner, with ``axis_name=None``.
        State, batch and key carry a leading axis of one learner a device.
      devices: None for all.
    """
    return jax.pmap(step, devices=devices, donate_argnums=(0,) if donate else ())


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


class _Compiled:
    """A step compiled once for every structure of state and batch, with its shardings."""

    def __init__(
        self,
        build: Callable[[PyTree], Step],
        mesh: Mesh,
        donate: bool,
        axis: RowAxis,
        specs: Specs,
        state_specs: StateSpecs | None,
    ):
        self._build, self._mesh, self._donate = build, mesh, donate
        self._axis = axis or row_axes(mesh)
        self._specs, self._state_specs = specs, state_specs
        self._built: dict[Any, Any] = {}

    def _for(self, state: PyTree, batch: PyTree) -> Any:
        structure = jax.tree.structure((state, batch))
        if structure not in self._built:
            self._built[structure] = self._compile(state, batch)
        _check_rows(batch, _count(self._mesh, self._axis), self._axis, self._specs)
        return self._built[structure]

    def _compile(self, state: PyTree, batch: PyTree) -> Any:
        def over_mesh(specs: PyTree) -> PyTree:
            return jax.tree.map(lambda spec: NamedSharding(self._mesh, spec), specs)

        parts = self._specs(batch, self._axis)
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        where = everywhere
        if self._state_specs is not None:
            where = over_mesh(self._state_specs(state, self._mesh))
        return jax.jit(
            self._build(parts),
            in_shardings=(where, over_mesh(parts), everywhere),
            out_shardings=(where, everywhere),
            donate_argnums=(0,) if self._donate else (),
        )

    def __call__(self, state: PyTree, batch: PyTree, key: jax.Array) -> Any:
        return self._for(state, batch)(state, self._placed(batch), key)

    def _placed(self, batch: PyTree) -> PyTree:
        # Of a batch that is on the host, jax would ask one process alone.
        if jax.process_count() == 1:
            return batch
        parts = self._specs(batch, self._axis)
        return jax.tree.map(
            lambda x, spec: placing.place(x, NamedSharding(self._mesh, spec)), batch, parts
        )

    def lower(self, state: PyTree, batch: PyTree, key: jax.Array) -> Any:
        return self._for(state, batch).lower(state, batch, key)


def _check_processes(mesh: Mesh, spec: PartitionSpec) -> None:
    """Refuses a mesh in which several processes hold the same piece of what is spread."""
    spread = [a for part in spec for a in ((part,) if isinstance(part, str) else part or ())]
    if not spread or jax.process_count() == 1:
        return
    process = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
    first = [mesh.axis_names.index(axis) for axis in spread]
    pieces = np.moveaxis(process, first, range(len(first)))
    pieces = pieces.reshape(_count(mesh, tuple(spread)), -1)
    if (pieces != pieces[:, :1]).any():
        remedy = f"processes share rows: name {', '.join(spread)} first, and the others last"
        raise ConfigError("mesh", dict(mesh.shape), remedy)


def _count(mesh: Mesh, axis: RowAxis) -> int:
    names = (axis,) if isinstance(axis, str) else axis or ()
    return math.prod(mesh.shape[name] for name in names)


def _check_rows(batch: PyTree, devices: int, axis: RowAxis, specs: Specs) -> None:
    """Refuses, in one line, rows that cannot be spread evenly."""

    def check(path: tuple, x: Any, spec: PartitionSpec) -> None:
        if axis in spec and (rows := np.shape(x)[list(spec).index(axis)]) % devices:
            field = f"rows of batch{jax.tree_util.keystr(path)}"
            raise ConfigError(field, rows, f"use a multiple of the {devices} devices of {axis!r}")

    jax.tree_util.tree_map_with_path(check, batch, specs(batch, axis))
