"""From a run's metrics to its results, for metrics that were written by hand."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from sleeplm.bench import flops
from sleeplm.bench.baselines import BaselineConfig
from sleeplm.bench.costs import flops_of, moved_parameters, tokens_of
from sleeplm.bench.outcome import outcomes
from sleeplm.bench.report import summarize
from sleeplm.methods.config import TeacherConfig
from sleeplm.runtime.run import METRICS, TIMINGS, Run

BLOCKS = 2  # extractions a night
ROWS, MINIBATCHES, LENGTH, EPOCHS = 4, 3, 20, 2
D_MODEL = 16  # in a single layer


def exam(stage: str, day: int, when: str, recall: list[list[float]], nights: list[int]) -> dict:
    """A line of an exam of both learners; what is not recall is made from the day's number."""
    moment = day + (0.5 if when == "dawn" else 0.0)
    return {
        "stage": stage,
        "event": "exam",
        "when": when,
        "day": day,
        "recall": recall,
        "pretrain": [0.9 - moment / 10, 0.8 - moment / 10],
        "kl": [moment, 2 * moment],
        "cluster": [0.25, 0.5],
        "bits": [[2.0, 4.0 * day, 7.0], [1.0, day, 7.0]],  # the last group is pretraining
        "logp": [[-1.0 - moment, -2.0, -9.0], [-3.0, -4.0, -9.0]],
        "nights": nights,
        "rolled_back": [0, day],
        "skipped": [3 * day, 0],
    }


def seeding(day: int, block: int, loss: list[float | None]) -> dict:
    """A line of one extraction; who did not sleep has no value."""
    unique = [None if x is None else 0.5 for x in loss]
    line = {"stage": "sleep", "event": "seed", "sender": "fast", "day": day, "block": block}
    return line | {"loss": loss, "unique": unique}


# Learner 0 sleeps after both days, learner 1 after the second only.
SLEEP = [
    {"stage": "sleep", "event": "cues", "day": -1, "cues": [2.0, 2.0]},
    exam("sleep", 0, "dusk", [[0.75, 0.25], [0.5, 0.0]], [0, 0]),
    *[seeding(0, block, [1.0, None]) for block in (1, 2)],
    exam("sleep", 0, "dawn", [[0.5, 0.125], [0.25, 0.0]], [1, 0]),
    {"stage": "sleep", "event": "cues", "day": 1, "cues": [5.0, 4.0]},
    exam("sleep", 1, "dusk", [[0.5, 1.0], [0.5, 0.75]], [1, 0]),
    *[seeding(1, block, [1.0, 2.0]) for block in (1, 2)],
    exam("sleep", 1, "dawn", [[0.5, 0.875], [0.375, 0.625]], [2, 1]),
    {
        "stage": "sleep",
        "event": "probe",
        "traffic": [[[0.5, 0.0, 0.0, 0.0], [0.25, 0.5, 0.0, 0.0]]] * 2,
        "oracle": [[1.0, 0.5], [0.25, 0.75]],
        "born": [[0, 1, -1, -1], [1, -1, -1, -1]],
    },
]
WAKE_ONLY = [
    exam("wake_only", 0, "dusk", [[0.75, 0.0], [0.5, 0.0]], [0, 0]),
    exam("wake_only", 1, "dusk", [[0.25, 1.0], [0.0, 1.0]], [0, 0]),
]
START = {
    "recall": np.array([[0.0625, 0.125, 0.875], [0.0, 0.25, 1.0]]),
    "logp": np.array([[-8.0, -7.0, -1.0], [-6.0, -5.0, -1.0]]),
}
#: The first has a row each by teacher and student, and one to imitate; the second twice two rows.
TEACHERS = [
    TeacherConfig("dusk", "today", imitate=True),
    TeacherConfig("dawn", "past", imitate=False, times=2),
]


@pytest.fixture(scope="module")
def bench(brief):
    night = {
        "teachers": TEACHERS,
        "lam": 0.5,
        "alpha": 0.8,
        "rows": ROWS,
        "inner": MINIBATCHES,
        "epochs": EPOCHS,
        "updates": BLOCKS * MINIBATCHES * EPOCHS,
        "length": LENGTH,
    }
    baselines = BaselineConfig(lora_rank=3)
    config = brief.config(seeds=2, seed=7, world_seed=9, sleep=night, baselines=baselines)
    return dataclasses.replace(brief.bench(config), start=START)


@pytest.fixture(scope="module")
def found(brief, bench, tmp_path_factory):
    """``(name of an arm, its lines) -> results.json``, as of a run of these arms alone."""

    def results(**arms):
        run = Run(tmp_path_factory.mktemp("outcome") / "run", bench.config, quiet=True)
        run.claim()
        lines = [line for each in arms.values() for line in each]
        seconds = [
            {"stage": stage, "position": i, "label": "", "seconds": s}
            for stage, parts in {"sleep": (1.0, 2.5), "wake_only": (0.5,)}.items()
            for i, s in enumerate(parts)
        ]
        for file, records in ((METRICS, lines), (TIMINGS, seconds)):
            text = "".join(json.dumps(record) + "\n" for record in records)
            (run.directory / file).write_text(text)
        return outcomes(bench, run, {name: brief.arm(bench, name) for name in arms})

    return results


@pytest.fixture(scope="module")
def results(found):
    return found(sleep=SLEEP, wake_only=WAKE_ONLY)


def test_the_matrix_is_the_recall_at_every_dawn_or_at_dusk_where_nobody_sleeps(results):
    first, second = results["arms"]["sleep"]
    assert first["matrix"] == [[0.5, None], [0.5, 0.875]]
    assert second["matrix"] == [[0.25, None], [0.375, 0.625]]
    assert first["awake"] == [0.75, 1.0] and second["awake"] == [0.5, 0.75]
    assert first["dusk"] == [[0.75, 0.25], [0.5, 1.0]]
    awake, _ = results["arms"]["wake_only"]
    assert awake["matrix"] == [[0.75, None], [0.25, 1.0]]
    assert awake["awake"] == [0.75, 1.0]


def test_forward_is_what_is_known_of_a_day_at_the_dawn_before_it(results):
    first, second = results["arms"]["sleep"]
    assert first["floor"] == [0.0625, 0.125]
    assert first["forward"] == [0.0625, 0.125]  # of the start of life, and of the first dawn
    assert second["forward"] == [0.0, 0.0]
    assert results["arms"]["wake_only"][0]["forward"] == [0.0625, 0.0]


def test_what_pretraining_told_is_kept_apart_from_the_days(results):
    first, second = results["arms"]["sleep"]
    assert first["pretrain_start"] == 0.875 and second["pretrain_start"] == 1.0
    assert first["pretrain"] == pytest.approx([0.85, 0.75])
    assert second["kl"] == [1.0, 3.0] and second["cluster"] == [0.5, 0.5]
    assert first["logp"] == [[-1.5, -2.0], [-2.5, -2.0]]
    assert second["logp_start"] == [-6.0, -5.0]


EXPERT = 2 * D_MODEL * 2 + D_MODEL + 1  # rank 2; a router column and its bias
FAST, SLOW = 3 * D_MODEL * 8, 3 * D_MODEL * 16  # MLPs of widths 8 and 16


def test_bits_are_held_by_what_may_have_learned(results):
    first, second = (learner["bits"] for learner in results["arms"]["sleep"])
    assert first == {"held": 6.0, "parameters": 2 * EXPERT, "per_parameter": 6.0 / (2 * EXPERT)}
    assert second == {"held": 2.0, "parameters": EXPERT, "per_parameter": 2.0 / EXPERT}
    awake, _ = results["arms"]["wake_only"]
    assert awake["bits"] == {"held": 6.0, "parameters": FAST, "per_parameter": 6.0 / FAST}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sleep_paper_v2", 2 * EXPERT + FAST),  # what it keeps of the day counts
        ("sleep_paper_evening", 2 * EXPERT),
        ("equal_capacity_moe", 4 * EXPERT),
        ("fixed_capacity_on_policy", SLOW),
        ("reset_only", FAST),
        ("cms_without_seeding", FAST + SLOW),
        # rank 3 on q, k, v and o, and on the three matrices of the MLP
        ("lora_sequential", 3 * (32 + 24 + 24 + 32 + 3 * 32)),
        ("icl", 0),
    ],
)
def test_what_may_hold_bits_depends_on_the_arm(brief, bench, name, parameters):
    night = dataclasses.replace(bench.config.sleep, rows=8)  # as the paper's groups need
    other = dataclasses.replace(bench, config=dataclasses.replace(bench.config, sleep=night))
    assert moved_parameters(other, brief.arm(other, name), nights=2) == parameters


def test_tokens_are_the_positions_that_were_processed(results, found):
    first, second = (learner["tokens"] for learner in results["arms"]["sleep"])
    steps, batch, row = 4 + 4, 4, 96
    written = ((1 + 1 + 1) + (2 + 2)) * ROWS * MINIBATCHES * LENGTH  # see TEACHERS
    assert first["read"] == second["read"] == steps * batch * row
    assert first["sampled"] == 2 * BLOCKS * written
    assert second["sampled"] == 1 * BLOCKS * written
    assert first["seeded"] == EPOCHS * first["sampled"]
    awake, _ = results["arms"]["wake_only"]
    assert awake["tokens"] == {"read": steps * batch * row}
    replay = found(static_replay=[{**line, "stage": "static_replay"} for line in SLEEP])
    told = (1 + 2) * ROWS * MINIBATCHES * LENGTH  # a text for every sequence of a teacher
    tokens = [learner["tokens"] for learner in replay["arms"]["static_replay"]]
    assert [t["replayed"] for t in tokens] == [2 * BLOCKS * told * EPOCHS, BLOCKS * told * EPOCHS]


def living(brief, bench, name, records, **night):
    """Tokens and FLOPs of the first learner of an arm with other settings of the night."""
    config = dataclasses.replace(
        bench.config, sleep=dataclasses.replace(bench.config.sleep, **night)
    )
    other = dataclasses.replace(bench, config=config)
    arm = brief.arm(other, name)
    costs = (count(other, arm, records, 0) for count in (tokens_of, flops_of))
    return arm.sleep, *costs


def events(**counts: int) -> list[dict]:
    return [{"event": kind, "x": [1.0]} for kind, times in counts.items() for _ in range(times)]


def test_of_sequences_that_share_a_row_the_row_is_counted(brief, bench):
    packed = {"alpha": 1.0, "pack": LENGTH + 4, "rows": 5}
    sequences = (2 + 2 * 2) * 5  # by teacher and student, the second teacher's twice; see TEACHERS
    _, tokens, _ = living(brief, bench, "sleep", events(seed=3), **packed)
    assert tokens["sampled"] == 3 * MINIBATCHES * sequences * LENGTH
    assert tokens["seeded"] == 3 * MINIBATCHES * EPOCHS * sequences // 2 * (LENGTH + 4)
    _, tokens, _ = living(brief, bench, "static_replay", events(seed=3), **packed)
    texts = (1 + 2) * 5  # of an odd number one has a row alone
    assert tokens["replayed"] == 3 * MINIBATCHES * EPOCHS * (texts + 1) // 2 * (LENGTH + 4)


def test_cues_of_ones_own_are_counted_as_they_are_written(brief, bench):
    own = {"cues": "self", "own_cues": 10, "own_cue_tokens": 6}
    for name in ("sleep", "static_replay"):
        _, given, _ = living(brief, bench, name, events(seed=BLOCKS))
        _, tokens, _ = living(brief, bench, name, events(own_cues=3, seed=BLOCKS), **own)
        assert tokens["sampled"] - given.get("sampled", 0) == 3 * 10 * 6
        assert sum(tokens.values()) - sum(given.values()) == 3 * 10 * 6


def test_what_is_read_to_measure_what_to_protect_is_counted(brief, bench):
    _, tokens, flops_ = living(brief, bench, "ewc", events(seed=3))
    assert tokens["fisher"] == 3 * MINIBATCHES * ROWS * LENGTH
    assert flops_["fisher"] > 0 and set(tokens) == {"read", "fisher"}


@pytest.mark.parametrize("name", ["sleep", "static_replay"])
def test_merges_cost_what_their_own_updates_do_whatever_the_nights_are(brief, bench, name):
    step = MINIBATCHES * EPOCHS
    night = {"pool": "merge_oldest", "updates": 2 * step, "merge_updates": 3 * step}
    slept = events(seed=4)
    _, without, usual = living(brief, bench, name, slept, **night)
    sleep, tokens, more = living(brief, bench, name, slept + events(merge=6), **night)
    assert more["merged"] == pytest.approx(2 * sum(flops.merge(bench.config.model, sleep).values()))
    assert {kind: more[kind] for kind in usual} == usual and "merged" not in usual
    told = 6 * MINIBATCHES * (2 + 2 * 2) * ROWS * LENGTH  # nobody is imitated in a merge
    gained = {kind: tokens[kind] - without.get(kind, 0) for kind in tokens}
    assert {kind: n for kind, n in gained.items() if n} == {
        "sampled": told,
        "seeded": told * EPOCHS,
    }


def test_flops_are_those_of_the_days_and_of_the_nights_that_were_slept(results, bench):
    model, sleep = bench.config.model, bench.config.sleep
    first, second = (learner["flops"] for learner in results["arms"]["sleep"])
    night = flops.night(model, sleep)
    assert first["wake"] == flops.day(model, 8, 4, 96)["wake"]
    for kind in ("sampled", "graded", "seeded"):
        assert first[kind] == pytest.approx(2 * night[kind]) == pytest.approx(2 * second[kind])
    assert results["arms"]["wake_only"][0]["flops"] == {"wake": first["wake"]}


def test_seconds_are_shared_by_those_who_lived_side_by_side(results):
    assert [one["seconds"] for one in results["arms"]["sleep"]] == [{"total": 1.75}] * 2
    assert [one["seconds"] for one in results["arms"]["wake_only"]] == [{"total": 0.25}] * 2


def test_every_learner_has_its_own_seed_log_cues_and_routing(results):
    first, second = results["arms"]["sleep"]
    assert (first["seed"], first["world_seed"]) == (7, 9)
    assert (second["seed"], second["world_seed"]) == (8, 10)
    assert first["log"] == {
        "nights": 2,
        "rolled_back": 0,
        "skipped": 3,
        "unique_samples": [0.5, 0.5, 0.5, 0.5],
    }
    assert second["log"]["unique_samples"] == [None, None, 0.5, 0.5]
    assert second["log"]["rolled_back"] == 1
    assert first["cues"]["entries"] == 5 and second["cues"]["entries"] == 4
    assert first["cues"]["bytes"] == 5 * (12 + 1) * 4  # tokens and length of each
    assert first["routing"]["learned"] == first["matrix"][-1]
    # The second rolled a night back: its slots no longer count days.
    assert "routing" not in second
    awake, _ = results["arms"]["wake_only"]
    assert "cues" not in awake and "routing" not in awake
    assert awake["raw_text"] is False


def test_a_day_without_an_expert_of_its_own_has_no_oracle(found):
    *lines, probe = SLEEP
    merged = {**probe, "born": [[0, -1, -1, -1], [1, -1, -1, -1]]}
    first, _ = found(sleep=[*lines, merged])["arms"]["sleep"]
    assert first["routing"]["oracle"] == [1.0, None]
    report = summarize({"arms": {"sleep": [first]}})
    assert report["arms"]["sleep"]["figures"]["routing_oracle"]["mean"] == 1.0


def test_the_world_is_that_of_the_run(results, bench):
    world = results["world"]
    assert world["days"] == 2 and len(world["digests"]) == len(set(world["digests"])) == 2
    assert world["texts_per_day"] == [len(day) for day in bench.materials[0].days]
    assert world["questions_per_day"] == [3, 3]
    assert results["digest"] and results["config"]["seeds"] == 2


def test_the_report_reads_what_a_run_leaves(results):
    report = summarize(json.loads(json.dumps(results)))
    assert report["arms"]["sleep"]["matrix"][1] == pytest.approx([0.4375, 0.75])
    assert report["arms"]["sleep"]["seed"] == [7, 8]
    gain = report["difference"]["sleep_minus_wake_only"]["mean_recall_last"]
    assert gain["seeds"] == 2
    assert gain["mean"] == pytest.approx((0.6875 - 0.625 + 0.5 - 0.5) / 2)
