"""A run that sweeps numbers: every setting lives as it would in a run of its own."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from sleeplm.bench.arms import _PLAIN, ARMS, build_arm
from sleeplm.bench.combine import combine
from sleeplm.bench.handover import read_learner
from sleeplm.bench.lives import learners_of
from sleeplm.bench.report import summarize
from sleeplm.bench.sweep import settings_of, varying
from sleeplm.core.errors import ConfigError
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.methods.settings import SETTINGS
from sleeplm.runtime import config as configs
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import METRICS, Run

LIFE = f"{pathlib.Path(__file__).with_name('tiny_life.py')}:brief"
RATE = "sleep.learning_rate"
RATES = [1e-3, 1e-2, 3e-2]


# --- what can be swept ---------------------------------------------------------------------------


def test_every_seed_lives_with_every_setting(brief):
    rates = {RATE: RATES, "model.levels[0].weight_decay": [0.0, 0.1, 0.2]}
    config = brief.config(seeds=2, seed=5, world_seed=7, sweep=rates)
    assert settings_of(config)[1] == {RATE: 1e-2, "model.levels[0].weight_decay": 0.1}
    learners = learners_of(config)
    assert [(one.seed, one.world_seed, one.sleep.learning_rate) for one in learners] == [
        (seed, seed + 2, rate) for rate in RATES for seed in (5, 6)
    ]
    # Each alone is the configuration of an ordinary run.
    weight_decay = dataclasses.replace(config.model.levels[0], weight_decay=0.2)
    model = dataclasses.replace(config.model, levels=[weight_decay, config.model.levels[1]])
    sleep = dataclasses.replace(config.sleep, learning_rate=3e-2)
    assert learners[-1] == brief.config(seed=6, world_seed=8, model=model, sleep=vars(sleep))


def test_a_run_without_a_sweep_has_learners_without_settings(brief):
    config = brief.config()
    state = jax.eval_shape(
        lambda key: build_arm("sleep", config, 0).learner.init(
            build_arm("sleep", config, 0).model.init(key), key
        ),
        jax.random.key(0),
    )
    assert settings_of(config) == [{}] and varying(config) == []
    assert SETTINGS not in state.private


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"sleep.rank": [1.0]}, "cannot vary in one program"),
        ({"sleep.learning_rat": [1.0]}, "did you mean sleep.learning_rate?"),
        ({"model.levels[0].width": [8.0, 16.0]}, "cannot vary in one program"),
        ({"sleep.teachers[4].weight": [1.0]}, "no such setting"),
        ({"sleep.lam": []}, "at least one value"),
        ({RATE: [0.1, 0.2], "sleep.lam": [0.5]}, "all lists have a value for every setting"),
        ({RATE: [0.1, float("nan")]}, "must be a finite number"),
        ({"sleep.lam": [0.5, 1.5]}, "sleep.lam = 1.5: must be a number between 0 and 1"),
        ({RATE: [0.1, 0.1]}, "is there twice"),
        ({RATE: ["fast"]}, "must be a dict such as"),
        ({"sleep.lam": [0.0, 0.5]}, "0 leaves a part of the night out: sweep it in a run"),
        ({"sleep.lam": [0.5, 1.0]}, "1 leaves a part of the night out"),
        ({"sleep.alpha": [0.9, 1.0]}, "1 leaves a part of the night out"),
    ],
)
def test_a_sweep_that_cannot_work_is_one_line(brief, sweep, said):
    with pytest.raises(ConfigError) as refused:
        brief.config(sweep=sweep)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_value_that_leaves_something_out_everywhere_stays_a_constant(brief):
    config = brief.config(sweep={"sleep.lam": [0.0, 0.0], RATE: [0.1, 0.2]})
    assert varying(config) == [RATE]


def test_a_sweep_is_given_on_the_command_line(brief):
    text = '--config.sweep={"sleep.lam": [0.25, 0.5], "sleep.z0": [2, 4]}'
    config = configs.load_config(LIFE, [text])
    configs.check(config)
    assert config.sweep == {"sleep.lam": [0.25, 0.5], "sleep.z0": [2, 4]}


@pytest.mark.parametrize("name", sorted(set(ARMS) - {"inca"}))
def test_every_arm_can_read_its_numbers_from_the_state(brief, name):
    """Nothing that builds an arm asks for a number that only its learners know."""
    numbers = {
        "sleep.lam": [0.25, 0.5],
        "sleep.alpha": [0.5, 0.75],
        **{f"baselines.{one}_learning_rate": [0.1, 0.2] for one in ("sft", "lora", "slow")},
        **{f"baselines.{one}_learning_rate": [0.1, 0.2] for one in ("base", "pool")},
        "baselines.ewc_strength": [1.0, 2.0],
        "model.levels[0].learning_rate": [0.1, 0.2],
    }
    sleep = {"lam": 0.25, "alpha": 0.5}
    config = brief.config(sleep=sleep, sweep=numbers, schedule=ScheduleConfig("day_end"))
    arm = build_arm(name, config, classes=0)
    params = jax.eval_shape(arm.model.init, jax.random.key(0))
    state = jax.eval_shape(arm.learner.init, params, jax.random.key(0))
    assert set(state.private[SETTINGS]) == set(numbers)
    assert (arm.learner.write_cues is None) == (name in _PLAIN)  # who writes nothing still does not
    text = {n: np.ones((4, 96), np.int32) for n in ("tokens", "segments")}
    after = jax.eval_shape(arm.learner.wake, state, text, jax.random.key(0))[0]
    assert after == state
    if (dreams := arm.learner.dreaming) is not None:  # learned at the night's own rates
        rows = {"rows": np.zeros((dreams.config.inner, 8), np.int32), "today": np.int32(0)}
        after = jax.eval_shape(dreams.absorb, state, rows, jax.random.key(0))[0]
        assert after == state


# --- a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(brief, tmp_path_factory):
    """The directory of a run of three learning rates, and those of a run each."""
    place = tmp_path_factory.mktemp("sweep")

    def ran(name, config):
        config = dataclasses.replace(config, arms=["sleep"], cache=str(place / "cache"))
        configs.check(config)
        run = Run(place / name, config, quiet=True)
        config.run(run)
        return run.directory

    swept = brief.config(sweep={RATE: RATES})
    alone = [brief.config(sleep={"learning_rate": rate}) for rate in RATES]
    return ran("swept", swept), [ran(f"alone{i}", one) for i, one in enumerate(alone)]


@pytest.mark.slow
def test_three_learning_rates_side_by_side_measure_what_three_runs_do(runs):
    swept, alone = runs
    ours = [line for line in read_metrics(swept / METRICS) if line["stage"] == "sleep"]
    for e, directory in enumerate(alone):
        mine = [line for line in read_metrics(directory / METRICS) if line["stage"] == "sleep"]
        for both, one in zip(ours, mine, strict=True):
            assert both.keys() == one.keys()
            for name, value in both.items():
                if isinstance(value, list):
                    found, want = (np.asarray(v, float) for v in (value[e], one[name][0]))
                    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5, err_msg=name)
                else:
                    assert value == one[name]
    seeding = next(line for line in reversed(ours) if line["event"] == "seed")
    assert len(set(seeding["loss"])) == 3


@pytest.mark.slow
def test_every_setting_is_an_arm_of_its_own_with_its_seeds(runs):
    swept, alone = runs
    results = json.loads((swept / "results.json").read_text())
    assert list(results["arms"]) == [f"sleep@{RATE}={rate}" for rate in ("0.001", "0.01", "0.03")]
    report = json.loads((swept / "report.json").read_text())
    for rate, arm, directory in zip(RATES, report["arms"].values(), alone, strict=True):
        want = json.loads((directory / "report.json").read_text())["arms"]["sleep"]
        assert arm["settings"] == {RATE: rate}
        assert (arm["seeds"], arm["seed"]) == (1, [0])
        assert arm["matrix"] == want["matrix"]
        assert arm["compute"]["flops"] == want["compute"]["flops"]
        assert "settings" not in want
    assert f"sleep@{RATE}=0.03" in (swept / "report.md").read_text()
    assert len(report["world"]["digests"]) == 1


@pytest.mark.slow
def test_learners_of_one_seed_begin_with_one_backbone_and_are_exported_with_their_setting(runs):
    swept, _ = runs
    two = [read_learner(swept, learner=e) for e in (0, 2)]
    assert [one.arm.sleep.learning_rate for one in two] == [1e-3, 3e-2]
    assert two[1].origin["sleep"]["learning_rate"] == 3e-2
    assert two[0].world == two[1].world and two[0].origin["seed"] == two[1].origin["seed"]
    embeds = [np.asarray(one.state.params["embed"]) for one in two]
    np.testing.assert_array_equal(*embeds)
    experts = [one.state.params["blocks"]["levels"]["slow"]["experts"]["a"] for one in two]
    assert not np.array_equal(*map(np.asarray, experts))
    with pytest.raises(ConfigError, match=re.escape("must be one of 0 to 2")):
        read_learner(swept, learner=3)


# --- reports of sweeps with several seeds --------------------------------------------------------


def sweep_results(seeds):
    """As of a run of two settings and some seeds."""

    def learner(seed, recall, rate):
        half = [[recall, None], [recall / 2, recall]]
        known = {"matrix": half, "awake": [1.0, 1.0], "pretrain": [0.9, 0.8], "pretrain_start": 1.0}
        return {**known, "seed": seed, "world_seed": seed, "settings": {RATE: rate}}

    arms = {
        f"{arm}@{RATE}={rate}": [learner(seed, recall + seed / 100, rate) for seed in seeds]
        for arm in ("sleep", "wake_only")
        for rate, recall in ((0.1, 0.8), (0.2, 0.4))
    }
    world = {"name": "w", "facts_per_day": 3, "digests": [f"days of {seed}" for seed in seeds]}
    config = {"seed": seeds[0], "seeds": len(seeds), "sweep": {RATE: [0.1, 0.2]}}
    return {"experiment": "retention", "world": world, "config": config, "arms": arms}


def test_seeds_are_averaged_inside_a_setting_and_settings_never():
    report = summarize(sweep_results([0, 1]))
    first, second = (report["arms"][f"sleep@{RATE}={rate}"] for rate in (0.1, 0.2))
    assert first["mean_recall_last"]["mean"] == pytest.approx(0.75 * 0.805)
    assert second["mean_recall_last"]["mean"] == pytest.approx(0.75 * 0.405)
    assert first["seeds"] == second["seeds"] == 2
    pairs = set(report["difference"])
    assert f"sleep@{RATE}=0.1_minus_sleep@{RATE}=0.2" in pairs
    assert f"sleep@{RATE}=0.2_minus_wake_only@{RATE}=0.2" in pairs


def test_runs_of_one_sweep_with_other_seeds_become_more_seeds_of_each_setting():
    both = combine([sweep_results([0, 1]), sweep_results([2])])
    assert {name: len(arm) for name, arm in both["arms"].items()} == {
        f"{arm}@{RATE}={rate}": 3 for arm in ("sleep", "wake_only") for rate in (0.1, 0.2)
    }
