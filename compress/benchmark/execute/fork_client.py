"""The fork servers of this process's runs, and the base process that they are forks of.

The base is started once and early: it imports torch while the run makes its plan. This module
imports nothing heavy itself, so that the command line can call `early` first of all.

`multiprocessing.forkserver` cannot be that base: its children import the user's script again (a
script without a `__main__` guard would fail), it looks after its end only once its imports are
done, and a killed run would leave it alive for seconds, and its socket in the temporary folder.
Its connections carry our messages: JSON, over a pair of sockets that nobody else has.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import Any

from compress.errors import UserError
from compress.system.processes import our_python

STARTING = 600.0
"""Seconds that a server may take to make its plan, data included."""
ENDING = 10.0
"""Seconds that a server may take to end what it has started."""


class ServerFailed(RuntimeError):
    """The process that forks others could not be started, or died."""

    def __init__(self) -> None:
        super().__init__("the process that starts the steps has died")


def send(connection: Connection, message: Mapping[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection, timeout: float | None = None) -> dict[str, Any] | None:
    """Return the next message; None if none came in time.

    Raises EOFError if the other end is closed, or has said by an empty message that it will be.
    """
    if not connection.poll(timeout):
        return None
    content = connection.recv_bytes()
    if not content:
        raise EOFError
    message: dict[str, Any] = json.loads(content)
    return message


class ForkServer:
    """What forks the steps of one run, seen from the run."""

    def __init__(self, asked: Mapping[str, Any], objects: bytes = b"") -> None:
        """Start it, and have it make the run's plan of what is asked and given.

        Raises UserError where it cannot make the plan, ServerFailed where it dies.
        """
        early()
        self.connection, theirs = Pipe()
        with theirs, _failing():
            send_handle(_base[0][0], theirs.fileno(), _base[0][1].pid)
        with _failing():
            send(self.connection, asked)
            self.connection.send_bytes(objects)
        answer = self.receive(STARTING)
        if answer is None or "failed" in answer:
            self.close()
            said = "it did not answer" if answer is None else answer["failed"]
            raise UserError(f"the process that starts the steps could not make the plan: {said}")

    def send(self, message: Mapping[str, Any]) -> None:
        with _failing():
            send(self.connection, message)

    def receive(self, timeout: float | None) -> dict[str, Any] | None:
        with _failing():
            return receive(self.connection, timeout)

    def close(self) -> None:
        """Have the server end what it has started, then itself, and wait for that."""
        with self.connection, contextlib.suppress(EOFError, OSError):
            self.connection.send_bytes(b"")
            while self.connection.poll(ENDING):
                self.connection.recv_bytes()


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError):
        raise ServerFailed from None


_base: list[tuple[Connection, subprocess.Popen[bytes]]] = []
"""The process that has imported everything, once for all runs of this process; at most one."""


def early() -> None:
    """Start the base, so that it imports torch while this process does."""
    if hasattr(os, "fork") and not (_base and _base[0][1].poll() is None):
        _base[:] = [_spawn()]


def _spawn() -> tuple[Connection, subprocess.Popen[bytes]]:
    """Start `compress.benchmark.execute.fork_server` afresh. It ends when this process does."""
    ours, theirs = Pipe()
    with theirs:
        command, variables = our_python(
            "compress.benchmark.execute.fork_server", str(theirs.fileno()), str(os.getpid())
        )
        # Threads that numpy starts when it is imported would be missing in a fork.
        variables["OPENBLAS_NUM_THREADS"] = "1"
        # So that asking for a GPU does not make CUDA useless in a fork.
        variables["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        process = subprocess.Popen(
            command,
            env=variables,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the run's to answer
        )
    atexit.register(_end, ours, process)
    return ours, process


def _end(connection: Connection, process: subprocess.Popen[bytes]) -> None:
    connection.close()
    process.kill()  # it serves no run any more
    process.wait()
