"""What a learner has lived through, apart from the base that it lives on.

:class:`Memories` are grafted levels, the experts of every night with their router columns, and
what nights to come need (earlier states of senders, the reservoir of cues). All of it goes onto
the same base and no other, see :mod:`sleeplm.pretrained.receive`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.core import checks
from sleeplm.core.types import WRITER, Params, PyTree, State
from sleeplm.memory.anchors import Anchor, pool_of
from sleeplm.memory.levels import get_level
from sleeplm.memory.slots import take_slot
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model
from sleeplm.pretrained.hf_export import base_config, base_digest
from sleeplm.pretrained.tensor_files import Tensor, digest_of

#: ``(level, night) -> {"nights": [...], "days": [...]}``: what a slot holds, where that is known.
History = Mapping[tuple[str, int], Mapping[str, Sequence[int]]]


@dataclasses.dataclass(frozen=True)
class NightMemory:
    """The expert of one night.

    Attributes:
      level: its receiver. slot: where it stands there. night: when the slot was opened, counted
        from 0 as in ``SlotTable.since``.
      expert: {"experts": {"a" [N, D, R], "b" [N, R, D]}, "router": {"w" [N, D], "bias" [N]}},
        numpy.
      nights: all that it holds, several where experts were merged. days: that they followed, as
        far as known.
      earlier: {"level", "night", "days", "sha256"} of every expert that was open when this one
        was trained: it is what they leave to be said.
      origin: of the learner that slept it, see :class:`Memories`.
    """

    level: str
    slot: int
    night: int
    expert: PyTree
    nights: tuple[int, ...] = ()
    days: tuple[int, ...] = ()
    earlier: tuple[Mapping[str, Any], ...] = ()
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def sha256(self) -> str:
        """Of its numbers: the same night is known again in whichever slot."""
        return expert_digest(self.expert)

    def entry(self) -> dict[str, Any]:
        """How later nights refer to it."""
        own = {"level": self.level, "night": self.night, "days": list(self.days)}
        return own | {"sha256": self.sha256}


@dataclasses.dataclass(frozen=True)
class Memories:
    """The memories of a learner, or some of its nights.

    Attributes:
      base: digest of the backbone that they belong to, see
        :func:`~sleeplm.pretrained.hf_export.base_digest`.
      config: of the learner's model.
      whole: a learner's memories, with everything below; else single nights.
      nights: experts, in the order of the nights.
      parts: nested dicts of numpy arrays, each part only where it is there: ``levels`` (norm and
        MLP of every level that is not the base's, ``mix``), ``anchors`` ({sender: {"start",
        "dawn", "dawn_slots"}}), ``cues``, ``counters``, and ``writer`` (adapters that dreams are
        written with).
      origin: what was read and how, for people: run, world, arm, learner, settings of the night.
    """

    base: str
    config: ModelConfig
    whole: bool
    nights: tuple[NightMemory, ...]
    parts: Mapping[str, PyTree] = dataclasses.field(default_factory=dict)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def expert_digest(expert: PyTree) -> str:
    """sha256 (hex) of one expert with its router column."""
    return digest_of(named(expert))


def named(parts: PyTree, prefix: str = "") -> list[Tensor]:
    """Arrays in nested dicts as tensors named by their path, ``"experts.a"``."""
    leaves = jax.tree_util.tree_leaves_with_path(parts)
    names = [".".join(str(key.key) for key in path) for path, _ in leaves]
    return [
        Tensor(prefix + name, np.dtype(x.dtype), x.shape, functools.partial(np.asarray, x))
        for name, (_, x) in zip(names, leaves, strict=True)
    ]


def export_memories(
    model: Model,
    state: State,
    *,
    nights: Sequence[int] | None = None,
    cues: bool = True,
    history: History | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Memories:
    """A learner's memories, on the host.

    Args:
      state: of one learner, awake.
      nights: only these nights, counted from 0, and nothing else; None: everything.
      cues: with the reservoir of cues: subjects that it has read of, a few tokens each.
      history: what the slots hold, for people.

    Raises:
      ConfigError: a night is not there, the learner is asleep, or its model is none that a base
        can be written of.
    """
    asleep = [n for n in ("asleep", "merging", "dreaming") if int(state.counters.get(n, 0))]
    checks.require(not asleep, "learner", asleep, "is in the middle of a night: let it end")
    found = open_experts(model, state, history or {}, origin or {})
    common: dict[str, Any] = {
        "base": base_digest(model.config, state.params),
        "config": model.config,
        "origin": dict(origin or {}),
    }
    if nights is not None:
        there = [one.night for one in found]
        for night in nights:
            known = f"is in no open slot: there are {', '.join(map(str, there)) or 'none'}"
            checks.require(night in there, "night", night, known)
        chosen = tuple(one for one in found if one.night in nights)
        return Memories(whole=False, nights=chosen, **common)
    parts: dict[str, Any] = {
        "levels": _levels(model.config, state.params),
        "anchors": {name: remembered(a) for name, a in _anchors(state).items()},
        "counters": dict(state.counters),
    }
    if cues:
        parts["cues"] = vars(state.cues)
    if WRITER in state.params:
        parts[WRITER] = state.params[WRITER]
    on_host = jax.tree.map(np.asarray, parts)
    return Memories(whole=True, nights=found, parts=on_host, **common)


def open_experts(
    model: Model, state: State, history: History, origin: Mapping[str, Any]
) -> tuple[NightMemory, ...]:
    """Every open expert of a learner, in the order of their nights."""
    out: list[NightMemory] = []
    for level in model.config.levels:
        table = jax.device_get(state.slots[level.name])
        for slot in np.flatnonzero(table.active):
            night = int(table.since[slot])
            held = history.get((level.name, night), {})
            expert = take_slot(pool_of(state.params, level.name), jnp.int32(slot))
            one = NightMemory(
                level=level.name,
                slot=int(slot),
                night=night,
                expert=jax.tree.map(np.asarray, expert),
                nights=tuple(held.get("nights", (night,))),
                days=tuple(held.get("days", ())),
                origin=origin,
            )
            out.append(one)
    out.sort(key=lambda one: (one.night, one.slot))
    return tuple(
        dataclasses.replace(one, earlier=tuple(e.entry() for e in out if e.night < one.night))
        for one in out
    )


def _levels(config: ModelConfig, params: Params) -> PyTree:
    """Norm and MLP of the levels that the base has not."""
    base = {level.name for level in base_config(config).levels}
    own = [level.name for level in config.levels if level.name not in base]
    out = {n: {part: get_level(params, n)[part] for part in ("norm", "base")} for n in own}
    mix = params["blocks"]["levels"].get("mix")
    return out if mix is None else {**out, "mix": mix}


def _anchors(state: State) -> dict[str, Anchor]:
    """Of memory levels; other methods keep other things under this name."""
    return {name: a for name, a in state.anchors.items() if isinstance(a, Anchor)}


def remembered(anchor: Anchor) -> PyTree:
    """What the next night needs: all else in an anchor it writes anew."""
    slots = vars(anchor.dawn_slots)
    return {"start": anchor.start, "dawn": anchor.dawn, "dawn_slots": slots}
