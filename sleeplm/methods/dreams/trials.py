"""Dreams are tried: each by a LoRA copy of its own, all at once (section 6, step 3).

Dimension letters: T trials, B rows of one trial, L length, R rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sleeplm.core.layout import in_batches
from sleeplm.core.platform import platform
from sleeplm.core.shares import varying_as
from sleeplm.core.types import Array, Memory, Objective, Params, PyTree, Variables
from sleeplm.methods.adapters import beside, fresh_adapters
from sleeplm.models.transformer import Model


class Lesson(NamedTuple):
    """What a trial learns, and how.

    Attributes:
      rows: a memory [B, L].
      pace: float32 [steps], what the update of every step is multiplied by; after the last that is
        not 0 a trial stays as it is. None: 1 throughout.
    """

    rows: Memory
    pace: Array | None = None


class Trial(NamedTuple):
    """All that a trial has of its own: {"a", "b"} beside every matrix, and their moments."""

    adapters: PyTree
    moments: optax.OptState


def sharing_experts(model: Model) -> Model:
    """The model as many trials run it at once: its experts are multiplied as one pool for all.

    To be asked while the program is traced. What ``auto`` picks for one text on accelerators would
    copy experts for every trial: ``gather`` the chosen ones for each token, and ``grouped`` the
    whole pool, since ``lax.ragged_dot`` cannot be mapped over one of its operands alone. A
    ``dispatch`` that somebody has chosen stays.
    """
    if model.config.dispatch != "auto" or platform() == "cpu":
        return model
    return Model(dataclasses.replace(model.config, dispatch="dense"))


def begin(params: Params, update: optax.GradientTransformation, rank: int, key: Array) -> Trial:
    """A trial before its first step: adapters that add nothing yet."""
    adapters = fresh_adapters(params, rank, key)
    return Trial(adapters, update.init(adapters))


def attempt(
    objective: Objective,
    update: optax.GradientTransformation,
    *,
    rank: int,
    steps: int,
    batch: int = 0,
) -> Callable[[Variables, Memory | Lesson, Array], tuple[Trial, Array]]:
    """One isolated copy that is fine-tuned: theta' = SFT(theta, dream), with LoRA.

    Args:
      objective: runs on variables with adapters :func:`~sleeplm.methods.adapters.beside` them.
      update: over the adapters. rank: R.
      steps: taken. batch: rows of a step, which take turns; 0: all of them at every step.

    Returns:
      ``(variables, memory [B, L] or a Lesson, key) -> (trial, losses float32 [steps])``, losses
      before each step, in nats per token. The key draws the adapters. A memory without weight
      moves nothing.
    """
    update = optax.with_extra_args_support(update)

    def run(variables: Variables, given: Memory | Lesson, key: Array) -> tuple[Trial, Array]:
        memory, pace = given if isinstance(given, Lesson) else Lesson(given)
        count = len(memory.source)

        def loss_fn(adapters: PyTree, rows: Memory) -> Array:
            loss, weight, _ = objective(beside(variables, adapters), rows)
            return loss / jnp.maximum(weight, 1e-8)

        def step(trial: Trial, i: Array) -> tuple[Trial, Array]:
            rows = memory
            if 0 < batch < count:
                turn = (i * batch + jnp.arange(batch)) % count
                rows = jax.tree.map(lambda x: x[turn], memory)
            loss, grads = jax.value_and_grad(loss_fn)(trial.adapters, rows)
            updates, moments = update.update(grads, trial.moments, trial.adapters)
            if pace is not None:
                updates = jax.tree.map(lambda u: u * pace[i].astype(u.dtype), updates)
            return Trial(optax.apply_updates(trial.adapters, updates), moments), loss

        start = begin(variables["params"], update, rank, key)
        start = varying_as(start, (variables["params"], memory.tokens))
        return jax.lax.scan(step, start, jnp.arange(steps))

    return run


def attempts(
    objective: Objective,
    update: optax.GradientTransformation,
    *,
    rank: int,
    steps: int,
    at_once: int = 0,
    batch: int = 0,
) -> Callable[[Variables, Memory | Lesson, Array], tuple[Trial, Array]]:
    """T trials: every array of the memory and of the result has T in front, keys are [T].

    The variables are shared: mapped over are the adapters and their moments alone
    (``tests/methods/test_dream_trials.py`` looks for copies in the compiled program). What one
    more trial keeps is a :class:`Trial`; beside that it needs its activations.

    Args:
      at_once: trials of one batch; 0: all, 1: one after the other.
      batch: see :func:`attempt`.
    """
    one = attempt(objective, update, rank=rank, steps=steps, batch=batch)

    def run(variables: Variables, memory: Memory | Lesson, keys: Array) -> tuple[Trial, Array]:
        def with_key(pair: tuple[Memory | Lesson, Array]) -> tuple[Trial, Array]:
            return one(variables, *pair)

        return in_batches(with_key, (memory, keys), at_once)

    return run
