"""Several processes: each with its own rows, and one checkpoint that another number can read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from sleeplm.runtime import hosts
from sleeplm.runtime.config import read_module

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("host.py")
simulated = read_module(str(Path(__file__).parents[1] / "simulated.py"))
STEPS = 4


class Ended(NamedTuple):
    status: int
    said: str
    errors: str

    @property
    def found(self):
        assert self.status == 0, self.errors[-2000:]
        return json.loads(self.said.splitlines()[-1])


def job(directory, mesh, processes):
    """Runs all processes of a job, four devices in all, to their ends."""
    coordinator, environment = simulated.place(processes)
    started = []
    for process in range(processes):
        arguments = [directory, coordinator, processes, process, STEPS, json.dumps(mesh)]
        started.append(
            subprocess.Popen(
                [str(part) for part in (sys.executable, WORKER, *arguments)],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    try:
        said = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    return [Ended(one.returncode, *words) for one, words in zip(started, said, strict=True)]


def test_another_number_of_processes_reads_the_same_bits_onto_another_mesh(tmp_path):
    """What if one of them is killed: ``tests/bench/test_processes.py``."""
    two = [process.found for process in job(tmp_path, {"data": 4}, 2)]
    assert [one["done"] for one in two] == [0, 0] and two[0] == two[1]
    four = [process.found for process in job(tmp_path, {"data": 2, "fsdp": 2}, 4)]
    assert [one["done"] for one in four] == [STEPS] * 4  # nothing was left to live
    assert {one["digest"] for one in four} == {one["digest"] for one in two}
    assert {tuple(one["pieces"]) for one in four} == {("(40, 8)",)}
    assert {tuple(one["pieces"]) for one in two} == {("(40, 16)",)}


def test_only_an_error_about_another_process_counts_as_its_loss():
    lost = RuntimeError("Gloo AllReduce failed: Connection reset by peer")
    wrapped = ValueError("save failed")
    wrapped.__cause__ = lost
    assert hosts.is_loss(lost) and hosts.is_loss(wrapped)
    assert not hosts.is_loss(ValueError("loss is not finite"))
