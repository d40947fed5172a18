"""What a latency refers to: how many threads, how many items at once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from compress.errors import UserError

_NAME = re.compile(r"cpu([1-9]\d{0,3})?(?:_batch([2-9]|[1-9]\d{1,5}))?")


@dataclass(frozen=True)
class Setting:
    """`threads` of 0 are as many as there are cores. The name begins the columns of its figures."""

    threads: int = 0
    batch: int = 1

    @property
    def name(self) -> str:
        threads = str(self.threads) if self.threads else ""
        return f"cpu{threads}" + (f"_batch{self.batch}" if self.batch > 1 else "")

    @property
    def words(self) -> str:
        """The setting as a reader says it, such as `batch 1, 1 thread`."""
        threads = "all threads"
        if self.threads:
            threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"batch {self.batch}, {threads}"


DEFAULT = ("cpu", "cpu1", "cpu_batch32")
"""One item on all cores and on one, and throughput."""


def parse_setting(name: str) -> Setting:
    """Return the setting of a name `cpu[THREADS][_batchN]`; raise UserError for another one."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"{name!r} is no latency setting: they are named cpu[THREADS][_batchN], such as cpu "
            f"(one item, all threads), cpu1 (one item, one thread) or cpu_batch32"
        )
    threads, batch = match.groups()
    return Setting(int(threads or 0), int(batch or 1))
