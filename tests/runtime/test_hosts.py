"""Several processes: each with its own rows, one checkpoint, and what if one of them is killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from sleeplm.runtime import hosts, parallel
from sleeplm.runtime.config import read_module

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("host.py")
simulated = read_module(str(Path(__file__).parents[1] / "simulated.py"))
STEPS, KILLED_AFTER = 4, 2


class Ended(NamedTuple):
    status: int
    said: str
    errors: str
    seconds: float  # since the first one ended

    @property
    def found(self):
        return json.loads(self.said.splitlines()[-1])


def job(directory, mesh, processes, *killed):
    """Runs all processes of a job, four devices in all; the last one may be killed at a step."""
    coordinator, environment = simulated.place(processes)
    started = []
    for process in range(processes):
        last = process == processes - 1
        arguments = [directory, coordinator, processes, process, STEPS, json.dumps(mesh)]
        command = [sys.executable, WORKER, *arguments, *(killed if last else ())]
        started.append(
            subprocess.Popen(
                [str(part) for part in command],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    try:
        if killed:
            started[-1].wait(240)
        began, ended = time.monotonic(), []
        for process in started:
            said, errors = process.communicate(timeout=240)
            ended.append(Ended(process.returncode, said, errors, time.monotonic() - began))
    finally:
        for process in started:
            process.kill()
    return ended


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Two processes of two devices, the second of which is killed after its second save."""
    directory = tmp_path_factory.mktemp("job")
    return directory, job(directory, {"data": 4}, 2, KILLED_AFTER)


@pytest.fixture(scope="module")
def resumed(killed, tmp_path_factory):
    directory = shutil.copytree(killed[0], tmp_path_factory.mktemp("again") / "job")
    return directory, job(directory, {"data": 4}, 2)


def test_when_a_process_is_killed_the_others_end_and_say_what_to_do(killed):
    first, second = killed[1]
    assert second.status == -signal.SIGKILL
    assert first.seconds < 60 and first.status == hosts.AGAIN, first.errors[-2000:]
    (line,) = [x for x in first.errors.splitlines() if x.startswith("process 0 of 2:")]
    assert "another process is lost" in line and "start all of them again" in line


def test_started_again_the_job_goes_on_from_the_last_save_and_ends_as_one_process_does(
    resumed, tmp_path
):
    each = [process.found for process in resumed[1]]
    assert [one["done"] for one in each] == [KILLED_AFTER] * 2 and each[0] == each[1]
    alone = read_module(str(WORKER)).live(tmp_path, STEPS, parallel.mesh({"data": 4}))
    np.testing.assert_allclose(each[0]["losses"], alone["losses"][KILLED_AFTER:], atol=1e-5)


def test_another_number_of_processes_reads_the_same_bits_onto_another_mesh(resumed):
    directory, two = resumed
    four = [process.found for process in job(directory, {"data": 2, "fsdp": 2}, 4)]
    assert [one["done"] for one in four] == [STEPS] * 4  # nothing was left to live
    assert {one["digest"] for one in four} == {process.found["digest"] for process in two}
    assert {tuple(one["pieces"]) for one in four} == {("(40, 8)",)}
    assert {tuple(process.found["pieces"]) for process in two} == {("(40, 16)",)}


def test_only_an_error_about_another_process_counts_as_its_loss():
    lost = RuntimeError("Gloo AllReduce failed: Connection reset by peer")
    wrapped = ValueError("save failed")
    wrapped.__cause__ = lost
    assert hosts.is_loss(lost) and hosts.is_loss(wrapped)
    assert not hosts.is_loss(ValueError("loss is not finite"))
