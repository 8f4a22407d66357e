"""The processes of a trial have one outcome, and none is left behind."""

from __future__ import annotations

import signal
import time

import pytest

import launch.job
from launch.job import Job, Outcome
from launch.lease import HELD
from launch.worker import CRASH, MEND, RESTART

NAP = "while :; do sleep 0.02; done"
SAVE = f"trap 'echo saved; exit {RESTART}' TERM; echo up; {NAP}"


@pytest.fixture
def start(tmp_path):
    """Starts shells as the processes of a job, which say what they say in files of their own."""
    jobs = []

    def run(*scripts):
        logs = [tmp_path / str(number) for number in range(len(scripts))]
        jobs.append(Job([["sh", "-c", script] for script in scripts], logs))
        return jobs[-1], logs

    yield run
    for job in jobs:
        job.kill()
        outcome(job)


def outcome(job):
    limit = time.monotonic() + 30
    while not job.is_over():
        assert time.monotonic() < limit
        time.sleep(0.01)
    return job.outcome()


def end(status):
    """A script that ends so: negative for a signal."""
    return f"exit {status}" if status >= 0 else f"kill {status} $$"


LOST, KILLED = -signal.SIGABRT, -signal.SIGKILL


@pytest.mark.parametrize(
    ("statuses", "telling", "again"),
    [
        ((0, 0), 0, False),
        ((RESTART, RESTART), 0, True),
        ((RESTART, KILLED), 1, True),
        ((KILLED, LOST), 0, True),
        ((0, RESTART), 1, True),
        ((CRASH, RESTART), 0, True),
        ((RESTART, CRASH), 1, True),
        ((MEND, MEND), 0, False),
        ((0, CRASH), 1, False),
        ((HELD, HELD), 0, False),
        ((HELD, RESTART), 0, False),
        ((KILLED,), 0, True),
        ((RESTART,), 0, True),
        ((LOST,), 0, False),
        ((CRASH,), 0, False),
    ],
)
def test_processes_have_one_outcome_together(start, statuses, telling, again):
    job, logs = start(*map(end, statuses))
    assert outcome(job) == Outcome(statuses[telling], logs[telling], again)


def test_of_two_that_failed_the_first_to_fail_tells_why(start):
    job, logs = start(f"sleep 0.3; exit {CRASH}", f"exit {MEND}")
    assert outcome(job) == Outcome(MEND, logs[1])


def test_processes_that_linger_after_another_one_are_killed_and_say_nothing_of_the_trial(
    start, monkeypatch
):
    monkeypatch.setattr(launch.job, "LINGER", 0.2)
    job, logs = start(NAP, end(MEND))
    assert outcome(job) == Outcome(MEND, logs[1])
    job, logs = start(end(RESTART), NAP)
    assert outcome(job) == Outcome(RESTART, logs[0], again=True)
    job, logs = start(end(0), NAP)
    assert outcome(job) == Outcome(KILLED, logs[1], again=True)


def test_all_processes_are_asked_to_save_once_and_killed_when_that_is_wished_for(start):
    job, logs = start(SAVE, SAVE)
    while not all(log.read_text() for log in logs):
        time.sleep(0.01)
    job.stop()
    job.stop()
    assert outcome(job).status == RESTART
    assert [log.read_text() for log in logs] == ["up\nsaved\n"] * 2
    job, logs = start(*["trap '' TERM; echo stubborn; " + NAP] * 2)
    while not all("stubborn" in log.read_text() for log in logs):
        time.sleep(0.01)
    job.stop()
    assert not job.is_over()
    job.kill()
    assert outcome(job).status == KILLED


def test_several_processes_are_told_who_is_who_and_one_is_told_nothing(start, monkeypatch):
    for name in ("LAUNCH_PROCESSES", "LAUNCH_PROCESS", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    tell = "echo ${LAUNCH_PROCESSES-} ${LAUNCH_PROCESS-} ${JAX_COORDINATOR_ADDRESS-}"
    places = []
    for _ in range(2):
        job, logs = start(tell, tell)
        outcome(job)
        told = [log.read_text().splitlines()[-1].split() for log in logs]
        assert [one[:2] for one in told] == [["2", "0"], ["2", "1"]]
        assert told[0][2] == told[1][2]
        places.append(told[0][2])
    assert all(place.startswith("127.0.0.1:") for place in places)
    assert places[0] != places[1], "a port of its own each time"
    job, (log,) = start(f"{tell}; echo $LAUNCH_PROCESSES >&2")
    assert outcome(job) == Outcome(0, log)
    assert log.read_text().splitlines()[-2:] == ["", ""]
