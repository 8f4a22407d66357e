"""The agenda of a life: days, nights where they are due, exams; and what can go wrong in it."""

from __future__ import annotations

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench.life import Life
from sleeplm.core.errors import PoolFullError
from sleeplm.methods.config import TeacherConfig
from sleeplm.methods.learner import learner
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.runtime.lifecycle import Moment
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import Run, Stage

DAY_END = ScheduleConfig("day_end")


@dataclasses.dataclass
class Settings:
    keep: int = 3
    save_seconds: float = 1e9


def brief(tiny, **settings):
    """A night that compiles quickly: one teacher, who only tells."""
    teachers = [TeacherConfig("dusk", "today", 1.0, False)]
    return tiny.config(**{"teachers": teachers, "lam": 0.0, "alpha": 1.0, **settings})


class Text:
    """A stream of the same few batches for ever."""

    def __init__(self, tiny):
        self.tiny, self.taken = tiny, []

    def take(self, day: int, count: int):
        self.taken.append(day)
        batches = [self.tiny.text(day * 10 + i) for i in range(count)]
        return {k: np.stack([b[k] for b in batches])[None] for k in ("tokens", "segments")}

    def peek(self, day: int):
        return {k: v[None] for k, v in self.tiny.text(day * 10).items() if k != "positions"}

    def checkpointable(self):
        return None


def life_of(tiny, model, config, days=3, steps=4, chunk=2, **more):
    """A life of one learner, and its first state."""
    functions = learner(model, config, chunk=8)
    state = jax.jit(functions.init)(tiny.params(model), jax.random.key(0))
    cues = [{k: v[None] for k, v in tiny.cues(0, d).items() if k != "today"} for d in range(days)]
    settings = {
        "learner": functions,
        "sleep": config,
        "streams": Text(tiny),
        "steps": [steps] * days,
        "chunk": chunk,
        "cues": cues,
        "before": cues[0],
        "examine": lambda state, paper: {"recall": jnp.zeros(days), "pretrain": jnp.zeros(())},
        "paper": lambda day: (),
    }
    return Life(**{**settings, **more}), side_by_side_of(state)


def side_by_side_of(state):
    """One learner, as the only one of its kind."""
    return jax.tree.map(lambda x: x[None], state)


def alone(value):
    """What the one learner of a life has, without the axis of learners in front."""
    if isinstance(value, dict):
        return {name: alone(entry) for name, entry in value.items()}
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def lived(life, state, tmp_path, agenda=None) -> tuple[object, list[dict]]:
    run = Run(tmp_path / "run", Settings(), quiet=True)
    state = run.stage(Stage("life", lambda: state, agenda or life.agenda(), life.streams))
    lines = [alone(line) for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    return jax.tree.map(lambda x: x[0], state), lines


def outline(agenda: list[Moment]) -> list[str]:
    """The events of an agenda, blocks of a night as one word."""
    words = []
    for moment in agenda:
        record = moment.record
        if moment.label == "falling asleep":
            continue
        word = record.get("event", "begins")
        word = f"{word} {record['when']}" if "when" in record else word
        word = f"{word} {record['sender']}" if "sender" in record else word
        if record.get("block", 1) == 1:
            words.append(word)
    return words


def test_the_agenda_of_two_levels_is_day_exam_night_exam(tiny):
    config = tiny.config()
    life, _ = life_of(tiny, tiny.model(), config, days=2)
    agenda = life.agenda()
    night = ["begins", "seed fast", "seed_end fast"]
    day = ["cues", "wake", "wake", "exam dusk", *night, "exam dawn"]
    assert outline(agenda) == ["cues", *day, *day]
    assert len(agenda) == 1 + 2 * (len(day) + 1 + config.blocks - 1)
    steps = [m.record["step"] for m in agenda if m.record.get("event") == "wake"]
    assert steps == [2, 4, 6, 8]


def test_a_night_is_as_long_as_its_days_share_and_never_empty(tiny):
    config = tiny.config()  # two extractions of two updates
    life, _ = life_of(tiny, tiny.model(), config, days=3, shares=(2.6, 1.0, 0.1), schedule=DAY_END)
    blocks = [m.record["day"] for m in life.agenda() if m.record.get("event") == "seed"]
    assert [blocks.count(day) for day in range(3)] == [5, 2, 1]


@pytest.mark.slow
def test_the_learning_rate_falls_over_as_many_updates_as_the_night_has(tiny):
    config = brief(tiny, rollback=0.0)
    life, state = life_of(tiny, tiny.model(), config, days=2, shares=(3.0, 1.0), schedule=DAY_END)
    seen = []
    for moment in life.agenda():
        state, _ = moment.run(state)
        if moment.record.get("event") == "seed_end":
            seen.append(int(state.anchors["fast"].updates[0]))
    assert seen == [3 * config.updates, config.updates]


def test_three_levels_sleep_each_at_its_own_pace_fastest_first(tiny):
    levels = [
        tiny.level("fast", kind="graft", period=1, night=2),
        tiny.level("middle", kind="graft", period=2, night=8, slots=4, top_k=1),
        tiny.level("slow", slots=2, top_k=1),
    ]
    life, _ = life_of(tiny, tiny.model(levels), tiny.config(), days=2)
    fast = ["begins", "seed fast", "seed_end fast"]
    middle = ["begins", "seed middle", "seed_end middle"]
    # After a night within a day its cues are offered again.
    first = ["cues", "wake", *fast, "cues", "wake", "exam dusk", *fast, "exam dawn"]
    second = ["cues", "wake", *fast, "cues", "wake", "exam dusk", *fast, *middle, "exam dawn"]
    assert outline(life.agenda()) == ["cues", *first, *second]


def test_a_life_without_nights_has_no_cues_no_nights_and_one_exam_a_day(tiny, tmp_path):
    model = tiny.model(tiny.two_levels(night=0))
    life, state = life_of(tiny, model, brief(tiny), days=2)
    assert outline(life.agenda()) == ["wake", "wake", "exam dusk"] * 2
    state, lines = lived(life, state, tmp_path)
    assert state.counters["nights"] == 0
    assert state.counters["step"] == 8
    assert [line["event"] for line in lines] == ["wake", "wake", "exam"] * 2


def test_a_merging_is_as_long_as_merges_are_however_long_the_night(tiny):
    long = {"updates": 12, "merge_updates": 4, "inner": 2, "epochs": 2}
    config = brief(tiny, pool="merge_oldest", **long)
    life, _ = life_of(tiny, tiny.model(tiny.two_levels(slots=2)), config, days=1)
    agenda = life.agenda()
    kinds = [m.record.get("event") for m in agenda]
    assert (kinds.count("merge"), kinds.count("seed")) == (1, 3)
    (merge,) = (m.label for m in agenda if m.record.get("event") == "merge")
    assert merge.endswith("merging 4/4")


def open_experts(state, level="slow") -> int:
    return int(state.slots[level].active.sum())


@pytest.mark.slow
def test_merging_is_passed_over_while_there_is_room_and_done_when_the_pool_is_full(tiny, tmp_path):
    config = brief(tiny, pool="merge_oldest", rollback=0.0)
    life, state = life_of(tiny, tiny.model(tiny.two_levels(slots=2)), config, days=4)
    state, lines = lived(life, state, tmp_path)
    assert [line["day"] for line in lines if line["event"] == "merge_end"] == [2, 3]
    assert sorted({line["day"] for line in lines if line["event"] == "merge"}) == [2, 3]
    assert [line["day"] for line in lines if line["event"] == "seed_end"] == [0, 1, 2, 3]
    assert state.counters["nights"] == 4
    assert state.counters["rolled_back"] == 0
    assert open_experts(state) == 2


@pytest.mark.slow
def test_a_merging_that_fails_costs_the_night_and_not_the_run(tiny, tmp_path):
    config = brief(tiny, pool="merge_oldest", rollback=0.0)
    life, state = life_of(tiny, tiny.model(tiny.two_levels(slots=2)), config, days=4)
    (rest,) = life.learner.rests
    begin, seed, end = rest.merge

    def diverge(state, batch, key):
        anchor = dataclasses.replace(state.anchors["fast"], last_loss=jnp.float32(jnp.nan))
        return end(state.replace(anchors={"fast": anchor}), batch, key)

    rest = rest._replace(merge=(begin, seed, diverge))
    life.learner = life.learner._replace(rests=(rest,))
    state, lines = lived(life, state, tmp_path)
    assert [line["merge_failed"] for line in lines if line["event"] == "merge_end"] == [1.0, 1.0]
    assert [line["day"] for line in lines if line["event"] == "seed_end"] == [0, 1]
    assert state.counters["nights"] == 2
    assert state.counters["rolled_back"] == 2
    assert open_experts(state) == 2


@pytest.mark.slow
def test_a_full_pool_that_refuses_says_so_in_one_line(tiny, tmp_path):
    life, state = life_of(tiny, tiny.model(tiny.two_levels(slots=1)), brief(tiny, rollback=0.0))
    with pytest.raises(PoolFullError, match=r"slots = 1: .*merge_balanced"):
        lived(life, state, tmp_path)


@pytest.mark.slow
def test_every_compiled_step_is_traced_once_in_a_whole_life(tiny, tmp_path):
    traces: dict[str, int] = {}

    def counted(name, step):
        def run(state, batch, key):
            traces[name] = traces.get(name, 0) + 1
            return step(state, batch, key)

        return run

    config = brief(tiny, pool="merge_oldest", rollback=0.0)
    life, state = life_of(tiny, tiny.model(tiny.two_levels(slots=2)), config, days=4)
    whole = life.learner
    (rest,) = whole.rests
    parts = {name: counted(name, getattr(rest, name)) for name in ("begin", "seed", "end")}
    merge = tuple(counted(f"merge {i}", step) for i, step in enumerate(rest.merge))

    def examine(state, paper):
        traces["exam"] = traces.get("exam", 0) + 1
        return {"recall": jnp.zeros(4), "pretrain": jnp.zeros(())}

    life.examine = examine
    life.learner = whole._replace(
        wake=counted("wake", whole.wake),
        remember=counted("remember", whole.remember),
        rests=(rest._replace(merge=merge, **parts),),
    )
    state, _ = lived(life, state, tmp_path)
    assert state.counters["nights"] == 4
    # The scan over a chunk traces its body once more to find the type of what it carries.
    assert traces.pop("wake") <= 2
    assert traces == dict.fromkeys(traces, 1)
    assert set(traces) == {
        *("remember", "begin", "seed", "end", "merge 0", "merge 1", "merge 2", "exam")
    }


@pytest.mark.slow
def test_a_life_compiles_nothing_new_after_its_first_full_day(tiny, tmp_path, caplog):
    life, state = life_of(tiny, tiny.model(), brief(tiny), days=2)
    agenda = life.agenda()
    day = (len(agenda) - 1) // 2
    seen = {}

    def noticing(position, moment):
        def run(state):
            seen.setdefault(position, len(caplog.records))
            out = moment.run(state)
            seen["end"] = len(caplog.records)  # what a save compiles is not the life's
            return out

        return dataclasses.replace(moment, run=run)

    agenda = [noticing(i, moment) for i, moment in enumerate(agenda)]
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        lived(life, state, tmp_path, agenda)
    late = [r.getMessage() for r in caplog.records[seen[day + 1] : seen["end"]]]
    assert seen[day + 1] > 0
    assert [text for text in late if text.startswith("Compiling")] == []


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_is_counted_and_the_life_goes_on(tiny, tmp_path):
    levels = [
        tiny.level("fast", kind="graft", period=1, night=4, learning_rate=1e30),
        tiny.level("slow", slots=3, top_k=2),
    ]
    life, state = life_of(tiny, tiny.model(levels), brief(tiny))
    state, lines = lived(life, state, tmp_path)
    wake = [line for line in lines if line["event"] == "wake"]
    assert len(wake) == 6
    assert any(line["skipped"] > 0 for line in wake)
    skipped = sum(line["skipped"] * 2 for line in wake)  # the mean of two steps
    assert state.counters["skipped"] >= round(skipped) > 0
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_an_absurd_learning_rate_asleep_costs_nights_and_not_the_run(tiny, tmp_path):
    config = brief(tiny, learning_rate=1e30, inner=1, decay=False)
    life, state = life_of(tiny, tiny.model(), config)
    state, lines = lived(life, state, tmp_path)
    ends = [line["rolled_back"] for line in lines if line["event"] == "seed_end"]
    assert len(ends) == 3
    # An expert whose gate happens to be shut for good does no harm: that night may stay.
    assert state.counters["rolled_back"] == sum(ends) >= 1
    assert state.counters["nights"] == open_experts(state) == 3 - sum(ends)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_nights_that_end_worse_than_allowed_are_undone_to_the_last_bit(tiny, tmp_path):
    config = brief(tiny, rollback=1e-9, inner=1)
    life, state = life_of(tiny, tiny.model(), config)
    before = [np.asarray(x)[0] for x in jax.tree.leaves(state.params["blocks"]["levels"]["slow"])]
    state, lines = lived(life, state, tmp_path)
    ends = [line["rolled_back"] for line in lines if line["event"] == "seed_end"]
    assert ends == [1.0, 1.0, 1.0]
    assert state.counters["rolled_back"] == 3
    assert state.counters["nights"] == 0
    assert open_experts(state) == 0
    after = jax.tree.leaves(state.params["blocks"]["levels"]["slow"])
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert [line["rolled_back"] for line in lines if line["event"] == "exam"][-1] == 3


def test_an_exam_changes_nothing(tiny, tmp_path):
    life, state = life_of(tiny, tiny.model(), brief(tiny), days=1)
    exam = next(m for m in life.agenda() if m.record.get("event") == "exam")
    after, metrics = exam.run(state)
    assert after is state
    assert set(metrics) == {"recall", "pretrain", "nights", "rolled_back", "skipped"}
    assert metrics["recall"].shape == (1, 1)
