"""For which platform programs are written: the one that runs them, or another they are planned for.

A few choices (the layout of a cache, how experts are dispatched) depend on it. Who compiles for a
chip that is not there has to say so, or would compile what a CPU gets.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_PLANNED: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: asked while a program is traced."""
    return _PLANNED.get() or jax.default_backend()


@contextlib.contextmanager
def written_for(name: str) -> Iterator[None]:
    """What is traced inside is written for that platform; trace nothing there that ran before."""
    token = _PLANNED.set(name)
    try:
        yield
    finally:
        _PLANNED.reset(token)
