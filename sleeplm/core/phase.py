"""Phases and how they are put together.

``consolidate(extract, objective, update)`` is the one learning step there is: wake, seeding and
dreaming differ only in what they extract, what they ask of it and what they let move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sleeplm.core import tree
from sleeplm.core.checks import require
from sleeplm.core.errors import ConfigError
from sleeplm.core.shares import Axis, summed, varying
from sleeplm.core.types import Array, Extract, Metrics, Objective, Phase, PyTree, State


class Learning(NamedTuple):
    """Private state of :func:`consolidate`: what extraction and update keep between steps."""

    extract: PyTree
    update: optax.OptState


def _everything(path: tuple) -> bool:
    del path
    return True


def consolidate(
    extract: Extract,
    objective: Objective,
    update: optax.GradientTransformation,
    *,
    trainable: Callable[[tuple], bool] = _everything,
    extra: Callable[[State], dict[str, PyTree]] | None = None,
    inner: int = 1,
    epochs: int = 1,
    axis_name: Axis = None,
) -> Phase:
    """A learning phase from a memory-extraction and a parameter-update transform.

    One step extracts a :class:`Memory` of ``inner`` minibatches, then takes ``inner * epochs``
    updates on them. All numbers are sums until the last division, so that any way of spreading
    rows over devices gives the same step. A loss, gradient or update that is not finite leaves
    parameters and update state as they were and adds one to ``counters["skipped"]``; so does,
    uncounted, a minibatch without weight, of which there is nothing to learn.

    Of several updates, metrics also say how the first one with anything to learn found the
    parameters (``first_loss``, ``first_divergence``), and whether the last one was refused
    (``last_skipped``).

    Args:
      extract: makes the memory; its rows are ``inner`` consecutive groups of minibatch rows.
      objective: ``(variables, memory) -> (loss_sum, weight_sum, aux)``.
      update: an optax transform over the trainable subtree.
      trainable: static predicate on key paths; nothing else has gradients or optimiser state.
      extra: extra arguments for ``update``, read off the state; ``step`` is always given.
      inner: minibatches per extraction. epochs: passes over them.
      axis_name: mapped axis to sum over inside ``shard_map`` or ``pmap``; None under ``jit``.
    """
    if inner < 1 or epochs < 1:
        raise ConfigError("inner, epochs", (inner, epochs), "take at least one update")
    update = optax.with_extra_args_support(update)

    def init(params: PyTree, key: Array) -> Learning:
        chosen, _ = tree.split(params, trainable)
        return Learning(extract.init(params, key), update.init(chosen))

    def learn(state: State, memory) -> tuple[State, Metrics]:
        chosen, rest = tree.split(state.params, trainable)

        def loss_fn(chosen: PyTree):
            variables = {**state.variables, "params": tree.merge(chosen, rest)}
            loss, weight, aux = objective(variables, memory)
            return loss, (weight, aux)

        (loss, (weight, aux)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            varying(chosen, axis_name)
        )
        loss, weight, aux, grads = summed((loss, weight, aux, grads), axis_name)
        grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-8).astype(g.dtype), grads)
        norm = optax.global_norm(grads)
        ok = jnp.isfinite(loss) & jnp.isfinite(norm)
        arguments = {"step": state.counters["step"], **(extra(state) if extra else {})}
        old = state.private.update
        updates, new = update.update(grads, old, chosen, **arguments)
        ok = ok & jnp.isfinite(optax.global_norm(updates))
        learned = ok & (weight > 0)  # else momentum alone would move them
        moved = optax.apply_updates(chosen, updates)
        counters = {**state.counters, "skipped": state.counters["skipped"] + jnp.where(ok, 0, 1)}
        state = state.replace(
            params=tree.merge(tree.where(learned, moved, chosen), rest),
            private=state.private._replace(update=tree.where(learned, new, old)),
            counters=counters,
        )
        one = jnp.where(ok, 1.0, 0.0)
        metrics = {
            "loss": (jnp.where(ok, loss, 0.0), jnp.where(ok, weight, 0.0)),
            "gradient_norm": (jnp.where(ok, norm, 0.0), one),
            "skipped": (1.0 - one, jnp.ones(())),
            **{k: (jnp.where(ok, s, 0.0), jnp.where(ok, w, 0.0)) for k, (s, w) in aux.items()},
        }
        return state, metrics

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        memory, kept = extract.extract(state.variables, state.private.extract, batch, key)
        state = state.replace(private=state.private._replace(extract=kept))
        if inner * epochs == 1:
            return learn(state, memory)
        rows = len(memory.tokens)
        remedy = f"must divide the rows of a memory ({rows}) into minibatches"
        require(rows % inner == 0, "inner", inner, remedy)
        groups = jax.tree.map(lambda x: jnp.asarray(x).reshape(inner, -1, *x.shape[1:]), memory)

        def take(state: State, i: Array):
            return learn(state, jax.tree.map(lambda x: x[i], groups))

        state, each = jax.lax.scan(take, state, jnp.tile(jnp.arange(inner), epochs))
        metrics = jax.tree.map(lambda x: x.sum(0), each)
        # The first update's values are those of the parameters that the step began with, as are
        # those of the first that had anything to learn.
        first = jnp.argmax(each["loss"][1] > 0)
        firsts = {
            f"first_{k}": jax.tree.map(lambda x: x[first], each[k])
            for k in ("loss", "divergence")
            if k in each
        }
        last = {"last_skipped": jax.tree.map(lambda x: x[-1], each["skipped"])}
        return state, metrics | firsts | last

    return Phase(init, step)


def add_metrics(*parts: Metrics) -> Metrics:
    """Metrics of several steps as one: sums and weights of the same name are added."""
    out: Metrics = {}
    for part in parts:
        for name, (total, weight) in part.items():
            old = out.get(name)
            out[name] = (total, weight) if old is None else (old[0] + total, old[1] + weight)
    return out


def scope(step: Callable, *path: str) -> Callable:
    """The step, run on the part of a learner's private state that lies under ``path``.

    A learner keeps the private states of its phases in nested dicts; a phase sees its own only.
    """

    def get(private: PyTree) -> PyTree:
        for name in path:
            private = private[name]
        return private

    def put(private: PyTree, names: tuple[str, ...], value: PyTree) -> PyTree:
        if not names:
            return value
        return {**private, names[0]: put(private[names[0]], names[1:], value)}

    def scoped(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        outside = state.private
        state, metrics = step(state.replace(private=get(outside)), batch, key)
        return state.replace(private=put(outside, path, state.private)), metrics

    return scoped


def from_function(step: Callable[[State, PyTree, Array], tuple[State, Metrics]]) -> Phase:
    """A phase without private state."""
    return Phase(lambda params, key: (), step)


def chain(*phases: Phase) -> Phase:
    """Does the phases one after the other on the same batch, each with its own private state."""

    def init(params: PyTree, key: Array) -> tuple:
        return tuple(p.init(params, jax.random.fold_in(key, i)) for i, p in enumerate(phases))

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        private, metrics = list(state.private), []
        for i, phase in enumerate(phases):
            inner = state.replace(private=private[i])
            inner, part = phase.step(inner, batch, jax.random.fold_in(key, i))
            private[i] = inner.private
            state = inner
            metrics.append(part)
        return state.replace(private=tuple(private)), add_metrics(*metrics)

    return Phase(init, step)


def when(condition: Callable[[State, PyTree], Array], phase: Phase) -> Phase:
    """Does the phase if ``condition(state, batch)``; else nothing moves and metrics weigh 0."""

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        shapes = jax.eval_shape(phase.step, state, batch, key)[1]

        def skip(state: State):
            return state, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        return jax.lax.cond(
            condition(state, batch), lambda s: phase.step(s, batch, key), skip, state
        )

    return Phase(phase.init, step)


def every(period: int, phase: Phase, counter: str = "step") -> Phase:
    """Does the phase when ``counters[counter]`` is a multiple of ``period``."""
    if period < 1:
        raise ConfigError("period", period, "use 1 or more")
    return when(lambda state, batch: state.counters[counter] % period == 0, phase)


def repeat(times: int, phase: Phase) -> Phase:
    """Does the phase ``times`` times in one ``lax.scan``; the batch has ``times`` in front."""
    if times < 1:
        raise ConfigError("times", times, "use 1 or more")

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        def body(state: State, item):
            i, part = item
            return phase.step(state, part, jax.random.fold_in(key, i))

        state, metrics = jax.lax.scan(body, state, (jnp.arange(times), batch))
        return state, jax.tree.map(lambda x: x.sum(0), metrics)

    return Phase(phase.init, step)


def tick(counter: str) -> Phase:
    """Adds one to a counter."""

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        del batch, key
        counters = {**state.counters, counter: state.counters[counter] + 1}
        return state.replace(counters=counters), {}

    return from_function(step)
