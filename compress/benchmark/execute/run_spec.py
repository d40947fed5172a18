"""All that a process must know of a run: what its plan is made from, and where results are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compress.benchmark.plan.graph import Node, make_graph
from compress.benchmark.plan.keys import versions
from compress.benchmark.plan.plan import Plan, make_plan
from compress.benchmark.plan.suite import Suite
from compress.benchmark.store.store import Entry, Store
from compress.errors import UserError
from compress.system.amounts import size
from compress.system.environment import cpu_info
from compress.system.memory import free_memory
from compress.zoo.image_files import decoding_ahead, keep_pixels

DAY = 86_400.0
SHARE = 0.9
"""Of the memory that is free when a run begins."""
TORCH = 2**28
"""Bytes: about what torch alone takes."""
LEAST = 2**30
"""Bytes: torch and the libraries that a step may use hold half of it before it does anything."""


@dataclass(frozen=True)
class Limits:
    """What a run may take: one step, or the measuring of one row, and its decoded images."""

    seconds: float = DAY / 2
    """Twelve hours: a hang ends some time, and training may take long."""
    memory: int | None = None
    """Bytes. None: nine tenths of what is free when the run begins, and at least `LEAST`."""
    pixels: int | None = None
    """Bytes of all decoded images that a store keeps. None: half of what is free on its disk."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"step_timeout must be positive and finite, not {self.seconds}")
        if self.memory is not None and self.memory < TORCH:
            raise UserError(
                f"step_memory is {size(self.memory)}, and torch alone takes about 0.3 GB: "
                f"give at least that"
            )

    def bytes(self) -> int:
        """Return the limit of memory in bytes. Raises UserError if too little is free for torch."""
        if self.memory is not None:
            return self.memory
        free = free_memory()
        if free < TORCH:
            raise UserError(
                f"only {size(free)} of memory is free, within the limits of the container if this "
                f"is one, and torch alone takes about 0.3 GB: end other programs or raise the "
                f"container's limit. --step-memory GB runs steps whatever is free"
            )
        return max(int(SHARE * free), LEAST)


@dataclass(frozen=True)
class Stores:
    """Where results lie: those that mean something to other runs, and those that do not."""

    shared: Store
    private: Store
    since: float = 0.0
    """Steps use nothing that they cached before (seconds of the epoch)."""

    def of(self, node: Node) -> Store:
        return self.private if node.private else self.shared

    def get(self, node: Node) -> Entry | None:
        return self.of(node).get(node.key)


@dataclass(frozen=True)
class RunSpec:
    """Names and numbers, no objects: other processes and machines make the same plan from it."""

    suite: Suite
    """With the precision resolved: to ask a GPU would start CUDA in a process that forks."""
    data_root: Path | None
    """Absolute, as are all paths: workers on other machines have another current folder."""
    tune: bool
    device: str
    allow_code: tuple[Path, ...]
    step_threads: int
    ranks: int
    threads: int
    cpu: tuple[str, tuple[str, ...]]
    """`cpu_info` of the machine that measures."""
    setting: str
    """Of the plan's graph: what every step depends on."""
    versions: Mapping[str, str]
    fingerprint: str
    """Of the data."""
    transfers: Mapping[str, str]
    """Transfer sets: name -> fingerprint."""
    shared: str | Path
    """The store of what means something to other runs: a folder or a URL."""
    private: Path
    """The folder of what does not."""
    limits: Limits
    since: float = 0.0
    """Steps use nothing that was cached before (seconds of the epoch)."""
    progress: bool = False

    @property
    def stores(self) -> Stores:
        return Stores(Store(self.shared), Store(self.private), self.since)

    def keep_pixels(self, plan: Plan) -> str:
        """Keep a plan's decoded images in the store; return in words why not, '' if it can be."""
        others = [one.items for one in plan.transfers.values()]
        used = {name for row in plan.rows if row.chain for name in row.chain.teachers}
        sights = [model.sight for name, model in plan.teachers.items() if name in used]
        shown = (plan.data.train, *others)
        others += filter(
            None, [one.task.remade(split) for one in sights if one is not None for split in shown]
        )
        return keep_pixels(plan.data, self.stores.shared.folder, others, self.limits.pixels)

    def decoding_ahead(self, plan: Plan) -> AbstractContextManager[None]:
        """Decode the test images meanwhile: while processes start, and the first file is made."""
        return decoding_ahead(plan.data.test)

    def make_plan(self, objects: Mapping[str, Any]) -> Plan:
        """Make the run's plan in this process, with the user's objects (see `given_objects`).

        Raises UserError where this process would compute something other than the run asks for.
        """
        plan = make_plan(
            self.suite,
            **objects,
            data_root=self.data_root,
            # To look for a GPU could start CUDA here, and then no fork could use it.
            device=torch.device(self.device),
            allow_code=self.allow_code,
            step_threads=self.step_threads,
            ranks=self.ranks,
        )
        self.keep_pixels(plan)
        if (plan.data.fingerprint, _transfers(plan)) != (self.fingerprint, self.transfers):
            raise UserError("the data is not that of the run: it has changed, or differs here")
        plan = replace(plan, tune=self.tune, threads=self.threads, cpu=self.cpu)
        if make_graph(plan).setting == self.setting:
            return plan
        here = versions()
        differences = [
            f"{name} {here.get(name)} instead of {version}"
            for name, version in self.versions.items()
            if here.get(name) != version
        ]
        why = ", ".join(differences) or "other code of this package, or of an allowed file"
        raise UserError(f"this process computes with {why}: all machines of a run need the same")


def spec_of(
    plan: Plan,
    setting: str,
    shared: str | Path,
    private: Path,
    *,
    limits: Limits,
    data_root: Path | None = None,
    since: float = 0.0,
    progress: bool = False,
) -> RunSpec:
    """Return the spec of a plan whose graph has a setting."""
    return RunSpec(
        suite=replace(plan.suite, precision=plan.precision),
        data_root=None if data_root is None else data_root.expanduser().resolve(),
        tune=plan.tune,
        device=plan.device.type,
        allow_code=tuple(path.expanduser().resolve() for path in plan.allow_code),
        step_threads=plan.step_threads,
        ranks=plan.ranks,
        threads=plan.threads,
        cpu=cpu_info(),
        setting=setting,
        versions=versions(),
        fingerprint=plan.data.fingerprint,
        transfers=_transfers(plan),
        shared=shared,
        private=private,
        limits=limits,
        since=since,
        progress=progress,
    )


def given_objects(plan: Plan) -> dict[str, Any]:
    """Return the objects of a plan that have no name: arguments of `make_plan` not in a spec."""
    metric = plan.metric
    return {
        "data": plan.data,
        "model": plan.instance,
        "teachers": plan.own_teachers,
        # A metric of a file is found again by its name, and a task's own with the data.
        "metric": None if metric is None or metric.file or metric.of_task else metric.function,
    }


def _transfers(plan: Plan) -> dict[str, str]:
    return {name: transfer.fingerprint for name, transfer in plan.transfers.items()}
