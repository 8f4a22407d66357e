"""The batch script: read by bash here, by Slurm where there is one."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

from launch.__main__ import main
from launch.slurm import Array, render, script
from sleeplm.core.errors import ConfigError

#: Stands for the interpreter: says how it was called, and does as it is told.
PYTHON = """\
#!{python}
import os, signal, sys, time
def stop(*_):
    time.sleep(0.5)
    sys.exit(42)
signal.signal(signal.SIGTERM, stop)
print(sys.argv[1:], os.getcwd(), flush=True)
limit = time.monotonic() + float(os.environ.get("NAP", 0))
while time.monotonic() < limit:
    time.sleep(0.02)
sys.exit(int(os.environ.get("STATUS", 0)))
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
        "scontrol": '#!/bin/sh\necho "$@" >> "$SAID"\n',
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("SAID", str(folder / "said"))
    a_sweep.path = render(str(a_sweep), Array(python=str(folder / "python"), folder=str(folder)))
    return a_sweep


def task(sweep, number, **environment):
    """A task of the array, as Slurm starts it."""
    known = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_JOB_ID": "77"}
    return subprocess.Popen(["bash", sweep.path], env=os.environ | known | environment)


def log(sweep, number):
    path = sweep.folder / "logs" / f"{sweep.trials[number].id}.log"
    return path.read_text() if path.exists() else ""


def test_a_task_runs_the_worker_of_its_trial_whatever_paths_are_called(cluster):
    assert task(cluster, 1).wait(30) == 0
    want = ["-m", "launch.worker", "--sweep", str(cluster), "--trial", cluster.trials[1].id]
    assert log(cluster, 1) == f"{want} {cluster.folder.parent}\n"
    assert not (cluster.folder.parent / "said").exists()


def test_a_trial_that_was_stopped_and_saved_goes_into_the_queue_again(cluster):
    process = task(cluster, 2, NAP="60")
    limit = time.monotonic() + 30
    while not log(cluster, 2) and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # to the batch shell alone, as --signal=B:TERM does
    assert process.wait(30) == 42
    assert (cluster.folder.parent / "said").read_text() == "requeue 77_2\n"


@pytest.mark.parametrize("status", [1, 2, 75])
def test_any_other_end_is_that_of_the_task(cluster, status):
    assert task(cluster, 0, STATUS=str(status)).wait(30) == status
    assert not (cluster.folder.parent / "said").exists()


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


def test_submitting_needs_a_rendered_script_and_slurm(a_sweep, monkeypatch, capsys):
    a_sweep.expand("seeds")
    assert main(["submit", "slurm", str(a_sweep)]) == 2
    assert "is not rendered" in capsys.readouterr().err
    assert main(["render", "slurm", str(a_sweep), "--partition", "cpu"]) == 0
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["submit", "slurm", str(a_sweep)]) == 2
    assert "no such command" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="needs Slurm: there is no sbatch here")
def test_slurm_takes_the_script(a_sweep):
    path = render(str(a_sweep.expand("seeds")), Array())
    asked = subprocess.run(["sbatch", "--test-only", path], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
