"""The agenda of one arm of a life: days of wake steps, nights where they are due, exams."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.core.phase import Phase, repeat
from sleeplm.core.types import Array, State
from sleeplm.memory.slots import is_full, require_room
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.learner import Learner, Rest
from sleeplm.runtime.lifecycle import Moment
from sleeplm.runtime.streams import DayStreams


@dataclasses.dataclass
class Life:
    """What an agenda is made of.

    Attributes:
      learner: its pure functions. sleep: settings of the night.
      streams: the days' batches. steps: wake steps a day. chunk: of them per compiled call.
      cues: per day {"tokens" [n, C], "length" [n]}; before: those known before the first day.
      examine: ``variables -> recall [days + 1]``, the last entry for pretraining facts.
    """

    learner: Learner
    sleep: SleepConfig
    streams: DayStreams
    days: int
    steps: int
    chunk: int
    cues: list[dict[str, np.ndarray]]
    before: dict[str, np.ndarray]
    examine: Callable[[Any], Array]

    def agenda(self) -> list[Moment]:
        """Every moment of the life, in order; nothing in it depends on what happens."""
        wake = jax.jit(
            _keyed(repeat(self.chunk, Phase(_no_init, self.learner.wake)).step), donate_argnums=0
        )
        offer = jax.jit(_keyed(self.learner.remember), donate_argnums=0)
        nights = [_Night(rest, self.sleep) for rest in self.learner.rests]
        self._examine = jax.jit(self.examine)
        moments: list[Moment] = []
        if nights:
            moments.append(self._remember(offer, self.before, -1, 0))
        step = 0
        for day in range(self.days):
            if nights:
                moments.append(self._remember(offer, self.cues[day], day, len(moments)))
            for _ in range(self.steps // self.chunk):
                moments.append(self._wake(wake, day, step, len(moments)))
                step += self.chunk
                if step % self.steps == 0:
                    moments.append(self._exam(day, "dusk"))
                for night in nights:
                    if step % night.rest.every == 0:
                        moments += night.moments(day, self.days, len(moments))
            if nights:
                moments.append(self._exam(day, "dawn"))
        return moments

    def _remember(self, offer: Callable, cues: dict, day: int, number: int) -> Moment:
        batch = {**cues, "today": np.int32(day)}

        def run(state: State):
            return offer(state, batch, number)

        return Moment(f"day {day + 1} cues", {"event": "cues", "day": day}, run, cost=0)

    def _wake(self, wake: Callable, day: int, step: int, number: int) -> Moment:
        def run(state: State):
            return wake(state, self.streams.take(day, self.chunk), number)

        done = step % self.steps + self.chunk
        label = f"day {day + 1}/{self.days} awake {done}/{self.steps}"
        return Moment(label, {"event": "wake", "day": day, "step": step + self.chunk}, run)

    def _exam(self, day: int, when: str) -> Moment:
        def run(state: State):
            recall = self._examine({"params": state.params, "slots": state.slots})
            counters = {name: state.counters[name] + 0 for name in ("nights", "rolled_back")}
            recall = recall + 0.0  # a copy: the state's buffers are donated to the next step
            return state, {"recall": recall[:-1], "pretrain": recall[-1], **counters}

        record = {"event": "exam", "when": when, "day": day}
        return Moment(f"day {day + 1}/{self.days} exam", record, run, show="pretrain")


class _Night:
    """The moments of one (sender, receiver) pair's nights, compiled once for all nights.

    With ``pool = merge_oldest`` a night is preceded by a merging of experts, which is passed over
    if the pool has room. If it fails, the night has nowhere to go and counts as rolled back.
    """

    def __init__(self, rest: Rest, config: SleepConfig):
        self.rest, self.config = rest, config
        rows = np.arange(config.inner * config.rows, dtype=np.int32)
        self.rows = rows.reshape(config.inner, config.rows)
        self.parts = self._compile(rest.begin, rest.seed, rest.end)
        self.merge = self._compile(*rest.merge) if rest.merge else None

    @staticmethod
    def _compile(*steps: Callable) -> list[Callable]:
        return [jax.jit(_keyed(step), donate_argnums=0) for step in steps]

    def moments(self, day: int, days: int, number: int) -> list[Moment]:
        """A night as moments; ``number`` is the place of its first one in the agenda."""
        name = f"night {day + 1}/{days} {self.rest.sender}->{self.rest.receiver}"
        out: list[Moment] = []
        if self.merge is not None:
            out += self._sequence(self.merge, f"{name} merging", "merge", day, number)
        return out + self._sequence(self.parts, f"{name} seeding", "seed", day, number + len(out))

    def _sequence(
        self, parts: list[Callable], label: str, event: str, day: int, number: int
    ) -> list[Moment]:
        begin, seed, end = parts
        batch = {"rows": self.rows, "today": np.int32(day)}
        sender, receiver = self.rest.sender, self.rest.receiver
        merging = event == "merge"

        def start(state: State):
            if merging and not is_full(state.slots[receiver]):
                return _with_room(state, sender, receiver), None
            if not merging and self.merge is not None and is_full(state.slots[receiver]):
                return _rolled_back(state), None
            if not merging:
                require_room(state.slots[receiver], receiver)
            return begin(state, batch, number)

        def then(step: Callable, offset: int):
            def run(state: State):
                if self.merge is not None and merging != _was_full(state, sender):
                    return state, None
                return step(state, batch, number + offset)

            return run

        record = {"event": event, "sender": sender, "day": day}
        out = [Moment(f"{label} begins", {}, start, cost=0)]
        blocks, updates = self.config.blocks, self.config.inner * self.config.epochs
        for i in range(1, blocks + 1):
            progress = f"{label} {i * updates}/{self.config.updates}"
            out.append(Moment(progress, {**record, "block": i}, then(seed, i)))
        record = {**record, "event": f"{event}_end"}
        out.append(Moment(f"{label} ends", record, then(end, blocks + 1), cost=0))
        return out


def _keyed(step: Callable) -> Callable:
    """The step with its key folded from the learner's root key and the moment's number."""
    return lambda state, batch, number: step(state, batch, jax.random.fold_in(state.key, number))


def _no_init(params: Any, key: Array) -> tuple:
    return ()


def _was_full(state: State, sender: str) -> bool:
    """Whether the receiver's pool was full at the last beginning of a merging or a night.

    While merging this says that there is something to merge; while seeding, that merging failed.
    """
    return bool(jnp.all(state.anchors[sender].receiver_slots.active))


def _with_room(state: State, sender: str, receiver: str) -> State:
    """Notes in the anchor that tonight's pool has room: there is nothing to merge."""
    table = jax.tree.map(jnp.copy, state.slots[receiver])  # the state's own buffers are donated
    anchor = dataclasses.replace(state.anchors[sender], receiver_slots=table)
    return state.replace(anchors={**state.anchors, sender: anchor})


def _rolled_back(state: State) -> State:
    """The state with one more night that came to nothing."""
    counters = {**state.counters, "rolled_back": state.counters["rolled_back"] + 1}
    return state.replace(counters=counters)
