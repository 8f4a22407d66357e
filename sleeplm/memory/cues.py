"""A small reservoir of cues: short prefixes from which the model can re-tell what it knows.

A cue is a few tokens, never an answer. The reservoir is part of the learner and its bytes are
counted. Replacement is reservoir sampling by random priorities within each day, with equal room
for every day: among the cues of a day, each is kept with equal chance.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sleeplm.core.types import Array

EMPTY = -2  # day of an unused entry
BEFORE = -1  # day of cues known from before the first day
FEW = 4096  # entries that are compared in pairs

GOLDEN = 0.6180339887498949  # strides that fill [0, 1) evenly, and independently of each other
SILVER = 0.41421356237309503

#: Days that cues are drawn from: ``past`` is every earlier day and what came before the first,
#: ``lived`` and ``before`` are its two halves; ``none`` is the begin of text only.
SOURCES = ("today", "past", "lived", "before", "all", "none")


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
    """Offers new cues. If not all fit, every day gives up its own until the days are even.

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
    # Place among the cues of the same day, by priority: the first places of all days are kept.
    better = (both.day[:, None] == both.day[None]) & (both.priority[None] > both.priority[:, None])
    place = jnp.where(both.day == EMPTY, len(both.day), better.sum(1))
    order = jnp.argsort(place, stable=True)[:capacity]
    return jax.tree.map(lambda x: x[order], both)


def draw(
    cues: Cues,
    source: str,
    today: Array,
    rows: Array,
    key: Array,
    uncued: Array | float = 0.0,
    balance: Array | float = 0.0,
) -> tuple[Array, Array]:
    """Cues for numbered rows: days by how many cues they have left, every cue of a day alike.

    Rows walk over the eligible cues in equal strides (the golden ratio), so that any number of
    consecutive rows covers them evenly. All that came before the first day counts as one day.

    Args:
      source: one of :data:`SOURCES`.
      today: int32 scalar. rows: int32 [B], global row numbers, so that sharded rows agree.
      uncued: share of rows that get the begin-of-text token only, whatever the source.
      balance: a day of n cues is drawn in proportion to n**balance: 0 draws every day equally
        often, 1 every cue.

    Returns:
      tokens int32 [B, C] and lengths int32 [B]; the bare first token where nothing is eligible.
    """
    eligible = {
        "today": cues.day == today,
        "past": (cues.day != EMPTY) & (cues.day < today),
        "lived": (cues.day >= 0) & (cues.day < today),
        "before": cues.day == BEFORE,
        "all": cues.day != EMPTY,
        "none": jnp.zeros_like(cues.day, bool),
    }[source]
    many = jnp.maximum(_of_same_day(cues.day, eligible), 1).astype(jnp.float32)
    share = jnp.where(eligible, many ** (balance - 1.0), 0.0)
    shuffle_key, start_key = jax.random.split(key)
    order = jax.random.permutation(shuffle_key, len(share))
    edges = jnp.cumsum(share[order])
    place = (jax.random.uniform(start_key) + _stride(rows, GOLDEN)) % 1.0 * edges[-1]
    place = jnp.minimum(place, jnp.nextafter(edges[-1], 0.0))  # rounding must not step outside
    picked = order[jnp.minimum(jnp.searchsorted(edges, place, side="right"), len(share) - 1)]
    bare = ~eligible.any() | (_stride(rows, SILVER) < uncued)
    length = jnp.where(bare, 1, cues.length[picked])
    kept = jnp.arange(cues.tokens.shape[1]) < length[:, None]
    return jnp.where(kept, cues.tokens[picked], 0), length


def _of_same_day(day: Array, eligible: Array) -> Array:
    """int32 [M]: for each entry, how many eligible ones are of its day."""
    if len(day) <= FEW:
        return ((day[:, None] == day[None]) & eligible[None]).sum(1)
    # An archive of raw texts has tens of thousands of rows: all pairs of them took most of a night.
    days = jnp.sort(jnp.where(eligible, day, EMPTY))
    last, first = (jnp.searchsorted(days, day, side=side) for side in ("right", "left"))
    return jnp.where(day == EMPTY, 0, last - first)


def _stride(rows: Array, stride: float) -> Array:
    """float32, the fraction of ``rows * stride``: exact to 32 bits however large the number is."""
    turns = rows.astype(jnp.uint32) * jnp.uint32(round(stride * 2**32))
    return turns.astype(jnp.float32) * 2.0**-32
