"""Several processes as one machine: joining them, and leaving when one of them is lost.

Every process runs the same program on its share of the rows. A checkpoint is written by all, and
read by however many there are then, onto whatever mesh
(:func:`sleeplm.runtime.rules.placed_shapes`). Save the state of a stream as JSON, which is the same
for all processes; an iterator itself is saved by each, for as many as there were.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import jax

from sleeplm.core import checks

#: Exit status of a process that has lost another: start all of them again.
AGAIN = 42
PATIENCE = 30  # seconds without a sign of life after which a process counts as lost


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
    :data:`AGAIN` at the next sum over devices; one that waits elsewhere is ended by the runtime,
    with lines and a status of its own, after ``patience`` seconds. Started again, all go on from
    their last checkpoint. Other errors are raised.

    Args:
      coordinator: ``host:port`` of the first process. All None: as the cluster says (TPU, Slurm,
        Open MPI, or the variables ``JAX_COORDINATOR_ADDRESS``, ...).
      processes: how many. process: which one this is, from 0.
      patience: seconds.
    """
    checks.positive_integer("patience", patience)
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        heartbeat_timeout_seconds=patience,
        shutdown_timeout_seconds=patience,
    )
    try:
        yield
    except Exception as error:
        if not is_loss(error):
            raise
        who = f"process {jax.process_index()} of {jax.process_count()}"
        print(
            f"{who}: another process is lost ({_line(error)}); start all of them again to go on "
            "from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        # The usual way out would wait for the one that is lost.
        sys.stdout.flush()
        os._exit(AGAIN)
    jax.distributed.shutdown()


def is_loss(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that another process does not answer."""
    signs = ("gloo", "connection closed", "connection reset", "heartbeat", "coordination", "peer")
    while error is not None:
        if any(sign in str(error).lower() for sign in signs):
            return True
        error = error.__cause__ or error.__context__
    return False


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:160] + "..."
