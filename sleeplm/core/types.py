"""The contracts that every other room builds on.

A learner is one pytree (:class:`State`). Wake, sleep and dream are pure functions on it
(:class:`Phase`). What crosses from remembering to learning is one record (:class:`Memory`).

Dimension letters used in every docstring: B batch, L length, D model, H heads, F hidden,
V vocabulary, S slots, R rank, N layers, C cue length, M cues kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PyTree = Any
Params = PyTree
#: What a step may read of a learner: ``{"params", "slots", "anchors", "cues"}`` of its
#: :class:`State`. A model needs the first two to run.
Variables = Mapping[str, PyTree]
#: Every number that will be averaged travels as ``(sum, weight)`` until one last division.
Metrics = dict[str, tuple[Array, Array]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What an extraction hands to an objective: sequences, and what to learn about them.

    Attributes:
      tokens: int32 [B, L]. Position t is an input; its target is ``tokens[:, t + 1]``.
      weights: float32 [B, L]. Weight of *predicting* token t (column 0 is never predicted).
      segments: int32 [B, L]. Documents packed in one row; 0 is padding. Attention and targets
        never cross a segment.
      reference: float [B, L, D] or None. The teacher's final hidden states. With the shared
        unembedding they are a lossless code for its full next-token distribution, D numbers a
        token instead of V, so that [B, L, V] of two models never stands in memory. Needed
        where the next token has weight; elsewhere it may be 0.
      reward: float32 [B]. Advantage of the row for score-function objectives; 0 elsewhere.
      source: int32 [B]. Which (teacher, data source) pair made the row; -1 is the wake stream.
      logp: float32 [B, L] or None. Log-probability of token t when it was sampled, 0 where
        nothing was: what importance ratios are taken against once the writer has moved on.
    """

    tokens: Array
    weights: Array
    segments: Array
    reference: Array | None
    reward: Array
    source: Array
    logp: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The whole learner: what is saved, restored, vmapped and sharded.

    Attributes:
      params: model parameters; ``params["blocks"]["levels"][name]`` is one memory level.
      slots: ``{level: SlotTable}``, which experts exist, are open, and since which night.
      anchors: ``{sender: Anchor}``, earlier states of every level that is ever consolidated: the
        only extra parameters a teacher costs.
      cues: reservoir of short prefixes to remember from (see :mod:`sleeplm.memory.cues`).
      private: whatever the phase keeps between steps (accumulators, moments, buffers); its
        shape is the phase's own, made by ``Phase.init``.
      counters: int32 scalars by name, of steps, nights and what went wrong among them; all names
        are in :data:`sleeplm.methods.learner.COUNTERS`.
      key: root PRNG key of the learner; never consumed, only folded into.
    """

    params: Params
    slots: Mapping[str, PyTree]
    anchors: Mapping[str, PyTree]
    cues: PyTree
    private: PyTree
    counters: Mapping[str, Array]
    key: Array

    @property
    def variables(self) -> Variables:
        return {
            "params": self.params,
            "slots": self.slots,
            "anchors": self.anchors,
            "cues": self.cues,
        }

    def replace(self, **changes: Any) -> State:
        return dataclasses.replace(self, **changes)


class Extract(NamedTuple):
    """Memory extraction: from variables and a batch to a :class:`Memory`.

    ``init(params, key) -> s`` and ``extract(variables, s, batch, key) -> (Memory, s)``.
    """

    init: Callable[[Params, Array], PyTree]
    extract: Callable[[Variables, PyTree, PyTree, Array], tuple[Memory, PyTree]]


class Objective(Protocol):
    """``(variables, memory) -> (loss_sum, weight_sum, aux)``; aux values are (sum, weight)."""

    def __call__(self, variables: Variables, memory: Memory) -> tuple[Array, Array, Metrics]: ...


class Phase(NamedTuple):
    """A pure step on a learner.

    ``init(params, key) -> private`` and ``step(state, batch, key) -> (state, metrics)``, where
    ``state.private`` has the shape that ``init`` made.
    """

    init: Callable[[Params, Array], PyTree]
    step: Callable[[State, PyTree, Array], tuple[State, Metrics]]


@dataclasses.dataclass(frozen=True)
class Turns:
    """Tokens around a question and its answer where they are turns of a conversation.

    A row is ``<bos> before question between answer end <eos>``.
    """

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.before) + len(self.between) + len(self.end)


PLAIN = Turns()  # questions and answers are running text
#: Where the dream writer's own adapters stand: ``params["writer"]``. No model sees them there.
WRITER = "writer"
