"""What lies where on a mesh: one table for every array of a learner.

A mesh has up to four axes: ``replica`` (learners that know nothing of each other), ``data`` and
``fsdp`` (rows of a batch; ``fsdp`` also holds parameters in pieces) and ``tensor`` (columns of
matrices). Two tables say the rest: :data:`LEAVES` names the axes of every array by the end of its
path, :data:`MESH_AXES` says which mesh axis each name is spread over. An optimiser's moments and
gathered updates, an anchor's copies and an archive of squared gradients end in the path of the
parameter that they belong to, so they lie where it does.

A dimension that its mesh axes do not divide stays whole on every device of these axes, and so does
one whose mesh axis there is none of. :func:`kept_whole` lists the former.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sleeplm.core.errors import ConfigError
from sleeplm.core.layout import Layout
from sleeplm.core.types import PyTree
from sleeplm.models.cache import heads_first
from sleeplm.runtime import placing

REPLICA, DATA, FSDP, TENSOR = AXES = ("replica", "data", "fsdp", "tensor")

#: Mesh axes that an axis of an array is spread over. ``learner`` is the one that learners side by
#: side have in front of every array.
MESH_AXES: dict[str, tuple[str, ...]] = {
    "learner": (REPLICA,),
    "row": (DATA, FSDP),
    "model": (FSDP,),  # D
    "vocab": (TENSOR,),  # V
    "heads": (TENSOR,),  # H times the width of a head
    "kv_heads": (TENSOR,),
    "hidden": (TENSOR,),  # F
    "rank": (TENSOR,),  # R: the two products of an expert are those of an MLP
    # Everywhere whole. Of the slots one is written in a night: spread, one device would do it all.
    "slot": (),
    "layer": (),
    "level": (),
    "norm": (),
    "class": (),
    "cue": (),
    "time": (),
    "width": (),
}

Rule = tuple[str, tuple[str, ...]]

#: (end of the path, a regular expression; names of the axes). The first that fits counts.
LEAVES: tuple[Rule, ...] = (
    # the backbone
    ("embed", ("vocab", "model")),
    ("unembed", ("model", "vocab")),
    ("final_norm", ("norm",)),
    (r"\w*norm/scale", ("layer", "norm")),
    ("attn/q/kernel", ("layer", "model", "heads")),
    ("attn/[kv]/kernel", ("layer", "model", "kv_heads")),
    ("attn/o/kernel", ("layer", "heads", "model")),
    # memory levels, and their pools of experts
    ("base/(gate|up)/kernel", ("layer", "model", "hidden")),
    ("base/down/kernel", ("layer", "hidden", "model")),
    ("levels/mix", ("layer", "level")),
    ("experts/a", ("layer", "slot", "model", "rank")),
    ("experts/b", ("layer", "slot", "rank", "model")),
    ("router/w", ("layer", "model", "slot")),
    ("router/bias", ("layer", "slot")),
    # ledgers, cues, the class statistics of a control
    (r"(slots/\w+|\w+_slots|table)/(active|since)", ("slot",)),
    ("cues/tokens", ("cue", "time")),
    ("cues/(length|day|priority)", ("cue",)),
    ("gaussians/count", ("class",)),
    ("gaussians/sum", ("class", "norm")),
    ("gaussians/outer", ("norm", "norm")),
    # accepted dreams, which are the rows of what is learned next
    ("(written|told)/(tokens|weights|segments|logp)", ("row", "time")),
    ("(written|told)/(reward|source)", ("row",)),
)
ADAPTER = re.compile(r"(.*/kernel)/([ab])$")  # LoRA beside a matrix [in, out]

#: ``specs(state, mesh) -> tree of PartitionSpec`` in the structure of the state.
StateSpecs = Callable[[PyTree, Mesh], PyTree]


def state_specs(
    state: PyTree, mesh: Mesh, *, rules: Sequence[Rule] = LEAVES, learners: bool | None = None
) -> PyTree:
    """Where every array of a learner lies.

    Args:
      state: a :class:`~sleeplm.core.types.State`, or any tree of parameters; arrays or shapes.
      rules: what to go by; put those for a private state of your own behind :data:`LEAVES`.
      learners: whether every array has learners in front; None: as the state's key has.

    Returns:
      A tree of ``PartitionSpec`` in the structure of ``state``.

    Raises:
      ConfigError: an array that no rule names.
    """
    stacked = _are_learners(state) if learners is None else learners

    def spec(path: tuple, leaf: Any) -> PartitionSpec:
        axes = axes_of(_name(path), np.shape(leaf), rules, stacked)
        return _fitting(axes, np.shape(leaf), mesh)[0]

    return jax.tree_util.tree_map_with_path(spec, state)


def cache_specs(cache: PyTree, mesh: Mesh) -> PyTree:
    """Where a key/value cache of generation lies, see :meth:`Model.init_cache`: as its rows do."""
    axes = ("row", "kv_heads", "time", "width")
    axes = axes if heads_first() else ("row", "time", "kv_heads", "width")

    def spec(leaf: Any) -> PartitionSpec:
        shape = np.shape(leaf)
        return _fitting(("layer",) * (len(shape) - 4) + axes, shape, mesh)[0]

    return jax.tree.map(spec, cache)


def layout_of(mesh: Mesh) -> Layout:
    """What models and losses are told of a mesh, see :mod:`sleeplm.core.layout`."""
    rows = axes_with_rows(mesh)
    devices = math.prod(mesh.shape[axis] for axis in rows)
    return Layout(functools.partial(_activation, mesh), rows, devices)


def axes_with_rows(mesh: Mesh) -> tuple[str, ...]:
    """The axes of a mesh along which devices have rows of their own."""
    return tuple(axis for axis in MESH_AXES["row"] if axis in mesh.shape)


def _activation(mesh: Mesh, axes: Sequence[str], shape: tuple[int, ...]) -> NamedSharding | None:
    """Where an activation with these axes lies; None, so that the compiler is free, if rows do not
    fit the devices that they would be spread over, or the mesh has no axes."""
    if not mesh.shape:  # jax refuses what vmap makes of a place on such a mesh
        return None
    spec, whole = _fitting(axes, shape, mesh)
    return None if any(axis == "row" for axis, *_ in whole) else NamedSharding(mesh, spec)


def kept_whole(
    state: PyTree, mesh: Mesh, *, rules: Sequence[Rule] = LEAVES, learners: bool | None = None
) -> list[str]:
    """One line for each dimension that would be spread, if its mesh axes divided it."""
    stacked = _are_learners(state) if learners is None else learners
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name, shape = _name(path), np.shape(leaf)
        for axis, size, over in _fitting(axes_of(name, shape, rules, stacked), shape, mesh)[1]:
            lines.append(f"{name}: {axis} = {size} is whole on the devices of {'x'.join(over)}")
    return lines


def axes_of(
    name: str, shape: tuple[int, ...], rules: Sequence[Rule] = LEAVES, stacked: bool = False
) -> tuple[str, ...]:
    """Names of an array's axes, by the end of its path and its rank.

    A single expert, taken out of its pool, has the pool's axes without the slots. Scalars have
    none. ``stacked`` arrays have ``learner`` in front.

    Raises:
      ConfigError: no rule names it, or one does that has other axes.
    """
    front: tuple[str, ...] = ("learner",) if stacked else ()
    rank = len(shape) - len(front)
    if rank == 0:
        return front
    axes = _axes_by_name(name, rules)
    if axes is None:
        remedy = f"no rule names it: add ({name.split('/')[-1]!r}, names of its axes) to the rules"
        raise ConfigError("sharding", f"{name} {list(shape)}", remedy)
    if rank == len(axes) - 1:
        axes = tuple(axis for axis in axes if axis != "slot")
    if rank != len(axes):
        remedy = f"its rule names the axes {', '.join(front + axes)}: add one of its rank before it"
        raise ConfigError("sharding", f"{name} {list(shape)}", remedy)
    return front + axes


def _axes_by_name(name: str, rules: Sequence[Rule]) -> tuple[str, ...] | None:
    if adapter := ADAPTER.match(name):
        kernel = _axes_by_name(adapter[1], rules)
        if kernel is None:
            return None
        *layers, fan_in, fan_out = kernel
        return (*layers, fan_in, "rank") if adapter[2] == "a" else (*layers, "rank", fan_out)
    return next((axes for end, axes in rules if re.search(rf"(^|/)({end})$", name)), None)


def _fitting(
    axes: Sequence[str], shape: tuple[int, ...], mesh: Mesh
) -> tuple[PartitionSpec, list[tuple[str, int, tuple[str, ...]]]]:
    """The spec, and (axis, size, mesh axes) of what they do not divide."""
    entries: list[Any] = []
    whole, used = [], set()
    for axis, size in zip(axes, shape, strict=True):
        if axis not in MESH_AXES:
            known = ", ".join(MESH_AXES)
            raise ConfigError("sharding", axis, f"name one of {known}")
        over = tuple(a for a in MESH_AXES[axis] if mesh.shape.get(a, 1) > 1 and a not in used)
        if over and size % math.prod(mesh.shape[a] for a in over):
            whole.append((axis, size, over))
            over = ()
        used |= set(over)
        entries.append(over[0] if len(over) == 1 else over or None)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries), whole


def shardings(state: PyTree, mesh: Mesh, specs: StateSpecs = state_specs) -> PyTree:
    """``NamedSharding`` of every array of a learner."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(state, mesh))


def place(state: PyTree, mesh: Mesh, specs: StateSpecs = state_specs) -> PyTree:
    """A copy of the learner, every array where ``specs`` puts it.

    With several processes all give the same learner.
    """
    # A device that has an array whole keeps its buffer: a step that donates what is placed would
    # take the original with it.
    return jax.device_put(jax.tree.map(jnp.copy, state), shardings(state, mesh, specs))


def born(
    make: Callable[..., PyTree], mesh: Mesh, *args: Any, specs: StateSpecs = state_specs
) -> PyTree:
    """``make(*args)``, made in its place: no device ever holds what is not its own.

    With several processes all give the same arguments.
    """
    shapes = jax.eval_shape(make, *args)
    args = placing.everywhere(args, mesh)
    return jax.jit(make, out_shardings=shardings(shapes, mesh, specs))(*args)


def placed_shapes(state: PyTree, mesh: Mesh, specs: StateSpecs = state_specs) -> PyTree:
    """Shapes with shardings, for restoring a checkpoint onto this mesh, whatever it was saved from.

    Args:
      state: arrays or shapes, see ``jax.eval_shape``.
    """
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        shardings(state, mesh, specs),
    )


def _are_learners(state: PyTree) -> bool:
    return np.ndim(getattr(state, "key", 0)) > 0


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
