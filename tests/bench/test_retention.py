"""The retention job: its arms, its report."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest

from sleeplm import cli
from sleeplm.bench.arms import build_arm
from sleeplm.core.errors import ConfigError
from sleeplm.pretrained.gguf_file import SMOLLM2
from sleeplm.runtime.config import check, load_config
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.workdir import BOARD, CONFIG, WRITTEN

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = [
    "retention",
    "retention_bench",
    "retention_bench:biographies",
    "retention_dreams",
    "retention_dreams:biographies",
    "retention_dreams:two_facts",
    "retention_intents",
    "retention_nights",
    "retention_nights:200",
    "retention_sweep",
    *(f"retention_schedule:{when}" for when in ("surprise", "fill", "clock", "day_end")),
]
#: On SmolLM2, from the package that brings it.
PUBLISHED = [
    *("smollm2", "smollm2:clinc150"),
    *("squad", "squad:200", "squad:200/1", "squad:20,smollm2,2"),
]
OTHERS = ["arc"]  # no days and nights
LIFE = f"{pathlib.Path(__file__).with_name('tiny_life.py')}:brief"
#: Two learners; students write as much as teachers do.
SETTINGS = ("--config.seeds=2", "--config.sleep.lam=0.5", "--config.probes=True")


def test_wake_only_is_the_same_model_without_nights():
    config = load_config(str(ROOT / "experiments" / "retention.py"), [])
    assert build_arm("sleep", config, classes=0).model.config == config.model
    awake = build_arm("wake_only", config, classes=0).model.config
    assert [level.night for level in awake.levels] == [0, 0]
    for one, other in zip(awake.levels, config.model.levels, strict=True):
        assert dataclasses.replace(one, night=other.night) == other


@pytest.mark.parametrize("name", [*EXPERIMENTS, *PUBLISHED])
def test_every_experiment_has_settings_that_can_work(name, needs):
    if name in PUBLISHED:
        needs("gguf", SMOLLM2)
    file, *argument = name.split(":")
    path = ":".join([str(ROOT / "experiments" / f"{file}.py"), *argument])
    config = load_config(path, [])
    check(config)
    for arm in config.arms:
        assert build_arm(arm, config, classes=150).sleep.rows
    if "def get_quick_config" in pathlib.Path(path.partition(":")[0]).read_text():
        check(load_config(path, [], quick=True))


@pytest.mark.parametrize("name", OTHERS)
def test_experiments_without_days_have_settings_that_can_work_too(name):
    path = str(ROOT / "experiments" / f"{name}.py")
    for quick in (False, True):
        check(load_config(path, [], quick=quick))


def test_every_experiment_file_is_among_them():
    files = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    files = {name for name in files if not name.startswith("plan_")}  # those are compiled, not run
    assert {name.partition(":")[0] for name in (*EXPERIMENTS, *PUBLISHED, *OTHERS)} == files


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("retention:lr", r"get_config\(\) takes no argument: leave out :lr"),
        ("arc:eval", r"get_config\(\) takes no argument: leave out :eval"),
        ("retention_nights:400", "config = '400': must be one of 40, 200"),
        ("smollm2:squad", "config = 'squad': is of passages to read: run experiments/squad.py"),
        ("smollm2:clinc15", "world = 'clinc15': .*did you mean 'clinc150'"),
        ("squad:7", "config = '7': must be 1, a multiple of 10 such as 200, or N/DAYS"),
        ("squad:7/2", "config = '7/2': must be 1, a multiple of 10 such as 200, or N/DAYS"),
        ("squad:200/0", "config = '200/0': must be 1, a multiple of 10 such as 200, or N/DAYS"),
        ("squad:1,FOLDER,2,3", "config = '1,FOLDER,2,3': must be N, N,BACKBONE or N,BACKBONE,EOS"),
    ],
)
def test_an_argument_that_an_experiment_does_not_know_is_refused(name, complaint):
    file, argument = name.split(":")
    with pytest.raises(ConfigError, match=complaint):
        load_config(f"{ROOT / 'experiments' / f'{file}.py'}:{argument}", [])


def test_a_published_model_is_told_facts_of_any_world_alike(needs):
    needs("gguf", SMOLLM2)
    atlas, people = (
        load_config(f"{ROOT / 'experiments' / 'smollm2.py'}:{world}", [])
        for world in ("atlas", "biographies")
    )
    assert dataclasses.replace(people, world="atlas") == atlas


# --- the whole job -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The directory of a tiny run through the command line."""
    place = tmp_path_factory.mktemp("retention")
    arguments = [
        *("run", LIFE, "--workdir", str(place / "run"), "--quiet"),
        *(f"--config.cache={place / 'cache'}", *SETTINGS),
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
        assert arm["seeds"] == len(arm["cost"]) == 2
        for cost in arm["cost"]:
            assert cost["tokens"]["read"] == 2 * 4 * 4 * 96
            assert cost["seconds"]["total"] > 0
    difference = report["difference"]["sleep_minus_wake_only"]["mean_recall_last"]
    assert {"mean", "low", "high"} <= set(difference)
    assert set(report["certified"]) == {"awake", "wake_only_loses"}
    assert report["config"]["world"] == "biographies"
    assert report["arms"]["sleep"]["figures"]["routing_oracle"]["mean"] >= 0
    assert (ran / "report.md").read_text().startswith("# retention")


@pytest.mark.slow
def test_every_file_of_a_run_is_looked_for_before_another_one_begins_there(ran):
    assert {path.name for path in ran.iterdir()} == {CONFIG, *WRITTEN} - {BOARD}


@pytest.mark.slow
def test_the_matrix_is_what_the_exams_said_after_every_night(ran):
    report = json.loads((ran / "report.json").read_text())
    results = json.loads((ran / "results.json").read_text())
    lines = read_metrics(ran / "metrics.jsonl")
    for name, when in (("sleep", "dawn"), ("wake_only", "dusk")):
        said = [r for r in lines if r["stage"] == name and r.get("when") == when]
        assert len(said) == 2
        for day, line in enumerate(said):
            for e, learner in enumerate(results["arms"][name]):
                assert learner["matrix"][day][: day + 1] == line["recall"][e][: day + 1]
                assert learner["pretrain"][day] == line["pretrain"][e]
            mean = report["arms"][name]["matrix"][day]
            assert mean[: day + 1] == pytest.approx(np.mean(line["recall"], axis=0)[: day + 1])
            assert report["arms"][name]["pretrain"][day] == pytest.approx(np.mean(line["pretrain"]))
    events = {r["event"] for r in lines if r["stage"] == "sleep"}
    assert events == {"cues", "wake", "exam", "seed", "seed_end", "probe"}
    assert {r["event"] for r in lines if r["stage"] == "wake_only"} == {"wake", "exam"}


@pytest.mark.slow
def test_both_arms_read_the_same_text_in_the_same_order_until_the_first_night(ran):
    lines = read_metrics(ran / "metrics.jsonl")
    losses = [
        [r["loss"] for r in lines if r["stage"] == arm and r["event"] == "wake" and r["day"] == 0]
        for arm in ("sleep", "wake_only")
    ]
    first, *_ = losses[0]
    assert first == losses[1][0]  # the same parameters and the same batch, of both learners
    assert first[0] != first[1]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_sampled_tokens_are_counted_as_they_are_made(ran):
    report = json.loads((ran / "report.json").read_text())
    sleep = load_config(LIFE, list(SETTINGS)).sleep
    sources = sum(1 for _ in itertools.product(sleep.teachers, ("teacher", "student")))
    rows = sources * sleep.rows * sleep.inner
    for cost in report["arms"]["sleep"]["cost"]:
        tokens = cost["tokens"]
        assert tokens["sampled"] == 2 * sleep.blocks * rows * sleep.length
        assert tokens["seeded"] == tokens["sampled"] * sleep.epochs
    assert all(set(cost["tokens"]) == {"read"} for cost in report["arms"]["wake_only"]["cost"])


@pytest.mark.slow
def test_the_report_of_a_run_can_be_written_again(ran, capsys):
    before = json.loads((ran / "report.json").read_text())
    (ran / "report.json").unlink()
    assert cli.main(["report", str(ran)]) == 0
    assert json.loads((ran / "report.json").read_text()) == before
    assert "# retention" in capsys.readouterr().out
