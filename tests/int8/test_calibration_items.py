"""Calibration items that show nothing are refused, or said to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.deploy.graphs import parsed
from compress.deploy.observe import HELD, observe
from compress.errors import UserError
from compress.int8 import calibration
from compress.int8.calibration import outliers, suspicions
from compress.model import Model


def pictures(count: int, seed: int = 0) -> Tensor:
    """Return images whose neighbouring pixels are related, as those of things are."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")


def test_pictures_are_fine():
    assert list(suspicions([(pictures(20, 1),), (pictures(5, 2),)])) == []


def test_noise_and_few_items_are_said():
    noise = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    few, random = suspicions([(noise,)])
    assert few.startswith("only 8 calibration items")
    assert "look like noise" in random


def test_flat_vectors_cannot_look_like_noise():
    assert list(suspicions([(torch.randn(20, 30),)])) == []


@pytest.mark.parametrize(
    ("batches", "why"),
    [
        ([], "there is none"),
        ([(torch.zeros(0, 3, 16, 16),)], "there is none"),
        ([(torch.full((4, 3, 16, 16), float("nan")),)], "NaN or infinite"),
        ([(torch.ones(4, 3, 16, 16),), (torch.ones(4, 3, 16, 16),)], "all 8 calibration items are"),
    ],
)
def test_what_shows_nothing_is_refused(batches, why):
    with pytest.raises(UserError, match=why):
        list(suspicions(batches))


def test_a_few_items_far_larger_than_the_others_are_outliers():
    items = pictures(60)
    assert outliers([(items,)]) == []
    items[[7, 41]] *= 255
    assert outliers([(items[:32],), (items[32:],)]) == [7, 41]
    items[:10] *= 255
    assert outliers([(items,)]) == [], "these are too many to be mistakes"
    assert outliers([(torch.arange(60).reshape(60, 1),)]) == [], "numbers of words have no size"


def test_one_item_is_few_and_not_the_same_as_itself():
    [few] = suspicions([(pictures(1),)])
    assert few.startswith("only 1 calibration item")


def test_values_inside_that_are_not_finite_are_refused():
    class Dividing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x / (x - x)).flatten(1)[:, :10]

    from compress.deploy.export import export

    content = export(Model(Dividing(), (torch.ones(1, 3, 16, 16),)))
    with pytest.raises(UserError, match="values that are not finite"):
        observe(parsed(content), [(pictures(4),)], {"logits": None})


def test_observation_holds_one_chunk_whatever_the_number_of_items(monkeypatch):
    from compress.deploy import observe as room
    from compress.deploy.export import export

    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(2048, 10))
    content = export(Model(module.eval(), (torch.zeros(1, 3, 16, 16),)))
    names = [name for name in room.float_values(content) if name != "logits"]
    held = []
    values = room.Runner.values

    def spy(self, chunk):
        found = values(self, chunk)
        held.append(sum(value.nbytes for value in found.values()))
        return found

    monkeypatch.setattr(room.Runner, "values", spy)
    monkeypatch.setattr(room, "HELD", 40_000)
    observe(parsed(content), [(pictures(16, seed),) for seed in range(4)], dict.fromkeys(names))
    assert max(held) <= 40_000 < HELD
    assert sum(held) == 64 * held[0], "every item once"
    assert np.unique(held).size <= 3


def test_windows_that_go_into_the_batch_count_for_the_item():
    from compress.deploy.export import export
    from compress.deploy.observe import item_bytes

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.Linear(48, 256), nn.Linear(16 * 256, 10)

        def forward(self, x: Tensor) -> Tensor:
            parts = x.reshape(len(x), 3, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 48)
            return self.head(self.up(parts).relu().reshape(len(x), -1))

    model = parsed(export(Model(Windows().eval(), (torch.zeros(1, 3, 16, 16),))))
    assert item_bytes(model) >= 2 * 16 * 256 * 4


def test_a_chunk_is_small_where_much_lies_inside_though_little_is_asked_for(monkeypatch):
    from compress.deploy import observe as room
    from compress.deploy.export import export

    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(2048, 10))
    model = parsed(export(Model(module.eval(), (torch.zeros(1, 3, 16, 16),))))
    inside = 4 * (8 * 16 * 16 + 2048 + 10)
    assert room.item_bytes(model) == inside
    for size, held in ((1, 1), (4, 4.5), (room.MOST, 1e6)):
        monkeypatch.setattr(room, "HELD", held * inside)
        chunks = room.Runner(model, ["logits"]).chunks([(pictures(70),)])
        counts = [count for count, _ in chunks]
        assert sum(counts) == 70
        assert max(counts) == size


def test_a_chunk_follows_the_memory_that_is_left(monkeypatch):
    from compress.deploy import observe as room

    for left, items in ((64e9, 8), (1e9, 7), (0.5e9, 3), (1e6, 1), (0, 1)):
        monkeypatch.setattr(room, "free_memory", lambda left=left: left)
        assert room.together(HELD / 8) == items


def test_calibration_is_about_images_only_from_a_size_on():
    small = torch.randn(20, 3, calibration.SMALLEST - 1, 9)
    assert list(suspicions([(small,)])) == []


def test_some_items_are_the_first_ones_of_batches_and_evenly_spaced_of_a_split():
    from bench_fixtures import small_digits

    from compress.int8.calibration import Calibration, number_of, some_of

    batches = [(pictures(5, 1),), (pictures(5, 2),), (pictures(5, 3),)]
    some = some_of(batches, 7)
    assert torch.equal(torch.cat([one for (one,) in some]), torch.cat([b for (b,) in batches])[:7])
    assert some_of(batches, 15) is batches
    data = small_digits()
    items = Calibration(data.task, data.calibration, size=8)
    half = some_of(items, number_of(items) // 2)
    assert number_of(half) == number_of(items) // 2
    [inputs] = torch.utils.data.default_collate([next(iter(items))[0]])
    assert torch.equal(next(iter(half))[0][:4], inputs[::2][:4])


def test_items_of_a_split_are_prepared_anew_in_every_pass():
    from bench_fixtures import small_digits

    from compress.int8.calibration import Calibration, number_of

    data = small_digits()
    items = Calibration(data.task, data.calibration, size=8)
    once, again = list(items), list(items)
    assert number_of(items) == len(data.calibration) == sum(len(batch[0]) for batch in once)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(once, again, strict=True))
    assert list(suspicions(items)) == []
