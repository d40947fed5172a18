"""The base process, `python -m ...fork_server HANDLE PARENT`, and the servers that it forks.

The base imports torch and all that takes long, and forks a server for every run. That one makes
the run's plan, which loads the data, and forks a process for every job. Neither runs a torch
operation on more than one thread, or makes a CUDA call, before it forks. When the other end of a
connection is closed, however that came, a server ends what it has started and itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import importlib
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from compress.system.lifetime import adopt_orphans, die_with_parent, outlive_parent
from compress.system.memory import reuse_freed_memory
from compress.system.processes import gc_disabled

if TYPE_CHECKING:
    from compress.benchmark.plan.plan import Plan

LOOK = 0.05
"""Seconds between two looks at whether the run still wants its job."""
ENDING = 10.0
"""Seconds that what was killed may take to end, which a disk that does not answer can delay."""
MEETING = "ranks"
"""The file, in a step's scratch folder, at which its processes meet."""
OOM_SCORE = "800"
"""If the kernel runs out of memory it ends the step, not the run."""
MARGIN = 2**28
"""Bytes that a step can map in any case, beside what was mapped when it was forked."""


def serve(connection: Connection, work: Callable[[Mapping[str, Any]], None]) -> None:
    """Fork a child for every message, to do its job; report its start and its end.

    A message of None means that the run has ended. Raises EOFError or OSError if it was killed.
    """
    me = os.getpid()
    adopt_orphans()
    for message in iter(connection.recv, None):
        gc.collect()
        gc.freeze()  # else the child's collector touches, so copies, all there is
        pid = fork()
        if pid == 0:
            connection.close()
            run_in_child(work, message, me)
        with contextlib.suppress(OSError):  # the child does so too, in case it comes first
            os.setpgid(pid, pid)
        try:
            connection.send({"pid": pid})
            status = _wait_for(psutil.Process(pid), connection)
        finally:
            end_group(pid)
            end_descendants()
        connection.send({"status": status})


def _wait_for(child: psutil.Process, connection: Connection) -> int:
    """Return a child's exit status, or minus the signal. Raises EOFError if the run ends first."""
    while True:
        try:
            return int(child.wait(LOOK))
        except psutil.TimeoutExpired:
            if connection.poll():  # while a job runs, no message comes but the last one
                raise EOFError from None


def end_group(pid: int) -> None:
    """Kill a process group, if there still is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def end_descendants() -> None:
    """Kill all that this process has started and what that has left behind, sessions or not."""
    deadline = time.monotonic() + ENDING
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)


def warm(plan: Plan) -> None:
    """Import what a plan's steps import when they run, which no child must do for itself."""
    from compress.compressor import leaves

    chains = [plan.baseline, *(row.chain for row in plan.rows)]
    steps = [step for chain in chains if chain is not None for step, _ in leaves(chain)]
    for module in dict.fromkeys(module for step in steps for module in step.imports):
        importlib.import_module(module)
    warm_export()


@functools.cache
def warm_export() -> None:
    """Export a tiny model: the first export imports for seconds, and fills caches."""
    import torch

    from compress.deploy.export import export
    from compress.model import Model

    export(Model(torch.nn.Linear(2, 2).eval(), (torch.zeros(1, 2),)))


def run(connection: Connection) -> None:
    """Make the plan that the run asks for, and serve it. Raises EOFError or OSError at its end."""
    import torch

    from compress.benchmark.execute.job import cause_of, perform, write_outcome
    from compress.errors import UserError
    from compress.ranks import join, leave
    from compress.system.progress import STAGES, Recorder, listening

    spec, paths = connection.recv()
    try:
        sys.path += [path for path in paths if path not in sys.path]
        # Pickled by the process that started this one, over sockets that no other has.
        objects = connection.recv()
        # NVML counts without starting CUDA; where it is missing, -1, the steps will report it.
        if spec.device == "cuda" and torch.cuda._device_count_nvml() == 0:
            raise UserError("device cuda was requested, and there is no GPU here")
        with gc_disabled():
            plan = spec.make_plan(objects)
            stores = spec.stores
            warm(plan)
    except UserError as error:  # reported to the run, which has a user to report it to
        connection.send({"refused": str(error)})
        return
    except Exception as error:
        connection.send({"failed": f"{type(error).__name__}: {error}"})
        return

    def work(message: Mapping[str, Any]) -> None:
        rank, count = message["rank"], message["ranks"]
        torch.set_num_threads(max(1, plan.step_threads // count))
        scratch = Path(message["scratch"])
        shown = spec.progress and rank == 0
        with listening(Recorder(scratch / STAGES) if shown else None):
            if count > 1:
                join(rank, count, plan.device.type, scratch / MEETING)
            outcome = perform(message["job"], plan, stores, shown)
            if rank and outcome.error:
                write_outcome(scratch / str(rank), outcome)
                raise RuntimeError(outcome.error)
            if outcome.error and count > 1:
                # What broke in another process first broke here as a connection that is closed.
                write_outcome(scratch, cause_of(scratch) or outcome)
                return  # to leave could wait for those that wait for this one
            if rank == 0:
                write_outcome(scratch, outcome)
            leave()

    outlive_parent()  # from here on the connection reports its end, and children are ended first
    connection.send({"ready": os.getpid()})
    serve(connection, work)


def main(handle: str, parent: str) -> None:
    """Import everything, then fork a server for every connection that comes along the first."""
    # Until everything is imported nothing watches the connection.
    die_with_parent(int(parent))
    connection = Connection(int(handle))
    os.set_inheritable(int(handle), False)
    with gc_disabled():
        import torch

        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        warm_export()
        from compress.benchmark.execute import job  # noqa: F401 - with all that it imports

        # Before the collector is back, which would begin with a search of all that; and a server's
        # would touch, so copy, all of it.
        gc.freeze()
    set_process_name("compress-base")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for the servers
    outlive_parent()
    me = os.getpid()
    with contextlib.suppress(EOFError, OSError):  # the process that started this one has ended
        while True:
            theirs = recv_handle(connection)
            if fork() == 0:
                die_with_parent(me)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                connection.close()
                set_process_name("compress-runs")
                os.setsid()
                run(Connection(theirs))
                break
            os.close(theirs)
    sys.stderr.flush()
    os._exit(0)  # what is frozen is not torn down, of which libraries would complain


# --- the process of a step ----------------------------------------------------------------


def fork() -> int:
    """Fork, without the warning that this process may have threads (see `run_in_child`)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, about threads
        return os.fork()


def set_process_name(name: str) -> None:
    """Give this process a name (of at most 15 bytes) that `ps` and `top` show. On Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name[:15])


def run_in_child(
    work: Callable[[Mapping[str, Any]], None], message: Mapping[str, Any], parent: int
) -> NoReturn:
    """Do the work of a message in this fresh fork, and end the process.

    The message names its log, its scratch folder, and the limit of its memory. The work is done
    in a thread of its own: GNU's OpenMP keeps its pool by thread, and the pool of the thread that
    forked is not alive in the fork (it would wait for it for ever).
    """
    status = 1
    try:
        os.setpgid(0, 0)
        set_process_name("compress-step")
        die_with_parent(parent)
        _log_to(message["log"])
        _limit(message["memory"])
        reuse_freed_memory()
        os.environ["TMPDIR"] = tempfile.tempdir = str(message["scratch"])
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        rank = start_others(message.get("ranks", 1), Path(message["scratch"]))
        with ThreadPoolExecutor(1, thread_name_prefix="step") as pool:
            pool.submit(work, {**message, "rank": rank}).result()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def start_others(count: int, scratch: Path) -> int:
    """Fork the other processes of a step that has several; return this one's number.

    The others end with the first. If one of them ends in an error, so does the first, unless it
    says itself within seconds what is wrong: else it would wait for that one for ever.
    """
    if count == 1:
        return 0
    from compress.benchmark.execute.executor import Outcome
    from compress.benchmark.execute.job import cause_of, write_outcome

    first = os.getpid()
    others = []
    for rank in range(1, count):
        pid = fork()
        if pid == 0:
            die_with_parent(first)
            return rank
        others.append(pid)

    def look(*_: Any) -> None:
        for pid in others.copy():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                others.remove(pid)
            if ended and status:
                code = os.waitstatus_to_exitcode(status)
                how = f"ended with status {code}" if code >= 0 else f"was killed by signal {-code}"
                print(f"another process of this step {how}", flush=True)
                timer = threading.Timer(ENDING, give_up, [f"one of its processes {how}"])
                timer.daemon = True
                timer.start()

    def give_up(why: str) -> None:
        write_outcome(scratch, cause_of(scratch) or Outcome(f"StepEnded: {why}"))
        os._exit(1)

    signal.signal(signal.SIGCHLD, look)
    look()
    return 0


def _log_to(path: str | Path) -> None:
    """Send what this process and its libraries print to a file, and the stack if it crashes."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, errors="replace")
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="replace")
    faulthandler.enable(sys.stderr, all_threads=True)


def _limit(memory: int | None) -> None:
    """Let allocations fail at the limit, as an error that training can answer, and dump no core."""
    import resource  # which only systems that can fork have

    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory is not None:
            # Without room for a thread's stack beside what is mapped already nothing would start.
            least = getattr(psutil.Process().memory_info(), "data", 0) + MARGIN
            resource.setrlimit(resource.RLIMIT_DATA, (max(memory, least),) * 2)


if __name__ == "__main__":
    main(*sys.argv[1:])
