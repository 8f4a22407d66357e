"""Dreams are selected by their gradients (section 6, step 2).

How a gradient becomes a number is not said in the paper. Offered are its norm, its alignment with
the gradient of a reference batch, and a random number, which both have to beat.

Dimension letters: m dreams, P trainable parameters, K numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sleeplm.core import checks, tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.layout import in_batches
from sleeplm.core.shares import Axis, own_share, shared, summed, varying, varying_as
from sleeplm.core.types import Array, Memory, Objective, PyTree, Variables
from sleeplm.methods.dreams.config import SCORES

Trainable = Callable[[tuple], bool]
TIES = 1 << 30  # a key beside those of dreams, which are numbered from 0


def example_gradients(
    objective: Objective,
    variables: Variables,
    memory: Memory,
    *,
    trainable: Trainable,
    reduce: Callable[[PyTree], PyTree] = lambda gradient: gradient,
    chunk: int = 4,
    axis_name: Axis = None,
) -> PyTree:
    """The gradient of every row's mean loss, g = grad L_SFT(dream, theta), or what is made of it.

    Args:
      memory: m rows [m, L], or groups of rows [m, B, L] whose mean loss is taken as one; the
        gradient of what has no weight is 0.
      trainable: predicate on key paths: what gradients are taken of.
      reduce: applied to each gradient, a tree in the shape of the parameters with None at all
        others; with it no more than ``chunk`` gradients of P numbers ever stand in memory.
      chunk: rows whose gradients are computed as one batch.
      axis_name: mapped axis whose devices share the rows, all of which each of them is given.

    Returns:
      What ``reduce`` returns, with m in front.
    """
    variables = varying(variables, axis_name)
    chosen, rest = tree.split(variables["params"], trainable)

    def of_row(row: Memory) -> PyTree:
        def loss(chosen: PyTree) -> Array:
            return row_loss(objective, {**variables, "params": tree.merge(chosen, rest)}, row)

        return reduce(jax.grad(loss)(chosen))

    return shared(lambda rows: in_batches(of_row, rows, chunk), memory, axis_name)


def row_loss(objective: Objective, variables: Variables, row: Memory) -> Array:
    """Mean loss over the tokens of one row (a memory without its batch dimension), or of some."""
    rows = jax.tree.map(lambda x: x[None], row) if row.tokens.ndim == 1 else row
    loss, weight, _ = objective(variables, rows)
    return loss / jnp.maximum(weight, 1e-8)


def mean_gradient(
    objective: Objective,
    variables: Variables,
    memory: Memory,
    *,
    trainable: Trainable,
    chunk: int = 0,
    axis_name: Axis = None,
) -> PyTree:
    """Mean of :func:`example_gradients` over the rows with weight, by a backward pass a chunk.

    Args:
      chunk: rows that stand in memory at once, on every device; 0: all of them.
    """
    variables = varying(variables, axis_name)
    chosen, rest = tree.split(variables["params"], trainable)
    memory, counts = own_share(memory, axis_name)
    there = (counts & (memory.weights.sum(1) > 0)).astype(jnp.float32)
    count = jnp.maximum(summed(there.sum(), axis_name), 1.0)

    def loss(chosen: PyTree, memory: Memory, there: Array) -> Array:
        now = {**variables, "params": tree.merge(chosen, rest)}
        losses = in_batches(lambda row: row_loss(objective, now, row), memory)
        return jnp.sum(losses * there) / count

    def add(total: PyTree, part: tuple[Memory, Array]) -> tuple[PyTree, None]:
        gradient = jax.grad(loss)(chosen, *part)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, gradient), None

    nothing = _exact(jax.tree.map(jnp.zeros_like, chosen))
    # Rows that fill one up have no weight.
    parts = tree.in_pieces((memory, there), min(chunk or len(there), len(there)))
    total, _ = jax.lax.scan(add, varying(nothing, axis_name), parts)
    return summed(total, axis_name)


def sketch(size: int, key: Array) -> Callable[[PyTree], Array]:
    """A random projection of trees to float32 [K] that keeps inner products, on average.

    A count sketch (Charikar et al., 2002): every parameter goes to one of K sums, with a random
    sign. The same key gives the same projection. It costs P additions, and no matrix [P, K]; where
    the parameters of layers are stacked, what is drawn for one layer is all that stands in memory.

    Args:
      size: K. key: the seed of the projection.
    """

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        values, key = part
        bin_key, sign_key = jax.random.split(key)
        bins = jax.random.randint(bin_key, values.shape, 0, size)
        sign = jax.random.rademacher(sign_key, values.shape, jnp.float32)
        return total.at[bins].add(sign * values.astype(jnp.float32)), None

    def project(gradient: PyTree) -> Array:
        total = varying_as(jnp.zeros((size,), jnp.float32), gradient)
        for i, leaf in enumerate(jax.tree.leaves(gradient)):
            layers = leaf if leaf.ndim > 2 else leaf[None]
            keys = jax.random.split(jax.random.fold_in(key, i), len(layers))
            total, _ = jax.lax.scan(add, total, (layers, keys))
        return total

    return project


def norm(a: PyTree) -> Array:
    """Norm of a tree, float32, whatever its leaves are."""
    return optax.global_norm(_exact(a))


def cosine(a: PyTree, b: PyTree) -> Array:
    """Cosine of two trees, float32, whatever their leaves are; 0 where one is 0."""
    a, b = _exact(a), _exact(b)
    dot = sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    norms = optax.global_norm(a) * optax.global_norm(b)
    return jnp.where(norms > 0, dot / jnp.where(norms > 0, norms, 1.0), 0.0)


def _exact(a: PyTree) -> PyTree:
    """Leaves as float32: sums of bfloat16 have 8 bits, and dreams would be told apart by few."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), a)


def score(
    kind: str,
    objective: Objective,
    variables: Variables,
    memory: Memory,
    key: Array,
    *,
    trainable: Trainable,
    reference: Memory | None = None,
    size: int = 0,
    chunk: int = 4,
    axis_name: Axis = None,
) -> Array:
    """float32 [m]: the higher, the sooner a dream is kept.

    Args:
      kind: one of :data:`~sleeplm.methods.dreams.config.SCORES`.
      reference: what ``alignment`` compares with, see :func:`mean_gradient`.
      key: of the sketch, and of random scores.
      size: K of the :func:`sketch` that norms and cosines are taken of; 0: the whole gradient.
      chunk, axis_name: see :func:`example_gradients`.

    Raises:
      ConfigError: another kind, or alignment without a reference.
    """
    checks.one_of("score", kind, SCORES)
    if kind == "random":
        return _uniform(key, len(memory.source))
    project = sketch(size, key) if size else lambda gradient: gradient
    target = None
    if kind == "alignment":
        if reference is None:
            raise ConfigError("score", kind, "needs a reference batch to be aligned with")
        target = project(
            mean_gradient(
                objective, variables, reference,
                trainable=trainable, chunk=chunk, axis_name=axis_name,
            )
        )  # fmt: skip

    def number(gradient: PyTree) -> Array:
        mine = project(gradient)
        return norm(mine) if target is None else cosine(mine, target)

    return example_gradients(
        objective, variables, memory,
        trainable=trainable, reduce=number, chunk=chunk, axis_name=axis_name,
    )  # fmt: skip


def places(scores: Array, mask: Array, key: Array) -> Array:
    """int32 [m], each dream's place by its score, from 0; masked ones come last.

    Dreams of one score stand in an order that the key draws: dreams come in the order of their
    contexts, the first of which would be preferred.

    Args:
      scores, mask, key: see :func:`choose`.
    """
    lowest, count = jnp.where(jnp.isnan(scores), -jnp.inf, scores), len(scores)
    # Not the numbers by which others are chosen: who loses a tie would seldom be among these.
    drawn = _uniform(jax.random.fold_in(key, TIES), count)
    ranking = jnp.lexsort((drawn, -lowest, ~mask))
    return jnp.zeros((count,), jnp.int32).at[ranking].set(jnp.arange(count))


def choose(scores: Array, mask: Array, k: int, b: int, key: Array) -> tuple[Array, Array]:
    """The k best dreams, then b of the others at random, each of these with equal chance.

    Args:
      scores: [m]; one that is not a number counts as the lowest. mask: bool [m].
      key: of the others, and of the order among equal scores.

    Returns:
      int32 [k + b], all different; and bool [k + b], false where there are not so many dreams:
      masked ones are never chosen.

    Raises:
      ConfigError: more than m, or none.
    """
    count = len(scores)
    if not 1 <= k + b <= count or min(k, b) < 0:
        raise ConfigError("keep + extra", k + b, f"choose between 1 and all {count} dreams")
    rank = places(scores, mask, key)
    best = mask & (rank < k)
    group = jnp.where(best, 0, jnp.where(mask, 1, 2))
    order = jnp.lexsort((jnp.where(best, rank, _uniform(key, count)), group))
    index = order[: k + b].astype(jnp.int32)
    return index, group[index] < 2


def _uniform(key: Array, count: int) -> Array:
    """Random numbers [m], each the same however many there are."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    return jax.vmap(jax.random.uniform)(keys)
