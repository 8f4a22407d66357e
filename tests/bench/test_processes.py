"""A run as one job of two processes: ends as one process does, and stops, is lost and goes on."""

from __future__ import annotations

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from sleeplm import cli
from sleeplm.core.errors import ConfigError, SleepError
from sleeplm.runtime import hosts
from sleeplm.runtime.config import read_module
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import METRICS, TIMINGS

simulated = read_module(str(pathlib.Path(__file__).parents[1] / "simulated.py"))
LIFE = f"{pathlib.Path(__file__).with_name('tiny_life.py')}:brief"
MESH = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
OFTEN = "--config.save_seconds=0"
slow = pytest.mark.slow


class Ended(NamedTuple):
    status: int
    said: str
    errors: str


class Place:
    """A folder with a run directory and a cache of backbones; jobs of four devices in all."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.run = folder, folder / "run"

    def arguments(self, *more: str) -> list[str]:
        cache = f"--config.cache={self.folder / 'cache'}"
        fixed = ["run", LIFE, "--workdir", str(self.run), "--resume", "--quiet"]
        return [*fixed, "--config.arms=['sleep']", cache, *MESH, *more]

    def start(self, *more: str, processes: int = 2) -> list[subprocess.Popen]:
        coordinator, environment = simulated.place(processes)
        job = ("--coordinator", coordinator, "--processes", str(processes), "--process")
        return [
            subprocess.Popen(
                [sys.executable, "-m", "sleeplm", *self.arguments(*more), *job, str(process)],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for process in range(processes)
        ]

    def wait(self, job: list[subprocess.Popen], label: str) -> None:
        """Until a moment with such a label is over, while all processes work."""
        limit = time.monotonic() + 480
        while not any(label in line["label"] for line in self.timed()):
            assert time.monotonic() < limit, "the job does not get on"
            assert [process.poll() for process in job] == [None] * len(job), ended(job)
            time.sleep(0.005)

    def timed(self) -> list[dict]:
        path = self.run / TIMINGS
        return read_metrics(path) if path.exists() else []

    def lines(self) -> list[dict]:
        """The metrics of the life; where the backbone came from may differ."""
        return [x for x in read_metrics(self.run / METRICS) if x["stage"] == "sleep"]

    def matrix(self) -> list:
        (learner,) = json.loads((self.run / "results.json").read_text())["arms"]["sleep"]
        return learner["matrix"]


def ended(job: list[subprocess.Popen]) -> list[Ended]:
    try:
        said = [process.communicate(timeout=480) for process in job]
        return [
            Ended(process.returncode, _without_gloo(out), errors)
            for process, (out, errors) in zip(job, said, strict=True)
        ]
    finally:
        for process in job:
            process.kill()


def _without_gloo(said: str) -> str:
    """What sums over processes of a CPU say of their connections is left out."""
    return "".join(x for x in said.splitlines(keepends=True) if not x.startswith("[Gloo]"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Place, list[Ended]]:
    """The job that nothing disturbs."""
    place = Place(tmp_path_factory.mktemp("whole"))
    return place, ended(place.start())


@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory) -> tuple[Place, list[Ended]]:
    """One of the processes gets SIGTERM by day, beside the backbone that the whole job trained."""
    place = Place(tmp_path_factory.mktemp("stopped"))
    shutil.copytree(whole[0].folder / "cache", place.folder / "cache")
    job = place.start()
    place.wait(job, "awake")
    job[1].send_signal(signal.SIGTERM)
    return place, ended(job)


@pytest.fixture(scope="module")
def lost(stopped, tmp_path_factory) -> tuple[Place, list[Ended]]:
    """Going on from there, one of the processes is killed at night."""
    place = Place(tmp_path_factory.mktemp("lost"))
    shutil.copytree(stopped[0].folder, place.folder, dirs_exist_ok=True)
    job = place.start(OFTEN)
    place.wait(job, "seeding")
    job[1].kill()
    return place, ended(job)


@slow
def test_two_processes_pretrain_live_and_report_as_one_does(whole, tmp_path):
    place, (first, second) = whole
    assert (first.status, second.status) == (0, 0), first.errors + second.errors
    assert "sleep" in first.said and second.said == ""
    alone = Place(tmp_path)
    assert cli.main(alone.arguments()) == 0
    assert place.matrix() == alone.matrix()
    ours, theirs = (read_metrics(p.run / METRICS) for p in (place, alone))
    assert {line["event"] for line in ours} > {"pretrain", "wake", "seed", "exam"}
    simulated.assert_same_lines(ours, theirs)
    assert sorted(p.name for p in place.run.iterdir()) == sorted(
        p.name for p in alone.run.iterdir()
    )


@slow
def test_a_signal_to_one_process_stops_all_of_them_with_everything_saved(stopped):
    place, (first, second) = stopped
    assert (first.status, second.status) == (128 + signal.SIGTERM,) * 2, first.errors
    (line,) = first.errors.splitlines()
    assert "stopped by SIGTERM; saved" in line and "--processes 2 --process 0 --resume" in line
    assert second.errors == ""
    assert not (place.run / "results.json").exists()
    steps = [int(p.name) for p in (place.run / "checkpoints" / "sleep").iterdir()]
    assert steps == [len(place.timed())]


@slow
def test_when_a_process_is_killed_the_other_says_so_and_all_go_on_from_the_last_save(lost, whole):
    place, (first, second) = lost
    assert second.status == -signal.SIGKILL
    assert first.status == hosts.AGAIN, first.errors
    (line,) = [x for x in first.errors.splitlines() if "another process is lost" in x]
    assert line.startswith("process 0 of 2: ") and "start all of them again" in line
    again = ended(place.start())
    assert [one.status for one in again] == [0, 0], again[0].errors
    assert place.lines() == whole[0].lines()
    assert place.matrix() == whole[0].matrix()


@slow
def test_one_process_goes_on_with_what_two_have_saved(stopped, whole, tmp_path):
    place = Place(tmp_path)
    shutil.copytree(stopped[0].folder, place.folder, dirs_exist_ok=True)
    assert cli.main(place.arguments()) == 0
    assert place.matrix() == whole[0].matrix()
    simulated.assert_same_lines(place.lines(), whole[0].lines())


# --- what cannot work, in one line ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--coordinator", "h:1"], "processes = None: name coordinator, processes, process"),
        (["--coordinator", "h", "--processes", "2", "--process", "0"], "HOST:PORT"),
        (["--coordinator", "h:1", "--processes", "0", "--process", "0"], "processes = 0"),
        (["--coordinator", "h:1", "--processes", "2", "--process", "2"], "process = 2"),
        (["--distributed", "--process", "0"], "the cluster says who is who"),
        (["--distribute"], "did you mean --distributed?"),
    ],
)
def test_a_job_that_cannot_be_is_one_line_and_leaves_nothing_behind(flags, words, tmp_path, capsys):
    place = tmp_path / "run"
    assert cli.main(["run", LIFE, "--workdir", str(place), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sleeplm: ") and words in line
    assert not place.exists()


def test_several_processes_are_told_where(capsys):
    assert cli.main(["run", LIFE, "--distributed"]) == 2
    assert "workdir = '': say where, the same in every process" in capsys.readouterr().err


# --- putting together what each knows, with one process ------------------------------------------


def test_one_process_has_its_own_wishes_at_once_and_its_own_errors():
    wishes = hosts.Wishes()
    assert wishes.tell(1, signal.SIGTERM) == (1, signal.SIGTERM)
    assert wishes.tell(0, 0) == (0, 0)
    with pytest.raises(ConfigError, match="a = 1: no"), hosts.fail_together():
        raise ConfigError("a", 1, "no")


def test_what_one_process_cannot_do_the_others_do_not_go_on_from(monkeypatch):
    told = []
    monkeypatch.setattr(hosts, "largest", lambda value: told.append(value) or 1)
    with pytest.raises(SleepError, match="another process has failed"), hosts.fail_together():
        pass
    with pytest.raises(OSError, match="full"), hosts.fail_together():
        raise OSError("full")
    assert told == [0, 1]


def test_an_error_about_a_file_is_no_lost_process_whatever_it_is_called():
    assert not hosts.is_loss(ConfigError("workdir", "/data/peer", "is not a directory"))
    assert not hosts.is_loss(FileNotFoundError("gloo.txt"))
