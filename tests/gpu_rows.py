"""What follows from the facts of a GPU stage, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.results.draft import Draft
from compress.results.gpu import WORDS, add_gpu
from compress.results.log import Stage
from compress.results.record import Key, Record
from compress.results.timed import Timed


def derived(
    records: dict[Key, Record], stage: Stage, folder: Path
) -> tuple[dict[Key, Draft], dict[str, Timed], dict[str, Any]]:
    """Return what follows from the stage's facts: sound rows, what was timed by column, about."""
    drafts = {key: Draft.of(record) for key, record in records.items()}
    about: dict[str, Any] = {}
    found = add_gpu(stage, drafts, folder, about)
    sound = {key: draft for key, draft in drafts.items() if draft.ok}
    for draft in sound.values():
        for column in WORDS:
            told = (column in draft.figures, column in draft.missing)
            assert sorted(told) == [False, True], f"{column}: {told}"
    return sound, {one.setting: one for one in found}, about
