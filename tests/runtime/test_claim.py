"""Claiming a directory with several processes, which see what is made in it at different times."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.runtime.run import Run


@dataclasses.dataclass
class Settings:
    keep: int = 3
    save_seconds: float = 0.0


@pytest.fixture
def follower(tmp_path):
    """A process that does not lead."""
    run = Run(tmp_path / "r", Settings(), quiet=True)
    run.leads = False
    return run


@pytest.fixture
def first(tmp_path):
    return Run(tmp_path / "r", Settings(), quiet=True)


def test_what_the_first_process_has_made_may_be_seen_late(first, follower, monkeypatch):
    monkeypatch.setattr("sleeplm.runtime.run.POLL", 0.01)
    later = threading.Timer(0.3, first.claim)
    later.start()
    follower.claim()
    later.join()
    assert follower.digest == first.digest


def test_what_is_not_seen_in_time_is_refused(follower, monkeypatch):
    monkeypatch.setattr("sleeplm.runtime.run.POLL", 0.01)
    monkeypatch.setattr("sleeplm.runtime.run.SEEN_WITHIN", 0.2)
    began = time.monotonic()
    with pytest.raises(ConfigError, match="is not what the first process has made"):
        follower.claim()
    assert time.monotonic() - began >= 0.2


def test_what_another_run_has_made_is_refused_at_once(follower, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sleeplm.runtime.run.lasting", lambda config: config)
        Run(tmp_path / "r", dataclasses.replace(Settings(), keep=2), quiet=True).claim()
    began = time.monotonic()
    with pytest.raises(ConfigError, match="another run has begun in it meanwhile"):
        follower.claim()
    assert time.monotonic() - began < 30
