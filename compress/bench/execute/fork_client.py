"""Fork servers, one for every run, and the process that they are forks of.

That one is started once and early: it imports torch while the run makes its plan. This module
imports nothing heavy itself, so that the command line can call `early` first of all.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class ServerFailed(RuntimeError):
    """The process that forks others could not be started, or died."""


class Channel:
    """Lines of JSON over a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._left = b""

    def send(self, message: Mapping[str, Any]) -> None:
        import json

        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Return the next message; None if none came in time. Raises EOFError at the end."""
        import json

        until = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._left:
            left = None if until is None else max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self.socket], [], [], left)
            if not ready:
                return None
            try:
                content = self.socket.recv(1 << 16)
            except ConnectionError:
                content = b""
            if not content:
                raise EOFError("the other end has closed the channel")
            self._left += content
        line, _, self._left = self._left.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def send_bytes(self, content: bytes) -> None:
        self.socket.sendall(len(content).to_bytes(8, "big") + content)

    def receive_bytes(self) -> bytes:
        """Return what `send_bytes` sent. Raises EOFError if the other end is gone."""
        return self._exactly(int.from_bytes(self._exactly(8), "big"))

    def _exactly(self, count: int) -> bytes:
        parts, have = [self._left[:count]], len(self._left[:count])
        self._left = self._left[count:]
        while have < count:
            content = self.socket.recv(min(count - have, 1 << 20))
            if not content:
                raise EOFError("the other end has closed the channel")
            parts.append(content)
            have += len(content)
        return b"".join(parts)

    def close(self) -> None:
        self.socket.close()


class Server:
    """What forks the steps of one run, at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def send(self, message: Mapping[str, Any], objects: bytes = b"") -> None:
        """Send a message, and what goes along with it, if anything."""
        try:
            self.channel.send(message)
            if objects:
                self.channel.send_bytes(objects)
        except OSError:
            raise ServerFailed(DIED) from None

    def receive(self, timeout: float | None) -> dict[str, Any] | None:
        try:
            return self.channel.receive(timeout)
        except EOFError:
            raise ServerFailed(DIED) from None

    def close(self) -> None:
        """Have the server end what it has started, then itself, and wait for that."""
        with contextlib.suppress(OSError, EOFError):
            self.channel.socket.shutdown(socket.SHUT_WR)
            self.channel.socket.settimeout(10)
            while self.channel.socket.recv(1 << 16):
                pass
        self.channel.close()


DIED = "the process that starts the steps has died"


def how(status: int) -> str:
    """Say how a process ended, from the status that `waitpid` gave."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "unknown"
        why = ", which is how the kernel ends a process when memory runs out"
        return f"killed by signal {number} ({name}{why if number == signal.SIGKILL else ''})"
    return f"exit status {os.WEXITSTATUS(status)}"


_base: list[tuple[socket.socket, subprocess.Popen[bytes]]] = []
"""The process that has imported everything, once for all runs of this process; at most one."""


def early() -> None:
    """Start what servers are forked from, so that it imports torch while this process does."""
    if hasattr(os, "fork") and not (_base and _base[0][1].poll() is None):
        _base[:] = [_spawn()]


def take() -> Server:
    """Return a new server."""
    early()
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            socket.send_fds(_base[0][0], [b"+"], [theirs.fileno()])
        except OSError:
            raise ServerFailed(DIED) from None
    return Server(Channel(ours))


def _spawn() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start `compress.bench.execute.fork_server` afresh. It ends when this process does."""
    ours, theirs = socket.socketpair()
    paths = [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # Threads that numpy starts when it is imported would be missing in a fork.
        "OPENBLAS_NUM_THREADS": "1",
        # So that asking for a GPU does not make CUDA useless in a fork.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
    command = [
        sys.executable,
        "-P",
        "-m",
        "compress.bench.execute.fork_server",
        str(theirs.fileno()),
    ]
    process = subprocess.Popen(
        command,
        env=variables,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is the run's to answer
    )
    theirs.close()
    atexit.register(_end, ours, process)
    return ours, process


def _end(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    connection.close()
    process.kill()  # it serves no run any more
    process.wait()
