"""A small reservoir of cues: short prefixes from which the model can re-tell what it knows.

A cue is a few tokens, never an answer. The reservoir is part of the learner and its bytes are
counted. Replacement is reservoir sampling by random priorities: whatever was offered, each cue
was kept with equal chance.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sleeplm.core.types import Array

EMPTY = -2  # day of an unused entry
BEFORE = -1  # day of cues known from before the first day

SOURCES = ("today", "past", "all", "none")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cues:
    """The reservoir.

    Attributes:
      tokens: int32 [M, C], left-aligned, each starting with the begin-of-text token.
      length: int32 [M], at least 1.
      day: int32 [M]; -1 before the first day, -2 unused.
      priority: float32 [M], the larger the longer it stays.
    """

    tokens: Array
    length: Array
    day: Array
    priority: Array

    @property
    def nbytes(self) -> int:
        """Bytes of what is remembered (tokens and lengths)."""
        return self.tokens.size * 4 + self.length.size * 4


def empty_cues(capacity: int, width: int, bos: int) -> Cues:
    """A reservoir without entries; every row reads as the bare begin-of-text token."""
    tokens = jnp.zeros((capacity, width), jnp.int32).at[:, 0].set(bos)
    return Cues(
        tokens=tokens,
        length=jnp.ones((capacity,), jnp.int32),
        day=jnp.full((capacity,), EMPTY, jnp.int32),
        priority=jnp.full((capacity,), -1.0, jnp.float32),
    )


def remember(cues: Cues, tokens: Array, length: Array, day: Array, key: Array) -> Cues:
    """Offers new cues; the reservoir keeps the M of highest priority among old and new.

    Args:
      tokens: int32 [n, C]. length: int32 [n]; rows of length 0 are not offered.
      day: int32 scalar. key: draws the new priorities, uniform in [0, 1).
    """
    capacity = cues.length.shape[0]
    priority = jax.random.uniform(key, length.shape)
    new = Cues(
        tokens=tokens,
        length=jnp.maximum(length, 1),
        day=jnp.where(length > 0, day, EMPTY).astype(jnp.int32),
        priority=jnp.where(length > 0, priority, -1.0),
    )
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cues, new)
    order = jnp.argsort(-both.priority, stable=True)[:capacity]
    return jax.tree.map(lambda x: x[order], both)


def draw(cues: Cues, source: str, today: Array, rows: Array, key: Array) -> tuple[Array, Array]:
    """Cues for numbered rows: every eligible cue equally often, in an order drawn from ``key``.

    Args:
      source: ``today``, ``past`` (every earlier day), ``all`` or ``none`` (begin of text only).
      today: int32 scalar. rows: int32 [B], global row numbers, so that sharded rows agree.

    Returns:
      tokens int32 [B, C] and lengths int32 [B]; the bare first token where nothing is eligible.
    """
    eligible = {
        "today": cues.day == today,
        "past": (cues.day != EMPTY) & (cues.day < today),
        "all": cues.day != EMPTY,
        "none": jnp.zeros_like(cues.day, bool),
    }[source]
    noise = jax.random.uniform(key, eligible.shape)
    order = jnp.argsort(jnp.where(eligible, noise, 2.0 + noise))
    count = eligible.sum()
    picked = order[rows % jnp.maximum(count, 1)]
    length = jnp.where(count > 0, cues.length[picked], 1)
    return cues.tokens[picked], length
