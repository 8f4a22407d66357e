"""A Slurm of one node, this machine, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import getpass
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

CONFIG = """\
ClusterName=one
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A trial that is put into the queue again waits until what it had is no longer believed.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=5
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=localhost Default=YES
"""


def missing() -> str:
    """Why there can be no such Slurm here; empty if there can."""
    absent = [name for name in DAEMONS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"needs Slurm: there is no {', '.join(absent)} here (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "a Slurm of this machine alone needs root"


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Starts one, and gives its configuration, for ``SLURM_CONF``; all of it is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="slurm") as name, contextlib.ExitStack() as daemons:
        folder = pathlib.Path(name)
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o600)
        folder.chmod(0o755)  # the socket of munge has to be reached
        for part in ("state", "spool"):
            (folder / part).mkdir()
        config = folder / "slurm.conf"
        config.write_text(CONFIG.format(user=getpass.getuser(), folder=folder, ports=_free_ports()))
        files = {"key-file": "key", "socket": "munge.socket", "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "seed"}
        munged = [f"--{option}={folder / file}" for option, file in files.items()]
        known = os.environ | {"SLURM_CONF": str(config), "PATH": PATH}
        for command in (
            ["munged", "--foreground", "--force", *munged],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D"],
        ):
            daemons.enter_context(_daemon(command, known))
        _wait_until_idle(known)
        yield str(config)
        subprocess.run(["scancel", "--state=RUNNING", "--full", "--signal=KILL"], env=known)
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=known)


@contextlib.contextmanager
def _daemon(command: list[str], known: dict[str, str]) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    daemon = subprocess.Popen(command, env=known, stdout=quiet, stderr=quiet)
    try:
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _wait_until_idle(known: dict[str, str]) -> None:
    limit, asked = time.monotonic() + 60, ["sinfo", "--noheader", "--format=%T"]
    while True:
        found = subprocess.run(asked, env=known, capture_output=True, text=True)
        if found.stdout.strip() == "idle":
            return
        assert time.monotonic() < limit, found
        time.sleep(0.1)


def _free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        return [one.getsockname()[1], other.getsockname()[1]]
