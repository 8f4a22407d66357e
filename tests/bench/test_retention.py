"""The retention job: its arms, its report."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest

from sleeplm import cli
from sleeplm.bench.retention import arm_model
from sleeplm.runtime.config import load_config
from sleeplm.runtime.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = str(ROOT / "experiments" / "retention.py")
LIFE = str(pathlib.Path(__file__).with_name("tiny_life.py"))


def life(**overrides):
    return load_config(LIFE, [f"--config.{k}={v}" for k, v in overrides.items()])


def experiment(*overrides):
    return load_config(EXPERIMENT, [f"--config.{o}" for o in overrides])


def test_wake_only_is_the_same_model_without_nights():
    config = experiment()
    assert arm_model(config, "sleep") == config.model
    awake = arm_model(config, "wake_only")
    assert [level.night for level in awake.levels] == [0, 0]
    for one, other in zip(awake.levels, config.model.levels, strict=True):
        assert dataclasses.replace(one, night=other.night) == other


# --- the whole job -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The directory of a tiny run through the command line."""
    place = tmp_path_factory.mktemp("retention")
    arguments = [
        *("run", LIFE, "--workdir", str(place / "run"), "--quiet"),
        *(f"--config.cache={place / 'cache'}", "--config.world=biographies"),
        *("--config.save_seconds=60", "--config.days=2", "--config.sleep.alpha=1"),
    ]
    assert cli.main(arguments) == 0
    return place / "run"


@pytest.mark.slow
def test_the_report_has_what_programs_look_for(ran):
    report = json.loads((ran / "report.json").read_text())
    assert report["experiment"] == "retention"
    assert set(report["arms"]) == {"sleep", "wake_only"}
    for arm in report["arms"].values():
        recall = arm["mean_recall_last"]
        assert 0 <= recall["low"] <= recall["mean"] <= recall["high"] <= 1
        matrix = arm["matrix"]
        assert [len(row) for row in matrix] == [2, 2]
        assert matrix[0][1] is None
        assert recall["mean"] == pytest.approx(np.mean(matrix[1]))
        assert len(arm["awake"]) == len(arm["pretrain"]) == 2
        assert arm["cost"][0]["tokens"]["wake"] == 2 * 4 * 4 * 96
        assert arm["cost"][0]["seconds"]["total"] > 0
    difference = report["difference"]["sleep_minus_wake_only"]["mean_recall_last"]
    assert {"mean", "low", "high"} <= set(difference)
    assert set(report["certified"]) == {"awake", "wake_only_loses"}
    assert report["config"]["world"] == "biographies"
    assert (ran / "report.md").read_text().startswith("# retention")


@pytest.mark.slow
def test_the_matrix_is_what_the_exams_said_after_every_night(ran):
    report = json.loads((ran / "report.json").read_text())
    lines = read_metrics(ran / "metrics.jsonl")
    for name, when in (("sleep", "dawn"), ("wake_only", "dusk")):
        said = [r for r in lines if r["stage"] == name and r.get("when") == when]
        for day, line in enumerate(said):
            row = report["arms"][name]["matrix"][day]
            assert row[: day + 1] == line["recall"][: day + 1]
            assert report["arms"][name]["pretrain"][day] == line["pretrain"]
    events = {r["event"] for r in lines if r["stage"] == "sleep"}
    assert events == {"cues", "wake", "exam", "seed", "seed_end"}
    assert {r["event"] for r in lines if r["stage"] == "wake_only"} == {"wake", "exam"}


@pytest.mark.slow
def test_both_arms_read_the_same_text_in_the_same_order_until_the_first_night(ran):
    lines = read_metrics(ran / "metrics.jsonl")
    losses = [
        [r["loss"] for r in lines if r["stage"] == arm and r["event"] == "wake" and r["day"] == 0]
        for arm in ("sleep", "wake_only")
    ]
    first, *_ = losses[0]
    assert first == losses[1][0]  # the same parameters and the same batch
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_sampled_tokens_are_counted_as_they_are_made(ran):
    report = json.loads((ran / "report.json").read_text())
    sleep = life().sleep
    sources = sum(1 for _ in itertools.product(sleep.teachers, ("teacher", "student")))
    rows = sources * sleep.rows * sleep.inner
    tokens = report["arms"]["sleep"]["cost"][0]["tokens"]
    assert tokens["sampled"] == 2 * sleep.blocks * rows * sleep.length
    assert tokens["seeded"] == tokens["sampled"] * sleep.epochs
    assert report["arms"]["wake_only"]["cost"][0]["tokens"]["sampled"] == 0


@pytest.mark.slow
def test_the_report_of_a_run_can_be_written_again(ran, capsys):
    before = json.loads((ran / "report.json").read_text())
    (ran / "report.json").unlink()
    assert cli.main(["report", str(ran)]) == 0
    assert json.loads((ran / "report.json").read_text()) == before
    assert "# retention" in capsys.readouterr().out
