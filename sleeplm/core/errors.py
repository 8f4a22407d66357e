"""Errors that a person reads: one line with the field, the value and what would be right."""

from __future__ import annotations


class SleepError(Exception):
    """Base of every error that is the caller's to mend; the command line prints it as one line."""


class ConfigError(SleepError, ValueError):
    """A setting or an input that cannot work.

    Args:
      field: where it stands, e.g. ``"model.n_heads"`` or ``"facts.jsonl:12"``.
      value: what was given.
      remedy: what would be right.
    """

    def __init__(self, field: str, value: object, remedy: str):
        self.field, self.value, self.remedy = field, value, remedy
        super().__init__(f"{field} = {value!r}: {remedy}")


class BusyError(ConfigError):
    """What another process is at work in: the same may well work later."""


class PoolFullError(SleepError):
    """A level has no free expert slot to receive another night."""


class CheckpointError(SleepError):
    """A run directory that cannot be continued."""
