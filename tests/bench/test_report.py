from __future__ import annotations

import copy
import json

import matplotlib.image
import numpy as np
import pytest

from sleeplm.bench.report import bootstrap, read_results, summarize, write_report
from sleeplm.core.errors import ConfigError

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


OPTIONAL = {
    "nights": ["Mon", "Tue", "Wed"],
    "forward": [0.0, 0.1, 0.2],
    "floor": [0.0, 0.05, 0.0],
    "logp": [[-1, -9, -9], [-2, -1, -9], [-4, -3, -2]],
    "logp_start": [-10, -9, -8],
    "kl": [0.1, 0.2, 0.3],
    "cluster": [0.1, 0.05, 0.1],
    "dusk": [[1.0, None, None], [0.9, 0.95, None], [0.7, 0.8, 0.9]],
    "routing": {
        "traffic": [[0.6, 0.1, 0], [0.5, 0.5, 0], [0.2, 0.2, 0]],
        "born": [0, 1, -1],
        "learned": [0.6, 0.8, 1.0],
        "oracle": [0.7, 0.8, None],
    },
    "bits": {"held": 500.0, "parameters": 1000, "per_parameter": 0.5},
    "cues": {"entries": 90, "bytes": 800, "longest": 8, "written_by": "subjects"},
    "flops": {"wake": 1e12, "sampled": 2e12},
    "raw_text": False,
    "dreams": [
        {"day": 0, "rounds": [{"accepted": 0.2, "false_tried": 0.1}, {"accepted": 0.4}]},
        {"day": 1, "rounds": [{"accepted": 0.5, "false_tried": None}]},
        {"day": 2, "rounds": []},
    ],
}


def shifted(arm: dict, by: float, **entries: object) -> dict:
    """The same arm with another recall after the last night."""
    arm = copy.deepcopy(arm) | entries
    arm["matrix"][-1] = [recall + by for recall in arm["matrix"][-1]]
    return arm


def make_seeds(arm: dict, seeds: list[int], **entries: object) -> list[dict]:
    return [shifted(arm, -0.01 * seed, seed=seed, **entries) for seed in seeds]


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


def test_every_figure_has_its_interval_where_its_entries_are_there():
    seeds = [shifted(SLEEP, by) | OPTIONAL for by in (0.0, -0.1)]
    arm = summarize(make_results(sleep=seeds))["arms"]["sleep"]
    for name in (
        *("mean_recall_last", "forgetting", "backward_transfer", "forward_transfer"),
        *("recall_at_dusk", "recall_at_dawn", "change_overnight", "pretrain_lost", "kl_last"),
        *("cluster_largest", "lift_last", "routing_learned", "routing_oracle"),
        *("routing_own_share", "bits_held", "bits_per_parameter", "tokens", "flops", "seconds"),
    ):
        figure = arm["figures"][name]
        assert figure["low"] <= figure["mean"] <= figure["high"]
        assert (figure["interval"], figure["seeds"]) == ("over seeds", 2)
    assert arm["figures"]["mean_recall_last"] == arm["mean_recall_last"]
    assert arm["half_life"]["low"] < arm["half_life"]["mean"] < arm["half_life"]["high"]
    assert arm["matrix_interval"]["low"][2] == pytest.approx([0.5, 0.7, 0.9])
    assert set(arm["curves"]) == {
        *("age", "lift_age", "dusk", "dawn", "pretrain", "kl", "cluster"),
        *("routing_learned", "routing_oracle"),
    }
    assert arm["traffic"] == [[0.6, 0.1, 0], [0.5, 0.5, 0], [0.2, 0.2, 0]]
    assert arm["compute"]["flops"] == {"wake": 1e12, "sampled": 2e12, "total": 3e12}
    assert (arm["cues"]["written_by"], arm["raw_text"], arm["nights"][1]) == (
        *("subjects", False, "Tue"),
    )


def test_figures_whose_entries_are_absent_or_null_are_left_out():
    bare = {key: SLEEP[key] for key in ("matrix", "awake", "pretrain", "pretrain_start")}
    arm = summarize(make_results(sleep=bare))["arms"]["sleep"]
    assert set(arm["figures"]) == {
        *("mean_recall_last", "forgetting", "backward_transfer", "decay_per_night"),
        *("recall_at_dusk", "recall_at_dawn", "pretrain_last", "pretrain_lost"),
    }
    assert "traffic" not in arm and "cues" not in arm and "lift" not in arm
    null = summarize(make_results(sleep=bare | dict.fromkeys(OPTIONAL)))["arms"]["sleep"]
    assert null == arm


def test_what_was_dreamt_is_averaged_over_rounds_then_nights_and_shown(tmp_path):
    results = make_results(sleep=SLEEP | OPTIONAL)
    figures = summarize(results)["arms"]["sleep"]["figures"]
    assert figures["dreams_accepted"]["mean"] == pytest.approx((0.3 + 0.5) / 2)
    assert figures["dreams_false_tried"]["mean"] == pytest.approx(0.1)
    assert "dreams_unique" not in figures
    write_report(tmp_path, results)
    page = (tmp_path / "report.md").read_text()
    section = page[page.index("## Dreams") :].split("\n## ")[0]
    assert "| arm | accepted, of those tried |" in section and "| arm | tried: false |" in section
    assert "0.400" in section and "different from" not in section
    plain = tmp_path / "plain"
    write_report(plain, make_results())
    assert "Dreams" not in (plain / "report.md").read_text()


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("dreams", {"accepted": 1.0}, "must be a list of nights"),
        ("dreams", [{"rounds": [{"accepted": "all"}]}], "must be an object of numbers"),
        ("awake", [1.0, 1.0], "must be 3 numbers, one a day"),
        ("pretrain_start", "x", "must be a number"),
        ("kl", [1.0], "must be a list of numbers"),
        ("kl", 5, "must be a list of numbers"),
        ("logp", [[1.0, 2.0, 3.0]], "must be a list of numbers, 3 x 3"),
        ("routing", {"traffic": [[1.0]] * 3}, "lacks the entry born"),
        ("routing", OPTIONAL["routing"] | {"born": [0, 1, 3]}, "must be days from 0 to 2, or -1"),
        ("routing", OPTIONAL["routing"] | {"born": [0, 1]}, "must be a list of numbers"),
        ("flops", {"wake": "much"}, "must be an object of numbers"),
        ("cues", 3, "must be an object"),
        ("nights", ["Mon"], "must be a list of 3 names"),
        ("raw_text", "no", "must be true or false"),
        ("seed", 1.5, "must be a whole number"),
    ],
)
def test_entries_that_are_there_but_garbled_are_named_in_one_line(entry, value, message):
    with pytest.raises(ConfigError, match=rf"arms\.sleep\.{entry} .*{message}") as caught:
        summarize(make_results(sleep=SLEEP | {entry: value}))
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


def test_only_seeds_that_both_arms_have_are_compared():
    arms = {"sleep": make_seeds(SLEEP, [0, 1, 2]), "wake_only": make_seeds(WAKE_ONLY, [7, 2, 1])}
    gain = summarize(make_results(**arms))["difference"]["sleep_minus_wake_only"]
    assert gain["mean_recall_last"]["seeds"] == 2
    # Within a pair both arms are shifted alike: nothing is left of the seeds' differences.
    assert gain["mean_recall_last"]["low"] == pytest.approx(0.4)
    assert gain["mean_recall_last"]["high"] == pytest.approx(0.4)
    assert gain["pretrain_lost"]["mean"] == pytest.approx(0.05 - 0.8)
    arms["wake_only"] = make_seeds(WAKE_ONLY, [1, 2], world_seed=5)  # had other days
    assert "difference" not in summarize(make_results(**arms))
    with pytest.raises(ConfigError, match="must have every seed once"):
        summarize(make_results(sleep=make_seeds(SLEEP, [1, 1])))


def test_every_arm_is_compared_with_sleep_or_else_with_the_first():
    arms = {"replay": SLEEP, "sleep": SLEEP, "wake_only": WAKE_ONLY}
    gains = summarize(make_results(**arms))["difference"]
    assert set(gains) == {"sleep_minus_replay", "sleep_minus_wake_only"}
    del arms["sleep"]
    gains = summarize(make_results(**arms))["difference"]
    assert set(gains) == {"replay_minus_wake_only"}


def test_any_arm_can_be_the_one_that_others_are_compared_with():
    arms = {"sleep": SLEEP, "wake_only": WAKE_ONLY, "other": SLEEP}
    report = summarize(make_results(**arms), against="wake_only")
    assert set(report["difference"]) == {"wake_only_minus_sleep", "wake_only_minus_other"}
    usual = summarize(make_results(**arms))["difference"]["sleep_minus_wake_only"]
    mine = report["difference"]["wake_only_minus_sleep"]["mean_recall_last"]["mean"]
    assert mine == pytest.approx(-usual["mean_recall_last"]["mean"])
    with pytest.raises(ConfigError, match="against = 'nap'.*sleep, wake_only, other"):
        summarize(make_results(**arms), against="nap")


def test_sleep_is_judged_against_the_best_arm_without_raw_text_and_against_replay():
    def arm(by: float, raw_text: bool) -> dict:
        return shifted(SLEEP, by, raw_text=raw_text)

    arms = {
        "sleep": arm(0, False),
        "sleep_rollouts": arm(0.1, False),
        "anchored": arm(-0.2, False),
        "plain": arm(-0.3, False),
        "raw_replay": arm(0.05, True),
        "static_replay": arm(-0.1, True),
    }
    judged = summarize(make_results(**arms))["bar"]
    assert judged["minus_best_without_raw_text"]["arm"] == "anchored"
    assert judged["minus_best_without_raw_text"]["mean"] == pytest.approx(0.2)
    assert judged["minus_static_replay"]["mean"] == pytest.approx(0.1)
    assert judged["mean_recall_last"]["mean"] == pytest.approx(0.8)
    assert judged["pretrain_lost"]["mean"] == pytest.approx(0.15)
    judged = summarize(make_results(sleep=SLEEP, wake_only=WAKE_ONLY))["bar"]
    assert set(judged) == {"mean_recall_last", "pretrain_lost"}  # nobody said what it keeps
    assert "bar" not in summarize(make_results(wake_only=WAKE_ONLY))
