from __future__ import annotations

import copy
import json

import pytest

from sleeplm import cli
from sleeplm.bench.combine import combine, run_names
from sleeplm.bench.report import summarize
from sleeplm.core.errors import ConfigError

SLEEP = {
    "matrix": [[1.0, None, None], [0.8, 0.9, None], [0.6, 0.8, 1.0]],
    "awake": [1.0, 0.95, 0.9],
    "pretrain": [0.9, 0.85, 0.8],
    "pretrain_start": 0.95,
}
WAKE_ONLY = SLEEP | {"matrix": [[1.0, None, None], [0.4, 1.0, None], [0.1, 0.3, 0.8]]}


def make_seeds(arm: dict, seeds: list[int]) -> list[dict]:
    """Seeds whose recall after the last night differs, by the same amounts in every arm."""
    runs = [copy.deepcopy(arm) | {"seed": seed} for seed in seeds]
    for run in runs:
        run["matrix"][-1] = [recall - 0.01 * run["seed"] for recall in run["matrix"][-1]]
    return runs


def make_results(**arms: object) -> dict:
    return {
        "experiment": "retention",
        "config": {"seed": 0},
        "world": {"name": "atlas", "facts_per_day": 40, "days": 3},
        "arms": arms or {"sleep": SLEEP, "wake_only": WAKE_ONLY},
        "seconds": 12.5,
    }


def test_runs_with_other_seeds_give_more_seeds_of_the_same_arm():
    first, second = (
        make_results(sleep=make_seeds(SLEEP, seeds), wake_only=make_seeds(WAKE_ONLY, seeds))
        for seeds in ([0, 1], [2, 3, 4])
    )
    report = summarize(combine([first, second], ["a", "b"]))
    assert {name: arm["seeds"] for name, arm in report["arms"].items()} == {
        "sleep": 5,
        "wake_only": 5,
    }
    together = make_results(
        sleep=make_seeds(SLEEP, [0, 1, 2, 3, 4]), wake_only=make_seeds(WAKE_ONLY, [0, 1, 2, 3, 4])
    )
    assert report["difference"] == summarize(together)["difference"]
    assert report["arms"]["sleep"]["runs"] == ["a", "b"]
    assert report["seconds"] == 25.0


def test_the_same_seed_twice_makes_arms_with_the_names_of_their_runs():
    first = make_results(sleep=make_seeds(SLEEP, [0, 1]), wake_only=make_seeds(WAKE_ONLY, [0, 1]))
    second = make_results(sleep=make_seeds(WAKE_ONLY, [1, 2]))
    report = summarize(combine([first, second], ["a", "b"]))
    assert list(report["arms"]) == ["sleep@a", "sleep@b", "wake_only"]
    gains = report["difference"]
    assert gains["sleep@a_minus_sleep@b"]["mean_recall_last"]["mean"] == pytest.approx(0.4)
    assert gains["sleep@a_minus_sleep@b"]["mean_recall_last"]["seeds"] == 1
    assert gains["sleep@a_minus_wake_only"]["mean_recall_last"]["seeds"] == 2


def test_other_settings_make_another_arm_but_other_seeds_and_places_do_not():
    first, second, third = (
        make_results(sleep=make_seeds(SLEEP, [seed])) | {"config": {"seed": seed} | settings}
        for seed, settings in enumerate(({"lr": 1}, {"lr": 1, "cache": "x"}, {"lr": 2}))
    )
    assert list(combine([first, second])["arms"]) == ["sleep"]
    assert list(combine([first, second, third])["arms"]) == ["sleep@run1+run2", "sleep@run3"]


def test_runs_of_other_worlds_or_other_lengths_are_kept_apart_and_not_paired():
    here = make_results(sleep=make_seeds(SLEEP, [0, 1]), wake_only=make_seeds(WAKE_ONLY, [0, 1]))
    elsewhere = copy.deepcopy(here)
    elsewhere["world"]["name"] = "biographies"
    report = summarize(combine([here, elsewhere], ["a", "b"]))
    assert set(report["arms"]) == {"sleep@a", "wake_only@a", "sleep@b", "wake_only@b"}
    assert set(report["difference"]) == {
        "sleep@a_minus_wake_only@a",
        "sleep@b_minus_wake_only@b",
    }
    assert report["certified"]["wake_only_loses"]["ok"]
    short = {"matrix": [[1.0]], "awake": [1.0], "pretrain": [1.0], "pretrain_start": 1.0}
    report = summarize(combine([here, make_results(sleep=short | {"seed": 0})], ["a", "b"]))
    assert set(report["arms"]) == {"sleep@a", "wake_only@a", "sleep@b"}
    assert set(report["difference"]) == {"sleep@a_minus_wake_only@a"}


@pytest.mark.parametrize(
    ("newer", "one_arm"),
    [
        ({"wear": 0.0}, True),  # the default: what the older version did
        ({"wear": 0.5}, False),
        ({"sleep": {"updates": 4, "beta": 0.5}}, True),
        ({"sleep": {"updates": 4, "beta": 0.1}}, False),
        ({"sleep": {"updates": 5, "beta": 0.5}}, False),
        ({"dream": {"rounds": 7}}, True),  # a phase that the older version did not have
        ({"unheard_of": 0}, False),
    ],
)
def test_runs_from_before_a_setting_existed_join_those_that_have_its_default(newer, one_arm):
    old = make_results(sleep=make_seeds(SLEEP, [0])) | {"config": {"sleep": {"updates": 4}}}
    new = make_results(sleep=make_seeds(SLEEP, [1])) | {"config": {**old["config"], **newer}}
    defaults = {"wear": 0.0, "sleep": {"updates": 1, "beta": 0.5}, "dream": {"rounds": 1}}
    for both in ([old, new], [new, old]):
        assert (list(combine(both, defaults=defaults)["arms"]) == ["sleep"]) == one_arm
    assert len(combine([old, new])["arms"]) == 2  # what is not known to be a default is not


def test_seeds_whose_texts_differ_are_not_paired_across_runs():
    first, second = (
        make_results(sleep=make_seeds(SLEEP, [0, 1])),
        make_results(wake_only=make_seeds(WAKE_ONLY, [0, 1])),
    )
    first["world"]["digests"], second["world"]["digests"] = ["x", "y"], ["x", "changed"]
    gain = summarize(combine([first, second]))["difference"]["sleep_minus_wake_only"]
    assert gain["mean_recall_last"]["seeds"] == 1
    second["world"]["digests"] = ["x", "y"]
    gain = summarize(combine([first, second]))["difference"]["sleep_minus_wake_only"]
    assert gain["mean_recall_last"]["seeds"] == 2


def test_a_run_with_one_seed_is_known_by_the_seed_of_its_configuration():
    first, second = (make_results() | {"config": {"seed": seed}} for seed in (0, 1))
    combined = combine([first, second])
    assert [seed["seed"] for seed in combined["arms"]["sleep"]] == [0, 1]
    nameless = [make_results() | {"config": None} for _ in range(2)]
    report = summarize(combine(nameless, ["a", "b"]))
    assert set(report["difference"]) == {"sleep@a_minus_wake_only@a", "sleep@b_minus_wake_only@b"}


def test_runs_are_named_by_the_last_parts_of_their_paths_that_differ(tmp_path):
    assert run_names([tmp_path / "x" / "a", tmp_path / "y" / "b"]) == ["a", "b"]
    assert run_names([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]
    with pytest.raises(ConfigError, match="is named twice"):
        run_names([tmp_path / "a", tmp_path / "b" / ".." / "a"])
    with pytest.raises(ConfigError, match="a name each, all different"):
        combine([make_results(), make_results()], ["a", "a"])


def save(directory, results: dict):
    directory.mkdir()
    (directory / "results.json").write_text(json.dumps(results))
    return directory


FILES = {"report.json", "report.md", "report.html", "retention.png"}


def names(directory) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_the_command_reports_one_run_in_its_place_or_elsewhere(tmp_path, capsys):
    run = save(tmp_path / "a", make_results())
    assert cli.main(["report", str(run), "--out", str(tmp_path / "out")]) == 0
    assert names(tmp_path / "out") == FILES and names(run) == {"results.json"}
    assert cli.main(["report", str(run), "--against", "nap"]) == 2
    assert names(run) == {"results.json"} and "against = 'nap'" in capsys.readouterr().err
    assert cli.main(["report", str(run)]) == 0
    assert names(run) == FILES | {"results.json"}
    for name in FILES:
        assert (run / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert str(run) in capsys.readouterr().out.splitlines()[-1]


def test_the_command_reports_several_runs_together(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a", make_results(sleep=make_seeds(SLEEP, [0])))
    save(tmp_path / "b", make_results(sleep=make_seeds(SLEEP, [1])))
    assert cli.main(["report", "a", "b", "--out", "both"]) == 0
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    assert report["arms"]["sleep"]["seed"] == [0, 1]
    assert names(tmp_path / "a") == {"results.json"}
    assert "**a**" in capsys.readouterr().out
    assert cli.main(["report", "a", "b"]) == 0
    (place,) = (tmp_path / "runs").iterdir()
    assert place.name.startswith("report-") and names(place) == FILES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["bad/results.json", "no such file"]),
        ("{", ["bad/results.json", "cannot be read as JSON"]),
        ('{"arms": {"sleep": {}}}', ["bad/results.json: arms.sleep", "lacks the entry matrix"]),
    ],
)
def test_one_bad_run_among_several_is_named_and_nothing_is_written(tmp_path, capsys, text, words):
    good = save(tmp_path / "good", make_results())
    (tmp_path / "bad").mkdir()
    if text is not None:
        (tmp_path / "bad" / "results.json").write_text(text)
    out = tmp_path / "out"
    assert cli.main(["report", str(good), str(tmp_path / "bad"), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)
    assert not out.exists()


def test_runs_with_other_settings_are_named_by_labels_where_these_tell_them_apart():
    def run(rate: float, seed: int) -> dict:
        results = make_results(sleep=make_seeds(SLEEP, [seed]))
        return results | {"config": {"seed": seed, "rate": rate}}

    runs = [run(rate, seed) for rate in (0.1, 0.2) for seed in (0, 1)]
    names = ["a", "b", "c", "d"]
    told = combine(runs, names, labels=["rate=0.1", "rate=0.1", "rate=0.2", "rate=0.2"])
    assert list(told["arms"]) == ["sleep@rate=0.1", "sleep@rate=0.2"]
    assert [len(seeds) for seeds in told["arms"].values()] == [2, 2]
    for labels in (None, [""] * 4, ["x"] * 4, ["x", "y", "z", "z"]):
        titles = list(combine(runs, names, labels=labels)["arms"])
        assert titles == ["sleep@a+b", "sleep@z" if labels and "z" in labels else "sleep@c+d"]
    alike = combine(runs[:2], names[:2], labels=["rate=0.1"] * 2)
    assert list(alike["arms"]) == ["sleep"]


def test_a_sweep_in_one_run_and_trials_of_their_own_lose_no_seed():
    inside = {f"sleep@sleep.lam={lam}": make_seeds(SLEEP, [0, 1]) for lam in (0.2, 0.5)}
    fused = make_results(**inside)
    apart = {lam: make_results(sleep=make_seeds(SLEEP, [2, 3])) for lam in (0.5, 0.8)}
    for lam, one in apart.items():
        one["config"]["sleep"] = {"lam": lam}
    labels = {"x": "", "y": "sleep.lam=0.5", "z": "sleep.lam=0.8"}
    runs = {"x": fused, "y": apart[0.5], "z": apart[0.8]}
    for order in ("xyz", "yzx"):
        arms = combine([runs[n] for n in order], list(order), labels=[labels[n] for n in order])
        assert {name: [seed["seed"] for seed in seeds] for name, seeds in arms["arms"].items()} == {
            "sleep@sleep.lam=0.2": [0, 1],
            "sleep@sleep.lam=0.5": [0, 1],
            "sleep@y": [2, 3],
            "sleep@sleep.lam=0.8": [2, 3],
        }
    both = combine([fused, apart[0.8]], ["x", "z"], labels=["", "sleep.lam=0.8"])
    assert "sleep" not in both["arms"] and "sleep@sleep.lam=0.8" in both["arms"]


def test_seeds_are_joined_whose_days_turned_out_to_have_more_questions_or_fewer():
    runs = []
    for seed, sizes in enumerate([[30, 25, 28], [28, 27, 28]]):
        one = make_results(sleep=make_seeds(SLEEP, [seed]))
        one["config"] = {"seed": seed, "facts_per_day": 40}
        one["world"] = {"name": "atlas", "questions_per_day": sizes, "days": 3}
        runs.append(one)
    assert list(combine(runs, ["a", "b"])["arms"]) == ["sleep"]
    runs[1]["config"]["facts_per_day"] = 30
    assert len(combine(runs, ["a", "b"])["arms"]) == 2


def test_arms_of_every_world_are_compared_with_its_sleep_whatever_runs_they_are_from():
    runs = []
    for world in ("atlas", "biographies"):
        for arm, entry in (("sleep", SLEEP), ("static_replay", WAKE_ONLY)):
            one = make_results(**{arm: make_seeds(entry, [0, 1])})
            one["world"] = {"name": world, "days": 3, "digests": [f"{world} 0", f"{world} 1"]}
            runs.append(one)
    gains = summarize(combine(runs, ["A", "B", "C", "D"]))["difference"]
    assert set(gains) == {"sleep@A_minus_static_replay@B", "sleep@C_minus_static_replay@D"}


def test_a_report_among_the_runs_is_left_out(tmp_path, capsys):
    for number in range(2):
        (tmp_path / f"r{number}").mkdir()
        one = make_results(sleep=make_seeds(SLEEP, [number]))
        (tmp_path / f"r{number}" / "results.json").write_text(json.dumps(one))
    runs, out = [str(tmp_path / f"r{number}") for number in range(2)], str(tmp_path / "all")
    assert cli.main(["report", *runs, "--out", out]) == 0
    first = (tmp_path / "all" / "report.json").read_text()
    capsys.readouterr()
    assert cli.main(["report", *runs, out, "--out", out]) == 0  # as runs/* means the second time
    assert f"{out} holds a report and no run: left out" in capsys.readouterr().err
    assert (tmp_path / "all" / "report.json").read_text() == first


def test_reports_alone_are_no_runs(tmp_path, capsys):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        (folder / "report.json").write_text("{}")
    assert cli.main(["report", *map(str, folders), "--out", str(tmp_path / "c")]) == 2
    assert "no such file; has the run finished?" in capsys.readouterr().err
