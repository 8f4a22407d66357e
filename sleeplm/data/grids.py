"""Grid tasks in the form of ARC-AGI (arXiv:1911.01547), and the tokens that they become.

A task shows pairs of grids, one made of the other by a rule that nobody tells, and asks for the
output of other inputs. A grid is rows of colours 0 to 9; 0 is the background.

As words (:class:`GridTokenizer`), a pair is ``in 1 2 / 3 4 / out 3 1 / 4 2 / <eos>``: ``/`` ends a
row, ``<eos>`` what has to be answered. A text is ``<bos>`` and pairs. A self-edit stands behind the
demonstrations, ``edit rotate reorder on_outputs rate1 steps2 <eos>``, and says how to learn from
them (:data:`EDIT_WORDS`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from sleeplm.core.errors import ConfigError
from sleeplm.core.types import PLAIN, Turns
from sleeplm.data import text
from sleeplm.data.text import SPECIAL_TOKENS, SpecialTokens

Grid = tuple[tuple[int, ...], ...]

COLOURS = 10
PAD, BOS, EOS = text.PAD, text.BOS, text.EOS
#: What an edit may do to a task's demonstrations, in the order that it has to name them in.
AUGMENTATIONS = ("rotate", "flip", "transpose", "recolour", "reorder")
#: Which tokens are learned; learning rates and numbers of steps, from low to high.
LOSSES = ("on_all", "on_outputs")
RATES = ("rate0", "rate1", "rate2", "rate3")
STEPS = ("steps0", "steps1", "steps2")
EDIT_WORDS = (*AUGMENTATIONS, *LOSSES, *RATES, *STEPS)
#: Longest edit: every augmentation, a loss, a rate, a number of steps, and the end.
EDIT_TOKENS = len(AUGMENTATIONS) + 4
WORDS = (
    *SPECIAL_TOKENS, *(str(colour) for colour in range(COLOURS)), "/", "in", "out",
    "edit", *EDIT_WORDS,
)  # fmt: skip
_ID = {word: i for i, word in enumerate(WORDS)}
COLOUR, ROW, IN, OUT, EDIT = (_ID[word] for word in ("0", "/", "in", "out", "edit"))
FIRST_EDIT = _ID[EDIT_WORDS[0]]


@dataclasses.dataclass(frozen=True)
class Pair:
    """An input and what the task's rule makes of it."""

    input: Grid
    output: Grid


@dataclasses.dataclass(frozen=True)
class GridTask:
    """A name, pairs to learn the rule from, and pairs to be tested by."""

    name: str
    demonstrations: tuple[Pair, ...]
    tests: tuple[Pair, ...]


def grid_of(rows: Iterable[Iterable[int]]) -> Grid:
    """A grid of plain integers, also from a numpy array."""
    return tuple(tuple(int(colour) for colour in row) for row in rows)


def grid_tokens(grid: Grid) -> list[int]:
    """A grid's tokens, h w + h of them: every row is ended."""
    return [token for row in grid for token in (*(COLOUR + c for c in row), ROW)]


def question_tokens(grid: Grid) -> list[int]:
    """``in ... out``: an input whose output has to follow."""
    return [IN, *grid_tokens(grid), OUT]


def answer_tokens(grid: Grid) -> list[int]:
    """``... <eos>``: an output."""
    return [*grid_tokens(grid), EOS]


def pair_tokens(pair: Pair) -> list[int]:
    """``in ... out ... <eos>``."""
    return question_tokens(pair.input) + answer_tokens(pair.output)


@dataclasses.dataclass(frozen=True)
class GridTokenizer(SpecialTokens):
    """One token a word of :data:`WORDS`, words apart by spaces; nothing to train.

    It has the interface of :class:`sleeplm.data.text.Tokenizer`, for texts of these words alone.
    ``<pad>``, ``<bos>`` and ``<eos>`` are special: no text encodes to them.
    """

    turns: Turns = PLAIN

    @property
    def vocab_size(self) -> int:
        return len(WORDS)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``.

        Raises:
          ConfigError: a word that has no token.
        """
        for word in text.split():
            if _ID.get(word, PAD) <= EOS:
                raise ConfigError("text", word, f"is not among {' '.join(WORDS[EOS + 1 :])}")
        return [_ID[word] for word in text.split()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Iterable[int]) -> str:
        """The words of ``tokens``; special tokens are left out."""
        return " ".join(WORDS[int(token)] for token in tokens if token > EOS)

    def decode_batch(self, rows: Iterable[Iterable[int]]) -> list[str]:
        return [self.decode(row) for row in rows]
