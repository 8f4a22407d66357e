"""Noticing at once that another process of a job is gone.

A sum over devices may fail or hang when a process is missing, and jax ends the others by itself
only after many missed heartbeats, in a way that no program can catch. Here the first process keeps
a connection to each of the others, which carries nothing: the system closes it with the process,
however that ends. One that is closed without a word means that a process is lost.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import threading
from collections.abc import Callable

WORD = b"."  # said before a connection is closed on purpose
SECONDS = 20.0  # for connecting
#: When the other machine's system is asked whether it is still there, and how often, in seconds: it
#: counts as gone after 15, before jax loses patience.
SILENCE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2}


class Watch:
    """Connections between the first process and each of the others, watched by threads.

    Args:
      lost: called, in a thread, with what is known of a process that is gone.
    """

    def __init__(self, lost: Callable[[str], object]):
        self._lost, self._left = lost, False
        self._sockets: list[socket.socket] = []

    def listen(self) -> str:
        """As the first process: what the others need to :meth:`connect`."""
        if socket.has_dualstack_ipv6():
            listening = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128
            )
        else:
            listening = socket.create_server(("", 0), backlog=128)
        secret = secrets.token_hex(16)

        def accept() -> None:
            while True:
                try:
                    connection, (host, *_) = listening.accept()
                except OSError:  # closed
                    return
                if _says(connection, secret.encode()):
                    self._watch(connection, f"the one on {host.removeprefix('::ffff:')}")

        self._sockets.append(listening)
        threading.Thread(target=accept, daemon=True).start()
        return f"{listening.getsockname()[1]} {secret}"

    def connect(self, host: str, words: str) -> None:
        """As one of the others: ``words`` are what the first process needs to hear.

        Raises:
          OSError: the first process cannot be reached.
        """
        port, secret = words.split()
        connection = socket.create_connection((host, int(port)), SECONDS)
        connection.sendall(secret.encode())
        connection.settimeout(None)
        self._watch(connection, "the first one, or one that it misses")

    def close(self, word: bytes = WORD) -> None:
        """Watches no more. Without a word the others take this process for lost."""
        self._left = True
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.sendall(word)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _watch(self, connection: socket.socket, who: str) -> None:
        self._sockets.append(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in SILENCE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

        def wait() -> None:
            try:
                said = connection.recv(1)
            except OSError:
                said = b""
            if not said and not self._left:
                self._lost(f"{who} has gone without a word")

        threading.Thread(target=wait, daemon=True).start()


def _says(connection: socket.socket, secret: bytes) -> bool:
    """Whether it is a process of the job; whoever else comes by is turned away."""
    said = b""
    try:
        connection.settimeout(SECONDS)
        while len(said) < len(secret) and (part := connection.recv(len(secret) - len(said))):
            said += part
        connection.settimeout(None)
    except OSError:
        said = b""
    if not hmac.compare_digest(said, secret):
        connection.close()
        return False
    return True
