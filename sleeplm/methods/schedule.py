"""When to sleep: by the clock, after every day, by surprise, or when the fast level is full.

The paper sleeps by the clock (section 4). The last two look at the stream's next batch *before*
it is absorbed: new things arrive when its loss jumps above what recent batches led one to expect,
and what the fast level holds had better be moved before they overwrite it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sleeplm.core import checks, tree
from sleeplm.core.types import Array, Metrics, Params, Phase, PyTree, State
from sleeplm.memory.anchors import BASE, parts_of
from sleeplm.methods.extract import wake_batch
from sleeplm.methods.objectives import language_model
from sleeplm.models.transformer import Model

WHEN = ("clock", "day_end", "surprise", "fill")


@dataclasses.dataclass
class ScheduleConfig:
    """When the fastest level that has nights is consolidated.

    Attributes:
      when: ``clock`` every ``night`` steps of the level; ``day_end`` after every day, however long
        it was (a slower level as many times more rarely as its ``night`` is longer); ``surprise``
        when the next batch's loss
        exceeds ``ratio`` times its forecast; ``fill`` when the level has moved more than ``most``
        since its last night.
      ratio: of loss to forecast. decay: of the running forecast, per look.
      most: root mean square of a parameter's way since dawn.
      shortest, longest: wake steps between two nights, at least and at most (0: no limit).
      nights: of the whole life, the one at its end included: by the clock as many, evenly spaced,
        by surprise and fill at most; 0: no limit.
    """

    when: str = "clock"
    ratio: float = 1.5
    decay: float = 0.5
    most: float = 0.05
    shortest: int = 30
    longest: int = 0
    nights: int = 0

    def check(self, field: str) -> None:
        checks.one_of(f"{field}.when", self.when, WHEN)
        for name in ("ratio", "most"):
            checks.positive(f"{field}.{name}", getattr(self, name))
        checks.fraction(f"{field}.decay", self.decay)
        for name in ("shortest", "longest", "nights"):
            checks.integer(f"{field}.{name}", getattr(self, name))
            checks.at_least(f"{field}.{name}", getattr(self, name), 0)
        checks.require(
            self.longest == 0 or self.longest >= self.shortest,
            f"{field}.longest",
            self.longest,
            f"use 0 or at least shortest ({self.shortest})",
        )


def look(model: Model, config: ScheduleConfig, sender: str, chunk: int = 128) -> Phase:
    """Decides whether to sleep before the next batch is absorbed: sets ``counters["asleep"]``.

    The batch is {"tokens", "segments" int32 [B, L] (the next wake batch), "last" bool: nothing
    follows, sleep if anything is left to move}. Private state: {"forecast", "since", "slept"}.
    """
    objective, read = language_model(model, chunk), wake_batch()

    def init(params: Params, key: Array) -> PyTree:
        del params, key
        return {"forecast": jnp.float32(jnp.nan), "since": jnp.int32(0), "slept": jnp.int32(0)}

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        memory, _ = read.extract(state.variables, (), batch, key)
        total, weight, _ = objective(state.variables, memory)
        loss = total / jnp.maximum(weight, 1.0)
        private = state.private
        forecast, slept = private["forecast"], private["slept"]
        since = state.counters["step"] - private["since"]
        surprise = jnp.where(jnp.isnan(forecast), 1.0, loss / jnp.maximum(forecast, 1e-6))
        filled = _way(state, sender)
        wanted = surprise > config.ratio if config.when == "surprise" else filled > config.most
        wanted = wanted & (since >= config.shortest)
        if config.longest:
            wanted = wanted | (since >= config.longest)
        room = jnp.bool_(True) if config.nights == 0 else slept < config.nights - 1
        last = batch["last"] & (since > 0)
        asleep = jnp.where(batch["last"], last, wanted & room & (since > 0))
        # After a night the level is empty, and what comes is as new as this batch.
        mixed = config.decay * forecast + (1.0 - config.decay) * loss
        private = {
            "forecast": jnp.where(asleep | jnp.isnan(forecast), loss, mixed),
            "since": jnp.where(asleep, state.counters["step"], private["since"]),
            "slept": slept + asleep.astype(jnp.int32),
        }
        one = jnp.ones(())
        metrics = {
            "surprise": (surprise, one),
            "fill": (filled, one),
            "sleeps": (asleep * 1.0, one),
        }
        counters = {**state.counters, "asleep": asleep.astype(jnp.int32)}
        return state.replace(private=private, counters=counters), metrics

    return Phase(init, step)


def _way(state: State, sender: str) -> Array:
    """Root mean square of how far the sender's MLP has come since dawn."""
    now, dawn = parts_of(state.params, sender, BASE), state.anchors[sender].dawn
    gone = jax.tree.map(jnp.subtract, now, {part: dawn[part] for part in BASE})
    return optax.global_norm(gone) / tree.size(gone) ** 0.5


def masked(flag: str, step: Callable) -> Callable:
    """The step, done only by learners whose counter ``flag`` is set; others keep every bit."""

    def run(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        go = state.counters[flag] > 0
        new, metrics = step(state, batch, key)
        return tree.where(go, new, state), jax.tree.map(
            lambda x: jnp.where(go, x, jnp.zeros_like(x)), metrics
        )

    return run
