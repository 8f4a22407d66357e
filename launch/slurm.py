"""The Slurm backend: one array job, whose tasks are the trials of a sweep.

Some time before its limit, and when it is preempted, a task gets SIGTERM, saves, exits with status
42 and is put into the queue again. A task may be a job of several processes, which srun starts; who
is who is read by jax from what Slurm tells each.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Any

from launch.job import LINGER
from launch.stores import is_remote, write_whole
from launch.trials import LOGS, read_trials
from launch.worker import ABORTED, PROCESSES, RESTART
from sleeplm.core.checks import positive_integer
from sleeplm.core.errors import ConfigError

SCRIPT = "sweep.sbatch"
#: What sbatch reads after ``#SBATCH --option=`` without quoting.
_PLAIN = re.compile(r"[\w.,:/=@+*&|()\[\]-]+")
#: Seconds before it is due at which Slurm may send a signal already.
EARLY = 60
_OPTIONS = {"partition": "", "account": "", "qos": "", "time": "", "gres": "", "mem": ""}

TEMPLATE = """\
#!/bin/bash
{options}
set -u
trials=({trials})
trial=${{trials[$SLURM_ARRAY_TASK_ID]}}
task="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
exec >>{logs}/"$trial.log" 2>&1
cd {folder} || exit 2
{start}{python} -m launch.worker --sweep {sweep} --trial "$trial" &
worker=$!
asked=0
trap 'asked=1; {stop}' TERM
wait "$worker"
status=$?
# A signal ends the wait, not the worker, which still has to save.
while [ "$asked" -eq 1 ] && [ "$status" -gt 128 ]; do
  asked=0
  wait "$worker"
  status=$?
done
{end}exit "$status"
"""

#: Whether Slurm is ending a task for good, as upon scancel: it stays so.
ENDING = 'scontrol --oneliner show job "$task" | grep -q JobState=COMPLETING'

#: Of one process.
STOP_ONE = 'kill -TERM "$worker"'
END_ONE = """\
if [ "$status" -eq {restart} ] &&
  ! {ending}; then
  scontrol requeue "$task"
fi
"""

#: Of several. One that has ended badly leaves the others alive, which save or notice themselves.
START = """\
export {name}={processes}
srun --ntasks={processes} --cpus-per-task={cores} --kill-on-bad-exit=0 --wait={linger} --label \\
  """
# Slurm signals the processes: srun itself would kill them upon SIGTERM.
STOP = 'scancel --signal=TERM "$task"'
# srun gives the largest status of all.
END = """\
case $status in {restart} | {aborted})
  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ] &&
    ! {ending}; then
    scontrol requeue "$task"
  fi
  ;;
esac
"""


@dataclasses.dataclass
class Array:
    """How trials run under Slurm.

    Attributes:
      name: of the job.
      partition, account, qos, time, gres, mem: as sbatch has them; empty for the cluster's own.
      processes: of each trial, which work on it as one job. nodes: that they are spread over
        evenly; 0 for as Slurm likes.
      cores: of each process.
      restarts: how often a trial of several processes goes into the queue again, at most.
      limit: trials at the same time; 0 for any.
      grace: seconds before the time limit at which a trial is asked to save.
      python: the interpreter. folder: where relative paths of experiments begin.
    """

    name: str = "sweep"
    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    gres: str = ""
    mem: str = ""
    processes: int = 1
    nodes: int = 0
    cores: int = 1
    restarts: int = 100
    limit: int = 0
    grace: int = 300
    python: str = sys.executable
    folder: str = ""

    def check(self) -> None:
        """Raises ConfigError for settings that sbatch would not read as they are."""
        for field in ("name", *_OPTIONS):
            value = getattr(self, field)
            if (value or field == "name") and not _PLAIN.fullmatch(value):
                remedy = "must be a word: sbatch would not read it as it is"
                raise ConfigError(field, value, remedy)
        for field in ("processes", "cores", "grace"):
            positive_integer(field, getattr(self, field))
        for field in ("nodes", "restarts", "limit"):
            if getattr(self, field) < 0:
                raise ConfigError(field, getattr(self, field), "must be at least 0")
        for field in ("python", "folder"):
            if "\0" in getattr(self, field) or "\n" in getattr(self, field):
                raise ConfigError(field, getattr(self, field), "must be a path on one line")
        self._check_nodes()
        self._check_time()

    def _check_time(self) -> None:
        limit, least = seconds_of(self.time), self.grace + EARLY
        if limit is not None and limit <= least:
            remedy = (
                f"must be more than {least} s, the grace of {self.grace} and the {EARLY} by which "
                "Slurm may be early: a trial would be stopped when it starts, again and again"
            )
            raise ConfigError("time", self.time, remedy)

    def _check_nodes(self) -> None:
        if self.nodes and self.processes % self.nodes:
            remedy = f"must divide the {self.processes} processes: each node has as many"
            raise ConfigError("nodes", self.nodes, remedy)
        # jax gives each process of a node the device of its number there.
        here, gpus = self.processes // (self.nodes or 1), _gpus(self.gres)
        if self.processes > 1 and 0 < gpus < here:
            remedy = (
                f"the {here} processes of a node have a GPU each: ask for {here}, or more nodes"
            )
            raise ConfigError("gres", self.gres, remedy)


def seconds_of(time: str) -> int | None:
    """Seconds of a time limit as sbatch has it; None for no limit, or for the cluster's own.

    Raises:
      ConfigError: sbatch would not read it.
    """
    if time.lower() in ("", "-1", "unlimited", "infinite"):
        return None
    days, dash, clock = time.rpartition("-")
    numbers = [days if dash else "0", *clock.split(":")]
    hours_first = bool(dash) or len(numbers) == 4
    units = (86400, 3600, 60, 1) if hours_first else (86400, 60, 1)
    if len(numbers) > len(units) or not all(number.isdecimal() for number in numbers):
        remedy = "must be minutes, minutes:seconds, hours:minutes:seconds, days-hours, "
        raise ConfigError("time", time, f"{remedy}days-hours:minutes or days-hours:minutes:seconds")
    seconds = sum(int(n) * unit for n, unit in zip(numbers, units, strict=False))
    return seconds or None  # 0 is no limit


def script(sweep: str, settings: Array) -> str:
    """The batch script of a sweep.

    Raises:
      ConfigError: a setting cannot work.
    """
    settings.check()
    if is_remote(sweep):
        raise ConfigError("sweep", sweep, "must be on a file system that all nodes see")
    trials = [trial.id for trial in read_trials(sweep)]
    if not trials:
        raise ConfigError("sweep", sweep, "has no trials")
    limit = f"%{settings.limit}" if settings.limit else ""
    options = {
        "job-name": settings.name,
        # Identifiers are in the script: numbers would change their meaning when a sweep grows.
        "array": f"0-{len(trials) - 1}{limit}",
        "ntasks": settings.processes,
        **_nodes(settings),
        "cpus-per-task": settings.cores,
        **{field: value for field in _OPTIONS if (value := getattr(settings, field))},
        "signal": f"B:TERM@{settings.grace}",
        "open-mode": "append",
        "output": "/dev/null",
    }
    lines = [f"#SBATCH --{option}={value}" for option, value in options.items()]
    directory = os.path.abspath(sweep)
    start, stop, end = _start_stop_end(settings)
    return TEMPLATE.format(
        options="\n".join([*lines, "#SBATCH --requeue"]),
        trials=" ".join(trials),
        logs=shlex.quote(os.path.join(directory, LOGS)),
        folder=shlex.quote(os.path.abspath(settings.folder or ".")),
        python=shlex.quote(settings.python),
        sweep=shlex.quote(directory),
        start=start,
        stop=stop,
        end=end,
    )


def _nodes(settings: Array) -> dict[str, int]:
    """Without the second Slurm may put all but one process on the first node."""
    if not settings.nodes:
        return {}
    return {
        "nodes": settings.nodes,
        "ntasks-per-node": settings.processes // settings.nodes,
    }


def _gpus(gres: str) -> int:
    """How many GPUs of a node are asked for; 0 if none are."""
    asked = [re.sub(r"\(.*", "", part).split(":") for part in gres.split(",")]
    counts = [words[-1] for words in asked if words[0] == "gpu"]
    return sum(int(count) if count.isdecimal() else 1 for count in counts)


def _start_stop_end(settings: Array) -> tuple[str, str, str]:
    """What the script has before the worker, to ask it to save, and when it has ended."""
    if settings.processes == 1:
        return "", STOP_ONE, END_ONE.format(restart=RESTART, ending=ENDING)
    start = START.format(
        name=PROCESSES, processes=settings.processes, cores=settings.cores, linger=int(LINGER)
    )
    end = END.format(restart=RESTART, aborted=ABORTED, restarts=settings.restarts, ending=ENDING)
    return start, STOP, end


def render(sweep: str, settings: Array) -> pathlib.Path:
    """Writes ``sweep.sbatch`` into a sweep directory.

    Raises:
      ConfigError: a setting cannot work; nothing is written then.
    """
    text, path = script(sweep, settings), pathlib.Path(sweep) / SCRIPT
    (pathlib.Path(sweep) / LOGS).mkdir(exist_ok=True)
    write_whole(path, text)
    return path


def submit(sweep: str) -> None:
    """Hands the rendered script of a sweep to Slurm.

    Raises:
      ConfigError: it is not rendered, or sbatch fails or is not there.
    """
    path = pathlib.Path(sweep) / SCRIPT
    if not path.exists():
        remedy = f"is not rendered: python -m launch render slurm {sweep}"
        raise ConfigError("sweep", sweep, remedy)
    try:
        subprocess.run(["sbatch", str(path)], check=True)
    except FileNotFoundError as error:
        raise ConfigError("sbatch", "sbatch", "no such command on this machine") from error
    except subprocess.CalledProcessError as error:
        raise ConfigError("sbatch", error.returncode, "failed: see what it said above") from error


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The settings as arguments of a command."""
    usual: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Array)}
    words = {
        "processes": "of each trial, as one job (default: 1)",
        "nodes": "of each trial (default: as Slurm likes)",
        "cores": "of each process",
        "restarts": "of a trial of several processes (default: 100)",
        "limit": "trials at once (default: any)",
        "grace": "seconds before the time limit at which trials save",
        "python": "the interpreter (default: this one)",
        "folder": "where relative paths of experiments begin (default: here)",
    }
    for field, value in usual.items():
        text = words.get(field, "as sbatch has it")
        command.add_argument(f"--{field}", type=type(value), default=value, help=text)
