"""Before life: ordinary language-model training of the backbone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from sleeplm.core import checks
from sleeplm.core.phase import chain, consolidate, tick
from sleeplm.core.types import Array, Extract, Params, Phase, State
from sleeplm.methods.extract import wake_batch
from sleeplm.methods.objectives import language_model
from sleeplm.models.transformer import Model


@dataclasses.dataclass
class PretrainConfig:
    """Pretraining by AdamW with warm-up and cosine decay.

    Attributes:
      steps: updates. batch: rows of L = ``length`` packed positions each.
      warmup: steps to the peak ``learning_rate``; it ends at ``final`` of the peak.
      chunk: steps per compiled call (and per line of progress); divides ``steps``.
      clip: global gradient norm.
    """

    steps: int = 600
    batch: int = 32
    length: int = 64
    learning_rate: float = 3e-3
    warmup: int = 20
    final: float = 0.02
    weight_decay: float = 0.01
    clip: float = 1.0
    chunk: int = 20

    def check(self, field: str) -> None:
        for name in ("steps", "batch", "length", "chunk"):
            checks.positive_integer(f"{field}.{name}", getattr(self, name))
        checks.positive(f"{field}.learning_rate", self.learning_rate)
        checks.in_range(f"{field}.warmup", self.warmup, 0, self.steps - 1)
        checks.fraction(f"{field}.final", self.final)
        checks.at_least(f"{field}.weight_decay", self.weight_decay, 0)
        checks.positive(f"{field}.clip", self.clip)
        checks.divides(f"{field}.chunk", self.chunk, self.steps, f"{field}.steps")


def pretrain(model: Model, config: PretrainConfig, extract: Extract | None = None) -> Phase:
    """One step on a batch {"tokens", "segments"}; every parameter moves.

    Args:
      extract: which tokens are learned; None: all of them.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        config.warmup,
        config.steps,
        config.learning_rate * config.final,
    )
    update = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, b2=0.95, weight_decay=config.weight_decay),
    )
    learn = consolidate(extract or wake_batch(), language_model(model), update)
    return chain(learn, tick("step"))


def newborn(model: Model, phase: Phase, params: Params, key: Array) -> State:
    """A state around ``params`` that lives through ``phase`` only: no anchors, no cues."""
    return State(
        params=params,
        slots=model.init_slots(),
        anchors={},
        cues=(),
        private=phase.init(params, key),
        counters={"step": jnp.int32(0), "skipped": jnp.int32(0)},
        key=jax.random.fold_in(key, 1),
    )
