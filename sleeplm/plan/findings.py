"""What in a compiled program should not be there."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from sleeplm.core.types import PyTree, State
from sleeplm.plan.collectives import Collective
from sleeplm.plan.memory import nbytes
from sleeplm.plan.roofline import Bound

#: Share of a chip's memory from which on an array that every chip holds whole is worth a word.
LARGE = 0.005
#: Sums over chips that are always there: losses, weights, norms.
SMALL = 2**20
SUMS = ("all-reduce", "reduce-scatter")


def large_whole(state: PyTree, memory: float) -> tuple[str, ...]:
    """Arrays that every chip holds whole, and that take more than ``LARGE`` of its memory.

    Args:
      state: shapes with shardings. memory: bytes of a chip.
    """
    lines = []
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        whole = len(x.sharding.device_set) > 1 and x.sharding.is_fully_replicated
        if whole and nbytes(x) > LARGE * memory:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            lines.append(f"{name} {list(x.shape)} is whole on every chip: {nbytes(x):,} bytes")
    return tuple(lines)


def unexpected(
    collectives: Sequence[Collective], state: PyTree, gradient: float
) -> tuple[str, ...]:
    """Collectives that no step needs, the largest first.

    A step gathers one layer's matrix at a time, or the embedding. It sums over chips that have
    other rows no more than the gradient of what is trained. What it moves between chips of
    ``tensor`` are activations, of any size.

    Args:
      state: shapes of a learner or of its variables.
      gradient: bytes of the gradients of one call, over all its updates.
    """
    params = state.params if isinstance(state, State) else state["params"]
    largest = _largest(params)
    lines = []
    for c in sorted(collectives, key=lambda c: -c.sent):
        over_rows = "tensor" not in c.axis
        where = f"{c.kind} of {c.nbytes:,.0f} bytes over {c.axis}, {c.times} times: {c.origin}"
        if c.axis == "?":
            lines.append(f"joins chips that are no axis of the mesh: {where}")
        elif c.kind == "all-gather" and over_rows and c.nbytes > largest:
            lines.append(f"gathers more than one matrix: {where}")
        elif c.kind in SUMS and over_rows and c.nbytes * c.times > max(gradient, SMALL):
            lines.append(f"sums more than the gradient: {where}")
    return tuple(lines)


def waiting(bound: Bound) -> tuple[str, ...]:
    """Says so where bytes over the links take more than twice as long as all products."""
    if bound.links <= 2 * bound.compute:
        return ()
    times = bound.links / max(bound.compute, 1e-30)
    remedy = "generation gathers matrices for every token: cut them instead (mesh.tensor)"
    return (f"links take {times:.3g} times as long as products; {remedy}",)


def _largest(params: PyTree) -> float:
    """Bytes of the largest matrix of one layer, or of the embedding, in float32."""
    layers = max(x.size / x.shape[0] for x in jax.tree.leaves(params["blocks"]))
    rest = [x.size for name, x in params.items() if name != "blocks" and hasattr(x, "size")]
    return 4.0 * max(layers, *rest)
