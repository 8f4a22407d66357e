"""Of all workers that want a trial one runs it; a dead one is replaced, a living one is not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

import launch.lease
from launch.lease import LEASE, Lease, LeaseHeld, process_lives, process_name, read_lease
from launch.stores import is_remote

EXPIRY = 0.8


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(launch.lease, "POLL", 0.01)


@pytest.fixture
def elsewhere(monkeypatch):
    """Workers cannot look at one another's processes, as on other machines."""
    monkeypatch.setattr(launch.lease, "process_lives", lambda name: None)


def held(directory, expiry=EXPIRY, **settings):
    lease = Lease(directory, expiry, **settings)
    assert lease.take()
    return lease


def test_a_lease_is_taken_renewed_and_given_back(tmp_path):
    lease = held(tmp_path / "trial")
    first = read_lease(tmp_path / "trial")
    time.sleep(EXPIRY)
    assert read_lease(tmp_path / "trial")["beat"] > first["beat"]
    lease.release()
    lease.release()
    assert read_lease(tmp_path / "trial") is None
    held(tmp_path / "trial").release()


def test_a_worker_on_the_same_machine_sees_at_once_that_another_lives(tmp_path):
    lease = held(tmp_path, expiry=60)
    began = time.monotonic()
    with pytest.raises(LeaseHeld, match="is running this trial"):
        Lease(tmp_path, 60).take()
    assert time.monotonic() - began < 5
    lease.release()


def test_a_worker_on_another_machine_waits_for_a_sign_of_life(tmp_path, elsewhere):
    lease = held(tmp_path)
    with pytest.raises(LeaseHeld):
        Lease(tmp_path, EXPIRY).take()
    lease.release()


def dead_lease(directory, process=None):
    if not is_remote(directory):
        directory.mkdir(exist_ok=True)
    text = json.dumps({"owner": "dead", "host": "there", "process": process, "beat": 3})
    (directory / LEASE).write_text(text)


def test_a_dead_worker_of_another_machine_is_replaced_when_its_lease_has_expired(tmp_path):
    dead_lease(tmp_path)
    began = time.monotonic()
    lease = held(tmp_path)
    assert time.monotonic() - began >= EXPIRY
    lease.release()


def test_a_dead_worker_of_this_machine_is_replaced_at_once(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = process_name(process.pid)
    assert process_lives(name)
    process.communicate(b"\n")
    assert process_lives(name) is False
    dead_lease(tmp_path, name)
    began = time.monotonic()
    held(tmp_path, expiry=60).release()
    assert time.monotonic() - began < 5


def test_processes_of_other_machines_and_containers_cannot_be_judged():
    boot, space, pid, started = process_name(1)
    assert process_lives(["another boot", space, pid, started]) is None
    assert process_lives([boot, "another space", pid, started]) is None
    assert process_lives(None) is None
    assert process_lives("garbled") is None


def test_a_garbled_lease_expires_too(tmp_path):
    (tmp_path / LEASE).write_text("{")
    held(tmp_path).release()


def test_waiting_ends_when_the_worker_is_asked_to_stop(tmp_path):
    dead_lease(tmp_path)
    assert not Lease(tmp_path, 60).take(stopped=lambda: True)
    assert read_lease(tmp_path)["owner"] == "dead"


def race(directory, workers, **settings):
    """How many of several workers that start together get the lease, and how many leave it."""
    start, done = threading.Barrier(workers), []
    leases = [Lease(directory, EXPIRY, lost=lambda: None, **settings) for _ in range(workers)]

    def work(lease):
        start.wait()
        try:
            done.append(lease.take())
        except LeaseHeld:
            done.append(None)

    threads = [threading.Thread(target=work, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lease in leases:
        lease.release()
    return done.count(True), done.count(None)


@pytest.mark.parametrize("dead", [False, True])
def test_of_workers_that_race_exactly_one_wins(tmp_path, elsewhere, dead):
    for attempt in range(3):
        directory = tmp_path / str(attempt)
        if dead:
            dead_lease(directory)
        assert race(directory, 6) == (1, 5)


@pytest.mark.parametrize("dead", [False, True])
def test_so_it_is_in_an_object_store(bucket, elsewhere, dead):
    directory = epath.Path(bucket)
    if dead:
        dead_lease(directory)
    assert race(directory, 4, settle=0.3) == (1, 3)


def test_a_worker_whose_lease_was_taken_over_ends_at_its_next_beat(tmp_path):
    lost = threading.Event()
    lease = held(tmp_path, lost=lost.set)
    dead_lease(tmp_path)
    assert lost.wait(EXPIRY)
    lease.release()
    assert read_lease(tmp_path)["owner"] == "dead", "what others hold is not given back"


def test_a_worker_that_cannot_renew_its_lease_ends_before_others_take_over(tmp_path, monkeypatch):
    lost, expiry = threading.Event(), 4 * EXPIRY
    lease = held(tmp_path, expiry, lost=lost.set)

    def fail(self):
        raise OSError("the store is away")

    monkeypatch.setattr(Lease, "_write", fail)
    began = time.monotonic()
    assert lost.wait(2 * expiry)
    assert expiry / 4 <= time.monotonic() - began < expiry
    monkeypatch.undo()
    lease.release()
