"""Trials on this machine: several at once, within limits; one that fails does not stop others."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import launch.collect
from launch.__main__ import main
from launch.collect import collect, status
from launch.lease import EXPIRY, LEASE, read_lease
from launch.local import Limits, Local
from launch.trials import directory_of
from launch.worker import SUCCESS, work
from sleeplm.core.errors import ConfigError
from sleeplm.runtime.config import read_module
from sleeplm.runtime.metrics import read_metrics

CORES = len(os.sched_getaffinity(0))
simulated = read_module(str(pathlib.Path(__file__).parents[1] / "simulated.py"))


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Workers find the packages wherever they are started."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def states(sweep):
    return [one.state for one in status(str(sweep))]


@pytest.mark.slow
def test_every_trial_runs_and_failures_are_told(a_sweep, capsys):
    a_sweep.expand("fails")
    assert states(a_sweep) == ["waiting"] * 3
    assert main(["local", str(a_sweep), "--jobs", "2"]) == 1
    assert states(a_sweep) == ["finished", "failed", "failed"]
    said = capsys.readouterr().err
    assert "boom" in said and "as it was told" in said and "1 finished, 2 failed" in said
    log = a_sweep.folder / "logs" / f"{a_sweep.trials[1].id}.log"
    assert str(log) in said and "Traceback" in log.read_text()
    assert main(["status", str(a_sweep)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "3 trials: 1 finished, 2 failed"
    assert told[2].split()[:3] == [a_sweep.trials[1].id, "failed", "fail=boom"]
    assert a_sweep.starts(0) == 1
    assert main(["local", str(a_sweep), "--only", a_sweep.trials[0].id]) == 0
    assert a_sweep.starts(0) == 1


@pytest.mark.slow
@pytest.mark.skipif(CORES < 2, reason="needs two cores")
def test_trials_side_by_side_have_cores_of_their_own(a_sweep):
    a_sweep.expand("seeds")
    assert Local(str(a_sweep), Limits(jobs=2, cores=1)).run() == 0
    done = [json.loads((a_sweep.trial(i) / "done.json").read_text())["cores"] for i in range(3)]
    assert [len(cores) for cores in done] == [1, 1, 1]
    assert done[0] != done[1]


@pytest.mark.slow
def test_a_trial_that_needs_more_memory_than_it_may_have_fails_alone(a_sweep):
    a_sweep.expand("large")
    assert Local(str(a_sweep), Limits(memory=3000)).run() == 1
    assert (a_sweep.trial() / "_FAILED").read_text().startswith("MemoryError")


def wait_until(ready):
    limit = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.slow
def test_a_trial_that_is_killed_goes_on_and_one_interrupt_saves(a_sweep):
    a_sweep.expand(seconds=8.0, save_seconds=0.0)
    command = [sys.executable, "-m", "launch", "local", str(a_sweep)]
    local = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    timings = a_sweep.trial() / "timings.jsonl"
    wait_until(timings.exists)
    assert states(a_sweep) == ["running"]
    os.kill(int(read_lease(a_sweep.trial())["process"][2]), signal.SIGKILL)
    wait_until(lambda: a_sweep.starts() == 2)
    wait_until(lambda: b"nap 5" in timings.read_bytes())
    local.send_signal(signal.SIGINT)
    said = local.communicate(timeout=60)[1]
    assert local.returncode == 130
    assert "ended with status -9" in said and "will go on" in said and "stopped" in said
    (one,) = status(str(a_sweep))
    assert one.state == "stopped" and one.detail.startswith("naps: nap ")
    assert Local(str(a_sweep), Limits()).run() == 0
    lines = timings.read_text().splitlines()
    assert [json.loads(line)["position"] for line in lines] == list(range(80))


@pytest.fixture
def fitted(new_sweep, monkeypatch):
    """A sweep that one process has run on four devices; those started later have two each."""
    whole = new_sweep("whole").expand(kind="descent", **{"mesh.data": 4})
    assert work(str(whole), "0", EXPIRY) == 0
    for name, value in simulated.place(2)[1].items():
        monkeypatch.setenv(name, value)
    return whole


def losses(sweep):
    return [line["loss"] for line in read_metrics(sweep.trial() / "metrics.jsonl")]


def logs(sweep):
    return {path.name: path.read_text() for path in (sweep.folder / "logs").iterdir()}


@pytest.mark.slow
def test_a_trial_of_two_processes_is_one_job_and_gives_what_one_process_gives(
    fitted, a_sweep, capsys
):
    a_sweep.expand(kind="descent", **{"mesh.data": 4})
    assert main(["local", str(a_sweep), "--processes", "2"]) == 0
    assert "1 finished, 0 running" in capsys.readouterr().err
    assert len({(a_sweep.trial() / f"pid{i}").read_text() for i in range(2)}) == 2
    assert losses(a_sweep) == pytest.approx(losses(fitted), rel=1e-5)
    assert {*logs(a_sweep)} == {f"{a_sweep.trials[0].id}{end}" for end in (".log", ".1.log")}


@pytest.mark.slow
def test_when_one_of_two_processes_is_killed_both_start_again_and_one_interrupt_saves_both(
    fitted, a_sweep
):
    a_sweep.expand(kind="descent", **{"mesh.data": 4, "nap": 0.1})
    command = [sys.executable, "-m", "launch", "local", str(a_sweep), "--processes", "2"]
    local = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    timings, pid = a_sweep.trial() / "timings.jsonl", a_sweep.trial() / "pid1"
    wait_until(timings.exists)
    wait_until(lambda: b"step 4" in timings.read_bytes())
    killed = int(pid.read_text())
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: int(pid.read_text() or killed) != killed)
    wait_until(lambda: b"step 9" in timings.read_bytes())
    local.send_signal(signal.SIGINT)
    said = local.communicate(timeout=60)[1]
    assert local.returncode == 130
    assert "ended with status -9" in said and "will go on" in said and "stopped" in said
    first, second = (logs(a_sweep)[f"{a_sweep.trials[0].id}{end}"] for end in (".log", ".1.log"))
    assert "another process is lost" in first and "lost" not in second
    assert first.count("going on from") == 1
    assert "stopped by SIGTERM; saved" in first and "stopped by SIGTERM; saved" in second
    assert len(losses(a_sweep)) < len(losses(fitted))
    assert Local(str(a_sweep), Limits(processes=2)).run() == 0
    assert losses(a_sweep) == pytest.approx(losses(fitted), rel=1e-5)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(jobs=0), "jobs = 0"),
        (Limits(jobs=2, cores=CORES), f"2 jobs of {CORES} cores each need more than the {CORES}"),
        (
            Limits(jobs=2, processes=CORES, cores=1),
            f"cores = 1: 2 jobs of {CORES} processes of 1 cores each need more than the {CORES}",
        ),
        (Limits(processes=0), "processes = 0"),
        (Limits(memory=-1), "memory = -1"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(a_sweep, limits, said):
    with pytest.raises(ConfigError, match=said):
        Local(str(a_sweep.expand("seeds")), limits)
    assert not (a_sweep.folder / "trials").exists()


def test_trials_that_are_not_there_are_refused(a_sweep):
    a_sweep.expand("seeds")
    with pytest.raises(ConfigError, match="no such trials"):
        Local(str(a_sweep), Limits(), ["t0"])
    with pytest.raises(ConfigError, match="must be on this machine"):
        Local("gs://bucket/sweep", Limits())


def test_an_expired_lease_is_not_a_running_trial(a_sweep):
    a_sweep.expand("seeds")
    folder = a_sweep.trial(1)
    folder.mkdir(parents=True)
    for age, state in ((0, "running"), (2 * EXPIRY, "waiting")):
        lease = {"owner": "x", "beat": 1, "time": time.time() - age}
        (folder / LEASE).write_text(json.dumps(lease))
        assert states(a_sweep) == ["waiting", state, "waiting"]


def results(recall, seed):
    half = [[recall, None], [recall / 2, recall]]
    seeds = [{"matrix": half, "awake": [1.0, 1.0], "pretrain": [0.9, 0.8], "pretrain_start": 1.0}]
    arms = {name: [seeds[0] | {"seed": seed, "world_seed": 0}] for name in ("sleep", "wake_only")}
    return {"experiment": "retention", "world": {"name": "w", "facts_per_day": 3}, "arms": arms}


def test_settings_swept_inside_of_a_trial_are_rows_like_those_of_trials_one_by_one(new_sweep):
    sweep = new_sweep("inside").expand("numbers", kind="life")
    directory = directory_of(str(sweep), sweep.trials[0])
    directory.mkdir(parents=True)
    arms = {}
    for rate, recall in ((1e-3, 0.8), (1e-2, 0.4)):
        settings = {"sleep.learning_rate": rate, "sleep.z0": 2.0}
        name = f"sleep@sleep.learning_rate={rate},sleep.z0=2.0"
        arms[name] = [
            results(recall, seed)["arms"]["sleep"][0] | {"settings": settings} for seed in (2, 3, 4)
        ]
    (directory / "results.json").write_text(json.dumps(results(0.8, 0) | {"arms": arms}))
    (directory / SUCCESS).write_text("")
    rows, missing = collect(str(sweep))
    assert missing == 0
    assert [(row["arm"], row["learners"], row["sleep.learning_rate"]) for row in rows] == [
        ("sleep", 3, 1e-3),
        ("sleep", 3, 1e-2),
    ]
    assert [row["mean_recall_last"] for row in rows] == pytest.approx([0.6, 0.3])
    assert all("sweep" not in row and row["seed"] == 2 for row in rows)


def test_finished_trials_become_one_table_and_one_report(a_sweep, capsys):
    a_sweep.expand("seeds")
    with pytest.raises(ConfigError, match="no trial is finished"):
        collect(str(a_sweep))
    for number in (0, 2):
        directory = directory_of(str(a_sweep), a_sweep.trials[number])
        directory.mkdir(parents=True)
        (directory / "results.json").write_text(json.dumps(results(0.8, seed=number)))
        (directory / SUCCESS).write_text("")
    assert main(["collect", str(a_sweep)]) == 0
    told = capsys.readouterr()
    assert "4 rows" in told.out and "1 trials are not finished" in told.err
    with open(a_sweep.folder / "report" / launch.collect.TABLE, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["seed"], row["arm"]) for row in rows] == [
        (a_sweep.trials[number].id, str(number), arm)
        for number in (0, 2)
        for arm in ("sleep", "wake_only")
    ]
    assert float(rows[0]["mean_recall_last"]) == pytest.approx(0.6)
    report = json.loads((a_sweep.folder / "report" / "report.json").read_text())
    assert report["runs"] == [a_sweep.trials[0].id, a_sweep.trials[2].id]
    assert {path.name for path in (a_sweep.folder / "report").iterdir()} >= {"report.html"}
