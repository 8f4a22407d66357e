"""The continuum memory system: which levels there are, and where they live in the parameters.

A level is a subtree ``params["blocks"]["levels"][name]`` with

* ``norm``     {"scale" [N, D]}
* ``base``     the level's MLP, {"gate", "up": {"kernel" [N, D, F]}, "down": {"kernel" [N, F, D]}}
* ``experts``  {"a" [N, S, D, R], "b" [N, S, R, D]} if the level has slots
* ``router``   {"w" [N, D, S], "bias" [N, S]}      if the level has slots

with the N layers of the model stacked in front. Levels are listed fastest first (Eq. 1).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.core.types import Array, Params, PyTree

NEVER = 0  # a period or a night of 0: update frequency 0

KINDS = ("replace", "graft")
OPTIMIZERS = ("adamw", "sgd")
ACTIVATIONS = ("linear", "silu")
GATES = ("sigmoid", "softmax")
WIRINGS = ("sequential", "nested", "independent")
RESERVED = ("mix",)  # the weights of the independent wiring stand beside the levels


@dataclasses.dataclass
class LevelConfig:
    """One memory level.

    Attributes:
      name: key of the level in the parameters.
      kind: ``replace``: the block's own MLP is this level; ``graft``: a small residual MLP whose
        output matrix starts at zero, so that adding it leaves the function unchanged.
      width: hidden width F of its MLP.
      period: C(l) of Eq. 2, in wake steps between two moves; 0 is an infinite period (frozen).
      offset: the level moves at the steps i with (i - offset) divisible by ``period``.
      night: wake steps between two consolidations of this level into the next one, a multiple of
        ``period``; 0: never. The paper is night = period.
      learning_rate, optimizer, weight_decay, b1, b2, clip: the level's own optimiser; ``clip``
        is a global gradient norm, 0 for none.
      slots: S, low-rank experts that can be open at once. 0: the level receives nothing.
      rank: R = d_low of one expert.
      top_k: experts that one token may use.
      gate: ``sigmoid``: every open expert competes with a zero route of its own;
        ``softmax``: the open experts and one zero route share a unit of weight.
      gate_bias: router bias of a freshly opened expert.
      activation: ``linear`` or ``silu``, between the two matrices of an expert.
    """

    name: str = "slow"
    kind: str = "replace"
    width: int = 256
    period: int = NEVER
    offset: int = 0
    night: int = NEVER
    learning_rate: float = 1e-3
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    clip: float = 0.0
    slots: int = 0
    rank: int = 16
    top_k: int = 1
    gate: str = "sigmoid"
    gate_bias: float = 0.0
    activation: str = "linear"

    def check(self, field: str) -> None:
        named = isinstance(self.name, str) and self.name.isidentifier()
        checks.require(named, f"{field}.name", self.name, "use letters, digits and _")
        checks.require(
            self.name not in RESERVED, f"{field}.name", self.name, "this name is taken: use another"
        )
        checks.one_of(f"{field}.kind", self.kind, KINDS)
        checks.positive_integer(f"{field}.width", self.width)
        for name in ("period", "offset", "night", "slots"):
            checks.integer(f"{field}.{name}", getattr(self, name))
            checks.at_least(f"{field}.{name}", getattr(self, name), 0)
        checks.require(
            self.offset < max(self.period, 1),
            f"{field}.offset",
            self.offset,
            f"use 0 <= offset < period ({self.period})",
        )
        if self.night and self.period:
            checks.require(
                self.night % self.period == 0,
                f"{field}.night",
                self.night,
                f"use a multiple of the level's period ({self.period})",
            )
        checks.positive(f"{field}.learning_rate", self.learning_rate)
        checks.one_of(f"{field}.optimizer", self.optimizer, OPTIMIZERS)
        checks.one_of(f"{field}.gate", self.gate, GATES)
        checks.one_of(f"{field}.activation", self.activation, ACTIVATIONS)
        for name in ("b1", "b2"):
            checks.decay(f"{field}.{name}", getattr(self, name))
        for name in ("weight_decay", "clip"):
            checks.at_least(f"{field}.{name}", getattr(self, name), 0)
        checks.finite(f"{field}.gate_bias", self.gate_bias)
        if self.slots:
            checks.positive_integer(f"{field}.rank", self.rank)
            checks.positive_integer(f"{field}.top_k", self.top_k)
            checks.require(
                self.top_k <= self.slots,
                f"{field}.top_k",
                self.top_k,
                f"use 1 <= top_k <= slots ({self.slots})",
            )


def check_levels(levels: Sequence[LevelConfig], wiring: str, field: str) -> None:
    """Checks the chain as a whole (section 3: C(l) divides into C(l + 1), fastest first)."""
    wiring_field = ".".join([*field.split(".")[:-1], "wiring"])
    checks.one_of(wiring_field, wiring, WIRINGS)
    checks.require(len(levels) > 0, field, [], "name at least one level")
    for i, level in enumerate(levels):
        level.check(f"{field}[{i}]")
    names = [level.name for level in levels]
    checks.require(len(set(names)) == len(names), field, names, "give every level its own name")
    for i, (fast, slow) in enumerate(itertools.pairwise(levels)):
        for what in ("period", "night"):
            f, s = getattr(fast, what), getattr(slow, what)
            if f and s and s % f:
                raise ConfigError(
                    f"{field}[{i + 1}].{what}", s, f"use a multiple of {fast.name}'s {what} ({f})"
                )
        if slow.period and not fast.period:
            raise ConfigError(
                f"{field}[{i + 1}].period",
                slow.period,
                "a level cannot be faster than the one before",
            )
        if fast.night and not slow.slots:
            raise ConfigError(
                f"{field}[{i + 1}].slots",
                slow.slots,
                f"{fast.name} is consolidated into {slow.name}, which needs at least 1 slot",
            )
    if levels[-1].night:
        raise ConfigError(
            f"{field}[{len(levels) - 1}].night",
            levels[-1].night,
            "the slowest level has no receiver",
        )
    if wiring == "nested":
        widths = {(level.kind, level.width) for level in levels}
        checks.require(
            len(widths) == 1,
            wiring_field,
            wiring,
            "nested levels hold one another's initial state: give all the same kind and width",
        )
        checks.require(
            levels[0].period > 0,
            f"{field}[0].period",
            levels[0].period,
            "in the nested wiring the fastest level learns: give it a finite period",
        )


def get_level(params: Params, name: str) -> PyTree:
    """The subtree of one level."""
    return params["blocks"]["levels"][name]


def with_levels(params: Params, subtrees: Mapping[str, PyTree]) -> Params:
    """``params`` with the subtrees of some levels swapped; everything else is shared."""
    if not subtrees:
        return params
    blocks = params["blocks"]
    return {**params, "blocks": {**blocks, "levels": {**blocks["levels"], **subtrees}}}


def label_of(path: tuple) -> str:
    """Label of a parameter by its path: ``<level>/<part>`` or ``backbone``.

    Parts are ``base`` (the level's MLP and norm), ``experts`` and ``router``.
    """
    keys = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
    if keys[:2] != ["blocks", "levels"] or len(keys) < 4:  # "mix" belongs to no level
        return "backbone"
    part = keys[3] if keys[3] in ("experts", "router") else "base"
    return f"{keys[2]}/{part}"


def labels(params: Params) -> PyTree:
    """A tree of :func:`label_of` in the shape of ``params``, for ``optax.partition``."""
    return jax.tree_util.tree_map_with_path(lambda path, _: label_of(path), params)


def copy_base(params: Params, source: str, target: str) -> Params:
    """Level stacking: ``target``'s MLP starts as a copy of ``source``'s (section 3)."""
    donor = get_level(params, source)
    # Copies, not shared arrays: a buffer that stands in a state twice cannot be donated.
    copied = jax.tree.map(jnp.copy, {"base": donor["base"], "norm": donor["norm"]})
    return with_levels(params, {target: {**get_level(params, target), **copied}})


def due(step: Array | int, every: int, offset: int = 0) -> Array | bool:
    """True after ``step`` wake steps if a clock of period ``every`` strikes; never for 0."""
    if every == NEVER:
        return False
    return (step > 0) & ((step - offset) % every == 0)
