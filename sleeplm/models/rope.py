"""Rotary positions: how fast each pair of coordinates turns, and what turning does to it."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from sleeplm.core import checks
from sleeplm.core.types import Array

KINDS = ("none", "linear", "llama3")


@dataclasses.dataclass
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those trained on.

    Attributes:
      kind: ``none``; ``linear`` divides all frequencies by ``factor`` (position interpolation);
        ``llama3`` (Llama 3.1 and later) divides those whose wavelength exceeds
        ``original_len / low_freq_factor``, keeps those below ``original_len / high_freq_factor``,
        and blends in between.
      factor: of the stretch. original_len: context length before it.
    """

    kind: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_len: int = 8192

    def check(self, field: str) -> None:
        checks.one_of(f"{field}.kind", self.kind, KINDS)
        checks.positive(f"{field}.factor", self.factor)
        checks.positive(f"{field}.low_freq_factor", self.low_freq_factor)
        checks.require(
            checks.is_finite(self.high_freq_factor)
            and self.high_freq_factor > self.low_freq_factor,
            f"{field}.high_freq_factor",
            self.high_freq_factor,
            f"must be above low_freq_factor ({self.low_freq_factor})",
        )
        checks.positive_integer(f"{field}.original_len", self.original_len)


def frequencies(width: int, theta: float, scaling: RopeScaling) -> Array:
    """float32 [W / 2]: radians that each pair of a head of width W turns per position."""
    plain = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if scaling.kind == "none":
        return plain
    stretched = plain / scaling.factor
    if scaling.kind == "linear":
        return stretched
    # How many turns the original context held: few for slow pairs, which are stretched whole.
    turns = scaling.original_len * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * stretched + kept * plain


def rotary(positions: Array, frequency: Array) -> tuple[Array, Array]:
    """cos and sin [B, L, W / 2] of the rotary embedding at integer positions [B, L]."""
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Applies the rotary embedding to x [B, L, heads, W], halves paired (Llama layout)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(
        x.dtype
    )
