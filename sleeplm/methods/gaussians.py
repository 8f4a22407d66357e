"""An external continual learner, as a control: class Gaussians on a frozen model's features.

What InCA (arXiv:2412.15563) and KLDA do: every class has a mean, all share one covariance, both
are sums that only ever grow, so nothing is forgotten and the language model is never touched. The
class of a text is the nearest mean in the Mahalanobis distance; its name is the answer. (InCA
then lets a large model choose among the nearest few in context, which a small one cannot do.)

``anchors["gaussians"]`` = {"count" [K], "sum" [K, D], "outer" [D, D]} for K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sleeplm.core.types import Array, Metrics, PyTree, State, Variables
from sleeplm.models.transformer import Model

GAUSSIANS = "gaussians"


def no_classes(classes: int, d_model: int) -> dict[str, Array]:
    """The anchor of a newborn learner."""
    return {
        "count": jnp.zeros((classes,)),
        "sum": jnp.zeros((classes, d_model)),
        "outer": jnp.zeros((d_model, d_model)),
    }


def features(model: Model, variables: Variables, tokens: Array, lengths: Array) -> Array:
    """Mean of the final hidden states over the tokens of each text: [B, D]."""
    real = jnp.arange(tokens.shape[1]) < lengths[:, None]
    hidden = model.hidden(variables, tokens, real.astype(jnp.int32))
    return (hidden * real[..., None]).sum(1) / jnp.maximum(lengths, 1)[:, None]


def gather(model: Model) -> Callable[[State, PyTree, Array], tuple[State, Metrics]]:
    """One step of the night: adds today's labelled texts to the sums.

    The batch is ``{"archive": {"tokens" [A, L], "length", "day", "label" int32 [A]}, "day"}``:
    questions without their answers, and the class of each.
    """

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        del key
        archive = batch["archive"]
        mine = (archive["day"] == batch["day"]).astype(jnp.float32)

        def one(part: PyTree) -> Array:
            return features(model, state.variables, part["tokens"], part["length"])

        blocks = jax.tree.map(lambda x: x.reshape(-1, BLOCK, *x.shape[1:]), archive)
        found = jax.lax.map(one, blocks).reshape(len(mine), -1)
        old = state.anchors[GAUSSIANS]
        chosen = jax.nn.one_hot(archive["label"], old["count"].shape[0]) * mine[:, None]
        sums = {
            "count": old["count"] + chosen.sum(0),
            "sum": old["sum"] + chosen.T @ found,
            "outer": old["outer"] + (found * mine[:, None]).T @ found,
        }
        counters = {**state.counters, "nights": state.counters["nights"] + 1}
        anchors = {**state.anchors, GAUSSIANS: sums}
        return state.replace(anchors=anchors, counters=counters), {}

    return step


BLOCK = 64  # texts whose features are computed at once; archives are padded to a multiple


def nearest(sums: dict[str, Array], found: Array, ridge: float = 1e-2) -> Array:
    """int32 [B]: the class of each feature vector [B, D], among the classes seen so far.

    Args:
      ridge: added to the shared covariance, as a share of its mean variance.
    """
    count = sums["count"]
    means = sums["sum"] / jnp.maximum(count, 1.0)[:, None]
    total = jnp.maximum(count.sum(), 1.0)
    covariance = (sums["outer"] - means.T @ (means * count[:, None])) / total
    d_model = covariance.shape[0]
    # A share of the mean variance; the tiny rest is for classes of a single example each.
    least = ridge * jnp.trace(covariance) / d_model + 1e-6
    covariance = covariance + least * jnp.eye(d_model)
    # Linear discriminants: Mahalanobis distances without the part that all classes share.
    weights = jnp.linalg.solve(covariance, means.T)
    scores = found @ weights - 0.5 * jnp.sum(means.T * weights, 0)
    return jnp.argmax(jnp.where(count > 0, scores, -jnp.inf), axis=-1).astype(jnp.int32)
