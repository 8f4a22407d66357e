"""LoRA beside a frozen backbone (arXiv:2106.09685): as a control, and for trials of dreams.

``params["adapters"]`` mirrors ``params["blocks"]`` down to every matrix [N, in, out], which has
{"a" [N, in, R], "b" [N, R, out]} there. The model never sees them there. :func:`merged` adds their
products to the matrices before it runs: best for one adapter and many tokens. :func:`beside` puts
them next to their matrices, so that many adapters share these: best where each has few tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sleeplm.core.types import Array, Objective, Params, PyTree, Variables

ADAPTERS = "adapters"


def with_adapters(params: Params, rank: int, key: Array, name: str = ADAPTERS) -> Params:
    """``params`` with :func:`fresh_adapters` as ``params[name]``."""
    return {**params, name: fresh_adapters(params, rank, key)}


def fresh_adapters(params: Params, rank: int, key: Array) -> PyTree:
    """An adapter of rank R for every matrix of the blocks: A random, B zero.

    All A are cut out of one draw: a draw of its own for each of 28 matrices took a quarter of the
    time that sixty trials compile.
    """
    kernels, places = jax.tree.flatten(_kernels(params["blocks"]))
    sizes = [layers * fan_in * rank for layers, fan_in, _ in (k.shape for k in kernels)]
    drawn = jax.random.normal(key, (sum(sizes),), jnp.float32)
    parts = jnp.split(drawn, list(itertools.accumulate(sizes))[:-1])
    each = zip(kernels, parts, strict=True)
    return jax.tree.unflatten(places, [_adapter(kernel, rank, part) for kernel, part in each])


def _kernels(node: PyTree) -> PyTree:
    """The tree below ``node`` with its matrices alone."""
    if not isinstance(node, dict):
        return {}
    below = {name: child if name == "kernel" else _kernels(child) for name, child in node.items()}
    return {name: child for name, child in below.items() if name == "kernel" or child}


def _adapter(kernel: Array, rank: int, drawn: Array) -> dict[str, Array]:
    """An adapter whose A has the numbers ``drawn``, float32 [N * in * R], of unit variance."""
    layers, fan_in, fan_out = kernel.shape
    wide = jnp.promote_types(kernel.dtype, jnp.float32)  # small steps vanish in narrower types
    a = drawn.reshape(layers, fan_in, rank) * fan_in**-0.5
    return {"a": a.astype(wide), "b": jnp.zeros((layers, rank, fan_out), wide)}


def merged(variables: Variables) -> Variables:
    """Variables whose matrices have their adapters added, W + A B; without any, as they are."""
    params = variables["params"]
    if ADAPTERS not in params:
        return variables

    def add(node: PyTree, adapters: Any) -> PyTree:
        if adapters is None:
            return node
        if not isinstance(node, dict):
            low = jnp.einsum("nir,nro->nio", adapters["a"], adapters["b"])
            return (node + low).astype(node.dtype)
        return {name: add(child, adapters.get(name)) for name, child in node.items()}

    rest = {name: leaf for name, leaf in params.items() if name != ADAPTERS}
    return {**variables, "params": {**rest, "blocks": add(params["blocks"], params[ADAPTERS])}}


def beside(variables: Variables, adapters: PyTree) -> Variables:
    """Variables in which every matrix has its adapter next to it: the model runs x W + (x A) B.

    No matrix is copied: mapped over adapters alone, all of them share every W, also in the
    gradient of the adapters. Adapters that already stand there are replaced.
    """

    def put(node: PyTree, mine: Any) -> PyTree:
        if mine is None or not isinstance(node, dict):
            return node
        both = {name: put(child, mine.get(name)) for name, child in node.items()}
        return {**both, "adapter": mine["kernel"]} if "kernel" in mine else both

    params = variables["params"]
    return {**variables, "params": {**params, "blocks": put(params["blocks"], adapters)}}


def adapted(objective: Objective) -> Objective:
    """The objective on the merged variables, so that gradients reach the adapters."""
    return lambda variables, memory: objective(merged(variables), memory)


def in_adapters(name: str = ADAPTERS) -> Callable[[tuple], bool]:
    """Predicate on key paths: the adapters that stand in ``params[name]``."""
    return lambda path: getattr(path[0], "key", None) == name
