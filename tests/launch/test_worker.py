"""A worker runs a trial once, however often and wherever it is started."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import json
import shutil
import signal
import socket
import time

import pytest
from etils import epath

import launch.lease
from launch.collect import status
from launch.lease import HELD, LEASE, Lease, read_lease
from launch.mirror import MANIFEST, Mirror
from launch.trials import directory_of, write_trials
from launch.worker import CRASH, MEND, RESTART, main, work
from sleeplm.core.errors import ConfigError
from sleeplm.runtime import hosts

EXPIRY = 60.0


def run(sweep, number=0):
    return main(["--sweep", str(sweep), "--trial", sweep.trials[number].id])


def test_a_finished_trial_is_left_alone(a_sweep):
    a_sweep.expand("seeds")
    assert run(a_sweep, 1) == 0
    assert json.loads((a_sweep.trial(1) / "done.json").read_text())["seed"] == 1
    assert json.loads((a_sweep.trial(1) / "_SUCCESS").read_text())["seconds"] >= 0
    assert run(a_sweep, 1) == 0
    assert a_sweep.starts(1) == 1
    assert not a_sweep.trial(0).exists()
    assert read_lease(a_sweep.trial(1)) is None


def test_a_failed_trial_says_why_and_may_be_tried_again(a_sweep, capsys):
    a_sweep.expand("fails")
    assert run(a_sweep, 1) == CRASH
    assert "Traceback" in capsys.readouterr().err
    assert (a_sweep.trial(1) / "_FAILED").read_text() == "RuntimeError: boom\n"
    assert run(a_sweep, 2) == MEND
    assert capsys.readouterr().err == "launch: fail = 'config': as it was told\n"
    assert (a_sweep.trial(2) / "_FAILED").exists()
    assert not (a_sweep.trial(2) / "_SUCCESS").exists()
    assert run(a_sweep, 2) == MEND
    assert a_sweep.starts(2) == 2
    assert read_lease(a_sweep.trial(2)) is None


def test_a_lock_that_outlives_its_machine_is_waited_for_by_starting_again(a_sweep, capsys):
    """As on NFS; whoever holds it does so without the lease."""
    place = a_sweep.expand("seeds").trial()
    place.mkdir(parents=True)
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(a_sweep) == RESTART
        assert "another process is at work in it" in capsys.readouterr().err
        assert not (place / "_FAILED").exists() and a_sweep.starts() == 0
        assert read_lease(place) is None
    assert run(a_sweep) == 0


def test_a_trial_that_is_not_there_is_one_line(a_sweep, capsys):
    a_sweep.expand("seeds")
    assert main(["--sweep", str(a_sweep), "--trial", "t0"]) == MEND
    assert "no such trial" in capsys.readouterr().err
    assert main(["--sweep", str(a_sweep.folder / "no"), "--trial", "0"]) == MEND
    assert "python -m launch expand" in capsys.readouterr().err


def test_an_experiment_that_has_changed_since_the_expansion_is_refused(a_sweep):
    a_sweep.expand("seeds")
    write_trials(str(a_sweep), [dataclasses.replace(a_sweep.trials[0], digest="before")])
    with pytest.raises(ConfigError, match="has changed since the sweep was expanded"):
        work(str(a_sweep), "0", EXPIRY)
    assert not (a_sweep.trial() / "config.json").exists()


@pytest.mark.parametrize(
    ("count", "number", "words"),
    [
        ("2", "2", "process = 2: "),
        ("two", "0", "LAUNCH_PROCESSES = 'two': must be a number"),
        ("2", "0", "coordinator = '': must be HOST:PORT"),
    ],
)
def test_a_job_of_processes_that_cannot_be_is_one_line(
    a_sweep, monkeypatch, capsys, count, number, words
):
    monkeypatch.setenv("LAUNCH_PROCESSES", count)
    monkeypatch.setenv("LAUNCH_PROCESS", number)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "h:1" if number == "2" else "")
    assert run(a_sweep.expand("seeds")) == MEND
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("launch: ") and words in line
    assert not a_sweep.trial().exists()


@pytest.mark.slow
def test_of_two_workers_that_race_exactly_one_runs(a_sweep):
    a_sweep.expand("slow")
    workers = [a_sweep.worker() for _ in range(2)]
    said = [worker.communicate(timeout=120)[1] for worker in workers]
    statuses = sorted(worker.returncode for worker in workers)
    assert statuses in ([0, HELD], [0, 0]), said  # the other came late, and found it finished
    assert a_sweep.starts() == 1


def test_a_trial_in_an_object_store_is_worked_on_in_a_copy(a_sweep, bucket, monkeypatch):
    monkeypatch.setattr(launch.lease, "Lease", functools.partial(Lease, settle=0.01))
    trials = a_sweep.expand("fails").trials
    write_trials(bucket, trials)

    def run(number):
        return main(["--sweep", bucket, "--trial", str(number)])

    def starts(number):
        return len((directory_of(bucket, trials[number]) / "starts").read_text().splitlines())

    assert [one.state for one in status(bucket)] == ["waiting"] * 3
    assert run(1) == CRASH
    assert starts(1) == 1, "what there is of a run that failed is sent as well"
    assert run(1) == CRASH
    assert starts(1) == 2, "and the next attempt begins with it"
    assert run(0) == run(0) == 0
    assert starts(0) == 1
    assert [one.state for one in status(bucket)] == ["finished", "failed", "waiting"]
    done = directory_of(bucket, trials[0])
    assert {"config.json", "done.json"} <= {path.name for path in done.iterdir()}
    assert not (done / LEASE).exists()
    assert not a_sweep.trial(0).exists()


def test_a_copy_that_was_cut_off_leaves_the_copy_before(tmp_path, bucket):
    here, again, there = tmp_path / "here", tmp_path / "again", epath.Path(bucket)
    checkpoints = "checkpoints/sleep"
    (here / checkpoints / "1").mkdir(parents=True)
    (here / checkpoints / "1" / "data").write_text("one")
    (here / "metrics.jsonl").write_text("1\n")
    mirror = Mirror(there, here)
    mirror.send()
    (there / checkpoints / "2" / "data").write_text("ha")  # and then it was killed
    Mirror(there, again).fetch()
    assert [path.name for path in (again / checkpoints).iterdir()] == ["1"]
    shutil.rmtree(here / checkpoints)
    (here / "metrics.jsonl").write_text("1\n2\n")
    (here / "config.partial").write_text("half")
    mirror.send()
    assert json.loads((there / MANIFEST).read_text()) == ["metrics.jsonl"]
    assert not (there / checkpoints / "1" / "data").exists()
    assert (there / "metrics.jsonl").read_text() == "1\n2\n"
    assert not (there / "config.partial").exists()


class Copied:
    """A stage's checkpoints on this machine and in a store, and what ``fetch`` gets from there."""

    def __init__(self, folder, bucket, monkeypatch):
        self.folder, self.stage = folder, folder / "here" / "checkpoints" / "sleep"
        self.there = epath.Path(bucket)
        self.mirror, self.meanwhile = Mirror(self.there, folder / "here"), None
        write = type(self.there).write_bytes

        def slowly(path, data):
            written = write(path, data)
            if self.meanwhile is not None and "checkpoints" in str(path):
                self.meanwhile, then = None, self.meanwhile
                then()
            return written

        monkeypatch.setattr(type(self.there), "write_bytes", slowly)

    def save(self, position, text=""):
        """A checkpoint of two files, which say the same."""
        for name in ("a", "b"):
            path = self.stage / str(position) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text or f"of {position}")

    def remove(self, position):
        shutil.rmtree(self.stage / str(position))

    def fetched(self):
        """``{position: what its files say}``."""
        again = self.folder / "again"
        shutil.rmtree(again, ignore_errors=True)
        Mirror(self.there, again).fetch()
        found = sorted(again.glob("checkpoints/sleep/*"))
        return {one.name: {f.name: f.read_text() for f in one.iterdir()} for one in found}


@pytest.fixture
def copied(tmp_path, bucket, monkeypatch):
    return Copied(tmp_path, bucket, monkeypatch)


def whole(*positions):
    return {str(p): {"a": f"of {p}", "b": f"of {p}"} for p in positions}


def test_a_checkpoint_that_is_replaced_while_it_is_sent_leaves_the_one_before(copied):
    copied.save(1)
    copied.mirror.send()

    def replace():  # after one file of the second: as a run does that keeps one
        copied.save(3)
        copied.remove(2)

    copied.save(2)
    copied.remove(1)
    copied.meanwhile = replace
    copied.mirror.send()
    assert copied.meanwhile is None, "it was to be replaced"
    assert copied.fetched() == whole(1)
    copied.mirror.send()
    assert copied.fetched() == whole(3)
    assert [path.name for path in (copied.there / "checkpoints" / "sleep").iterdir()] == ["3"]


def test_one_of_the_same_name_in_its_place_is_not_mixed_with_it(copied):
    copied.save(1)
    copied.mirror.send()
    copied.save(2, "of another two")
    copied.remove(1)
    copied.meanwhile = lambda: copied.save(2)
    copied.mirror.send()
    assert copied.fetched() == whole(1)
    copied.mirror.send()
    assert copied.fetched() == whole(2)


def test_what_is_left_of_a_checkpoint_that_is_being_removed_is_not_taken_for_it(copied):
    copied.save(1)
    copied.mirror.send()
    (copied.stage / "1" / "a").unlink()
    copied.mirror.send()
    assert copied.fetched() == whole(1), "there is no other yet"
    copied.save(2)
    copied.mirror.send()
    assert copied.fetched() == whole(2)


def test_a_worker_that_fetched_a_checkpoint_keeps_it_until_it_has_sent_another(copied, tmp_path):
    copied.save(1)
    copied.mirror.send()
    shutil.rmtree(tmp_path / "here")
    copied.mirror = Mirror(copied.there, tmp_path / "here")
    copied.mirror.fetch()
    copied.save(2)
    copied.remove(1)
    copied.meanwhile = lambda: copied.remove(2)
    copied.mirror.send()
    assert copied.fetched() == whole(1)


def test_a_stage_that_the_run_has_forgotten_is_forgotten_there(copied):
    copied.save(1)
    copied.mirror.send()
    shutil.rmtree(copied.stage)
    copied.mirror.send()
    assert copied.fetched() == {}
    assert not [*copied.there.glob("checkpoints/sleep/1/*")]


QUICK = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_NUM_CPU_DEVICES": "2",
}


def moments(sweep):
    path = sweep.trial() / "timings.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(worker, sweep, count):
    limit = time.monotonic() + 120
    while moments(sweep) < count:
        assert worker.poll() is None and time.monotonic() < limit, worker.communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_trial_that_was_killed_and_stopped_ends_as_one_that_was_not(new_sweep, tmp_path):
    """What a life is after that: ``tests/bench/test_kill.py``."""
    quick = QUICK | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    settings = {"mesh.data": 2, "nap": 0.1}
    whole, broken = (new_sweep(name).expand(kind="descent", **settings) for name in "ab")
    worker = whole.worker(**quick)
    said = worker.communicate(timeout=300)[1]
    assert worker.returncode == 0, said
    count = moments(whole)

    worker = broken.worker(**quick)
    wait_for(worker, broken, count // 3)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    assert read_lease(broken.trial()) is not None, "who is killed leaves its lease"

    worker = broken.worker(**quick)
    wait_for(worker, broken, 2 * count // 3)
    for _ in range(3):
        worker.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    said = worker.communicate(timeout=100)[1]
    assert worker.returncode == RESTART, said
    assert "going on from" in said and "stopped by SIGTERM; saved" in said
    assert read_lease(broken.trial()) is None

    worker = broken.worker(**quick)
    said = worker.communicate(timeout=300)[1]
    assert worker.returncode == 0, said
    ends = [sweep.trial() / "metrics.jsonl" for sweep in (whole, broken)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert ends[0].read_bytes().count(b"loss") == 24


@pytest.mark.slow
def test_two_processes_of_a_trial_are_one_job(a_sweep):
    a_sweep.expand(seconds=6.0)

    def start():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            first = f"127.0.0.1:{free.getsockname()[1]}"
        shared = {"LAUNCH_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": first}
        return [a_sweep.worker(LAUNCH_PROCESS=str(i), **shared) for i in range(2)]

    def end(workers):
        said = [worker.communicate(timeout=100)[1] for worker in workers]
        return [worker.returncode for worker in workers], said

    workers = start()
    wait_for(workers[0], a_sweep, 5)
    workers[1].send_signal(signal.SIGTERM)
    statuses, said = end(workers)
    assert statuses == [RESTART, RESTART], said
    assert all("stopped by SIGTERM; saved" in text for text in said)
    assert read_lease(a_sweep.trial()) is None
    done = moments(a_sweep)
    assert 5 < done < 60

    workers = start()
    wait_for(workers[0], a_sweep, done + 1)
    workers[1].kill()
    statuses, said = end(workers)
    assert statuses == [RESTART, -signal.SIGKILL], said
    assert "another process is lost" in said[0]
    assert not (a_sweep.trial() / "_FAILED").exists()

    statuses, said = end(start())
    assert statuses == [0, 0], said
    assert "going on from" in said[0] and "going on from" not in said[1]
    assert (a_sweep.trial() / "_SUCCESS").exists()
    assert moments(a_sweep) == 60


def test_who_has_lost_another_process_leaves_with_the_status_that_asks_to_be_started_again():
    assert hosts.AGAIN == RESTART
