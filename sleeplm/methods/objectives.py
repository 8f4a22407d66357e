"""What to ask of a memory: ``(variables, memory) -> (loss_sum, weight_sum, aux)``.

All of them sum over tokens and weigh by ``memory.weights``, so that they can be added.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sleeplm.core import tree
from sleeplm.core.checks import is_constant
from sleeplm.core.errors import ConfigError
from sleeplm.core.losses import (
    Divergence,
    chunked_cross_entropy,
    chunked_divergence,
    chunked_token_logp,
    score_function_loss,
)
from sleeplm.core.types import Array, Memory, Metrics, Objective, Variables
from sleeplm.models.transformer import Model


def language_model(model: Model, chunk: int = 128) -> Objective:
    """Next-token cross entropy, the task loss of Eq. 2, in nats per token."""

    def objective(variables: Variables, memory: Memory):
        hidden = model.hidden(variables, memory.tokens, memory.segments)
        unembed = model.unembed(variables["params"])
        loss, weight = chunked_cross_entropy(
            hidden[:, :-1], unembed, memory.tokens[:, 1:], memory.weights[:, 1:], chunk
        )
        return loss, weight, {}

    return objective


def in_pieces(objective: Objective, rows: int) -> Objective:
    """The same objective, for gradients of which ``rows`` of a memory's rows are kept at once.

    Every piece is computed again on the way back, which costs a forward pass more. 0: all at once.
    """

    def run(variables: Variables, memory: Memory):
        count = len(memory.source)
        if not 0 < rows < count:
            return objective(variables, memory)
        piece = jax.checkpoint(objective)
        parts = tree.in_pieces(memory, rows)  # rows that fill one up have no weight
        each = jax.lax.map(lambda part: piece(variables, part), parts)
        return jax.tree.map(lambda x: x.sum(0), each)

    return run


def seeding(
    model: Model,
    divergence: Divergence,
    *,
    alpha: Array | float,
    temperature: Array | float = 1.0,
    clip: float = 0.2,
    chunk: int = 128,
) -> Objective:
    """L_KS, negated to be minimised: alpha D(teacher || student) - (1 - alpha) E[r].

    The divergence is taken at every weighted token of every row; the score function of the
    reward at those of rows with an advantage (random-prefix continuations).

    Args:
      divergence: of two log-probability tables, see :mod:`sleeplm.core.losses`.
      alpha: 1 asks for distillation only (and leaves the score function out of the program if it
        is a Python number).
      temperature: at which the continuations were sampled.
      clip: continuations serve several updates; the importance ratio against the student that
        wrote them is clipped to [1 - clip, 1 + clip]. At the first update it is 1.
    """

    def objective(variables: Variables, memory: Memory):
        if memory.reference is None:
            raise ConfigError("memory.reference", None, "seeding needs the teacher's states")
        hidden = model.hidden(variables, memory.tokens, memory.segments)[:, :-1]
        unembed = model.unembed(variables["params"])
        weights = memory.weights[:, 1:]
        kl, weight = chunked_divergence(
            hidden, memory.reference[:, :-1], unembed, unembed, weights, divergence, chunk
        )
        loss = alpha * kl
        aux: Metrics = {"divergence": (kl, weight), **diversity(memory)}
        if not is_constant(alpha, 1):
            logp = chunked_token_logp(hidden, unembed, memory.tokens[:, 1:], chunk, temperature)
            old = None if memory.logp is None else memory.logp[:, 1:]
            imitate, _ = score_function_loss(
                logp, weights, memory.reward, old, None if old is None else clip
            )
            loss = loss + (1.0 - alpha) * imitate
            rows = (memory.weights.sum(1) > 0) & (memory.reward != 0)
            aux["advantage"] = (jnp.abs(memory.reward).sum(), rows.sum().astype(jnp.float32))
        return loss, weight, aux

    return objective


def diversity(memory: Memory) -> Metrics:
    """Share of sequences that are not repeats of another one of their extraction."""
    used, there = jnp.float32(0.0), jnp.float32(0.0)
    for segment in (1, 2):  # rows may be packed in pairs
        mine = memory.segments == segment
        there = there + mine.any(1).sum()
        used = used + ((memory.weights * mine).sum(1) > 0).sum()
    return {"unique": (used, there)}
