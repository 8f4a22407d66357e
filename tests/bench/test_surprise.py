"""Nights that follow the stream instead of the clock: at a change of topic, and after every day."""

from __future__ import annotations

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench.life import Life
from sleeplm.bench.lives import life_of as life_of_arm
from sleeplm.bench.streams import DayStreams, StackedStreams
from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.phase import scope
from sleeplm.methods.config import TeacherConfig
from sleeplm.methods.learner import learner
from sleeplm.methods.schedule import ScheduleConfig, look
from sleeplm.runtime.lifecycle import Stopped, StopRequest
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import METRICS, Run, Stage

pytestmark = pytest.mark.slow

STEPS = [5, 12, 6, 8]  # wake steps of days that each have a topic of their own
ENDS = np.cumsum(STEPS).tolist()


@dataclasses.dataclass
class Settings:
    keep: int = 3
    save_seconds: float = 1e9


def topic(day: int) -> list[list[int]]:
    """Texts that say the same four words, which no other day knows, again and again."""
    words = 3 + 4 * day + np.arange(4)
    return [[1, *np.roll(words, i).tolist() * 2, 2] for i in range(4)]


def parts(tiny, **schedule):
    """Model and settings of a learner for whom a topic is old after two steps."""
    levels = [
        tiny.level("fast", kind="graft", period=1, night=4, learning_rate=0.1),
        tiny.level("slow", slots=len(STEPS), top_k=2),
    ]
    night = {"teachers": [TeacherConfig("dusk", "today")], "lam": 0.0, "alpha": 1.0}
    sleep = tiny.config(**night, updates=2, inner=1, rollback=0.0)
    when = ScheduleConfig(**{"when": "surprise", "ratio": 1.5, "shortest": 2, **schedule})
    return tiny.model(levels), sleep, when


def saying_the_day(seed):
    """A step of the night that also reports the day that it is handed."""

    def step(state, batch, key):
        state, metrics = seed(state, batch, key)
        return state, {**metrics, "handed": (batch["day"] * 1.0, jnp.ones(()))}

    return step


def life_of(tiny, **schedule):
    """A life of days of unequal length, and how it begins."""
    model, sleep, when = parts(tiny, **schedule)
    functions, watch = learner(model, sleep, chunk=8), look(model, when, "fast", chunk=8)
    rests = tuple(rest._replace(seed=saying_the_day(rest.seed)) for rest in functions.rests)
    functions = functions._replace(rests=rests)

    def born(key):
        state = functions.init(tiny.params(model), key)
        private = {**state.private, "schedule": watch.init(state.params, key)}
        return jax.tree.map(lambda x: x[None], state.replace(private=private))

    cues = [{k: v[None] for k, v in tiny.cues(d, d).items() if k != "today"} for d in range(4)]
    streams = [DayStreams([topic(day) for day in range(4)], batch=4, length=12, seed=0)]
    life = Life(
        learner=functions,
        sleep=sleep,
        streams=StackedStreams(streams),
        steps=STEPS,
        chunk=1,
        cues=cues,
        before=cues[0],
        examine=lambda state, paper: {"recall": jnp.zeros(4), "pretrain": jnp.zeros(())},
        paper=lambda day: (),
        look=scope(watch.step, "schedule"),
    )
    return life, jax.jit(born)(jax.random.key(0))


class Killed(Exception):
    """Stands for the end of a process: what is not in a checkpoint is lost."""


class Place:
    """A run directory in which an agenda is lived, in one go or in several."""

    def __init__(self, directory, agenda, newborn, streams):
        self.directory, self.agenda, self.newborn = directory, agenda, newborn
        self.streams = streams

    def live(self, *, save_after=None, killed_at=None):
        """Goes on from the last checkpoint.

        Args:
          save_after: after this moment a signal asks to save and to leave.
          killed_at: nothing of this moment, nor of those since the last checkpoint, is kept.
        """
        stop = StopRequest()

        def running(position, moment):
            def run(state):
                if position == killed_at:
                    raise Killed
                if position == save_after:
                    stop.signum = signal.SIGTERM
                return moment.run(state)

            return dataclasses.replace(moment, run=run)

        agenda = [running(i, moment) for i, moment in enumerate(self.agenda)]
        run = Run(self.directory, Settings(), quiet=True, resume=True, stop=stop)

        def newborn():
            return jax.tree.map(jnp.copy, self.newborn)

        return run.stage(Stage("life", newborn, agenda, self.streams))

    def lines(self, event: str) -> list[dict]:
        lines = read_metrics(self.directory / METRICS)
        return [line for line in lines if line["event"] == event]

    def nights(self) -> list[int]:
        """Wake steps before each night."""
        step, slept = 0, []
        for line in read_metrics(self.directory / METRICS):
            step = line.get("step", step)
            if line["event"] == "seed_end":
                slept.append(step)
        return slept


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A life by surprise with as many nights as it likes, and its last state."""
    life, newborn = life_of(tiny)
    directory = tmp_path_factory.mktemp("surprise") / "run"
    place = Place(directory, life.agenda(), newborn, life.streams)
    return place, place.live()


def test_by_surprise_nights_fall_where_the_topic_changes_and_at_the_end(whole):
    place, state = whole
    assert place.nights() == ENDS
    assert state.counters["nights"].tolist() == [len(STEPS)]
    assert state.slots["slow"].active.all()
    looks = place.lines("look")
    assert [line["last"] for line in looks] == [False] * sum(STEPS) + [True]
    surprises = [line["surprise"][0] for line in looks[:-1]]
    changes = [surprises[end] for end in ENDS[:-1]]
    inside = [x for step, x in enumerate(surprises) if step not in ENDS]
    assert min(changes) > 1.5 > max(inside)


def told_of(place) -> list[tuple[int, int]]:
    """The day of each night's record, and the one whose texts its steps were handed as today's."""
    ends = [line["day"] for line in place.lines("seed_end")]
    handed = [int(line["handed"][0]) for line in place.lines("seed")]
    return list(zip(ends, handed[:: len(handed) // len(ends)], strict=True))


def test_a_night_before_a_days_first_batch_is_of_the_day_before(whole, hasty):
    place, _ = whole  # which sleeps when the first batch of another topic is looked at
    assert told_of(place) == [(day, day) for day in range(len(STEPS))]
    labels = [m.label for m in place.agenda if m.record.get("event") == "seed_end"]
    assert labels[ENDS[0]] == "night of day 1/4 fast->slow ends"
    assert labels[ENDS[0] + 1] == "night of day 2/4 fast->slow ends"
    place, _ = hasty  # twice within the first day, then at the end of life
    assert told_of(place) == [(0, 0), (0, 0), (3, 3)]


def filed(state, night: int) -> set[tuple[int, ...]]:
    """The cues that are filed under a night, of the only learner."""
    cues = jax.tree.map(lambda x: np.asarray(x[0]), state.cues)
    return {tuple(row) for row in cues.tokens[cues.day == night].tolist()}


def offered(tiny, *days: int) -> set[tuple[int, ...]]:
    return {tuple(row) for day in days for row in tiny.cues(day, day)["tokens"].tolist()}


def test_cues_of_a_day_are_told_in_the_night_after_it_and_not_in_the_one_before(tiny, whole):
    place, state = whole
    for night in range(len(STEPS)):
        assert set() < filed(state, night) <= offered(tiny, night)
    assert not any(line.get("again") for line in place.lines("cues"))


@pytest.fixture(scope="module")
def hasty(tiny, tmp_path_factory):
    """A life to which every look is a surprise, but of three nights, and its last state."""
    life, newborn = life_of(tiny, ratio=0.01, nights=3)
    directory = tmp_path_factory.mktemp("hasty") / "run"
    place = Place(directory, life.agenda(), newborn, life.streams)
    return place, place.live()


def test_a_budget_of_nights_is_never_exceeded_and_the_last_one_ends_the_life(hasty):
    place, state = hasty
    assert place.nights() == [2, 4, sum(STEPS)]
    assert sum(line["sleeps"][0] for line in place.lines("look")) == 3
    assert state.counters["nights"].tolist() == [3]


def test_what_is_still_read_of_a_day_after_a_night_within_it_is_told_in_the_next(tiny, hasty):
    place, state = hasty  # whose first day has five steps, and nights after two and four
    for night, days in enumerate([(0,), (0,), range(len(STEPS))]):
        assert set() < filed(state, night) <= offered(tiny, *days)
    assert [line["day"] for line in place.lines("cues") if line.get("again")] == [0, 0]


def test_what_is_looked_at_is_what_is_read_next_and_is_not_taken():
    days = [topic(day) for day in range(4)]
    streams, others = (
        StackedStreams([DayStreams(days, batch=4, length=12, seed=seed) for seed in (0, 1)])
        for _ in range(2)
    )
    for day in (0, 0, 1):
        seen = streams.peek(day)
        jax.tree.map(np.testing.assert_array_equal, seen, streams.peek(day))
        taken, unseen = streams.take(day, 2), others.take(day, 2)
        jax.tree.map(np.testing.assert_array_equal, taken, unseen)
        for name, batch in seen.items():
            np.testing.assert_array_equal(batch, taken[name][:, 0])


def test_a_life_by_surprise_that_was_killed_goes_on_to_the_same_bytes(whole, tmp_path):
    place, state = whole
    looks = [i for i, m in enumerate(place.agenda) if m.record.get("event") == "look"]
    change = looks[ENDS[0]]  # the look that sends to the first night
    again = Place(tmp_path / "run", place.agenda, place.newborn, place.streams)
    goes = [
        {"save_after": change},  # asleep, and not yet begun
        {"killed_at": change + 3},  # after one block of seeding
        {"save_after": change + 2},  # between two blocks
        {"save_after": looks[ENDS[1]] - 1},  # a day has been read, nobody has looked further
        {"killed_at": looks[-1]},
        {},
    ]
    for go in goes:
        again.streams.take(3, 2)  # wherever the stream of this process happens to be
        expected = {"save_after": Stopped, "killed_at": Killed}.get(next(iter(go), ""))
        if expected is None:
            ended = again.live()
        else:
            with pytest.raises(expected):
                again.live(**go)
    assert (again.directory / METRICS).read_bytes() == (place.directory / METRICS).read_bytes()
    assert tree.differing(ended, state) == []


# --- nights that nobody has to be asked about ----------------------------------------------------


def nights_of(life) -> list[tuple[str, int]]:
    """Who begins a night, after how many wake steps, according to an agenda."""
    step, slept = 0, []
    for moment in life.agenda():
        step = moment.record.get("step", step)
        if moment.record.get("event") == "seed_end":
            slept.append((moment.record["sender"], step))
    return slept


@pytest.fixture(scope="module")
def cascade(tiny):
    """Three levels, the second of which sleeps half as often."""
    return learner(tiny.model(tiny.three_levels()), tiny.config(alpha=1.0), chunk=8)


def test_at_days_end_one_night_follows_every_day_however_long(tiny, cascade):
    life, _ = life_of(tiny)
    unequal = dataclasses.replace(life, learner=cascade, look=None, chunk=1)
    by_day = nights_of(dataclasses.replace(unequal, schedule=ScheduleConfig("day_end")))
    assert [step for sender, step in by_day if sender == "fast"] == ENDS
    # A slower level sleeps after as many days as its night is longer.
    assert [step for sender, step in by_day if sender == "middle"] == ENDS[1::2]
    by_clock = nights_of(unequal)
    assert [step for sender, step in by_clock if sender == "fast"] == [*range(4, ENDS[-1], 4)]
    assert {step for _, step in by_clock}.isdisjoint(ENDS[:1])
    # As many nights by the clock as there are days: evenly spaced, the last one at the end.
    counted = nights_of(dataclasses.replace(unequal, schedule=ScheduleConfig("clock", nights=4)))
    assert [step for sender, step in counted if sender == "fast"] == [8, 16, 23, 31]
    assert [step for sender, step in counted if sender == "middle"] == [16, 31]


def test_more_nights_than_a_life_has_places_for_are_refused(tiny, cascade):
    life, _ = life_of(tiny)
    schedule = ScheduleConfig("clock", nights=ENDS[-1] + 1)
    with pytest.raises(ConfigError, match=r"schedule.nights = 32: .*31 wake steps.*at most 31"):
        dataclasses.replace(life, learner=cascade, look=None, chunk=1, schedule=schedule).agenda()


def test_days_of_unequal_size_are_read_in_proportion_and_slept_on_once(brief):
    schedule = ScheduleConfig(when="day_end")
    config = brief.config(days=0, day_sizes=[2, 9, 4], schedule=schedule)
    bench = brief.bench(config)
    assert bench.steps == [2, 8, 4]
    assert nights_of(life_of_arm(bench, brief.arm(bench, "sleep"))) == [
        ("fast", 2),
        ("fast", 10),
        ("fast", 14),
    ]


def test_a_life_of_more_nights_than_slots_is_refused_once_its_length_is_known(brief, tmp_path):
    # How long days are that are read through, the texts say; nothing has been done by then.
    config = brief.config()
    config = dataclasses.replace(config, day=dataclasses.replace(config.day, epochs=30.0))
    place = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"levels\[1\].slots = 4: \d+ nights of fast come in"):
        config.run(Run(place, config, quiet=True))
    assert not place.exists()
