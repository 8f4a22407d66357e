"""The batch script: read by bash here, by Slurm where there is one."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import pytest

from launch.__main__ import main
from launch.slurm import Array, render, script, seconds_of
from sleeplm.core.errors import ConfigError
from sleeplm.runtime.config import read_module

#: Stands for the interpreter: says how it was called, and does as it is told.
PYTHON = """\
#!{python}
import os, signal, sys, time
def stop(*_):
    time.sleep(0.5)
    sys.exit(42)
signal.signal(signal.SIGTERM, stop)
who = os.environ.get("SLURM_PROCID")
if who:
    print("process", who, "of", os.environ["LAUNCH_PROCESSES"])
print(sys.argv[1:], os.getcwd(), flush=True)
limit = time.monotonic() + float(os.environ.get("NAP", 0))
while time.monotonic() < limit:
    time.sleep(0.02)
sys.exit(int(os.environ.get("STATUS", "0 0").split()[int(who or 0)]))
"""

#: Stands for srun: starts tasks and returns their highest status; upon SIGTERM it kills them.
SRUN = """\
#!{python}
import os, pathlib, signal, subprocess, sys
words, options = sys.argv[1:], {{}}
while words[0].startswith("--"):
    name, _, value = words.pop(0).partition("=")
    options[name] = value
tasks = [
    subprocess.Popen(words, env=os.environ | {{"SLURM_PROCID": str(number)}})
    for number in range(int(options["--ntasks"]))
]
signal.signal(signal.SIGTERM, lambda *_: [task.kill() for task in tasks])
pathlib.Path(os.environ["TASKS"]).write_text(" ".join(str(task.pid) for task in tasks))
statuses = [task.wait() for task in tasks]
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""

SCANCEL = """\
#!/bin/sh
echo "scancel $@" >> "$SAID"
kill -TERM $(cat "$TASKS")
"""

SCONTROL = """\
#!/bin/sh
case "$*" in
  *show*) echo "JobId=1 JobState=${STATE-RUNNING} Reason=None" ;;
  *) echo "$@" >> "$SAID" ;;
esac
"""


@pytest.fixture
def cluster(a_sweep, tmp_path, monkeypatch):
    """A directory with quotes and spaces in its name, where a sweep, python and scontrol are."""
    folder = tmp_path / 'it\'s a "$HOME" & more'
    folder.mkdir()
    a_sweep.folder = folder / "sweep"
    a_sweep.expand("seeds")
    for name, text in {
        "python": PYTHON.format(python=sys.executable),
        "srun": SRUN.format(python=sys.executable),
        "scancel": SCANCEL,
        "scontrol": SCONTROL,
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("SAID", str(folder / "said"))
    monkeypatch.setenv("TASKS", str(folder / "tasks"))
    a_sweep.settings = Array(python=str(folder / "python"), folder=str(folder), restarts=5)
    a_sweep.path = render(str(a_sweep), a_sweep.settings)
    return a_sweep


@pytest.fixture
def several(cluster):
    """The same, with two processes a trial."""
    render(str(cluster), dataclasses.replace(cluster.settings, processes=2))
    return cluster


def task(sweep, number, **environment):
    """A task of the array, as Slurm starts it."""
    known = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_JOB_ID": "77"}
    return subprocess.Popen(["bash", sweep.path], env=os.environ | known | environment)


def log(sweep, number):
    path = sweep.folder / "logs" / f"{sweep.trials[number].id}.log"
    return path.read_text() if path.exists() else ""


def said(sweep):
    """What Slurm was told."""
    path = sweep.folder.parent / "said"
    return path.read_text().splitlines() if path.exists() else []


def wait_until(ready):
    limit = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_task_runs_the_worker_of_its_trial_whatever_paths_are_called(cluster):
    assert task(cluster, 1).wait(30) == 0
    want = ["-m", "launch.worker", "--sweep", str(cluster), "--trial", cluster.trials[1].id]
    assert log(cluster, 1) == f"{want} {cluster.folder.parent}\n"
    assert not said(cluster)


def test_a_trial_that_was_stopped_and_saved_goes_into_the_queue_again(cluster):
    process = task(cluster, 2, NAP="60")
    wait_until(lambda: log(cluster, 2))
    process.send_signal(signal.SIGTERM)  # to the batch shell alone, as --signal=B:TERM does
    assert process.wait(30) == 42
    assert said(cluster) == ["requeue 77_2"]


def test_a_trial_that_was_cancelled_stays_so(cluster):
    assert task(cluster, 0, STATUS="42", STATE="COMPLETING").wait(30) == 42
    assert not said(cluster)


@pytest.mark.parametrize("status", [1, 2, 75])
def test_any_other_end_is_that_of_the_task(cluster, status):
    assert task(cluster, 0, STATUS=str(status)).wait(30) == status
    assert not said(cluster)


def test_a_task_of_several_processes_runs_a_worker_in_each(several):
    assert task(several, 1).wait(30) == 0
    want = ["-m", "launch.worker", "--sweep", str(several), "--trial", several.trials[1].id]
    lines = log(several, 1).splitlines()
    assert sorted(lines) == sorted(
        [
            *(f"process {number} of 2" for number in range(2)),
            *[f"{want} {several.folder.parent}"] * 2,
        ]
    )
    assert not said(several)


def test_all_processes_are_asked_to_save_by_slurm_and_the_trial_goes_into_the_queue_again(several):
    process = task(several, 2, NAP="60")
    wait_until(lambda: log(several, 2).count("launch.worker") == 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 42
    assert said(several) == ["scancel --signal=TERM 77_2", "requeue 77_2"]


@pytest.mark.parametrize("statuses", ["42 0", "134 42"])
def test_a_trial_that_has_lost_a_process_goes_into_the_queue_again_so_often(several, statuses):
    known = {"STATUS": statuses, "SLURM_RESTART_COUNT": "4"}
    assert task(several, 0, **known).wait(30) == max(map(int, statuses.split()))
    assert said(several) == ["requeue 77_0"]
    task(several, 0, **known | {"SLURM_RESTART_COUNT": "5"}).wait(30)
    assert said(several) == ["requeue 77_0"]


def test_a_trial_of_several_processes_that_was_cancelled_stays_so(several):
    assert task(several, 0, STATUS="42 42", STATE="COMPLETING").wait(30) == 42
    assert not said(several)


@pytest.mark.parametrize("statuses", ["0 1", "2 2", "75 75"])
def test_any_other_end_of_several_is_the_highest_of_theirs(several, statuses):
    assert task(several, 0, STATUS=statuses).wait(30) == max(map(int, statuses.split()))
    assert not said(several)


def test_processes_are_asked_of_slurm_evenly_over_nodes(a_sweep, capsys):
    a_sweep.expand("seeds")
    options = ["--processes", "4", "--nodes", "2", "--cores", "3", "--gres", "gpu:2"]
    assert main(["render", "slurm", str(a_sweep), *options]) == 0
    assert "the sizes of its mesh" in capsys.readouterr().err
    text = (a_sweep.folder / "sweep.sbatch").read_text()
    assert {
        "#SBATCH --ntasks=4",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --cpus-per-task=3",
    } <= set(text.splitlines())
    assert "srun --ntasks=4 --cpus-per-task=3 --kill-on-bad-exit=0 --wait=" in text
    anywhere = script(str(a_sweep), Array(processes=4))
    assert "#SBATCH --ntasks=4\n" in anywhere and "nodes=" not in anywhere


def test_one_process_is_started_without_srun(a_sweep, capsys):
    a_sweep.expand("seeds")
    assert main(["render", "slurm", str(a_sweep)]) == 0
    assert not capsys.readouterr().err
    text = (a_sweep.folder / "sweep.sbatch").read_text()
    assert "srun" not in text and "LAUNCH_PROCESSES" not in text
    assert "\n#SBATCH --ntasks=1\n#SBATCH --cpus-per-task=1\n" in text
    assert "\ntrap 'asked=1; kill -TERM \"$worker\"' TERM\n" in text


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"processes": 0}, "processes = 0: must be an integer of at least 1"),
        ({"nodes": 2}, "nodes = 2: must divide the 1 processes"),
        ({"processes": 3, "nodes": 2}, "nodes = 2: must divide the 3 processes"),
        ({"processes": 2, "nodes": -1}, "nodes = -1: must be at least 0"),
        ({"processes": 2, "gres": "gpu:1"}, "gres = 'gpu:1': the 2 processes of a node have"),
        ({"processes": 4, "nodes": 2, "gres": "gpu:h100:1"}, "ask for 2, or more nodes"),
        ({"restarts": -1}, "restarts = -1: must be at least 0"),
    ],
)
def test_processes_that_cannot_be_are_one_line(a_sweep, settings, line):
    a_sweep.expand("seeds")
    with pytest.raises(ConfigError) as refused:
        render(str(a_sweep), Array(**settings))
    assert line in str(refused.value) and "\n" not in str(refused.value)
    assert not (a_sweep.folder / "sweep.sbatch").exists()


def test_what_is_asked_of_slurm_stands_at_the_top(a_sweep):
    a_sweep.expand("seeds")
    settings = Array(partition="gpu", time="1-00:00:00", gres="gpu:h100:1", limit=2, grace=120)
    lines = script(str(a_sweep), settings).splitlines()
    assert lines[0] == "#!/bin/bash"
    asked = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[1 : 1 + len(asked)] == asked
    assert {
        "#SBATCH --array=0-2%2",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@120",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=1-00:00:00",
        "#SBATCH --gres=gpu:h100:1",
    } <= set(asked)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("partition", "a b"),
        ("account", "x\n#SBATCH --nodes=9"),
        ("name", "it's"),
        ("name", ""),
        ("gres", "$(reboot)"),
        ("mem", "`x`"),
        ("cores", 0),
        ("limit", -1),
        ("python", "py\nthon"),
    ],
)
def test_what_sbatch_would_read_otherwise_is_one_line(a_sweep, field, value):
    a_sweep.expand("seeds")
    with pytest.raises(ConfigError, match=f"{field} = "):
        render(str(a_sweep), Array(**{field: value}))
    assert not (a_sweep.folder / "sweep.sbatch").exists()


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("7", 420),
        ("7:30", 450),
        ("1:07:30", 4050),
        ("2-3", 183600),
        ("2-3:04", 183840),
        ("2-03:04:05", 183845),
        *((time, None) for time in ("", "0", "0:00", "UNLIMITED", "infinite", "-1")),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(time, seconds):
    assert seconds_of(time) == seconds


@pytest.mark.parametrize("time", ["4h", "1:2:3:4", "-5", "1-", "1-2:3:4:5", "1-2-3", ":5", "1.5"])
def test_a_time_limit_that_slurm_would_not_read_is_one_line(time):
    with pytest.raises(ConfigError, match=f"^time = '{time}': must be minutes, minutes:seconds,"):
        Array(time=time).check()


@pytest.mark.parametrize(
    ("time", "grace", "enough"),
    [("5", 300, False), ("6", 300, False), ("6:01", 300, True), ("0", 300, True), ("", 300, True)],
)
def test_a_trial_has_time_to_run_before_it_is_asked_to_save(time, grace, enough):
    if enough:
        return Array(time=time, grace=grace).check()
    with pytest.raises(ConfigError, match=f"^time = '{time}': must be more than 360 s") as refused:
        Array(time=time, grace=grace).check()
    assert "\n" not in str(refused.value)


def test_submitting_needs_a_rendered_script_and_slurm(a_sweep, monkeypatch, capsys):
    a_sweep.expand("seeds")
    assert main(["submit", "slurm", str(a_sweep)]) == 2
    assert "is not rendered" in capsys.readouterr().err
    assert main(["render", "slurm", str(a_sweep), "--partition", "cpu"]) == 0
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["submit", "slurm", str(a_sweep)]) == 2
    assert "no such command" in capsys.readouterr().err


# --- against a Slurm of this machine, where it can be started ------------------------------------

one_node = read_module(str(pathlib.Path(__file__).with_name("one_node.py")))
simulated = read_module(str(pathlib.Path(__file__).parents[1] / "simulated.py"))
real = pytest.mark.skipif(bool(one_node.missing()), reason=one_node.missing() or "it is there")


@pytest.fixture(scope="module")
def configuration():
    with one_node.running() as path:
        yield path


@pytest.fixture
def slurm(configuration, monkeypatch):
    """Commands of Slurm are for that one; workers find the packages, and have two devices each."""
    for name, value in (simulated.place(2)[1] | {"SLURM_CONF": configuration}).items():
        monkeypatch.setenv(name, value)

    def run(*command):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@real
@pytest.mark.parametrize("settings", [{}, {"processes": 2, "nodes": 1}])
def test_slurm_takes_the_script(a_sweep, slurm, settings):
    slurm("sbatch", "--test-only", str(render(str(a_sweep.expand("seeds")), Array(**settings))))


@real
@pytest.mark.slow
def test_slurm_stops_two_processes_of_a_trial_and_takes_them_again(a_sweep, slurm):
    a_sweep.expand(kind="descent", **{"mesh.data": 4, "nap": 0.1})
    render(str(a_sweep), Array(processes=2, time="5", grace=60))
    assert main(["submit", "slurm", str(a_sweep)]) == 0
    timings = a_sweep.trial() / "timings.jsonl"
    wait_until(lambda: timings.exists() and b"step 4" in timings.read_bytes())
    slurm("scancel", "--signal=TERM", "--batch", "--name=sweep")  # as --signal=B:TERM does
    wait_until((a_sweep.trial() / "_SUCCESS").exists)
    told = log(a_sweep, 0)
    for number in range(2):
        assert f"{number}: launch: {a_sweep.trials[0].id}: stopped by SIGTERM; saved" in told
    assert told.count("going on from") == 1
    lines = timings.read_text().splitlines()
    assert [json.loads(line)["position"] for line in lines] == list(range(24))
    wait_until(lambda: not slurm("squeue", "--noheader"))
