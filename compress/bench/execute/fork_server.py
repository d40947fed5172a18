"""Fork servers: `python -m compress.bench.execute.fork_server CHANNEL` imports torch and all that takes long.

It forks a server for every run; that one has the data loaded, and forks a process for every job.
Neither runs a torch operation on more than one thread, or makes a CUDA call, before it forks. They
speak lines of JSON over sockets. When the other end closes one, however that came, a server ends
what it has started and itself.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.bench.execute.fork_client import Channel
from compress.bench.execute.limits import children as children_of
from compress.bench.execute.limits import family
from compress.bench.execute.step_process import adopt_orphans, call_oneself, fork, run_in_child
from compress.system.lifetime import die_with_parent, outlive_parent

if TYPE_CHECKING:
    from compress.bench.plan.plan import Plan

POLL = 0.02
"""Seconds between two looks at the children."""


Work = Callable[[Mapping[str, Any], Path], None]
"""Does the job of a message, and leaves what came of it in the scratch folder."""


def serve(channel: Channel, work: Work) -> None:
    """Fork a child for every message `job`, and tell of its start and its end."""
    children: dict[int, int] = {}
    me = os.getpid()
    adopt_orphans()
    try:
        while True:
            message = channel.receive(POLL if children else None)
            if message is not None:
                number = message["job"]
                gc.collect()
                gc.freeze()  # else the children's collector touches, so copies, all there is
                pid = fork()
                if pid == 0:
                    channel.close()
                    _be_child(message, work, me)
                with contextlib.suppress(OSError):  # the child does so too; who comes first, wins
                    os.setpgid(pid, pid)
                children[pid] = number
                channel.send({"job": number, "pid": pid})
            for pid in list(children):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    end_group(pid)  # what the step has started and left behind
                    _end_adopted(me, children)
                    channel.send({"job": children.pop(pid), "status": status})
    except (EOFError, BrokenPipeError, ConnectionError):
        pass  # the run has ended, or was killed
    finally:
        for pid in children:
            for one in family(pid):
                end_group(one)
            end_group(pid)
        _end_adopted(me, children)


def _end_adopted(me: int, children: Mapping[int, int]) -> None:
    """End what a step has started in a session of its own: without the step it is our child."""
    for one in set(children_of(me)) - set(children):
        for pid in family(one):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(one, 0)


def _be_child(message: Mapping[str, Any], work: Work, parent: int) -> None:
    scratch, log = Path(message["scratch"]), Path(message["log"])
    run_in_child(lambda: work(message, scratch), parent, log, scratch, message["memory"])


def end_group(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process group, if there still is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def work_on(plan: Any, stores: Any, progress: bool) -> Work:
    """Return what does jobs on a plan (`Plan`, `Stores`)."""
    import torch

    from compress.bench.execute.job import Job, perform, write_outcome

    def work(message: Mapping[str, Any], scratch: Path) -> None:
        torch.set_num_threads(plan.step_threads)
        job = Job(**message["what"])
        write_outcome(scratch, perform(job, plan, stores, progress))

    return work


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


def _objects(channel: Channel) -> dict[str, Any]:
    """Return what the run has given besides names.

    It comes pickled from the process that started this one, over a socket that nobody else has.
    """
    given: dict[str, Any] = pickle.loads(channel.receive_bytes())
    return given


def run(channel: Channel) -> None:
    """Make the plan that the run asks for, and serve it."""
    import torch

    from compress.bench.execute.job import stores_of
    from compress.bench.plan.graph import make_graph
    from compress.bench.plan.plan import make_plan
    from compress.bench.plan.suite import suite_from_json
    from compress.errors import UserError

    try:
        asked = channel.receive()
        assert asked is not None, "without a timeout a message comes, or an error"
        sys.path += [path for path in asked["paths"] if path not in sys.path]
        # NVML counts without starting CUDA; where it is missing, -1, the steps will tell.
        if asked["device"] == "cuda" and torch.cuda._device_count_nvml() == 0:
            raise UserError("device cuda is asked for, and there is no GPU here")
        plan = make_plan(
            suite_from_json(asked["suite"]),
            **(_objects(channel) if asked["objects"] else {}),
            data_root=None if asked["data_root"] is None else Path(asked["data_root"]),
            # To look for a GPU could start CUDA here, and then no child could use it.
            device=torch.device(asked["device"]),
            allow_code=[Path(path) for path in asked["allow_code"]],
            step_threads=asked["step_threads"],
        )
        sets = {name: found.fingerprint for name, found in plan.transfers.items()}
        if plan.data.fingerprint != asked["fingerprint"] or sets != asked["transfers"]:
            raise UserError("the data is not that of the run: it has changed, or differs here")
        if make_graph(replace(plan, tune=asked["tune"])).setting != asked["setting"]:
            raise UserError(_other_setting(asked["versions"]))
        warm(plan)
        outlive_parent()  # from here on the socket tells, and the children are ended first
        channel.send({"ready": os.getpid()})
    except (EOFError, BrokenPipeError, ConnectionError):
        return  # the run has ended meanwhile
    except Exception as error:  # told to the run, which has a user to tell
        with contextlib.suppress(OSError):
            channel.send({"failed": f"{type(error).__name__}: {error}"})
        return
    plan = replace(plan, threads=asked["threads"], tune=asked["tune"], cpu=asked["cpu"])
    serve(channel, work_on(plan, stores_of(asked), asked["progress"]))


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other end is closed and nothing is left to be received."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _other_setting(wanted: Mapping[str, str]) -> str:
    """Say why results that are computed here would not be those that the run asks for."""
    from compress.bench.plan.keys import versions

    here = versions()
    other = [
        f"{name} {here.get(name)} instead of {v}"
        for name, v in wanted.items()
        if here.get(name) != v
    ]
    why = ", ".join(other) or "other code of this package, or of an allowed file"
    return f"this process computes with {why}: all machines of a run need the same"


def main(handle: str) -> None:
    """Import everything, then fork a server for every socket that comes along the first one."""
    connection = socket.socket(fileno=int(handle))
    connection.set_inheritable(False)
    # Until everything is imported nobody looks at the socket.
    die_with_parent(os.getppid())
    if _is_closed(connection):
        os._exit(0)
    import torch

    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    warm_export()
    from compress.bench.execute import job  # noqa: F401 - with all that it imports

    call_oneself("compress-base")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the servers
    outlive_parent()
    me = os.getpid()
    while True:
        try:
            word, handles, _, _ = socket.recv_fds(connection, 1, 1)
        except ConnectionError:
            word, handles = b"", []
        if not word:
            break  # the process that started this one has ended
        if fork() == 0:
            die_with_parent(me)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.close()
            call_oneself("compress-runs")
            os.setsid()
            run(Channel(socket.socket(fileno=handles[0])))
            break
        os.close(handles[0])
    sys.stderr.flush()
    os._exit(0)  # what is frozen is not torn down, of which libraries would complain


if __name__ == "__main__":
    main(*sys.argv[1:])
