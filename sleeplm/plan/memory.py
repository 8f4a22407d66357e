"""Bytes on one chip, by what they are."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from sleeplm.core.types import PyTree, State
from sleeplm.memory.levels import label_of

#: What a learner's arrays are: the frozen model; the MLPs of its levels; experts and routers;
#: accumulators and moments; earlier states of senders, who teach; ledgers, cues and counters; and
#: what a step is given.
KINDS = (
    "parameters", "levels", "experts", "optimiser", "teachers", "ledgers", "batch",
)  # fmt: skip


def nbytes(x: Any) -> int:
    """Bytes of a shape on one chip: of its shard, if it says where it lies."""
    sharding = getattr(x, "sharding", None)
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, x.dtype))
        shape = x.shape
    return math.prod(shape) * x.dtype.itemsize


def by_kind(state: PyTree, batch: PyTree) -> dict[str, int]:
    """Bytes on one chip of a program's arguments, see :data:`KINDS`.

    Args:
      state: shapes, with shardings, of a learner or of its variables. batch: of a batch.
    """
    parts = vars(state) if isinstance(state, State) else dict(state)
    found = dict.fromkeys(KINDS, 0)
    for name, part in parts.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            found[_kind(name, path)] += nbytes(leaf)
    found["batch"] = sum(nbytes(leaf) for leaf in jax.tree.leaves(batch))
    return found


def _kind(name: str, path: tuple) -> str:
    if name != "params":
        return {"private": "optimiser", "anchors": "teachers"}.get(name, "ledgers")
    label = label_of(path)
    if label == "backbone":
        return "parameters"
    return "levels" if label.endswith("/base") else "experts"
