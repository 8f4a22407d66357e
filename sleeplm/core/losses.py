"""Token-level objectives: divergences, chunked vocabulary losses, the score-function estimator.

Dimension letters: B batch, L length, D model, V vocabulary. Everything is computed in float32 or
wider, whatever the input. Losses come back as ``(loss_sum, weight_sum)``; the caller divides once.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sleeplm.core.errors import ConfigError
from sleeplm.core.layout import named
from sleeplm.core.types import Array

#: ``(teacher_logp [..., V], student_logp [..., V]) -> [...]``, in nats.
Divergence = Callable[[Array, Array], Array]

# Stands in for log 0. It keeps 0 * log 0 = 0 instead of NaN, for values and for gradients.
_LOG_ZERO = -1e30


def _wide(x: Array) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _finite(logp: Array) -> Array:
    return jnp.maximum(_wide(logp), _LOG_ZERO)


def forward_kl(teacher_logp: Array, student_logp: Array) -> Array:
    """KL(teacher || student), mass-covering, in nats.

    Args:
      teacher_logp, student_logp: [..., V] log-probabilities. ``-inf`` is allowed and is read as
        -1e30: teacher mass where the student has none gives a huge number, not an infinite one.

    Returns:
      [...] float32 or wider.
    """
    return optax.losses.kl_divergence_with_log_targets(_finite(student_logp), _finite(teacher_logp))


def reverse_kl(teacher_logp: Array, student_logp: Array) -> Array:
    """KL(student || teacher), mode-seeking, in nats. Shapes as in :func:`forward_kl`."""
    return forward_kl(student_logp, teacher_logp)


def jsd(beta: float | Array) -> Divergence:
    """The generalised Jensen-Shannon divergence of GKD (arXiv:2306.13649), P teacher, Q student.

        JSD_beta(P || Q) = beta KL(P || M) + (1 - beta) KL(Q || M),   M = beta P + (1 - beta) Q

    At both ends it vanishes, as does its gradient: JSD_beta / beta tends to KL(P || Q) as
    beta -> 0, and JSD_beta / (1 - beta) to KL(Q || P) as beta -> 1. Therefore a ``beta`` of
    exactly 0 or 1 is read as that limit, :func:`forward_kl` or :func:`reverse_kl`, and *not* as
    the constant 0. A small beta needs a learning rate larger by 1 / beta to act like forward KL.

    Args:
      beta: weight of the teacher, in [0, 1]. A traced array must lie strictly between 0 and 1.

    Raises:
      ConfigError: a concrete ``beta`` outside of [0, 1].
    """
    if not isinstance(beta, jax.core.Tracer):
        if not 0.0 <= float(beta) <= 1.0:
            raise ConfigError("jsd.beta", beta, "give a number in [0, 1]; 0.5 is symmetric")
        if float(beta) == 0.0:
            return forward_kl
        if float(beta) == 1.0:
            return reverse_kl

    def generalised_jsd(teacher_logp: Array, student_logp: Array) -> Array:
        teacher, student = _finite(teacher_logp), _finite(student_logp)
        mixture = jnp.logaddexp(teacher + jnp.log(beta), student + jnp.log1p(-beta))
        return beta * forward_kl(teacher, mixture) + (1 - beta) * forward_kl(student, mixture)

    return generalised_jsd


def divergence(kind: str | Divergence, beta: float | Array = 0.5) -> Divergence:
    """The divergence with this name: ``"forward_kl"``, ``"reverse_kl"`` or ``"jsd"``.

    Args:
      kind: a name, or a callable of your own, which is returned as it is.
      beta: only read by ``"jsd"``; see :func:`jsd`.

    Raises:
      ConfigError: an unknown name, or a ``beta`` outside of [0, 1].
    """
    if callable(kind):
        return kind
    if kind == "jsd":
        return jsd(beta)
    if kind == "forward_kl":
        return forward_kl
    if kind == "reverse_kl":
        return reverse_kl
    raise ConfigError("divergence", kind, "use 'forward_kl', 'reverse_kl', 'jsd' or a callable")


def _logits(hidden: Array, unembed: Array, temperature: float | Array) -> Array:
    """[B, C, D] x [D, V] -> [B, C, V]: product in hidden's dtype, sum in float32 or wider."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    logits = jnp.einsum(
        "bcd,dv->bcv", hidden, unembed.astype(hidden.dtype), preferred_element_type=wide
    )
    return logits / temperature


def _per_token(
    fn: Callable[..., Array], unembeds: tuple[Array, ...], sequences: tuple[Array, ...], chunk: int
) -> Array:
    """``fn(unembeds, *pieces)`` over pieces of ``chunk`` positions; returns its values, [B, L].

    Each piece is rematerialised in the backward pass, so that only [B, chunk, V] ever stands in
    memory. The values leave as scan outputs, not as a carry: a carry that starts as a constant
    would not match a device-varying sum inside shard_map.
    """
    if chunk < 1:
        raise ConfigError("chunk", chunk, "give a number of positions of at least 1")
    batch, length = sequences[0].shape[:2]
    size = max(1, min(chunk, length))
    pieces = -(-length // size)

    def split(x: Array) -> Array:
        widths = [(0, 0), (0, pieces * size - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.moveaxis(jnp.pad(x, widths).reshape(batch, pieces, size, *x.shape[2:]), 1, 0)

    # In float32 from here on: the gradient of an unembedding is summed over the pieces in the
    # dtype that it has outside of the loop, and bfloat16 would lose small pieces.
    unembeds = tuple(_wide(w) for w in unembeds)
    piece = jax.checkpoint(fn, prevent_cse=False)

    def by_rows(x: Array) -> Array:
        return named(x, "row", "time", "width") if x.ndim == 3 else x

    values = jax.lax.map(
        lambda xs: piece(unembeds, *map(by_rows, xs)), tuple(split(x) for x in sequences)
    )
    return jnp.moveaxis(values, 0, 1).reshape(batch, pieces * size)[:, :length]


def _weighted(values: Array, weights: Array) -> tuple[Array, Array]:
    weights = _wide(weights)
    return jnp.sum(values * weights), jnp.sum(weights)


def chunked_divergence(
    student_hidden: Array,
    teacher_hidden: Array,
    unembed_student: Array,
    unembed_teacher: Array,
    weights: Array,
    divergence: Divergence,
    chunk: int,
    temperature: float | Array = 1.0,
) -> tuple[Array, Array]:
    """Weighted sum of a divergence between two models' next-token distributions (D in L_KS).

    Logits are made for ``chunk`` positions at a time and made again in the backward pass, so that
    neither model's [B, L, V] is ever in memory. No gradient flows to the teacher's side.

    Args:
      student_hidden, teacher_hidden: [B, L, D] final hidden states (the two D may differ).
      unembed_student, unembed_teacher: [D, V].
      weights: [B, L]; ``weights[:, t]`` weighs the distribution that position t predicts.
      divergence: see :func:`divergence`.
      chunk: positions per piece; L need not be a multiple of it.
      temperature: divides both models' logits.

    Returns:
      ``(loss_sum, weight_sum)``, float32 scalars.

    Raises:
      ConfigError: ``chunk`` below 1.
    """

    def fn(unembeds: tuple[Array, Array], student: Array, teacher: Array) -> Array:
        student_logp = jax.nn.log_softmax(_logits(student, unembeds[0], temperature))
        teacher_logp = jax.nn.log_softmax(_logits(teacher, unembeds[1], temperature))
        return divergence(jax.lax.stop_gradient(teacher_logp), student_logp)

    teacher_hidden = jax.lax.stop_gradient(teacher_hidden)
    unembeds = (unembed_student, jax.lax.stop_gradient(unembed_teacher))
    values = _per_token(fn, unembeds, (student_hidden, teacher_hidden), chunk)
    return _weighted(values, weights)


def chunked_token_logp(
    hidden: Array,
    unembed: Array,
    targets: Array,
    chunk: int,
    temperature: float | Array = 1.0,
) -> Array:
    """Log-probability of each target token, made ``chunk`` positions at a time.

    Args:
      hidden: [B, L, D]; position t predicts ``targets[:, t]``, so targets are shifted already.
      unembed: [D, V].
      targets: int [B, L], in [0, V) also where the caller will not look.
      chunk: positions per piece.
      temperature: divides the logits. For the score function, give the sampling temperature.

    Returns:
      [B, L] float32, in nats.

    Raises:
      ConfigError: ``chunk`` below 1.
    """

    def fn(unembeds: tuple[Array], piece: Array, labels: Array) -> Array:
        logits = _logits(piece, unembeds[0], temperature)
        return -optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)

    return _per_token(fn, (unembed,), (hidden, targets), chunk)


def chunked_cross_entropy(
    hidden: Array, unembed: Array, targets: Array, weights: Array, chunk: int
) -> tuple[Array, Array]:
    """Weighted sum of next-token cross entropy, in nats; shapes as in :func:`chunked_token_logp`.

    Returns:
      ``(loss_sum, weight_sum)``, float32 scalars.
    """
    return _weighted(-chunked_token_logp(hidden, unembed, targets, chunk), weights)


def leave_one_out(reward: Array, group: int) -> Array:
    """Advantage of each sample over the mean reward of the *other* samples of its group.

    The baseline of a sample does not depend on that sample, so it adds no bias to
    :func:`score_function_loss`.

    Args:
      reward: [B]; rows are consecutive groups of ``group`` samples from one prefix.
      group: samples in a group, at least 2.

    Returns:
      [B] float32, exactly 0 throughout a group whose rewards are all equal.

    Raises:
      ConfigError: ``group`` below 2, or B not a multiple of it.
    """
    if group < 2:
        raise ConfigError("group", group, "leaving one out needs groups of at least 2")
    if reward.shape[0] % group:
        raise ConfigError("group", group, f"must divide the batch of {reward.shape[0]} rows")
    r = _wide(reward).reshape(-1, group)
    # Shifting first makes equal rewards give exact zeros: rounding noise, however small, would be
    # blown up to a full step by an optimiser that normalises gradients.
    r = r - r[:, :1]
    return (r - (jnp.sum(r, axis=1, keepdims=True) - r) / (group - 1)).reshape(-1)


def score_function_loss(
    logp: Array,
    weights: Array,
    advantage: Array,
    old_logp: Array | None = None,
    clip: float | None = None,
) -> tuple[Array, Array]:
    """REINFORCE: a loss whose gradient estimates minus the gradient of E[r] (first term of L_KS).

    With ``logp`` alone it is on-policy and unbiased: the rows must be samples of the very
    distribution that ``logp`` scores (same parameters, same temperature, no top-k or top-p), and
    the advantage must not depend on a row through its baseline (:func:`leave_one_out`). The value
    itself means nothing; only its gradient does. Do not divide by the number of tokens of a row:
    that would favour short wrong answers and bias the estimate.

    With ``old_logp``, the rows may come from slightly older parameters: each token is weighted by
    the ratio exp(logp - old_logp), and ``clip`` bounds what a token can gain from moving its ratio
    away from 1 (PPO's surrogate). That form is biased as soon as the two differ.

    Args:
      logp: [B, L] log-probability of each sampled token.
      weights: [B, L], 1 for sampled tokens (the end-of-text token is one), 0 elsewhere.
      advantage: [B]; no gradient flows through it.
      old_logp: [B, L] log-probabilities at sampling time, or None.
      clip: half-width of the ratio's range around 1, or None for no clipping.

    Returns:
      ``(loss_sum, weight_sum)``, where ``weight_sum`` counts the rows that have any weight.

    Raises:
      ConfigError: ``clip`` without ``old_logp``, or not positive.
    """
    logp, weights = _wide(logp), _wide(weights)
    gain = jax.lax.stop_gradient(_wide(advantage))[:, None]
    rows = jnp.sum(jnp.any(weights != 0, axis=1).astype(weights.dtype))
    if clip is not None and (old_logp is None or clip <= 0):
        raise ConfigError("clip", clip, "give a positive number together with old_logp")
    if old_logp is None:
        return -jnp.sum(weights * logp * gain), rows
    # Where the weight is 0 the two may differ without bound, and exp would overflow.
    shift = jnp.where(weights != 0, logp - jax.lax.stop_gradient(_wide(old_logp)), 0.0)
    ratio = jnp.exp(shift)
    surrogate = ratio * gain
    if clip is not None:
        surrogate = jnp.minimum(surrogate, jnp.clip(ratio, 1 - clip, 1 + clip) * gain)
    return -jnp.sum(weights * surrogate), rows
