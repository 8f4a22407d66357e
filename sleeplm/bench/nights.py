"""The nights of an agenda: moments that put many learners to sleep at once.

Learners that live side by side need not sleep at the same time. What only some do is computed for
all and kept by those whose counter says so (``asleep``, ``merging``), so that one compiled night
serves every night of every learner; what nobody does is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sleeplm.core.types import Array, Metrics, PyTree, State
from sleeplm.memory.slots import is_full, require_room
from sleeplm.methods.config import SleepConfig, merging
from sleeplm.methods.learner import Rest
from sleeplm.methods.schedule import masked
from sleeplm.methods.sleep import Step
from sleeplm.runtime.learners import side_by_side
from sleeplm.runtime.lifecycle import Moment


def today(step: Step) -> Step:
    """The step with ``batch["today"]`` = how many good nights the learner has had."""

    def run(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        return step(state, {**batch, "today": state.counters["today"]}, key)

    return run


def with_counters(state: State, **changes: Array) -> State:
    """The state with some counters replaced."""
    return state.replace(counters={**state.counters, **changes})


class Nights:
    """The moments of one (sender, receiver) pair's nights, compiled once for all of them.

    Where pools merge, a night is preceded by a merging of experts, for learners whose
    pool is full. If it fails, their night has nowhere to go and counts as rolled back.

    Args:
      batch: what every learner is handed beside rows, with E in front: raw texts for nights that
        replay them, who reads for those that are judged, or {}.
      write_cues: step that offers cues of the learner's own, done before it sleeps, or None.
      certain: everybody sleeps whenever these moments come, so that no one has to be asked.
      judge: of imitations, one for all learners, or None for the one that the night knows.
      mesh: that the learners lie on, or None.
    """

    def __init__(
        self,
        rest: Rest,
        config: SleepConfig,
        batch: PyTree,
        write_cues: Step | None,
        certain: bool,
        judge: PyTree = None,
        mesh: Mesh | None = None,
    ):
        self.rest, self.config, self.batch, self.certain = rest, config, batch, certain
        self.brought = {} if judge is None else {"judge": judge}
        rows = np.arange(config.inner * config.rows, dtype=np.int32)
        self.rows = rows.reshape(config.inner, config.rows)
        self.may_be_full = rest.expands and rest.merge is None
        self.write = write_cues and _each("asleep", write_cues, mesh)
        begin, seed, end = rest.begin, rest.seed, rest.end
        self.begin = side_by_side(self._falling_asleep(begin), mesh)
        self.seed = _each("asleep", seed, mesh)
        self.end = side_by_side(_waking(masked("asleep", today(end)), "asleep"), mesh)
        if rest.merge is not None:
            merge_begin, merge_seed, merge_end = rest.merge
            self.merge_begin = side_by_side(self._choosing(merge_begin), mesh)
            self.merge_seed = _each("merging", merge_seed, mesh)
            end_merging = _waking(masked("merging", today(merge_end)), "merging")
            self.merge_end = side_by_side(end_merging, mesh)

    def _falling_asleep(self, begin: Step) -> Step:
        """Asleep are those who were sent and have room; without room it is a failed night."""
        masked_begin = masked("asleep", today(begin))

        def run(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
            if self.rest.merge is not None:
                sent = state.counters["asleep"]
                full = is_full(state.slots[self.rest.receiver]).astype(jnp.int32)
                failed = state.counters["rolled_back"] + sent * full
                state = with_counters(state, asleep=sent * (1 - full), rolled_back=failed)
            return masked_begin(state, batch, key)

        return run

    def _choosing(self, begin: Step) -> Step:
        masked_begin = masked("merging", today(begin))

        def run(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
            full = is_full(state.slots[self.rest.receiver]).astype(jnp.int32)
            state = with_counters(state, merging=state.counters["asleep"] * full)
            return masked_begin(state, batch, key)

        return run

    def moments(self, label: str, day: int, number: int, share: float = 1.0) -> list[Moment]:
        """A night as moments.

        Args:
          number: the place of its first one in the agenda.
          share: of the usual night's updates that it has, to the nearest extraction.
        """
        name = f"{label} {self.rest.sender}->{self.rest.receiver}"
        record = {"sender": self.rest.sender, "day": day}
        updates = self.config.inner * self.config.epochs
        blocks = max(round(share * self.rest.blocks), 1) if self.rest.blocks else 0
        total = blocks * updates
        shared = {"rows": self.rows, "day": np.int32(day), "updates": np.int32(total)}
        shared |= self.brought
        out: list[Moment] = []

        def add(label: str, event: str, flag: str, step: Callable, cost: int, **more: Any) -> None:
            place = number + len(out)

            def run(state: State):
                asked = not self.certain or self.rest.merge is not None
                if asked and not bool(jnp.any(state.counters[flag])):
                    return state, None
                if step is self.begin and self.may_be_full:
                    require_room_for_all(state, self.rest.receiver)
                return step(state, self.batch, shared, place)

            fields = {"event": event, **record, **more} if event else {}
            out.append(Moment(label, fields, run, cost=cost))

        if self.write is not None:
            add(f"{name} cues", "own_cues", "asleep", self.write, 0)
        if self.rest.merge is not None:
            self._merging(add, name)
        add(f"{name} begins", "", "asleep", self.begin, 0)
        for i in range(1, blocks + 1):
            add(f"{name} seeding {i * updates}/{total}", "seed", "asleep", self.seed, 1, block=i)
        add(f"{name} ends", "seed_end", "asleep", self.end, 0)
        return out

    def _merging(self, add: Callable, name: str) -> None:
        # Whether anybody merges is known after the first of these moments only.
        config = merging(self.config)
        updates, total = config.inner * config.epochs, config.updates
        add(f"{name} merging begins", "", "asleep", self.merge_begin, 0)
        for i in range(1, config.blocks + 1):
            label = f"{name} merging {i * updates}/{total}"
            add(label, "merge", "merging", self.merge_seed, 1, block=i)
        add(f"{name} merging ends", "merge_end", "merging", self.merge_end, 0)


def _each(flag: str, step: Step, mesh: Mesh | None) -> Callable:
    return side_by_side(masked(flag, today(step)), mesh)


def _waking(end: Step, flag: str) -> Step:
    def run(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        state, metrics = end(state, batch, key)
        return with_counters(state, **{flag: jnp.zeros_like(state.counters[flag])}), metrics

    return run


def require_room_for_all(state: State, receiver: str) -> None:
    """Refuses, on the host, a night for which some learner's pool has no slot."""
    table = state.slots[receiver]
    for learner in range(table.active.shape[0]):
        require_room(jax.tree.map(lambda x, i=learner: x[i], table), receiver)
