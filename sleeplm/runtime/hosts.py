"""Several processes as one machine: joining them, agreeing, and leaving when one of them is lost.

Every process runs the same program. A checkpoint is written by all, and read by however many there
are then, onto whatever mesh (:func:`sleeplm.runtime.rules.placed_shapes`). Save the state of a
stream as JSON, which is the same for all processes; an iterator itself is saved by each, for as
many as there were.

What is sent from one to all must be sent by all, in the same order. So what a process knows alone
(its clock, its signals, its disk) decides nothing before it is put together with what the others
know: :func:`largest`, :func:`fail_together` and :class:`Wishes`. With one process they do nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sleeplm.core import checks
from sleeplm.core.errors import BusyError, ConfigError, SleepError
from sleeplm.runtime.watch import Watch

#: Exit status of a process that has lost another, or that others have not come to: start all again.
AGAIN = 42
#: Seconds that a process waits for the others to come: a machine that was preempted, or has yet to
#: fetch a large image, may be a quarter of an hour late. jax gives up after five minutes.
JOINING = 1800
#: Seconds without a sign of life after which jax counts a process as lost. One that is dead is
#: noticed long before (:mod:`sleeplm.runtime.watch`): this is for one that hangs.
PATIENCE = 100
LEAVING = 30  # seconds that a process which has failed waits for others that have too


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    patience: int = PATIENCE,
) -> Iterator[None]:
    """This process as one of several, before anything else asks for devices.

    If another one is lost, this one ends with one line on standard error and status
    :data:`AGAIN`: at once where the system of the other says that it is gone
    (:mod:`sleeplm.runtime.watch`), or after 15 seconds in which it does not answer. If a process
    hangs, jax ends this one after ``patience`` seconds, with lines and a status of its own. Started
    again, all go on from their last checkpoint. If not all processes have come after
    :data:`JOINING` seconds, those that have end with a line and :data:`AGAIN` too. Other errors are
    raised; see :func:`leave` for what is to be done about them. At the end of the block all
    processes wait for each other.

    Args:
      coordinator: ``host:port`` of the first process. All None: as the cluster says (TPU, Slurm,
        Open MPI).
      processes: how many. process: which one this is, from 0.
      patience: seconds.

    Raises:
      ConfigError: no such job can be joined.
    """
    checks.positive_integer("patience", patience)
    _check_place(coordinator, processes, process)
    # Signals are the program's: a run saves before it leaves.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        _connect(coordinator, processes, process, patience)
    except (ValueError, RuntimeError) as error:
        if coordinator is None:
            remedy = "no cluster says who works together: name coordinator, processes and process"
            raise ConfigError("distributed", True, f"{remedy} ({_line(error)})") from error
        remedy = f"cannot be joined ({_line(error)})"
        raise ConfigError("coordinator", coordinator, remedy) from error
    watch = _watched()
    try:
        yield
    except Exception as error:
        if not is_loss(error):
            watch.close(b"")
            raise
        _end(_line(error))
    watch.close()
    jax.distributed.shutdown()


def _connect(
    coordinator: str | None, processes: int | None, process: int | None, patience: int
) -> None:
    """Joins the others, or ends this process if they do not come.

    In a thread: jax waits in native code, in which Python hears no signals, and aborts the process
    when it gives up, which no program can catch. So it is given more time than it gets.
    """
    failed: list[Exception] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                initialization_timeout=JOINING + 60,
                heartbeat_timeout_seconds=patience,
                shutdown_timeout_seconds=patience,
            )
        except Exception as error:
            failed.append(error)

    connecting = threading.Thread(target=connect, daemon=True)
    _COMING.set()
    connecting.start()
    connecting.join(JOINING)
    if connecting.is_alive():
        _end(f"not all have come in {JOINING} seconds")
    if failed:
        raise failed[0]
    _COMING.clear()


_COMING = threading.Event()  # set from when this process begins to join the others until it has


def leave(status: int, patience: int = LEAVING) -> int:
    """The exit status of a process that has failed, if all have; one that failed alone ends here.

    The others would wait for ever for that one. It ends, and they lose it.

    Args:
      patience: seconds to wait for others that have failed too.
    """
    if alone():
        return status
    try:
        _client().wait_at_barrier("failed", patience * 1000)
    except RuntimeError:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # the usual way out would wait for the others once more
    return status


def _watched() -> Watch:
    """A watch over the other processes, if they can be reached."""
    client, watch = _client(), Watch(_end)
    try:
        if global_state.process_id == 0:
            client.key_value_set("watch", watch.listen())
        else:
            host = str(global_state.coordinator_address).rpartition(":")[0].strip("[]")
            words = client.blocking_key_value_get("watch", PATIENCE * 1000)
            watch.connect(host, words)
    except (OSError, RuntimeError) as error:  # the second is jax's, when nobody answers
        said = f"{_who()}: a lost process will be noticed late: {_line(error)}"
        print(said, file=sys.stderr, flush=True)
    return watch


_ENDING = threading.Lock()


def _end(reason: str) -> NoReturn:
    """Ends this process, in one line: another one is lost."""
    _ENDING.acquire()  # of several threads that notice, one speaks
    print(
        f"{_who()}: another process is lost ({reason}); start all of them again to go on from the "
        "last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    # The usual way out would wait for the one that is lost.
    sys.stdout.flush()
    os._exit(AGAIN)


def _check_place(coordinator: str | None, processes: int | None, process: int | None) -> None:
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    for name in missing:
        raise ConfigError(name, None, f"name {', '.join(given)}, or none of them")
    host, _, port = str(coordinator).rpartition(":")
    remedy = "must be HOST:PORT of the first process"
    checks.require(bool(host) and port.isdecimal(), "coordinator", coordinator, remedy)
    checks.positive_integer("processes", processes)
    checks.integer("process", process)
    checks.in_range("process", process, 0, (processes or 1) - 1)


def is_loss(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that another process does not answer.

    An error about a setting or a file never does, whatever its path is called.
    """
    signs = ("gloo", "connection closed", "connection reset", "heartbeat", "coordination", "peer")
    while error is not None:
        told = not isinstance(error, SleepError | OSError)
        if told and any(sign in str(error).lower() for sign in signs):
            return True
        error = error.__cause__ or error.__context__
    return False


def alone() -> bool:
    """Whether this process is the only one, or has not joined the others."""
    return global_state.client is None or global_state.num_processes == 1 or _COMING.is_set()


def leads() -> bool:
    """Whether this is the process that does what is done once."""
    return alone() or global_state.process_id == 0


def largest(value: int) -> int:
    """The largest of what the processes give, for each of them; all wait here for the last one."""
    return value if alone() else int(np.asarray(_largest((value,)))[0])


def same(text: str) -> bool:
    """Whether all processes give the same text."""
    number = int(hashlib.sha256(text.encode()).hexdigest()[:7], 16)
    return largest(number) == -largest(-number)


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """What one process cannot do, none goes on from: the others would wait for it.

    For errors that are the caller's to mend, of blocks in which nothing is sent between processes.

    Raises:
      BusyError: another process raised it in the block; it says why.
      SleepError: another process failed otherwise.
    """
    try:
        yield
    except (SleepError, OSError) as error:
        largest(_BUSY if isinstance(error, BusyError) else 1)
        raise
    told = largest(0)
    if told == _BUSY:
        remedy = "another one has found something at work elsewhere, and says what"
        raise BusyError("processes", global_state.num_processes, remedy)
    if told:
        raise SleepError(f"{_who()}: another process has failed, and says why")


_BUSY = 2  # told by a process that failed with BusyError, which all of them then do


class Wishes:
    """What each process wishes for, put together while the devices work.

    The answer to a wish is read when the next one is told, as metrics are, so that no device waits
    for a host. It is the same for all processes, at the same moment.
    """

    def __init__(self) -> None:
        self._asked: jax.Array | None = None

    def tell(self, *wishes: int) -> tuple[int, ...]:
        """Tells wishes, and returns what the processes wished the last time: the largest of each.

        With one process these are its own wishes, of now. A wish is told again until it is granted:
        what is told at the moment at which something is granted is forgotten.
        """
        if alone():
            return wishes
        before, self._asked = self._asked, _largest(wishes)
        granted = (0,) * len(wishes) if before is None else tuple(np.asarray(before).tolist())
        if any(granted):
            self._asked = None
        return granted


def _largest(values: tuple[int, ...]) -> jax.Array:
    """The largest of each number over all processes: int32 [k], whole on every device."""
    mesh = _in_a_row(jax.devices())
    mine = np.asarray([values], np.int32)
    spread = NamedSharding(mesh, PartitionSpec("device"))
    shape = (mesh.size, len(values))
    given = jax.make_array_from_callback(shape, spread, lambda index: mine)
    return _over_devices(NamedSharding(mesh, PartitionSpec()))(given)


def _in_a_row(devices: Sequence[jax.Device]) -> Mesh:
    """All devices, of however many slices, which ``jax.make_mesh`` would refuse."""
    return Mesh(np.asarray(devices), ("device",), axis_types=(AxisType.Auto,))


@functools.cache
def _over_devices(everywhere: NamedSharding):
    return jax.jit(lambda given: given.max(0), out_shardings=everywhere)


def _client() -> Any:
    """What processes tell each other by, beside their devices."""
    return global_state.client


def _who() -> str:
    return f"process {global_state.process_id} of {global_state.num_processes}"


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:160] + "..."
