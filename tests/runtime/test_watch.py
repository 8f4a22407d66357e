"""A process that is gone is noticed by its connection; one that says so first is not missed."""

from __future__ import annotations

import queue
import socket
import time

import pytest

from sleeplm.runtime.watch import Watch

SOON, NEVER = 10.0, 0.2  # seconds


@pytest.fixture
def two():
    """Watches of the first process and of another, and what each of them has lost."""
    lost = [queue.Queue(), queue.Queue()]
    first, second = (Watch(one.put) for one in lost)
    words = first.listen()
    second.connect("127.0.0.1", words)
    yield first, second, *lost, words
    first.close()
    second.close()


def test_the_first_notices_that_another_is_gone(two):
    _, second, lost, none, _ = two
    second.close(b"")
    assert "gone without a word" in lost.get(timeout=SOON)
    assert none.empty()


def test_the_others_notice_that_the_first_is_gone(two):
    first, _, none, lost, words = two
    third_lost = queue.Queue()
    third = Watch(third_lost.put)
    third.connect("localhost", words)
    _wait(lambda: len(first._sockets) == 3)
    first.close(b"")
    assert "the first one" in lost.get(timeout=SOON)
    assert "the first one" in third_lost.get(timeout=SOON)
    assert none.empty()
    third.close()


@pytest.mark.parametrize("leaver", [0, 1])
def test_nobody_is_missed_who_has_said_so(two, leaver):
    _wait(lambda: len(two[0]._sockets) == 2)
    two[leaver].close()
    with pytest.raises(queue.Empty):
        two[3 - leaver].get(timeout=NEVER)
    with pytest.raises(queue.Empty):
        two[2 + leaver].get(timeout=NEVER)


def test_a_stranger_is_turned_away_and_nobody_is_lost_with_him(two):
    _, second, lost, _, words = two
    port, secret = words.split()
    with socket.create_connection(("127.0.0.1", int(port))) as stranger:
        stranger.sendall(b"x" * len(secret))
        assert stranger.recv(1) == b""
    with pytest.raises(queue.Empty):
        lost.get(timeout=NEVER)
    second.close(b"")
    assert lost.get(timeout=SOON)


def test_a_first_process_that_is_not_there_is_an_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        Watch(print).connect("127.0.0.1", f"{port} secret")


def _wait(ready) -> None:
    limit = time.monotonic() + SOON
    while not ready():
        assert time.monotonic() < limit
        time.sleep(0.005)
