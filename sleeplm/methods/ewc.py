"""Elastic weight consolidation, as a control (arXiv:1612.00796, its online form 1805.06370).

Awake, the loss has a quadratic penalty around where the last night left the parameters; at night
the diagonal of the empirical Fisher information of today's texts is added to what is protected.
Pretraining is the first of the tasks: its Fisher information is measured before the first day.
Both live in ``anchors["ewc"]`` = {"fisher", "star"}, trees of the shape of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sleeplm.core.types import (
    Array,
    Extract,
    Memory,
    Metrics,
    Objective,
    Params,
    Phase,
    PyTree,
    State,
    Variables,
)

EWC = "ewc"


def nothing_protected(params: Params) -> dict[str, PyTree]:
    """The anchor of a newborn learner."""
    return {"fisher": jax.tree.map(jnp.zeros_like, params), "star": jax.tree.map(jnp.copy, params)}


def anchored(objective: Objective, strength: Array | float) -> Objective:
    """objective + strength / 2 * sum_i F_i (theta_i - theta*_i)^2 per token of weight."""

    def penalised(variables: Variables, memory: Memory):
        loss, weight, aux = objective(variables, memory)
        anchor = variables["anchors"][EWC]
        terms = jax.tree.map(
            lambda f, now, then: jnp.sum(f * jnp.square(now - then)),
            anchor["fisher"],
            variables["params"],
            anchor["star"],
        )
        penalty = 0.5 * strength * sum(jax.tree.leaves(terms))
        one = jnp.ones(())
        return loss + weight * penalty, weight, {**aux, "penalty": (penalty, one)}

    return penalised


def fisher(extract: Extract, objective: Objective) -> Phase:
    """Adds squared gradients of single rows to the phase's private sum: one step of the night.

    Private state: {"extract", "squares" (tree of the parameters), "rows" float32}.
    """

    def init(params: Params, key: Array) -> PyTree:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"extract": extract.init(params, key), "squares": zeros, "rows": jnp.zeros(())}

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        private = state.private
        memory, kept = extract.extract(state.variables, private["extract"], batch, key)

        def of_row(memory: Memory) -> PyTree:
            def loss(params: Params) -> Array:
                row = jax.tree.map(lambda x: x[None], memory)
                return objective({**state.variables, "params": params}, row)[0]

            return jax.tree.map(jnp.square, jax.grad(loss)(state.params))

        def add(total: PyTree, memory: Memory) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, of_row(memory)), None

        squares, _ = jax.lax.scan(add, private["squares"], memory)
        rows = private["rows"] + memory.tokens.shape[0]
        private = {"extract": kept, "squares": squares, "rows": rows}
        norm = sum(x.sum() for x in jax.tree.leaves(squares)) / rows
        return state.replace(private=private), {"fisher_trace": (norm, jnp.ones(()))}

    return Phase(init, step)


def protect() -> Callable[[State, PyTree, Array], tuple[State, Metrics]]:
    """The end of the night: what was measured is protected from now on, around here.

    With ``batch["day"]`` below 0 it was no night of a day, and is not counted as one.
    """

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        del key
        private, anchor = state.private, state.anchors[EWC]
        rows = jnp.maximum(private["rows"], 1.0)
        total = jax.tree.map(lambda f, s: f + s / rows, anchor["fisher"], private["squares"])
        star = jax.tree.map(jnp.copy, state.params)
        empty = jax.tree.map(jnp.zeros_like, private["squares"])
        lived = jnp.int32(batch.get("day", 0) >= 0)
        counted = {name: state.counters[name] + lived for name in ("nights", "today")}
        return state.replace(
            anchors={**state.anchors, EWC: {"fisher": total, "star": star}},
            private={**private, "squares": empty, "rows": jnp.zeros(())},
            counters={**state.counters, **counted},
        ), {}

    return step
