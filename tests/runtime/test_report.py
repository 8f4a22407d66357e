from __future__ import annotations

import copy
import json

import matplotlib.image
import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.runtime.report import bootstrap, read_results, summarize, write_report

SLEEP = {
    "matrix": [[1.0, None, None], [0.8, 0.9, None], [0.6, 0.8, 1.0]],
    "awake": [1.0, 0.95, 0.9],
    "pretrain": [0.9, 0.85, 0.8],
    "pretrain_start": 0.95,
    "tokens": {"wake": 1000, "sleep": 20000},
    "seconds": {"wake": 1.5, "sleep": 3.0},
    "wording": {"seen": 0.9, "held_out": 0.8},
    "log": {},
}
WAKE_ONLY = SLEEP | {
    "matrix": [[1.0, None, None], [0.4, 1.0, None], [0.1, 0.3, 0.8]],
    "pretrain": [0.5, 0.2, 0.05],
}


def make_results(**arms: object) -> dict:
    return {
        "experiment": "retention",
        "config": {"seed": 0},
        "digest": "0123456789abcdef",
        "world": {"name": "atlas", "facts_per_day": 40, "days": 3, "pretrain_facts": 100},
        "arms": arms or {"sleep": SLEEP, "wake_only": WAKE_ONLY},
        "seconds": 12.5,
    }


def test_the_figures_of_one_seed_are_those_computed_by_hand():
    arm = summarize(make_results())["arms"]["sleep"]
    assert arm["mean_recall_last"]["mean"] == pytest.approx((0.6 + 0.8 + 1.0) / 3)
    assert arm["mean_recall_last"]["interval"] == "over days"
    assert 0.6 <= arm["mean_recall_last"]["low"] < 0.8 < arm["mean_recall_last"]["high"] <= 1.0
    assert arm["matrix"] == SLEEP["matrix"]
    assert arm["age"] == pytest.approx([(1.0 + 0.9 + 1.0) / 3, (0.8 + 0.8) / 2, 0.6])
    assert arm["forgetting"] == pytest.approx(((1.0 - 0.6) + (0.9 - 0.8)) / 2)
    assert arm["backward_transfer"] == pytest.approx(((0.6 - 1.0) + (0.8 - 0.9)) / 2)
    assert arm["pretrain_lost"] == pytest.approx(0.95 - 0.8)
    assert arm["awake"] == [1.0, 0.95, 0.9]


def test_recall_that_grows_after_its_night_is_backward_transfer_and_negative_forgetting():
    matrix = [[0.5, None, None], [0.9, 0.6, None], [0.8, 0.9, 1.0]]
    arm = summarize(make_results(sleep=SLEEP | {"matrix": matrix}))["arms"]["sleep"]
    assert arm["backward_transfer"] == pytest.approx(((0.8 - 0.5) + (0.9 - 0.6)) / 2)
    assert arm["forgetting"] == pytest.approx(((0.9 - 0.8) + (0.6 - 0.9)) / 2)


def test_several_seeds_are_averaged_and_the_interval_is_over_seeds():
    other = SLEEP | {"matrix": [[0.8, None, None], [0.6, 0.7, None], [0.4, 0.6, 0.8]]}
    arm = summarize(make_results(sleep=[SLEEP, other]))["arms"]["sleep"]
    last = arm["mean_recall_last"]
    assert arm["seeds"] == 2
    assert last["interval"] == "over seeds"
    assert last["mean"] == pytest.approx((0.8 + 0.6) / 2)
    assert (last["low"], last["high"]) == pytest.approx((0.6, 0.8))
    assert arm["matrix"][2] == pytest.approx([0.5, 0.7, 0.9])
    assert arm["matrix"][0][1:] == [None, None]


def test_the_difference_is_paired():
    gain = summarize(make_results())["difference"]["sleep_minus_wake_only"]["mean_recall_last"]
    assert gain["mean"] == pytest.approx((0.5 + 0.5 + 0.2) / 3)
    assert gain["interval"] == "over days"
    # Seeds that differ from each other but by the same gain leave no uncertainty.
    lower = [copy.deepcopy(arm) for arm in (SLEEP, WAKE_ONLY)]
    for arm in lower:
        arm["matrix"][2] = [recall - 0.1 for recall in arm["matrix"][2]]
    pairs = make_results(sleep=[SLEEP, lower[0]], wake_only=[WAKE_ONLY, lower[1]])
    gain = summarize(pairs)["difference"]["sleep_minus_wake_only"]["mean_recall_last"]
    assert (gain["low"], gain["mean"], gain["high"]) == pytest.approx((0.4, 0.4, 0.4))
    with pytest.raises(ConfigError, match="must have the same seeds"):
        summarize(make_results(sleep=[SLEEP, SLEEP], wake_only=WAKE_ONLY))


def test_the_bootstrap_interval_is_repeatable_and_close_to_the_normal_one():
    samples = np.random.default_rng(1).normal(0.5, 0.1, size=400)
    interval = bootstrap(samples)
    assert interval == bootstrap(samples)
    half = 1.96 * samples.std() / 20
    assert interval["low"] == pytest.approx(samples.mean() - half, abs=0.1 * half)
    assert interval["high"] == pytest.approx(samples.mean() + half, abs=0.1 * half)


def test_floor_and_ceiling_are_certified():
    certified = summarize(make_results())["certified"]
    assert certified["awake"]["ok"]
    assert certified["awake"]["lowest"] == 0.9
    assert certified["wake_only_loses"]["ok"]
    assert certified["wake_only_loses"]["left"] == pytest.approx((0.1 + 0.3) / 2)
    ignorant = SLEEP | {"awake": [1.0, 0.95, 0.89]}
    certified = summarize(make_results(sleep=ignorant, wake_only=SLEEP))["certified"]
    assert not certified["awake"]["ok"]
    assert not certified["wake_only_loses"]["ok"]
    assert summarize(make_results(sleep=SLEEP))["certified"]["wake_only_loses"] is None


def test_a_report_is_written_for_programs_and_for_people_and_again_from_saved_results(tmp_path):
    results = make_results()
    report = write_report(tmp_path / "run", results)
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    assert write_report(tmp_path / "again", read_results(tmp_path / "run")) == report
    for name in ("report.json", "report.md"):
        first, again = (tmp_path / run / name for run in ("run", "again"))
        assert first.read_bytes() == again.read_bytes()
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report
    page = (tmp_path / "run" / "report.md").read_text()
    assert "| sleep | 0.800 (" in page
    assert "at least 0.9: **yes** (lowest 0.900)" in page
    assert "at most 0.5 left of the earlier days): **yes** (0.200 left)" in page
    assert "+0.400" in page
    assert "20,000" in page
    assert "(retention.png)" in page


@pytest.mark.parametrize(("arms", "width"), [(1, 933), (2, 1400), (3, 933), (5, 1400)])
def test_the_picture_has_one_panel_an_arm_and_one_more(tmp_path, arms, width):
    names = ["sleep", "wake_only", "one_teacher", "replay", "oracle"][:arms]
    write_report(tmp_path, make_results(**{name: [SLEEP] for name in names}))
    picture = matplotlib.image.imread(tmp_path / "retention.png")
    assert picture.shape[1] == pytest.approx(width, abs=2)
    # The picture is not blank and nothing is cut off by its border.
    assert picture[..., :3].std() > 0.05
    assert (picture[[0, -1], :, :3] == 1).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; has the run finished?"),
        ("{", "cannot be read as JSON"),
        ("[1]", "must be an object with the entry arms"),
        ('{"experiment": "x"}', "must be an object with the entry arms"),
    ],
)
def test_missing_or_garbled_results_are_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_results(tmp_path)
    assert str(tmp_path / "results.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (SLEEP | {"matrix": [[1.0, None]]}, r"arms.sleep.matrix .* as many of both"),
        (SLEEP | {"matrix": [[1.0, None], [None, 1.0]]}, "arms.sleep.matrix .* number for every"),
        (SLEEP | {"matrix": [[1.0], [1.0, 0.5]]}, "arms.sleep.matrix"),
        (SLEEP | {"awake": []}, "arms.sleep.awake .* must be a list of numbers"),
        (SLEEP | {"pretrain": ["much"]}, "arms.sleep.pretrain"),
        (SLEEP | {"pretrain_start": None}, "arms.sleep.pretrain_start"),
        ({k: v for k, v in SLEEP.items() if k != "awake"}, "arms.sleep .* lacks the entry awake"),
        ([SLEEP, 3], r"arms.sleep\[1\] = 3: must be an object"),
        ([], "arms.sleep .* must have at least one seed"),
        ([SLEEP, SLEEP | {"matrix": [[1.0]]}], "must have as many days with every seed"),
    ],
)
def test_results_that_cannot_be_reported_name_the_entry(arm, message):
    with pytest.raises(ConfigError, match=message) as caught:
        summarize(make_results(sleep=arm))
    assert "\n" not in str(caught.value)
