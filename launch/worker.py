"""One worker: runs one trial of a sweep, wherever it is started.

    python -m launch.worker --sweep DIR --trial ID

A finished trial is left alone; an interrupted one goes on from its last checkpoint; one that
another worker has is left to it. Where a backend starts several processes for a trial, they are
one job (docs/scale.md), of which the first holds the lease and leaves word of how it ended.

Every backend calls this and acts on the exit status: 0 the trial is finished, 42 it was asked to
stop and has saved, one of its processes is lost, or its folder is locked by one that has vanished
(start it again, all processes of it), 75 another worker has it, 2 a setting or an input has to be
mended, anything else is a crash.
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
ABORTED = 134  # by SIGABRT: jax has ended a process that had lost another, before it could itself
#: The same where that is the first process of a container: the system keeps SIGABRT from it, and
#: what abort() does next is SIGSEGV.
ABORTED_AS_FIRST = 139
SUCCESS, FAILED = "_SUCCESS", "_FAILED"
#: How many processes work on a trial, where a backend starts more than one; which one this is, from
#: 0, where the cluster does not say so itself: ``JAX_COORDINATOR_ADDRESS`` is then of the first.
PROCESSES, PROCESS = "LAUNCH_PROCESSES", "LAUNCH_PROCESS"


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

    # What has failed is said before the other processes of the trial are waited for.
    with contextlib.ExitStack() as job:
        try:
            limit(options.cores, options.memory)
            join(job)
            return work(options.sweep, options.trial, options.expiry)
        except (SleepError, OSError) as error:
            if options.debug or _is_loss(error):
                raise
            from sleeplm.runtime.hosts import leave

            print(f"launch: {' '.join(str(error).split())}", file=sys.stderr)
            return leave(_status(error))


def _status(error: Exception) -> int:
    """The exit status for an error that is told in one line."""
    from launch.lease import HELD, LeaseHeld
    from sleeplm.core.errors import BusyError

    if isinstance(error, LeaseHeld):
        return HELD
    # This worker has the lease. So who has the lock of the folder has vanished with its machine,
    # which a file server may take minutes to notice, or is about to end, as it has lost the lease.
    # A lock file in the place of that one would be quicker, but the other may still be writing.
    return RESTART if isinstance(error, BusyError) else MEND


def join(job: contextlib.ExitStack) -> None:
    """Makes this process one of those that work on the trial, if a backend has started several.

    Raises:
      ConfigError: they cannot be joined, or are not as many.
    """
    count = os.environ.get(PROCESSES, "1")
    if count == "1":
        return
    import jax

    from sleeplm.core.errors import ConfigError
    from sleeplm.runtime.hosts import joined

    number = os.environ.get(PROCESS)
    if not count.isdecimal() or not (number or "0").isdecimal():
        raise ConfigError(PROCESSES, count, f"must be a number, and {PROCESS} one from 0")
    if number is None:
        job.enter_context(joined())
    else:
        first = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
        job.enter_context(joined(first, int(count), int(number)))
    there = jax.process_count()
    if there != int(count):
        raise ConfigError(PROCESSES, count, f"the cluster says that there are {there}")


def work(sweep: str, name: str, expiry: float) -> int:
    """Runs a trial, or what is left of it.

    Args:
      sweep: a sweep directory. name: of the trial, an id or a number.
      expiry: of leases, in seconds.

    Returns:
      The exit status.

    Raises:
      ConfigError: there is no such trial, or a setting or an input has to be mended.
      BusyError: another process is at work in its folder, without the lease.
      LeaseHeld: another worker runs the trial.
    """
    from launch.lease import Lease
    from launch.trials import directory_of, find_trial
    from sleeplm.runtime import hosts
    from sleeplm.runtime.lifecycle import Stopped, StopRequest

    trial = find_trial(sweep, name)
    directory = directory_of(sweep, trial)
    if hosts.largest(int((directory / SUCCESS).exists())):
        _say(f"{trial.id}: finished before")
        return 0
    stop, lease = StopRequest(), Lease(directory, expiry)
    # Slurm sends SIGTERM to all processes of a job, its script passes it on: once is enough.
    with _handling(signal.SIGTERM, signal.SIG_IGN), stop.listening():
        if refused := _refused(lease, stop):
            return refused
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


def _refused(lease: Any, stop: Any) -> int:
    """Takes the lease, which the first process has for all; the exit status without it, or 0.

    Raises:
      LeaseHeld: another worker runs the trial.
    """
    from launch.lease import HELD, LeaseHeld
    from sleeplm.core.errors import SleepError
    from sleeplm.runtime import hosts

    if not hosts.leads():
        refused = hosts.largest(0)
        if refused in (HELD, MEND):
            error = LeaseHeld if refused == HELD else SleepError
            raise error("the first process cannot have the lease of this trial, and says why")
        return refused
    try:
        taken = lease.take(lambda: stop.signum is not None)
    except Exception as error:
        hosts.largest(HELD if isinstance(error, LeaseHeld) else MEND)
        raise
    return hosts.largest(0 if taken else RESTART)


def _is_loss(error: Exception) -> bool:
    """Whether another process of the trial is lost, which ends this one in a way of its own."""
    from sleeplm.runtime import hosts

    return not hosts.alone() and hosts.is_loss(error)


def _attempt(directory: Any, run: Callable[[], None]) -> int:
    """Runs, and leaves word in the directory of how it ended."""
    from launch.stores import write_whole
    from sleeplm.core.errors import BusyError, SleepError
    from sleeplm.runtime import hosts
    from sleeplm.runtime.lifecycle import Stopped

    def note(name: str, text: str) -> None:
        if hosts.leads():
            write_whole(directory / name, f"{text}\n")

    if hosts.largest(int((directory / SUCCESS).exists())):
        return 0
    if hosts.leads():
        (directory / FAILED).unlink(missing_ok=True)
    began = time.time()
    try:
        run()
    except (Stopped, BusyError):
        raise
    except Exception as error:
        if _is_loss(error):
            raise
        words = " ".join(str(error).split())
        if isinstance(error, SleepError):
            note(FAILED, words)
            raise
        note(FAILED, f"{type(error).__name__}: {words}")
        traceback.print_exc()
        return hosts.leave(CRASH)
    note(SUCCESS, json.dumps({"seconds": time.time() - began}))
    return 0


def _run(trial: Any, directory: Any, stop: Any) -> None:
    from launch.expand import digest_of, load
    from launch.mirror import local_copy
    from launch.stores import is_remote
    from sleeplm.core.errors import ConfigError
    from sleeplm.runtime import hosts
    from sleeplm.runtime.run import Run

    with hosts.fail_together():
        config = load(trial)
        if digest_of(config) != trial.digest:
            remedy = "has changed since the sweep was expanded: expand it again, to a new directory"
            raise ConfigError("experiment", trial.experiment, remedy)
    if not hosts.alone() and is_remote(directory):
        remedy = "several processes need a file system that all see: --storage a volume claim"
        raise ConfigError("storage", str(directory), remedy)
    with local_copy(directory) as folder:
        config.run(Run(folder, config, resume=True, stop=stop))


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
