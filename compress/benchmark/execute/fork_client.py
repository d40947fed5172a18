"""The fork servers of this process's runs, and the base process that they are forks of.

The base is started once and early: it imports torch while the run makes its plan. This module
imports nothing heavy itself, so that the command line can call `start_base` first of all.

`multiprocessing.forkserver` cannot be that base: its children import the user's script again (a
script without a `__main__` guard would fail), it watches for its parent's end only once its imports
are done, and a killed run would leave it alive for seconds, and its socket in the temporary folder.
Only its connections serve here, over a pair of sockets that no other process has.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
from collections.abc import Iterator
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


class ForkServer:
    """What forks the steps of one run, seen from the run."""

    def __init__(self, request: object, objects: bytes) -> None:
        """Start it, and have it make the run's plan from a spec and the user's pickled objects.

        Raises UserError where it cannot make the plan, ServerFailed where it dies.
        """
        start_base()
        self.connection, theirs = Pipe()
        with theirs, _failing():
            send_handle(_base[0][0], theirs.fileno(), _base[0][1].pid)
        self.send(request)
        with _failing():
            self.connection.send_bytes(objects)
        answer = self.receive(STARTING) or {"failed": "it did not answer"}
        if refused := answer.get("refused"):
            self.close()
            raise UserError(refused)
        if reason := answer.get("failed"):
            self.close()
            raise UserError(f"the process that starts the steps could not make the plan: {reason}")

    def send(self, message: object) -> None:
        with _failing():
            self.connection.send(message)

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """Return the next message; None if none came in time."""
        with _failing():
            return self.connection.recv() if self.connection.poll(timeout) else None

    def close(self) -> None:
        """Have the server end what it has started, then itself, and wait for that."""
        with self.connection, contextlib.suppress(EOFError, OSError):
            self.connection.send(None)
            while self.connection.poll(ENDING):
                self.connection.recv()


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError):
        raise ServerFailed from None


_base: list[tuple[Connection, subprocess.Popen[bytes]]] = []
"""The process that has imported everything, once for all runs of this process; at most one."""


def start_base() -> None:
    """Start the base, unless it runs, so that it imports torch while this process does.

    It ends when this process does.
    """
    if not hasattr(os, "fork") or (_base and _base[0][1].poll() is None):
        return
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
    _base[:] = [(ours, process)]


def _end(connection: Connection, process: subprocess.Popen[bytes]) -> None:
    connection.close()
    process.kill()  # it serves no run any more
    process.wait()
