"""The learners of a run, side by side, on one device or over a mesh.

Every array of every learner's state, batch or exam has the E learners in front. Without a mesh all
of it is on the default device. On a mesh learners are spread over ``replica``, rows of a batch over
``data`` and ``fsdp``, and a learner's own arrays as the table of :mod:`sleeplm.runtime.rules` says.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sleeplm.core import checks, layout
from sleeplm.core.side_by_side import for_each
from sleeplm.core.types import Array, Metrics, PyTree, State
from sleeplm.runtime import parallel
from sleeplm.runtime.placing import place
from sleeplm.runtime.rules import (
    AXES,
    REPLICA,
    kept_whole,
    layout_of,
    shardings,
    state_specs,
)
from sleeplm.runtime.rules import born as born_in_place

SHOWN = 4  # lines about arrays that lie whole; the others are counted

Step = Callable[[State, PyTree, Array], tuple[State, Metrics]]
#: Where parameters lie that have learners in front, but no key that would say so.
of_learners = functools.partial(state_specs, learners=True)


@dataclasses.dataclass
class MeshConfig:
    """How many devices a run is spread over along each axis; all 1: one device, and no mesh.

    Attributes:
      replica: learners are spread over it. data: rows are. fsdp: rows are, and matrices lie in
        pieces along D. tensor: matrices lie in pieces along their other dimension.
    """

    replica: int = 1
    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def check(self, field: str) -> None:
        for axis in AXES:
            checks.positive_integer(f"{field}.{axis}", getattr(self, axis))

    @property
    def shape(self) -> dict[str, int]:
        """The axes that there are, with their sizes."""
        return {axis: size for axis in AXES if (size := getattr(self, axis)) > 1}

    @property
    def rows(self) -> int:
        """Devices that rows are spread over."""
        return self.data * self.fsdp

    def check_rows(self, field: str, rows: int) -> None:
        """Checks that so many rows can be spread evenly.

        Raises:
          ConfigError: they cannot.
        """
        remedy = f"use a multiple of mesh.data x mesh.fsdp = {self.rows}, or another mesh"
        checks.require(rows % self.rows == 0, field, rows, remedy)

    def make(self) -> Mesh | None:
        """The mesh, over all devices that there are, of all processes; None: all sizes are 1.

        Raises:
          ConfigError: there are more devices or fewer; there are other processes, which this one
            has not joined, or no mesh that they could share.
        """
        processes = jax.process_count()
        joined = processes == 1 or jax.distributed.is_initialized()
        remedy = f"this is one of {processes} processes: start each of them with --distributed"
        checks.require(joined, "mesh", self.shape, remedy)
        count, there = math.prod(self.shape.values()), jax.device_count()
        if not self.shape:
            remedy = f"{processes} processes have {there} devices: choose sizes of that product"
            checks.require(processes == 1, "mesh", self.shape, remedy)
            return None
        remedy = f"is {count} devices and there are {there}: choose sizes whose product is {there}"
        checks.require(count == there, "mesh", self.shape, remedy)
        return parallel.mesh(self.shape)


def side_by_side(
    step: Step, mesh: Mesh | None = None
) -> Callable[[State, PyTree, PyTree, int], tuple[State, Metrics]]:
    """The step of one learner as a jitted, donated step of E: ``(state, batch, shared, number)``.

    State and ``batch`` have E in front; ``shared`` joins the batch of every learner. Keys are
    folded from each learner's root key and the moment's ``number``. On a mesh the metrics, [E],
    are whole on every device.
    """

    def run(state: State, batch: PyTree, shared: PyTree, number: Array):
        def one(state: State, batch: PyTree):
            key = jax.random.fold_in(state.key, number)
            return step(state, {**batch, **shared}, key)

        return _each(one, mesh)(state, batch)

    if mesh is None:
        return jax.jit(run, donate_argnums=0)
    spread = parallel.jit_step(
        lambda state, parts, number: run(state, parts[0], parts[1], number),
        mesh,
        specs=functools.partial(_batch_specs, mesh),
        state_specs=state_specs,
    )
    return lambda state, batch, shared, number: spread(state, (batch, shared), number)


def ask_each(fn: Callable[..., PyTree], mesh: Mesh | None = None) -> Callable[..., PyTree]:
    """``fn`` of one learner, jitted for E: every array of every argument has E in front.

    It changes nothing: no argument's memory is given away. On a mesh arguments are used where they
    lie (:func:`put`), and what is found is whole on every device.
    """
    each = _each(fn, mesh)
    if mesh is None:
        return jax.jit(each)

    def run(*arguments: PyTree) -> PyTree:
        with layout.over(layout_of(mesh)):
            return each(*arguments)

    return jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))


def born(make: Callable[..., PyTree], mesh: Mesh | None, *arguments: PyTree) -> PyTree:
    """``make`` of one learner, for E, in their place: arguments and result have E in front."""
    each = jax.vmap(make)
    if mesh is None:
        return jax.jit(each)(*arguments)
    return born_in_place(each, mesh, *arguments)


def put(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Exams and the like on the device, or learners over ``replica`` and the rest everywhere."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)

    def put_one(x: Any) -> jax.Array:
        return place(x, NamedSharding(mesh, PartitionSpec(_over(mesh, np.shape(x)[0]))))

    return jax.tree.map(put_one, tree)


def put_params(params: PyTree, mesh: Mesh | None) -> PyTree:
    """Parameters of E learners where they lie on the mesh; as they are, if there is none."""
    if mesh is None:
        return params
    return jax.tree.map(place, params, shardings(params, mesh, of_learners))


def copies(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Copies of some of a state's arrays, for the host: whole on every device of the mesh."""
    copied = jax.tree.map(jnp.copy, tree)  # its own buffers are donated to the next step
    return copied if mesh is None else jax.device_put(copied, NamedSharding(mesh, PartitionSpec()))


def whole_lines(state: State, mesh: Mesh) -> list[str]:
    """Lines for people about parameters that would be spread if their sizes allowed it.

    Args:
      state: of E learners, arrays or shapes.
    """
    lines = kept_whole(state.params, mesh, learners=True)
    more = len(lines) - SHOWN
    return lines if more <= 0 else [*lines[:SHOWN], f"and {more} more"]


def _each(fn: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    # Learners that are spread are a batch: one after the other, all but one device would wait.
    return for_each(fn, True if mesh is not None and REPLICA in mesh.shape else None)


def _over(mesh: Mesh, learners: int) -> str | None:
    """The axis that so many learners are spread over, if it divides them."""
    size = mesh.shape.get(REPLICA, 1)
    return REPLICA if size > 1 and learners % size == 0 else None


def _batch_specs(mesh: Mesh, parts: tuple[PyTree, PyTree], axis: parallel.RowAxis) -> PyTree:
    """Where the rows are in a batch of learners, and in what they share.

    Rows are spread of texts, of contexts of dreams and of numbered rows; cues, raw texts to draw
    from, questions and a judge's weights are whole.
    """
    batch, shared = parts
    texts = set(batch) == {"tokens", "segments"}

    def own(path: tuple, x: Any) -> PartitionSpec:
        places: list[Any] = [None] * np.ndim(x)
        places[0] = _over(mesh, np.shape(x)[0])
        if texts:
            places[-2] = axis
        elif path[0] == jax.tree_util.DictKey("contexts"):
            places[1] = axis
        return PartitionSpec(*places)

    whole = jax.tree.map(lambda _: PartitionSpec(), shared)
    if "rows" in shared:
        whole["rows"] = PartitionSpec(*[None] * (np.ndim(shared["rows"]) - 1), axis)
    return jax.tree_util.tree_map_with_path(own, batch), whole
