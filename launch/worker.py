"""One worker: runs one trial of a sweep, wherever it is started.

    python -m launch.worker --sweep DIR --trial ID

A finished trial is left alone; an interrupted one goes on from its last checkpoint; one that
another worker has is left to it. Every backend calls this and acts on the exit status: 0 the trial
is finished, 42 it was asked to stop and has saved (start it again), 75 another worker has it,
2 a setting or an input has to be mended, anything else is a crash.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

RESTART, MEND, CRASH = 42, 2, 1
SUCCESS, FAILED = "_SUCCESS", "_FAILED"
#: How many processes work on a trial, where a backend starts more than one.
PROCESSES = "LAUNCH_PROCESSES"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        prog="python -m launch.worker",
        description="Runs one trial of a sweep, or what is left of it. See docs/launch.md.",
        allow_abbrev=False,
    )
    options.add_argument("--sweep", required=True, metavar="DIR", help="a sweep directory")
    options.add_argument("--trial", required=True, metavar="ID", help="an id, or a number from 0")
    options.add_argument(
        "--expiry",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="without a sign of life after which another worker counts as dead (default: 60)",
    )
    options.add_argument("--cores", metavar="LIST", help="run on these cores only, such as 0,2")
    options.add_argument(
        "--memory", type=int, metavar="MIB", help="fail rather than use more memory than this"
    )
    options.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    # Before anything is imported: the first process of a container ignores what it has no
    # handler for, and importing takes seconds.
    with _handling(signal.SIGTERM, _leave), _handling(signal.SIGINT, _leave):
        return _main(parser().parse_args(arguments))


def _main(options: argparse.Namespace) -> int:
    from launch.limits import limit
    from sleeplm.core.errors import SleepError

    try:
        limit(options.cores, options.memory)
        return work(options.sweep, options.trial, options.expiry)
    except (SleepError, OSError) as error:
        if options.debug:
            raise
        from launch.lease import HELD, LeaseHeld

        print(f"launch: {' '.join(str(error).split())}", file=sys.stderr)
        return HELD if isinstance(error, LeaseHeld) else MEND


def work(sweep: str, name: str, expiry: float) -> int:
    """Runs a trial, or what is left of it.

    Args:
      sweep: a sweep directory. name: of the trial, an id or a number.
      expiry: of leases, in seconds.

    Returns:
      The exit status.

    Raises:
      ConfigError: there is no such trial, or a setting or an input has to be mended.
      LeaseHeld: another worker runs the trial.
    """
    from launch.lease import Lease
    from launch.trials import directory_of, find_trial
    from sleeplm.runtime.lifecycle import Stopped, StopRequest

    trial = find_trial(sweep, name)
    directory = directory_of(sweep, trial)
    if (directory / SUCCESS).exists():
        _say(f"{trial.id}: finished before")
        return 0
    refuse_several_processes()
    stop, lease = StopRequest(), Lease(directory, expiry)
    # Slurm sends SIGTERM to all processes of a job, its script passes it on: once is enough.
    with _handling(signal.SIGTERM, signal.SIG_IGN), stop.listening():
        if not lease.take(lambda: stop.signum is not None):
            return RESTART
        try:
            return _attempt(directory, lambda: _run(trial, directory, stop))
        except Stopped as stopped:
            _say(f"{trial.id}: stopped by {stopped}; saved")
            return RESTART
        finally:
            lease.release()


@contextlib.contextmanager
def _handling(signum: int, handler: Any) -> Iterator[None]:
    before = signal.signal(signum, handler)
    try:
        yield
    finally:
        signal.signal(signum, before)


def _leave(signum: int, frame: Any) -> None:
    sys.exit(RESTART)


def refuse_several_processes() -> None:
    """A run uses one process: several would each compute the same trial, or wait for ever.

    Raises:
      ConfigError: this process is one of several.
    """
    from sleeplm.core.errors import ConfigError

    count = os.environ.get(PROCESSES, "1")
    if count != "1":
        remedy = "a run uses one process today: render the sweep for slices of one host"
        raise ConfigError(PROCESSES, count, remedy)


def _attempt(directory: Any, run: Callable[[], None]) -> int:
    """Runs, and leaves word in the directory of how it ended."""
    from launch.stores import write_whole
    from sleeplm.core.errors import SleepError
    from sleeplm.runtime.lifecycle import Stopped

    if (directory / SUCCESS).exists():
        return 0
    (directory / FAILED).unlink(missing_ok=True)
    began = time.time()
    try:
        run()
    except Stopped:
        raise
    except SleepError as error:
        write_whole(directory / FAILED, f"{' '.join(str(error).split())}\n")
        raise
    except Exception as error:
        write_whole(directory / FAILED, f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        traceback.print_exc()
        return CRASH
    write_whole(directory / SUCCESS, json.dumps({"seconds": time.time() - began}) + "\n")
    return 0


def _run(trial: Any, directory: Any, stop: Any) -> None:
    from launch.expand import digest_of, load
    from launch.mirror import local_copy
    from sleeplm.core.errors import ConfigError
    from sleeplm.runtime.run import Run

    config = load(trial)
    if digest_of(config) != trial.digest:
        remedy = "has changed since the sweep was expanded: expand it again, into a new directory"
        raise ConfigError("experiment", trial.experiment, remedy)
    with local_copy(directory) as folder:
        config.run(Run(folder, config, resume=True, stop=stop))


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
