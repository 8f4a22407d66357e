"""Several processes: each with its own rows, and one checkpoint that another number can read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from sleeplm.core.errors import BusyError
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


def test_what_is_put_together_goes_over_devices_of_however_many_slices():
    """jax.make_mesh refuses those of several."""

    class OnSlice:
        device_kind, platform, id = "some GPU", "gpu", 0

        def __init__(self, slice_index):
            self.slice_index = slice_index

    devices = [OnSlice(index) for index in (0, 0, 1, 1)]
    assert hosts._in_a_row(devices).devices.tolist() == devices


def test_who_cannot_watch_the_first_process_says_so_and_goes_on(monkeypatch, capsys):
    def nobody_answers(key, milliseconds):
        raise RuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")

    client = SimpleNamespace(blocking_key_value_get=nobody_answers)
    state = {"process_id": 1, "num_processes": 2, "coordinator_address": "h:1", "client": client}
    monkeypatch.setattr(hosts, "global_state", SimpleNamespace(**state))
    hosts._watched().close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("process 1 of 2: a lost process will be noticed late: DEADLINE")


def test_what_one_process_finds_busy_all_do(monkeypatch):
    told = []
    monkeypatch.setattr(hosts, "largest", lambda value: told.append(value) or max(told))
    with pytest.raises(BusyError, match="workdir = 'here': locked"), hosts.fail_together():
        raise BusyError("workdir", "here", "locked")
    with pytest.raises(BusyError, match="another one has found"), hosts.fail_together():
        pass
