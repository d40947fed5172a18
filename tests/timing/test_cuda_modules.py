"""Modules in every form on a made-up device: what computes passes, what does not is caught."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from fake_cuda import IMAGES, Caching, Clock, Costly, Fake, Otherwise, logits, net
from torch import Tensor, nn

from compress.runtimes import torch_cuda
from compress.runtimes.torch_cuda import CHANNELS_LAST, CONTIGUOUS, Form, peak_bytes
from compress.timing.cuda import TOLERANCE, Feeds, differs, faster_layout, module_candidate
from compress.timing.interleave import Plan, interleave
from compress.timing.worker import deviation


def run_once(module: nn.Module, form: Form, expected: np.ndarray, rounds: int = 8) -> str:
    """Time a module by itself, and return what is wrong with it."""
    device = Fake()
    made = module_candidate(module, form, Feeds((IMAGES,), device), expected, device)
    series = interleave({"it": made}, Plan(0, rounds, 0.003), 0)["it"]
    assert series.error or len(series.medians) == rounds
    return series.error


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST])
def test_a_module_that_computes_passes_in_every_form(dtype, batch, layout):
    module = net()
    form = Form(dtype, batch, layout=layout)
    assert run_once(Costly(module), form, logits(module)) == ""
    assert {p.dtype for p in module.parameters()} == {torch.float32}, "it was changed"


def test_the_number_type_and_the_memory_format_reach_the_module():
    seen = []

    class Spy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            last = images.is_contiguous(memory_format=torch.channels_last)
            seen.append((images.dtype, tuple(images.shape), last))
            return images.mean((2, 3))

    expected = IMAGES.mean((2, 3)).numpy()
    run_once(Spy(), Form("float16", 32, layout=CHANNELS_LAST), expected)
    assert set(seen) == {(torch.float16, (32, 3, 8, 8), True)}


def test_a_module_that_caches_its_outputs_is_caught():
    module = net()
    error = run_once(Caching(module), Form(), logits(module))
    assert "differ from those on the CPU" in error


def test_a_module_that_caches_is_caught_as_a_graph_too():
    module = net()
    assert "differ from those on the CPU" in run_once(
        Caching(module), Form(graph=True), logits(module)
    )


def test_a_module_that_answers_with_a_constant_is_caught():
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            Clock.now += 1e-4
            return torch.full((len(images), 10), 100.0) + torch.arange(10)

    # Logits that lie close together, far from zero: a relative error would see nothing.
    expected = logits(net()) * 0.1 + 100 + np.arange(10)
    assert "differ from those on the CPU" in run_once(Constant(), Form(), expected)


def test_outputs_that_overflow_are_named():
    class Large(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            Clock.now += 1e-4
            return (images * 3e4).sum((2, 3)) / 3e4

    expected = IMAGES.sum((2, 3)).numpy()
    assert run_once(Large(), Form(), expected) == ""
    assert run_once(Large(), Form("float16"), expected) == (
        "some outputs of the timed runs are not finite"
    )


def test_a_graph_is_fed_with_every_sample_by_a_copy():
    module = net()
    device = Fake()
    feeds = Feeds((IMAGES,), device)
    made = module_candidate(module, Form(graph=True), feeds, logits(module), device)
    for index in (0, 5, 31):
        outputs = made.call(index)
        np.testing.assert_allclose(outputs[0].numpy(), logits(module)[index], atol=1e-5)
        assert made.check(index, outputs) == ""
        assert made.check(index + 1, outputs) != ""
    assert device.captures == 1
    np.testing.assert_array_equal(feeds.placed(Form())[0][0].numpy(), IMAGES[:1].numpy())


def test_what_a_graph_reads_lives_as_long_as_it_is_replayed(monkeypatch):
    placed = []
    plain = torch_cuda._placed

    def noted(*given):
        ours = plain(*given)
        placed.append(weakref.ref(ours))
        return ours

    monkeypatch.setattr(torch_cuda, "_placed", noted)
    device = Fake()
    feeds = Feeds((IMAGES,), device)
    made = module_candidate(net(), Form(graph=True), feeds, logits(net()), device)
    [copied] = placed
    gc.collect()
    assert copied() is not None
    assert made.check(3, made.call(3)) == ""
    del made
    gc.collect()
    assert copied() is None


def test_the_seconds_are_those_of_the_devices_stopwatch():
    module = net()
    device = Fake()
    made = module_candidate(
        Costly(module, 0.004), Form(), Feeds((IMAGES,), device), logits(module), device
    )
    found = interleave({"it": made}, Plan(0, 3, 0.007), 0)["it"]
    assert found.block_calls == 2
    assert found.medians == pytest.approx([0.004] * 3)


def test_feeds_are_placed_once_for_all_modules_of_a_form():
    feeds = Feeds((IMAGES,), Fake())
    assert feeds.placed(Form()) is feeds.placed(Form(graph=True))
    assert feeds.placed(Form()) is not feeds.placed(Form("float16"))
    feeds.clear()
    assert feeds._placed == {}


def test_inputs_of_whole_numbers_keep_their_type():
    words = torch.arange(48 * 4).reshape(48, 4) % 7
    [[first], *_] = Feeds((words,), Fake()).placed(Form("bfloat16", layout=CHANNELS_LAST))
    assert first.dtype == torch.int64


@pytest.mark.parametrize(("last", "layout"), [(0.5, CHANNELS_LAST), (2.0, CONTIGUOUS)])
def test_the_faster_memory_format_is_chosen(last, layout):
    module = net()
    device = Fake()
    costly = Costly(module, 1e-3, last=last)
    chosen = faster_layout(costly, Form(), Feeds((IMAGES,), device), logits(module), device)
    assert chosen == layout


@pytest.mark.parametrize(("graph", "layout"), [(False, CHANNELS_LAST), (True, CONTIGUOUS)])
def test_the_memory_format_of_a_graph_is_chosen_as_a_graph(graph, layout):
    module = net()
    device = Otherwise()
    costly = Costly(module, 1e-3, last=0.5)
    form, feeds = Form(graph=graph), Feeds((IMAGES,), device)
    assert faster_layout(costly, form, feeds, logits(module), device) == layout
    assert device.captures == (2 if graph else 0)


def test_what_can_be_placed_in_neither_format_is_an_error():
    class NoGraphs(Fake):
        def _record(self, run):
            raise RuntimeError("operation not permitted when stream is capturing")

    module = net()
    device = NoGraphs()
    feeds = Feeds((IMAGES,), device)
    with pytest.raises(RuntimeError, match=r"^operation not permitted when stream is capturing$"):
        faster_layout(module, Form(graph=True), feeds, logits(module), device)


def test_a_format_that_fails_or_gives_other_outputs_is_not_chosen():
    class Fragile(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            Clock.now += 1e-3 if images.is_contiguous() else 1e-6
            return images.flatten(1)[:, :3] if images.is_contiguous() else images[:, :, 1, 1]

    expected = IMAGES.flatten(1)[:, :3].numpy()
    device = Fake()
    feeds = Feeds((IMAGES,), device)
    assert faster_layout(Fragile(), Form(), feeds, expected, device) == CONTIGUOUS


@pytest.mark.parametrize("graph", [False, True])
def test_what_flattens_with_view_is_timed_in_the_plain_format(graph):
    class View(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.view(len(features), -1)

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), View(), nn.Linear(288, 10)).eval()
    costly, form, device = Costly(module, last=0.1), Form(graph=graph), Fake()
    feeds = Feeds((IMAGES,), device)
    assert faster_layout(costly, form, feeds, logits(module), device) == CONTIGUOUS


def test_without_images_there_is_nothing_to_choose():
    flat = Feeds((IMAGES.flatten(1),), Fake())
    assert faster_layout(nn.Identity(), Form(), flat, np.zeros((48, 3)), Fake()) == CONTIGUOUS


def test_peak_memory_is_without_what_lay_there_before():
    assert peak_bytes(net(), (IMAGES,), Fake()) == 4000


def test_deviation_is_a_share_of_the_spread():
    expected = np.array([[100.0, 100], [102, 102]])
    # The mean is 101, and every logit is 1 from it.
    assert deviation(expected, expected, np.arange(2)) == 0
    assert deviation(expected + 0.5, expected, np.arange(2)) == pytest.approx(0.5)
    assert deviation(np.full((1, 2), 101.0), expected, np.array([1])) == pytest.approx(1)
    assert deviation(np.full((1, 3), 101.0), expected, np.array([1])) == float("inf")
    assert deviation(np.array([[np.nan, 100]]), expected, np.array([0])) == float("inf")


def test_deviation_without_a_spread_is_a_share_of_the_outputs():
    same = np.full((4, 2), 10.0)
    assert deviation(same[:1] + 1, same, np.array([0])) == pytest.approx(0.1)
    assert differs(same[:1] + 1, same, np.array([0]), 0.05).startswith("the outputs of the timed")
