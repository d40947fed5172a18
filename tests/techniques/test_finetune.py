"""Training on: with all weights, or with those of the last layer first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from torch import nn

from compress.compressor import run
from compress.errors import IllegalChain, StepFailed
from compress.model import Model
from compress.techniques import chain
from compress.techniques.finetune import head_layers, last_layer
from compress.training.batch_loader import Batch, BatchLoader


def changed(before: Model, after: Model) -> set[str]:
    old = dict(before.module.named_parameters())
    return {n for n, p in after.module.named_parameters() if not torch.equal(p, old[n])}


def test_the_backbone_is_frozen_for_all_epochs_or_for_the_first() -> None:
    data = small_digits()
    model = fresh_model(data)
    every = {name for name, _ in model.module.named_parameters()}
    head = {f"{last_layer(model)}.weight", f"{last_layer(model)}.bias"}
    assert head < every
    for text, expected in (
        ("finetune(epochs=2, freeze='backbone')", head),
        ("finetune(epochs=2, freeze='backbone', frozen_epochs=1)", every),
        ("finetune(epochs=2)", every),
    ):
        context = make_context(data)
        found = run(chain(text), model, context)
        assert changed(model, found) == expected, text
        assert all(parameter.requires_grad for parameter in found.module.parameters())
        assert context.log.samples == 2 * len(data.train)
        assert any("only" in note for note in context.log.notes) == ("freeze" in text)


def test_a_frozen_backbone_gives_what_it_gave() -> None:
    data = small_digits()
    model = fresh_model(data, "resnet8(width=4)")
    names = [name for name, _ in model.module.named_buffers() if "running" in name]
    assert names, "there are batch norms"
    context = make_context(data)
    found = run(chain("finetune(epochs=2, freeze='backbone')"), model, context)
    for name in names:
        assert torch.equal(found.module.get_buffer(name), model.module.get_buffer(name))
    trained = run(chain("finetune(epochs=1)"), model, make_context(data))
    assert not torch.equal(trained.module.get_buffer(names[0]), model.module.get_buffer(names[0]))


def test_a_thawed_backbone_sees_the_items_in_other_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = small_digits(), list[torch.Tensor]()
    epoch = BatchLoader.epoch

    def noted(self: BatchLoader, *arguments: Any) -> Iterator[Batch]:
        batches = list(epoch(self, *arguments))
        seen.append(torch.cat([batch.targets for batch in batches]))
        return iter(batches)

    monkeypatch.setattr(BatchLoader, "epoch", noted)
    step = chain("finetune(epochs=2, freeze='backbone', frozen_epochs=1)")
    run(step, fresh_model(data), make_context(data))
    first, second = seen
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


def test_what_the_author_froze_stays_frozen() -> None:
    data = small_digits()
    model = fresh_model(data)
    name, first = next(iter(model.module.named_parameters()))
    first.requires_grad_(False)
    found = run(
        chain("finetune(epochs=2, freeze='backbone', frozen_epochs=1)"), model, make_context(data)
    )
    assert name not in changed(model, found)
    assert not found.module.get_parameter(name).requires_grad


def test_the_last_layer_is_that_which_gives_the_logits() -> None:
    class Turned(nn.Module):
        """Its head stands first, and a norm runs after it."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3)
            self.body = nn.Linear(8, 5)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.head(self.body(x)))

    example = (torch.randn(1, 8),)
    assert last_layer(Model(Turned().eval(), example)) == "head"
    with pytest.raises(StepFailed, match="no layer gives the logits"):
        last_layer(Model(nn.Sequential(nn.Linear(8, 4), nn.Unflatten(1, (2, 2))), example))


class TwoHeads(nn.Module):
    """As a distilled DeiT: in eval mode, the mean of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10))
        self.head = nn.Linear(10, 10)
        self.head_dist = nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return (self.head(x) + self.head_dist(x)) / 2


def test_all_heads_are_trained_while_the_backbone_is_frozen() -> None:
    data = small_digits()
    model = Model(TwoHeads().eval(), data.task.probe())
    assert head_layers(model) == ["head", "head_dist.1"]
    context = make_context(data)
    found = run(chain("finetune(epochs=1, freeze='backbone')"), model, context)
    expected = {f"{name}.{kind}" for name in head_layers(model) for kind in ("weight", "bias")}
    assert changed(model, found) == expected
    assert "for 1 epoch only head, head_dist.1 learnt" in context.log.notes


def test_a_frozen_head_is_the_reason_for_a_refusal() -> None:
    data = small_digits()
    model = fresh_model(data)
    model.module.get_submodule(last_layer(model)).requires_grad_(False)
    step = chain("finetune(epochs=1, freeze='backbone')")
    words = rf"freeze='backbone' trains {last_layer(model)} alone, and that is frozen"
    with pytest.raises(IllegalChain, match=words):
        run(step, model, make_context(data))
    with pytest.raises(IllegalChain, match=words):
        step.check(replace(make_context(data), enters=model))


def test_frozen_epochs_must_be_some_of_those_that_freeze() -> None:
    for options in ("frozen_epochs=1", "epochs=2, freeze='backbone', frozen_epochs=3"):
        with pytest.raises(IllegalChain, match=r"frozen_epochs are those with freeze='backbone'"):
            chain(f"finetune({options})")
    with pytest.raises(IllegalChain, match="freeze"):
        chain("finetune(freeze='head')")
