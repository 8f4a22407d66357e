"""Grid tasks as the arrays that a round of dreaming, or an exam, reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from sleeplm.bench.arc.edits import SYMMETRIES, Shown
from sleeplm.data.grid_rules import dihedral
from sleeplm.data.grids import (
    BOS,
    EDIT,
    GridTask,
    Pair,
    answer_tokens,
    grid_of,
    pair_tokens,
    question_tokens,
)
from sleeplm.methods.dreams.rewards import Questions
from sleeplm.methods.dreams.write import Contexts


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One task, with arrays of a size that it shares with others.

    Attributes:
      width: positions of a row. shown_pairs: how many of the demonstrations an exam shows.
      shown: the demonstrations. context: what a dream is written behind: they and the mark
        ``edit``, [1, width]. questions: the tests, each behind the demonstrations.
    """

    task: GridTask
    width: int
    shown_pairs: int
    shown: Shown
    context: Contexts
    questions: Questions


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What arrays of tasks have room for.

    Attributes:
      widths: positions of a row, rising; a task takes the first that it fits into.
      pairs: demonstrations at most. tests: at most. answer: tokens of a test's output at most, its
        end included.
    """

    widths: Sequence[int]
    pairs: int = 6
    tests: int = 2
    answer: int = 96


class TooLong(NamedTuple):
    """Why a task does not fit: what there is too much of, how much, and for how much is room."""

    what: str
    value: int
    limit: int

    def __str__(self) -> str:
        return f"{self.value} {self.what}, room for {self.limit}"


def sizes_of(tasks: Iterable[GridTask], widths: Sequence[int]) -> Sizes:
    """Room for all tests and outputs of the tasks that fit into the widest row.

    So it is the width alone that leaves a task out. At least the usual room, which is enough for
    most of ARC-AGI: different lists then have arrays, and so programs, of the same shapes.
    """
    usual = Sizes(widths)
    fit = [task for task in tasks if not isinstance(_layout(task, usual), TooLong)]
    return dataclasses.replace(
        usual,
        tests=max([usual.tests, *(len(task.tests) for task in fit)]),
        answer=max([usual.answer, *(_longest_answer(task) for task in fit)]),
    )


def prepare(task: GridTask, sizes: Sizes) -> Prepared | TooLong:
    """The arrays of a task, or why it does not fit into them.

    A task whose demonstrations and longest test do not fit into the widest row is asked with as
    many of the first ones as do; it is too long if that is none. Rows that are learned hold as many
    pairs as fit, whichever they are. Beyond ``sizes.pairs`` demonstrations are left out.
    """
    layout = _layout(task, sizes)
    if isinstance(layout, TooLong):
        return layout
    if len(task.tests) > sizes.tests:
        return TooLong("tests", len(task.tests), sizes.tests)
    if (answer := _longest_answer(task)) > sizes.answer:
        return TooLong("tokens of a test's output", answer, sizes.answer)
    pairs, (width, used, room) = task.demonstrations[: sizes.pairs], layout
    before = [BOS, *_joined(pair_tokens(pair) for pair in pairs[:used])]
    context = np.zeros((1, width), np.int32)
    context[0, : len(before) + 1] = [*before, EDIT]
    contexts = Contexts(jnp.asarray(context), jnp.array([len(before) + 1]))
    shown = _shown(pairs, room, sizes.pairs, width)
    return Prepared(task, width, used, shown, contexts, _questions(task, before, width, sizes))


class _Layout(NamedTuple):
    """Positions of a row, demonstrations that an exam shows, and pairs that a row has room for."""

    width: int
    used: int
    room: int


def _layout(task: GridTask, sizes: Sizes) -> _Layout | TooLong:
    """How a task lies in rows, whatever its tests are answered with."""
    pairs, widest = task.demonstrations[: sizes.pairs], sizes.widths[-1]
    lengths = [_longest(pair) for pair in pairs]
    test = max(len(pair_tokens(pair)) for pair in task.tests)
    alone = 1 + max(lengths)  # a row of one turned demonstration
    if alone > widest:
        return TooLong("tokens of one demonstration, turned", alone, widest)
    # Of a prompt that shows one, two, ... of them: it is not turned, as rows that are learned are.
    ends = 1 + np.cumsum([len(pair_tokens(pair)) for pair in pairs]) + test
    used = int(np.sum(ends <= widest))
    if not used:
        return TooLong("tokens of one demonstration and a test", int(ends[0]), widest)
    needed = max(ends[used - 1], alone)
    width = next(w for w in sizes.widths if needed <= w)
    return _Layout(width, used, int(np.sum(1 + np.cumsum(np.sort(lengths)[::-1]) <= width)))


def _longest_answer(task: GridTask) -> int:
    return max(len(answer_tokens(pair.output)) for pair in task.tests)


def _longest(pair: Pair) -> int:
    """Tokens of a pair, or of the same pair transposed."""
    return max(len(pair_tokens(turned(pair, symmetry))) for symmetry in (0, 1))


def turned(pair: Pair, symmetry: int) -> Pair:
    """A pair with both grids turned alike, see :func:`~sleeplm.data.grid_rules.dihedral`."""
    return Pair(*(grid_of(dihedral(np.array(g), symmetry)) for g in (pair.input, pair.output)))


def _shown(pairs: Sequence[Pair], room: int, most: int, width: int) -> Shown:
    tokens = np.zeros((SYMMETRIES, most, width), np.int32)
    lengths = np.zeros((SYMMETRIES, most), np.int32)
    for symmetry in range(SYMMETRIES):
        for i, pair in enumerate(pairs):
            row = pair_tokens(turned(pair, symmetry))
            tokens[symmetry, i, : len(row)] = row
            lengths[symmetry, i] = len(row)
    sizes = (jnp.int32(len(pairs)), jnp.int32(room))
    return Shown(jnp.asarray(tokens), jnp.asarray(lengths), *sizes)


def _questions(task: GridTask, before: Sequence[int], width: int, sizes: Sizes) -> Questions:
    prompts = np.zeros((sizes.tests, width), np.int32)
    answers = np.zeros((sizes.tests, sizes.answer), np.int32)
    lengths = np.zeros(sizes.tests, np.int32)
    for i, pair in enumerate(task.tests):
        prompt, answer = [*before, *question_tokens(pair.input)], answer_tokens(pair.output)
        prompts[i, : len(prompt)] = prompt
        answers[i, : len(answer)] = answer
        lengths[i] = len(prompt)
    return Questions(jnp.asarray(prompts), jnp.asarray(lengths), jnp.asarray(answers))


def _joined(parts: Iterable[list[int]]) -> list[int]:
    return [token for part in parts for token in part]
