"""Self-edits: what a dream about a grid task says, and the rows of training text that it makes.

After SEAL (arXiv:2506.10943, section 4.2), whose self-edits choose tools that augment a task's
demonstrations and settings of the fine-tuning: here they are short texts that the model writes
behind the demonstrations, ``edit rotate reorder on_outputs rate1 steps2 <eos>``. All of it is pure,
so that dreams are made into rows inside a compiled round.

Dimension letters: n demonstrations, S tokens of the longest pair, W tokens of an edit, B rows, L
positions of one, m dreams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.core.types import Array, Memory
from sleeplm.data import grids
from sleeplm.data.grid_rules import dihedral
from sleeplm.data.grids import AUGMENTATIONS, COLOURS, EDIT_WORDS, LOSSES, RATES
from sleeplm.methods.dreams.rounds import Expand
from sleeplm.methods.dreams.trials import Lesson
from sleeplm.methods.dreams.write import memory_of

SYMMETRIES = 8


def _products() -> np.ndarray:
    """int [4, 2, 2]: which symmetry turning k times, then mirroring, then transposing make."""
    grid = np.arange(6).reshape(2, 3)
    table = np.zeros((4, 2, 2), np.int32)
    for k, mirrored, transposed in np.ndindex(*table.shape):
        made = np.rot90(grid, k)
        made = np.fliplr(made) if mirrored else made
        made = made.T if transposed else made
        same = [np.array_equal(made, dihedral(grid, i)) for i in range(SYMMETRIES)]
        table[k, mirrored, transposed] = same.index(True)
    return table


PRODUCTS = _products()


class Shown(NamedTuple):
    """A task's demonstrations in all eight symmetries.

    Attributes:
      pairs: int32 [8, n, S]; lengths: int32 [8, n], 0 on padding.
      total: int32, how many there are. room: int32, how many pairs a row has at most.
    """

    pairs: Array
    lengths: Array
    total: Array
    room: Array


class Edit(NamedTuple):
    """What a self-edit says. All are scalars.

    Attributes:
      valid: bool, whether the text is one; of another one the rest means nothing.
      uses: bool [5], which of :data:`~sleeplm.data.grids.AUGMENTATIONS`.
      loss, rate, steps: int32, which of the choices.
    """

    valid: Array
    uses: Array
    loss: Array
    rate: Array
    steps: Array


def read_edit(tokens: Array) -> Edit:
    """The self-edit of int32 [W], the text behind the mark ``edit``.

    It is one if it names augmentations in their order, each once, then one loss, one learning rate
    and one number of steps, and ends there.
    """
    end = jnp.argmax(tokens == grids.EOS)
    said = jnp.where(jnp.arange(len(tokens)) < end, tokens - grids.FIRST_EDIT, len(EDIT_WORDS))
    inside = jnp.arange(len(tokens)) < end
    known = jnp.all(~inside | ((said >= 0) & (said < len(EDIT_WORDS))))
    ordered = jnp.all(~inside[1:] | (said[1:] > said[:-1]))
    present = jnp.zeros(len(EDIT_WORDS) + 1, bool).at[said].set(True)[:-1]
    cuts = np.cumsum([len(AUGMENTATIONS), len(LOSSES), len(RATES)])
    uses, *choices = jnp.split(present, cuts)
    one_each = jnp.all(jnp.stack([choice.sum() == 1 for choice in choices]))
    valid = (tokens == grids.EOS).any() & known & ordered & one_each
    loss, rate, steps = (jnp.argmax(choice) for choice in choices)
    return Edit(valid, uses, loss, rate, steps)


def answered(tokens: Array) -> Array:
    """bool [..., L]: tokens of answers, their ends included: outputs of pairs, and edits."""
    index = jnp.arange(tokens.shape[-1])

    def last(marks: Array) -> Array:
        """Where, before each token, the last mark stands; -1: nowhere."""
        seen = jax.lax.cummax(jnp.where(marks, index, -1), axis=tokens.ndim - 1)
        return jnp.concatenate([jnp.full_like(seen[..., :1], -1), seen[..., :-1]], axis=-1)

    opened = last((tokens == grids.OUT) | (tokens == grids.EDIT))
    closed = last((tokens == grids.EOS) | (tokens == grids.BOS))
    return opened > closed


def row_of(edit: Edit, shown: Shown, number: Array, key: Array, width: int) -> Memory:
    """Row ``number`` of an edit: demonstrations, augmented, one of which comes last as the query.

    Demonstrations take turns as the query (leave-one-out); of the others as many stand before it
    as there is room for. Symmetries and colours are drawn anew for every row, alike for all of its
    grids; the background keeps its colour.

    Returns:
      One row, [L] and scalars.
    """
    turn_key, colour_key, order_key = jax.random.split(key, 3)
    rotate, flip, transpose, recolour, reorder = edit.uses
    k, mirrored, transposed = jax.random.randint(turn_key, (3,), 0, jnp.array([4, 2, 2]))
    symmetry = jnp.asarray(PRODUCTS)[k * rotate, mirrored * flip, transposed * transpose]
    colours = jax.random.permutation(colour_key, jnp.arange(1, COLOURS))
    plain = jnp.arange(len(grids.WORDS))
    table = plain.at[grids.COLOUR + 1 : grids.COLOUR + COLOURS].set(grids.COLOUR + colours)
    table = jnp.where(recolour, table, plain)

    slots = jnp.arange(shown.pairs.shape[1])
    query = number % shown.total
    place = jnp.where(reorder, jax.random.uniform(order_key, slots.shape), slots)
    place = jnp.where((slots == query) | (slots >= shown.total), jnp.inf, place)
    used = jnp.minimum(shown.total, shown.room)
    chosen = jnp.where(slots == used - 1, query, jnp.argsort(place)[slots])
    lengths = jnp.where(slots < used, shown.lengths[symmetry, chosen], 0)
    ends = 1 + jnp.cumsum(lengths)
    index = jnp.arange(width)
    slot = jnp.minimum((index[:, None] >= ends).sum(1), len(slots) - 1)
    inside = jnp.maximum(index - (ends - lengths)[slot], 0)
    tokens = table[shown.pairs[symmetry, chosen[slot], inside]]
    tokens = jnp.where(index == 0, grids.BOS, jnp.where(index < ends[-1], tokens, grids.PAD))
    learned = (index > 0) & (index < ends[-1])
    learned = learned & ((edit.loss == LOSSES.index("on_all")) | answered(tokens))
    one = memory_of(tokens[None], learned[None], ends[-1:])
    return jax.tree.map(lambda x: x[0], one)


def lesson(
    edit: Edit, shown: Shown, key: Array, *, rows: int, width: int, rates: Array, steps: np.ndarray
) -> Lesson:
    """What a trial of one edit learns: ``rows`` rows of ``width`` positions, and its pace.

    Args:
      rates: float32 [4], learning rates. steps: int32 [3], numbers of steps, rising.
    """
    numbers = jnp.arange(rows)
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
    made = jax.vmap(lambda number, k: row_of(edit, shown, number, k, width))(numbers, keys)
    made = Memory(**{**vars(made), "weights": made.weights * edit.valid})
    at = jnp.arange(int(steps.max()))
    return Lesson(made, jnp.where(at < jnp.asarray(steps)[edit.steps], rates[edit.rate], 0.0))


def expander(*, rows: int, width: int, rates: Sequence[float], steps: Sequence[int]) -> Expand:
    """Dreams as self-edits, for :func:`~sleeplm.methods.dreams.rounds.whole_round`.

    The round's batch has ``"shown"``: :class:`Shown`. Dreams are told alone.
    """

    def expand(told: Memory, batch: Mapping[str, Any], keys: Array) -> tuple[Lesson, Array]:
        edits = jax.vmap(read_edit)(told.tokens[:, 1:])
        make = jax.vmap(
            lambda edit, key: lesson(
                edit, batch["shown"], key, rows=rows, width=width,
                rates=jnp.asarray(rates, jnp.float32), steps=np.asarray(steps),
            )
        )  # fmt: skip
        return make(edits, keys), edits.valid

    return expand


def plain_rows(shown: Shown, width: int) -> Memory:
    """The demonstrations without any augmentation, each the query of a row once: [n, L].

    Rows beyond their number have no weight.
    """
    nothing = Edit(
        valid=jnp.array(True), uses=jnp.zeros(len(AUGMENTATIONS), bool),
        loss=jnp.int32(LOSSES.index("on_outputs")), rate=jnp.int32(0), steps=jnp.int32(0),
    )  # fmt: skip
    numbers = jnp.arange(shown.pairs.shape[1])
    make = jax.vmap(lambda number: row_of(nothing, shown, number, jax.random.key(0), width))
    made = make(numbers)
    return Memory(**{**vars(made), "weights": made.weights * (numbers < shown.total)[:, None]})
