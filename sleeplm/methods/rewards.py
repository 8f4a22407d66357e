"""Rewards for learning to imitate: edit distance on tokens, and judges of meaning (Eq. 3 and 4).

Dimension letters: B batch, L and M lengths, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from sleeplm.core.errors import ConfigError
from sleeplm.core.shares import varying_as
from sleeplm.core.types import Array, Variables


def levenshtein(a: Array, a_length: Array, b: Array, b_length: Array) -> Array:
    """Edit distance on tokens, z(a, b) of Eq. 4: insertions, deletions, substitutions cost 1.

    Runs on the device: L sequential steps, each one vectorised over the batch and over b.

    Args:
      a: int [B, L]; tokens at and after ``a_length`` are padding and do not matter.
      a_length: int [B], in [0, L].
      b: int [B, M].
      b_length: int [B], in [0, M].

    Returns:
      int32 [B].
    """
    a_length, b_length = a_length.astype(jnp.int32), b_length.astype(jnp.int32)
    columns = jnp.arange(b.shape[1] + 1, dtype=jnp.int32)

    def next_row(row: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
        i, token = step
        substituted = row[:, :-1] + (token[:, None] != b)
        best = jnp.minimum(row[:, 1:] + 1, substituted)
        best = jnp.concatenate([row[:, :1] + 1, best], axis=1)
        # An insertion adds 1 for each column to the right, so the left-to-right recurrence is a
        # running minimum of the row with that slope taken out.
        new = jax.lax.cummin(best - columns, axis=1) + columns
        return jnp.where((i < a_length)[:, None], new, row), None

    first = jnp.broadcast_to(columns, (len(a_length), len(columns)))
    first = varying_as(first, (a, b, a_length, b_length))
    steps = (jnp.arange(a.shape[1], dtype=jnp.int32), a.T)
    row, _ = jax.lax.scan(next_row, first, steps)
    return jnp.take_along_axis(row, b_length[:, None], axis=1)[:, 0]


def surface_reward(distance: Array, a_length: Array, b_length: Array, z0: float | Array) -> Array:
    """r_abs of Eq. 4: ``1 - z / max(|a|, |b|)`` where z <= z0, else 0.

    Args:
      distance: int [B], :func:`levenshtein`, in tokens.
      a_length, b_length: int [B]; two empty sequences score 1.
      z0: largest distance in tokens that still earns something; ``inf`` sets no limit.

    Returns:
      float32 [B], in [0, 1].

    Raises:
      ConfigError: a negative ``z0``.
    """
    if isinstance(z0, int | float) and z0 < 0:
        raise ConfigError("z0", z0, "a distance in tokens, at least 0")
    longest = jnp.maximum(jnp.maximum(a_length, b_length), 1)
    similarity = 1.0 - distance.astype(jnp.float32) / longest.astype(jnp.float32)
    return jnp.where(distance <= z0, similarity, 0.0)


def imitation_reward(r_sem: Array, r_abs: Array, gamma: float | Array) -> Array:
    """r of Eq. 3: ``gamma * r_sem + (1 - gamma) * r_abs``, elementwise, float32 [B].

    Raises:
      ConfigError: ``gamma`` outside of [0, 1].
    """
    if isinstance(gamma, int | float) and not 0 <= gamma <= 1:
        raise ConfigError("gamma", gamma, "give a weight in [0, 1]")
    return (gamma * r_sem + (1.0 - gamma) * r_abs).astype(jnp.float32)


class Judge(Protocol):
    """r_sem of Eq. 3: do a candidate and its reference mean the same?

    ``candidate`` is int [B, L], ``reference`` int [B, M]; the masks, of the same shapes, are true
    on the tokens to be judged, wherever in the row they stand. ``variables`` are those of the
    model, for a judge that wants to ask it, and ``"reader"`` of the batch (:func:`ask`). Returns
    float32 [B], each 0 or 1.
    """

    def __call__(
        self,
        variables: Variables,
        candidate: Array,
        candidate_mask: Array,
        reference: Array,
        reference_mask: Array,
    ) -> Array: ...


def ask(
    judge: Judge,
    variables: Variables,
    batch: Mapping[str, Any],
    candidate: Array,
    candidate_mask: Array,
    reference: Array,
    reference_mask: Array,
) -> Array:
    """r_sem by the judge that the night's batch brings as ``batch["judge"]``, else by ``judge``.

    A judge with weights of its own comes with the batch, as a pytree: its weights are then an
    argument of the compiled night, and no part of the program or of the learner. Where learners
    side by side have tokenizers of their own, ``batch["reader"]`` says which one is judged.

    Returns:
      float32 [B], each 0 or 1, see :class:`Judge`.
    """
    if "reader" in batch:
        variables = {**variables, "reader": batch["reader"]}
    judge = batch.get("judge", judge)
    return judge(variables, candidate, candidate_mask, reference, reference_mask)


def before_eos(
    tokens: Array, mask: Array, eos: int, read: Array | None = None
) -> tuple[Array, Array]:
    """Tokens before the first masked ``eos``, moved to the left, and how many they are.

    Args:
      read: which of them; None: the masked ones. What ends a text may also begin it, so that others
        may stand behind an ``eos`` that is not masked.
    """
    mask = mask.astype(bool)
    ended = jnp.cumsum((mask & (tokens == eos)).astype(jnp.int32), axis=1) > 0
    kept = (mask if read is None else read) & ~ended
    order = jnp.argsort(~kept, axis=1, stable=True)
    return jnp.take_along_axis(tokens, order, axis=1), jnp.sum(kept, axis=1, dtype=jnp.int32)


def _last(tokens: Array, length: Array, width: int) -> tuple[Array, Array]:
    """The last ``width`` of each row's ``length`` tokens, [B, width], -1 where there are fewer."""
    count = jnp.minimum(length, width)
    if tokens.shape[1] < width:
        tokens = jnp.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
    columns = jnp.arange(width, dtype=jnp.int32)
    index = jnp.minimum((length - count)[:, None] + columns, tokens.shape[1] - 1)
    picked = jnp.take_along_axis(tokens, index, axis=1)
    return jnp.where(columns < count[:, None], picked, -1), count


def exact_match_judge(eos: int, tail: int | None = None) -> Judge:
    """A judge that asks for equal tokens up to, and without, the end-of-text token.

    A sequence without ``eos`` ends where its mask ends, so text that ran into the length limit is
    judged by what is there. Two empty sequences match; an empty one matches nothing else.

    Args:
      eos: end-of-text token; what follows the first one is ignored.
      tail: with ``n``, only the last n tokens before ``eos`` must be equal: the value of a
        document that ends with its value. A sequence shorter than n counts as a whole.

    Raises:
      ConfigError: ``tail`` below 1.
    """
    if tail is not None and tail < 1:
        raise ConfigError("tail", tail, "give a number of tokens of at least 1, or None for all")

    def judge(
        variables: Variables,
        candidate: Array,
        candidate_mask: Array,
        reference: Array,
        reference_mask: Array,
    ) -> Array:
        del variables
        width = max(candidate.shape[1], reference.shape[1])
        width = width if tail is None else tail
        ours, our_count = _last(*before_eos(candidate, candidate_mask, eos), width)
        theirs, their_count = _last(*before_eos(reference, reference_mask, eos), width)
        same = jnp.all(ours == theirs, axis=1) & (our_count == their_count)
        return same.astype(jnp.float32)

    return judge


def mean_pool(hidden: Array, mask: Array) -> Array:
    """Mean of the masked positions: hidden [B, L, D], mask [B, L] -> float32 [B, D].

    A row without any masked position gives zeros. Masked-out positions may hold anything.
    """
    mask = mask.astype(bool)[..., None]
    total = jnp.sum(jnp.where(mask, hidden.astype(jnp.float32), 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(mask, axis=1), 1).astype(jnp.float32)


def cosine_judge(
    embed: Callable[[Variables, Array, Array], Array], threshold: float | Array
) -> Judge:
    """A judge that asks for a cosine of at least ``threshold`` between two embeddings.

    Two empty sequences match; an empty one matches nothing else.

    Args:
      embed: ``(variables, tokens [B, L], mask [B, L]) -> [B, D]``, for instance :func:`mean_pool`
        over the hidden states of a frozen start model, which it finds in ``variables``.
      threshold: in [-1, 1]; 1e-6 of slack lets equal embeddings pass a threshold of 1.

    Raises:
      ConfigError: ``threshold`` outside of [-1, 1].
    """
    if isinstance(threshold, int | float) and not -1.0 <= threshold <= 1.0:
        raise ConfigError("threshold", threshold, "give a cosine in [-1, 1]")

    def judge(
        variables: Variables,
        candidate: Array,
        candidate_mask: Array,
        reference: Array,
        reference_mask: Array,
    ) -> Array:
        ours = embed(variables, candidate, candidate_mask).astype(jnp.float32)
        theirs = embed(variables, reference, reference_mask).astype(jnp.float32)
        cosine = optax.losses.cosine_similarity(ours, theirs, epsilon=1e-30)
        our_any = jnp.any(candidate_mask.astype(bool), axis=1)
        their_any = jnp.any(reference_mask.astype(bool), axis=1)
        close = our_any & their_any & (cosine >= threshold - 1e-6)
        return (close | ~(our_any | their_any)).astype(jnp.float32)

    return judge
