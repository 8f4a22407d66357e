"""Whether a night's dreaming may stay: what was known before it must still be told.

Nothing is read for it but what the learner says itself: before it dreamt it tells of earlier days
from their cues, and these samples must not have become unlikelier; and what it tells of them now
must not be one and the same text. Likelihoods pass collapsed models, hence the second.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from sleeplm.core.clusters import largest_cluster
from sleeplm.core.shares import Axis, own_share, summed
from sleeplm.core.types import Array, Memory, Metrics, Variables
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.rounds import recall
from sleeplm.methods.dreams.write import only
from sleeplm.methods.extract import tail_of
from sleeplm.methods.objectives import language_model
from sleeplm.models.transformer import Model


class Verdict(NamedTuple):
    """bool scalars: whether recall fell too far, and whether outputs have become one."""

    recall: Array
    cluster: Array

    @property
    def good(self) -> Array:
        return ~(self.recall | self.cluster)


def judged(
    model: Model,
    config: DreamConfig,
    before: Variables,
    after: Variables,
    today: Array,
    key: Array,
    *,
    length: int,
    axis_name: Axis = None,
) -> tuple[Verdict, Metrics]:
    """Compares the learner before and after it dreamt.

    ``config.gate`` samples of days before ``today`` by each, from the same cues with the same
    keys. Too far is a fall of their mean log-probability by more than ``gate_margin`` nats a token,
    and any that is not a number; one are outputs (what was written behind the cue) of which a
    larger share is identical than ``gate_cluster``, and larger than before.

    Args:
      length: tokens of a sample at most, its cue included.
      axis_name: mapped axis whose devices share the telling and the reading.

    Returns:
      The verdict, and ``gate_recall`` (nats a token, negative where it fell), ``gate_cluster`` and
      ``gate_cluster_before`` (shares).
    """
    objective = language_model(model)

    def told(variables: Variables) -> Memory:
        memory = recall(
            model, variables, today, config.gate, key,
            new_tokens=length - 1, temperature=config.temperature, axis_name=axis_name,
        )  # fmt: skip
        # Behind a longer cue the night has taught no more than this.
        rows = {n: getattr(memory, n)[:, :length] for n in ("tokens", "weights", "segments")}
        return dataclasses.replace(memory, **rows)

    def mean_logp(variables: Variables, memory: Memory) -> Array:
        loss, weight, _ = objective(variables, only(*own_share(memory, axis_name)))
        loss, weight = summed((loss, weight), axis_name)
        return -loss / jnp.maximum(weight, 1e-8)

    old, new = told(before), told(after)
    lift = mean_logp(after, old) - mean_logp(before, old)
    share, was = _cluster(new), _cluster(old)
    verdict = Verdict(
        recall=~(lift >= -config.gate_margin),
        cluster=share > jnp.maximum(config.gate_cluster, was),
    )
    one = jnp.ones(())
    metrics = {
        "gate_recall": (lift, one),
        "gate_cluster": (share, one),
        "gate_cluster_before": (was, one),
    }
    return verdict, metrics


def _cluster(memory: Memory) -> Array:
    """Share of the most frequent output, without the cue that it stands behind."""
    written = memory.weights > 0
    end = (memory.segments > 0).sum(1)
    words, count = tail_of(memory.tokens, end - written.sum(1), end)
    inside = jnp.arange(words.shape[1]) < count[:, None]
    return largest_cluster(jnp.where(inside, words, 0), jnp.ones(count.shape))
