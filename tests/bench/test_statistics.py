from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleeplm.bench.results import Routing, SeedRun
from sleeplm.bench.statistics import (
    CURVES,
    FIGURES_BY_NAME,
    bootstrap,
    compare,
    curve,
    decay_rate,
    half_life,
    lift,
    measure,
    recall_by_age,
    total,
    traffic_by_birth,
)

MATRIX = [[1.0, None, None], [0.8, 0.9, None], [0.6, 0.8, 1.0]]


def make_run(matrix=MATRIX, **entries) -> SeedRun:
    matrix = np.array(matrix, float)
    days = len(matrix)
    required = {
        "awake": np.ones(days),
        "pretrain": np.linspace(0.9, 0.8, days),
        "pretrain_start": 0.95,
    }
    arrays = ("forward", "floor", "logp", "logp_start", "kl", "cluster", "dusk")
    read = {k: np.array(v, float) if k in arrays else v for k, v in entries.items()}
    return SeedRun(matrix=matrix, **required | read)


def decaying(half: float, days: int = 8, top: float = 0.9) -> SeedRun:
    """Recall of every day's facts falls to one half in ``half`` nights."""
    night, day = np.mgrid[:days, :days]
    recall = top * 2.0 ** (-np.maximum(night - day, 0) / half)
    return make_run(np.where(day <= night, recall, np.nan))


def value(name: str, run: SeedRun) -> float:
    return FIGURES_BY_NAME[name].value(run)


@pytest.mark.parametrize("half", [0.7, 3.0, 40.0])
def test_the_half_life_of_exact_halving_is_found(half):
    run = decaying(half, days=6)
    assert half_life([run])["mean"] == pytest.approx(half)
    assert decay_rate(recall_by_age(run.matrix)) == pytest.approx(1 / half)


@pytest.mark.parametrize("matrix", [[[0.5, None], [0.5, 0.5]], [[0.5, None], [0.9, 0.5]]])
def test_recall_that_stays_or_grows_has_no_decay(matrix):
    life = half_life([make_run(matrix)])
    assert (life["mean"], life["seeds"]) == (None, [None])


def test_recall_of_nothing_counts_as_the_floor_when_the_half_life_is_fitted():
    rate = decay_rate(np.array([0.5, 0.0]))
    assert rate == pytest.approx(np.log2(0.5 / 0.005))
    assert decay_rate(np.array([0.5, 0.004])) == rate
    assert math.isnan(decay_rate(np.array([0.5]))) and half_life([make_run([[0.5]])]) is None


def test_the_half_life_of_several_seeds_is_that_of_their_mean_decay():
    life = half_life([decaying(2.0), decaying(4.0)])
    assert life["mean"] == pytest.approx(1 / ((1 / 2 + 1 / 4) / 2))
    assert (life["low"], life["high"]) == (pytest.approx(2.0), pytest.approx(4.0))
    assert life["seeds"] == [pytest.approx(2.0), pytest.approx(4.0)]
    # A seed without decay makes the mean longer, not infinite.
    life = half_life([decaying(2.0), decaying(math.inf)])
    assert life["mean"] == pytest.approx(4.0)
    assert (life["low"], life["high"]) == (pytest.approx(2.0), None)


def test_forward_transfer_is_what_was_known_of_a_day_before_it_less_the_floor():
    run = make_run(forward=[None, 0.3, 0.5], floor=[0.1, 0.1, 0.2])
    assert value("forward_transfer", run) == pytest.approx(((0.3 - 0.1) + (0.5 - 0.2)) / 2)
    assert math.isnan(value("forward_transfer", make_run(forward=[0, 0, 0])))


def test_lift_is_the_rise_of_log_probability_since_the_start_of_life():
    logp = [[-1, -9, -9], [-2, -1, -9], [-4, -3, -2]]
    run = make_run(logp=logp, logp_start=[-10, -9, -8])
    assert lift(run).tolist() == [[9, 0, -1], [8, 8, -1], [6, 6, 6]]
    assert value("lift_last", run) == 6
    assert lift(make_run(logp=logp)) is None


def test_what_a_night_does_to_older_days_is_dawn_minus_dusk():
    dusk = [[0.9, None, None], [0.9, 0.2, None], [0.8, 0.8, 0.1]]
    first, second = ((0.8 - 0.9) + (0.6 - 0.8)) / 2, 0.8 - 0.8
    run = make_run(dusk=dusk)
    assert value("change_overnight", run) == pytest.approx((first + second) / 2)


def test_dusk_and_dawn_are_recall_of_today_before_and_after_its_night():
    run = make_run(awake=np.array([1.0, 0.9, 0.8]))
    assert value("recall_at_dusk", run) == pytest.approx(0.9)
    assert value("recall_at_dawn", run) == pytest.approx((1.0 + 0.9 + 1.0) / 3)


def test_divergence_and_the_largest_cluster_are_those_of_the_last_and_of_the_worst_night():
    run = make_run(kl=[0.3, 0.1, 0.2], cluster=[0.1, 0.6, 0.2])
    assert value("kl_last", run) == 0.2
    assert value("cluster_largest", run) == 0.6


def make_routing(**entries) -> Routing:
    """Four slots, opened by the nights 1, none, 0 and 2."""
    traffic = [[0.1, 0.0, 0.6, 0.1], [0.5, 0.0, 0.5, 0.0], [0.2, 0.0, 0.2, 0.4]]
    usual = {"traffic": traffic, "born": [1, -1, 0, 2], "learned": [0.6, 0.8, 1], "oracle": [1] * 3}
    return Routing(**{k: np.array(v) for k, v in (usual | entries).items()})


def test_traffic_is_sorted_by_the_night_that_opened_the_expert():
    run = make_run(routing=make_routing())
    assert traffic_by_birth(run).tolist() == [[0.6, 0.1, 0.1], [0.5, 0.5, 0.0], [0.2, 0.2, 0.4]]
    assert value("routing_own_share", run) == pytest.approx((0.6 / 0.8 + 0.5 + 0.4 / 0.8) / 3)


def test_days_without_an_expert_of_their_own_do_not_count_in_routing():
    rolled_back = make_routing(born=[-1, -1, 0, 2], oracle=[1.0, np.nan, 0.9])
    run = make_run(routing=rolled_back)
    assert value("routing_own_share", run) == pytest.approx((0.6 / 0.8 + 0.4 / 0.8) / 2)
    assert value("routing_learned", run) == pytest.approx((0.6 + 1.0) / 2)
    assert value("routing_oracle", run) == pytest.approx((1.0 + 0.9) / 2)


def test_a_day_whose_expert_was_merged_into_another_does_not_count_in_routing():
    merged = make_routing(born=[-1, -1, 0, 2])  # its oracle is a number: no expert at all was open
    run = make_run(routing=merged)
    assert value("routing_learned", run) == pytest.approx((0.6 + 1.0) / 2)
    named = [CURVES[f"routing_{which}"](run) for which in ("learned", "oracle")]
    np.testing.assert_array_equal(named, [[0.6, np.nan, 1.0], [1.0, np.nan, 1.0]])


@pytest.mark.parametrize("born", [[0, 0, 0, 0], [-1, -1, -1, -1]])
def test_a_pool_that_no_night_opened_has_no_expert_of_a_day(born):
    run = make_run(routing=make_routing(born=born))
    for name in ("routing_learned", "routing_oracle", "routing_own_share"):
        assert measure(FIGURES_BY_NAME[name], [run]) is None
    assert CURVES["routing_oracle"](run) is None
    assert traffic_by_birth(run) is None  # nor has the picture a panel of it


def test_days_may_have_two_experts_of_their_own():
    run = make_run(routing=make_routing(born=[1, 1, 0, 0]))  # a night's, and its dreams'
    assert value("routing_learned", run) == pytest.approx((0.6 + 0.8) / 2)
    assert value("routing_own_share", run) == pytest.approx((0.7 / 0.8 + 0.5 / 1.0) / 2)


def test_a_total_is_the_entry_of_that_name_or_the_sum():
    assert total({"wake": 2.0, "sampled": 3.0}) == 5
    assert total({"total": 7.0, "wake": 2.0}) == 7
    assert math.isnan(total({}))


def test_an_interval_is_over_seeds_or_over_days_or_there_is_none():
    figures = [FIGURES_BY_NAME[name] for name in ("mean_recall_last", "pretrain_lost")]
    one, two = [make_run()], [make_run(), make_run([[1, None, None], [1, 1, None], [1, 1, 1]])]
    recall, lost = (measure(figure, one) for figure in figures)
    assert recall["interval"] == "over days" and recall["low"] < 0.8 < recall["high"]
    assert (lost["interval"], lost["low"], lost["high"]) == ("none", None, None)
    recall = measure(figures[0], two)
    assert recall["interval"] == "over seeds" and recall["values"] == pytest.approx([0.8, 1.0])
    assert (recall["low"], recall["mean"], recall["high"]) == pytest.approx((0.8, 0.9, 1.0))


def test_a_figure_that_only_some_seeds_have_says_how_many():
    figure = FIGURES_BY_NAME["kl_last"]
    runs = [make_run(kl=[0, 0, 1]), make_run(), make_run(kl=[0, 0, 3]), make_run(kl=[0, 0, None])]
    assert measure(figure, runs)["mean"] == 2
    assert measure(figure, runs)["seeds"] == 2
    assert measure(figure, runs)["values"] == [1, None, 3, None]
    assert measure(figure, [make_run()]) is None


def test_pairs_are_compared_where_both_have_the_figure():
    figure = FIGURES_BY_NAME["kl_last"]
    pairs = [
        (make_run(kl=[0, 0, 5]), make_run(kl=[0, 0, 1])),
        (make_run(kl=[0, 0, 9]), make_run()),
        (make_run(kl=[0, 0, 8]), make_run(kl=[0, 0, 4])),
    ]
    gain = compare(figure, pairs)
    assert (gain["mean"], gain["low"], gain["high"], gain["seeds"]) == (4, 4, 4, 2)
    assert compare(figure, [pairs[1]]) is None


def test_a_curve_is_resampled_in_every_place_and_a_gap_stays_a_gap():
    seeds = np.random.default_rng(0).random((5, 3))
    spread = curve(list(seeds))
    for place in range(3):
        alone = bootstrap(seeds[:, place])
        assert [spread[part][place] for part in alone] == pytest.approx(list(alone.values()))
    seeds[2, 1] = np.nan
    assert [math.isnan(low) for low in curve(list(seeds))["low"]] == [False, True, False]
    assert curve([seeds[0], None]) == {"mean": seeds[0].tolist(), "low": None, "high": None}
    assert curve([None]) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9))
def test_an_interval_holds_its_mean_and_lies_within_the_samples(samples):
    spread = bootstrap(np.array(samples))
    slack = 1e-9 * max(map(abs, samples))
    assert min(samples) - slack <= spread["low"] <= spread["mean"]
    assert spread["mean"] <= spread["high"] <= max(samples) + slack


def test_intervals_of_many_seeds_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    spreads = [bootstrap(rng.exponential(size=40)) for _ in range(200)]
    held = np.mean([spread["low"] <= 1 <= spread["high"] for spread in spreads])
    assert 0.87 <= held <= 0.98
