"""A worker whose other processes do not come: in a process of its own, which they would end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.worker import RESTART

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
#: Arguments: seconds that the others have, seconds until SIGTERM, and what the worker is given.
PROGRAM = """\
import os, signal, sys, threading
from launch import worker
from sleeplm.runtime import hosts

hosts.JOINING = int(sys.argv[1])
kill = threading.Timer(float(sys.argv[2]), os.kill, (os.getpid(), signal.SIGTERM))
kill.daemon = True
kill.start()
sys.exit(worker.main(sys.argv[3:]))
"""


def alone(sweep, number, joining, stop):
    """One of two processes of a trial, started without the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        first = f"127.0.0.1:{free.getsockname()[1]}"
    place = {"LAUNCH_PROCESSES": "2", "LAUNCH_PROCESS": str(number)}
    given = [joining, stop, "--sweep", sweep, "--trial", sweep.trials[0].id]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, given)],
        env=os.environ | place | {"JAX_COORDINATOR_ADDRESS": first, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize("number", [0, 1])
def test_who_has_waited_in_vain_asks_to_be_started_again(a_sweep, number):
    ended = alone(a_sweep.expand("seeds"), number, joining=2, stop=1000)
    assert ended.returncode == RESTART, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"process {number} of 2: another process is lost (not all have come in")
    assert not a_sweep.trial().exists()


@pytest.mark.parametrize("number", [0, 1])
def test_who_waits_still_hears_that_it_is_to_stop(a_sweep, number):
    ended = alone(a_sweep.expand("seeds"), number, joining=1000, stop=3)
    assert ended.returncode == RESTART, ended.stderr
    assert "is lost" not in ended.stderr
