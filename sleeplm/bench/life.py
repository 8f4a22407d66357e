"""The agenda of one arm: days of wake steps, nights where they are due, exams, for E learners."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sleeplm.bench.dreamings import Dreamings
from sleeplm.bench.nights import Nights, with_counters
from sleeplm.bench.streams import StackedStreams
from sleeplm.bench.timetable import nights_of
from sleeplm.core import tree
from sleeplm.core.phase import Phase, repeat
from sleeplm.core.types import Array, Metrics, PyTree, State
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.learner import Learner
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.methods.sleep import Step
from sleeplm.runtime.learners import ask_each, copies, side_by_side
from sleeplm.runtime.lifecycle import Moment

BEFORE = -1  # the day of what was known before the first


@dataclasses.dataclass
class Life:
    """What an agenda is made of. Arrays have the E learners in front.

    Attributes:
      learner: its pure functions. sleep: settings of the night.
      streams: the days' batches. steps: wake steps of each day. chunk: of them per compiled call.
      shares: how long each day's night is, of the usual one; empty: all alike.
      cues: per day {"tokens" [E, n, C], "length" [E, n]}, offered when it begins to be read, and
        again after a night within it; before: those known before the first day. Not used where
        the night's settings ask for own cues and the learner can write them.
      examine: ``(state of one learner, paper) -> {name: array}``.
      score: what goes into the metrics instead, of all learners and on the host; None: as it is.
      paper: ``day -> pytree`` of the exam after that day.
      night_batch: {"archive": raw texts} for nights that replay them, {"reader"} for those that are
        judged, or {}.
      judge: of imitations, for all learners, or None; see :func:`sleeplm.methods.rewards.ask`.
      schedule: when to sleep.
      look: step that sets ``counters["asleep"]`` before the next batch is absorbed
        (:func:`sleeplm.methods.schedule.look`), or None where the schedule is known beforehand.
      probe: the same as ``examine``, asked once at the end of life, or None.
      dreams: what follows the fastest sender's nights, before slower levels sleep, or None.
      mesh: that the learners lie on, or None: one device.
    """

    learner: Learner
    sleep: SleepConfig
    streams: StackedStreams
    steps: Sequence[int]
    chunk: int
    cues: Sequence[dict[str, np.ndarray]]
    before: dict[str, np.ndarray]
    examine: Callable[[State, PyTree], dict[str, Array]]
    paper: Callable[[int], PyTree]
    night_batch: PyTree = dataclasses.field(default_factory=dict)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    look: Step | None = None
    probe: Callable[[State, PyTree], dict[str, Array]] | None = None
    shares: Sequence[float] = ()
    judge: PyTree = None
    score: Callable[[dict[str, Array]], dict[str, Any]] | None = None
    dreams: Dreamings | None = None
    mesh: Mesh | None = None

    @property
    def days(self) -> int:
        return len(self.steps)

    @property
    def _own_cues(self) -> Step | None:
        """The step that writes the learner's own cues, if it is to use them and can."""
        return self.learner.write_cues if self.sleep.cues == "self" else None

    def agenda(self) -> list[Moment]:
        """Every moment of the life, in order; those that turn out to have nothing to do pass."""
        wake = self._together(repeat(self.chunk, Phase(_no_init, self.learner.wake)).step)
        own = self._own_cues
        certain = self.look is None
        self._nights = [
            Nights(rest, self.sleep, self.night_batch, own, certain, self.judge, self.mesh)
            for rest in self.learner.rests
        ]
        self._due = [self._known(rest.every) for rest in self.learner.rests]
        self._send = self._together(_send_to_sleep)
        if self.look is not None:
            self._watch = self._together(self.look)
        self._examine = ask_each(self.examine, self.mesh)
        self._offer = self._together(_filed(self.learner.remember))
        self._offer_again = self._together(_unless_there(_filed(self.learner.remember)))
        self._has_cues = ask_each(_has_cues_of_today, self.mesh)
        self._moments: list[Moment] = []
        if self._nights:
            self._cues_before()
            self._nights_before()
        step = 0
        for day, steps in enumerate(self.steps):
            for i in range(steps // self.chunk):
                if self.look is not None:
                    # Before a day's first batch all that is held is of the days before it.
                    self._maybe_sleep(day, slept=max(day - 1, 0) if i == 0 else day)
                if self._nights and own is None:
                    if i == 0:
                        self._remember(self.cues[day], day, f"day {day + 1} cues")
                    elif self.look is not None or step in self._due[0]:
                        self._remember_again(day)
                self._wake(wake, day, step)
                step += self.chunk
                if step == sum(self.steps[: day + 1]):
                    self._exam(day, "dusk")
                self._sleep_where_due(day, step)
            if self.look is not None and day + 1 == self.days:
                self._maybe_sleep(day, slept=day, last=True)
            if self._nights:
                self._exam(day, "dawn")
        if self.probe is not None:
            self._last_questions(self.probe)
        return self._moments

    def _counted(self, state: State) -> dict[str, Array]:
        names = ("nights", "rolled_back", "skipped")
        return copies({name: state.counters[name] for name in names}, self.mesh)

    def _together(self, step: Step) -> Callable:
        return side_by_side(step, self.mesh)

    def _add(self, label: str, record: dict[str, Any], run: Callable, **more: Any) -> None:
        self._moments.append(Moment(label, record, run, **more))

    def _cues_before(self) -> None:
        if self._own_cues is not None:
            write = self._together(self._own_cues)
            number, shared = len(self._moments), {"today": np.int32(BEFORE)}
            record = {"event": "own_cues", "day": BEFORE}
            self._add("first cues", record, lambda s: write(s, {}, shared, number), cost=0)
        else:
            self._remember(self.before, BEFORE, "first cues")

    def _nights_before(self) -> None:
        for night in self._nights:
            if night.rest.before_life:
                number = len(self._moments)
                self._add("falling asleep", {}, self._sending(number), cost=0)
                self._moments += night.moments("before day 1", BEFORE, len(self._moments))

    def _remember(self, cues: dict, day: int, label: str) -> None:
        number, shared = len(self._moments), {"day": np.int32(day)}

        def run(state: State):
            return self._offer(state, cues, shared, number)

        self._add(label, {"event": "cues", "day": day}, run, cost=0)

    def _remember_again(self, day: int) -> None:
        """What is still being read of a day after a night within it belongs to the next night."""
        number, shared, cues = len(self._moments), {"day": np.int32(day)}, self.cues[day]

        def run(state: State):
            if bool(jnp.all(self._has_cues(state))):
                return state, None
            return self._offer_again(state, cues, shared, number)

        label = f"day {day + 1} cues again"
        self._add(label, {"event": "cues", "day": day, "again": True}, run, cost=0)

    def _wake(self, wake: Callable, day: int, step: int) -> None:
        number, last = len(self._moments), step + self.chunk
        first = sum(self.steps[:day])

        def run(state: State):
            return wake(state, self.streams.take(day, self.chunk), {}, number)

        label = f"day {day + 1}/{self.days} awake {last - first}/{self.steps[day]}"
        self._add(label, {"event": "wake", "day": day, "step": last}, run)

    def _sleep_where_due(self, day: int, step: int) -> None:
        """Nights after ``step`` wake steps, where nobody has to be asked."""
        for night, due in zip(self._nights, self._due, strict=True):
            if step in due:
                number = len(self._moments)
                self._add("falling asleep", {}, self._sending(number), cost=0)
                label = f"night {day + 1}/{self.days}"
                # A slower level's night is about many days.
                share = self.shares[day] if self.shares and night is self._nights[0] else 1.0
                self._moments += night.moments(label, day, len(self._moments), share)
                if self.dreams is not None and night is self._nights[0]:
                    self._moments += self.dreams.moments(label, day, len(self._moments))

    def _known(self, every: int) -> list[int]:
        """Wake steps after which a pair's nights are due, as far as that is known beforehand."""
        if self.look is not None:
            return []
        fastest = self.learner.rests[0].every
        return nights_of(self.schedule, self.steps, self.chunk, every, fastest)

    def _sending(self, number: int) -> Callable:
        return lambda state: self._send(state, {}, {}, number)

    def _maybe_sleep(self, day: int, slept: int, last: bool = False) -> None:
        """A look at the next batch of ``day``, and a night for those whom it sends to sleep.

        Args:
          slept: the day that the night is of. last: nothing follows.
        """
        number, shared, watch = len(self._moments), {"last": np.bool_(last)}, self._watch

        def run(state: State):
            return watch(state, self.streams.peek(day), shared, number)

        record = {"event": "look", "day": day, "last": last}
        self._add(f"day {day + 1}/{self.days} looking", record, run, cost=0, show="surprise")
        for night in self._nights:
            label = f"night of day {slept + 1}/{self.days}"
            self._moments += night.moments(label, slept, len(self._moments))

    def _exam(self, day: int, when: str) -> None:
        paper = self.paper(day)

        def run(state: State):
            found = {**self._examine(state, paper), **self._counted(state)}
            return state, found if self.score is None else self.score(found)

        record = {"event": "exam", "when": when, "day": day}
        self._add(f"day {day + 1}/{self.days} exam", record, run, show="pretrain")

    def _last_questions(self, ask: Callable) -> None:
        paper, probe = self.paper(self.days - 1), ask_each(ask, self.mesh)
        record = {"event": "probe"}
        self._add("last questions", record, lambda s: (s, probe(s, paper)), cost=0)


def _filed(remember: Step) -> Step:
    """Cues of today are filed under how many nights there were; those before the first under -1."""

    def run(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        day = jnp.where(batch["day"] < 0, BEFORE, state.counters["today"])
        return remember(state, {**batch, "today": day}, key)

    return run


def _has_cues_of_today(state: State) -> Array:
    return jnp.any(state.cues.day == state.counters["today"])


def _unless_there(offer: Step) -> Step:
    """Offers cues to those only who have none of today."""

    def run(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        there, (offered, metrics) = _has_cues_of_today(state), offer(state, batch, key)
        return tree.where(there, state, offered), metrics

    return run


def _send_to_sleep(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
    del batch, key
    return with_counters(state, asleep=jnp.ones_like(state.counters["asleep"])), {}


def _no_init(params: Any, key: Array) -> tuple:
    return ()
