"""Exactly the asked fraction becomes zero, smallest first, and stays zero in training."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress.compressor import run
from compress.errors import IllegalChain, StepFailed
from compress.model import Model
from compress.surgery import matrix_weights
from compress.techniques import chain
from compress.techniques.prune_weights import follows, keep_largest, lamp, pattern_of, zero_smallest


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    sparsity=st.floats(0, 0.999),
    seed=st.integers(0, 99),
)
def test_exact_count_and_smallest_first(sizes: list[int], sparsity: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(size, generator=generator) + 1e-3 for size in sizes]
    before = torch.cat(tensors).clone()
    zero_smallest(tensors, sparsity)
    after = torch.cat(tensors)
    count = round(sparsity * len(before))
    assert int((after == 0).sum()) == count
    kept, gone = before[after != 0].abs(), before[after == 0].abs()
    assert not len(kept) or not len(gone) or gone.max() <= kept.min()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_scope(scope: str) -> None:
    data = small_digits()
    model = fresh_model(data)
    context = make_context(data)
    result = run(chain(f"prune_weights(sparsity=0.7, scope='{scope}')"), model, context)
    weights = matrix_weights(result.module).values()
    fractions = [float((weight == 0).float().mean()) for weight in weights]
    whole = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert whole == pytest.approx(0.7, abs=1e-3)
    equal = all(fraction == pytest.approx(0.7, abs=5e-3) for fraction in fractions)
    assert equal == (scope == "layer")


def test_zeros_of_masked_weights_and_only_those_stay_zero_in_training() -> None:
    data = small_digits()
    model = fresh_model(data)
    context = make_context(data)
    pruned = run(chain("prune_weights(sparsity=0.6)"), model, context)
    trained = run(chain("finetune(epochs=2)"), pruned, context)
    for name, weight in matrix_weights(pruned.module).items():
        after = trained.module.get_parameter(name)
        assert torch.equal(weight == 0, after == 0)
        assert not torch.equal(weight, after)


def test_a_net_with_nothing_to_prune_is_left_with_a_note() -> None:
    class Fold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.scale = nn.GRU(8, 10, batch_first=True), nn.Parameter(torch.ones(10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gru(x.flatten(1, 2))[0].mean(1) * self.scale

    context = make_context(small_digits())
    model = Model(Fold().eval(), (torch.randn(2, 1, 8, 8),))
    result = run(chain("prune_weights(sparsity=0.5)"), model, context)
    for name, value in result.module.state_dict().items():
        assert torch.equal(value, model.module.state_dict()[name])
    assert not result.sparse
    assert "left the model as it is" in context.log.notes[-1]


@pytest.mark.parametrize("options", ["", ", scope='layer'", ", score='lamp'"])
def test_a_sparsity_that_would_leave_no_value_is_refused(options: str) -> None:
    model = Model(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8)).eval(), (torch.randn(2, 8),))
    with pytest.raises(StepFailed, match="no value of any of the 2 weights"):
        run(
            chain(f"prune_weights(sparsity=0.999999{options})"),
            model,
            make_context(small_digits()),
        )


def test_a_layer_that_is_emptied_is_named_with_the_reason() -> None:
    net = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 1), nn.Linear(1, 2)).eval()
    context = make_context(small_digits())
    run(
        chain("prune_weights(sparsity=0.8, scope='layer')"),
        Model(net, (torch.randn(2, 8),)),
        context,
    )
    assert context.log.notes == [
        "prune_weights: nothing is left of 1 of 3 weights, such as '2.weight': it has so few "
        "values that the sparsity, rounded, is all of them"
    ]


# --- LAMP ---------------------------------------------------------------------------------------


@given(size=st.integers(1, 40), seed=st.integers(0, 99), zeros=st.integers(0, 5))
def test_lamp_is_its_definition(size: int, seed: int, zeros: int) -> None:
    """By hand, weight by weight, in the order of magnitudes."""
    weight = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    weight[:zeros] = 0
    found = lamp(weight.view(1, -1)).view(-1).numpy()
    squares = weight.double().numpy() ** 2
    for place in np.flatnonzero(squares):
        no_smaller = squares[squares >= squares[place]].sum()
        assert found[place] == pytest.approx(squares[place] / no_smaller)
    assert (found[squares == 0] == 0).all()
    assert size <= zeros or found.max() == pytest.approx(1.0)


def test_lamp_does_not_change_with_a_layers_scale_and_empties_none() -> None:
    """By magnitude a layer of small weights loses all of them, by LAMP as many as before."""
    torch.manual_seed(0)
    context = make_context(small_digits())
    zeros = {}
    for factor in (1.0, 1e-6):
        net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
        torch.manual_seed(1)
        for layer in (net[0], net[2]):
            nn.init.normal_(layer.weight)
        net[2].weight.data *= factor
        model = Model(net, (torch.randn(2, 8),))
        for score in ("magnitude", "lamp"):
            result = run(chain(f"prune_weights(sparsity=0.5, score='{score}')"), model, context)
            zeros[factor, score] = int((result.module[2].weight == 0).sum())
    assert zeros[1.0, "lamp"] == zeros[1e-6, "lamp"] < 512
    assert zeros[1e-6, "magnitude"] == 512


def test_lamp_within_a_layer_is_refused() -> None:
    with pytest.raises(IllegalChain, match="ranks as magnitude does"):
        chain("prune_weights(sparsity=0.5, scope='layer', score='lamp')")


# --- gradually ----------------------------------------------------------------------------------


def test_a_cubic_schedule_is_that_of_zhu_and_gupta_with_training_inside() -> None:
    """Equation 1 of arXiv 1710.01878 with s_i = 0: s_f + (s_i - s_f) (1 - t / n)^3."""
    context = make_context(small_digits())
    model = fresh_model(small_digits())
    text = "repeat(4, prune_weights(sparsity=0.9) -> finetune(epochs=1), schedule='cubic')"
    result = run(chain(text), model, context)
    reached = []
    total = sum(weight.numel() for weight in matrix_weights(model.module).values())
    for step in [r["step"] for r in context.log.rows if r["kind"] == "step"]:
        if step.startswith("prune_weights"):
            reached.append(chain(step).sparsity)
    expected = [0.9 + (0 - 0.9) * (1 - t / 4) ** 3 for t in range(1, 5)]
    assert reached == pytest.approx(expected)
    weights = matrix_weights(result.module).values()
    assert sum(int((w == 0).sum()) for w in weights) == round(0.9 * total)


# --- N:M ----------------------------------------------------------------------------------------


@given(
    shape=st.sampled_from([(3, 8), (4, 4, 3, 3), (2, 16, 1), (5, 8, 2, 3, 1)]),
    pattern=st.sampled_from([(2, 4), (1, 4), (4, 4), (1, 2), (3, 4)]),
    seed=st.integers(0, 99),
)
def test_of_every_m_inputs_the_n_largest_stay(
    shape: tuple[int, ...], pattern: tuple[int, int], seed: int
) -> None:
    kept, among = pattern
    before = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    after = before.clone()
    keep_largest(after, kept, among)
    for output in range(shape[0]):
        for place in np.ndindex(*shape[2:]):
            old = before[(output, slice(None), *place)].numpy().reshape(-1, among)
            new = after[(output, slice(None), *place)].numpy().reshape(-1, among)
            for some, rest in zip(old, new, strict=True):
                largest = np.sort(np.abs(some))[::-1][:kept]
                assert sorted(np.abs(rest[rest != 0])) == pytest.approx(sorted(largest))
                assert (rest[rest != 0] == some[rest != 0]).all()


def test_a_pattern_leaves_layers_whose_inputs_do_not_divide_and_says_so() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), nn.Flatten()
    ).eval()
    context = make_context(small_digits())
    result = run(
        chain("prune_weights(pattern='2:4')"), Model(net, (torch.randn(2, 3, 8, 8),)), context
    )
    left = {row["layer"]: row["left_alone"] for row in context.log.rows if "left_alone" in row}
    assert left == {
        "0.weight": "its 3 inputs are no multiple of 4",
        "1.weight": "its 1 inputs are no multiple of 4",
    }
    assert result.sparse == {"2.weight"}
    assert float((result.module[2].weight == 0).float().mean()) == 0.5
    assert "2 of 3 weights stay whole" in str(context.log.notes)
    assert "nothing faster here" in str(context.log.notes)


def test_a_pattern_is_kept_in_training_and_reached_in_rounds() -> None:
    context = make_context(small_digits())
    text = "repeat(3, prune_weights(pattern='1:4') -> finetune(epochs=1))"
    result = run(chain(text), fresh_model(small_digits()), context)
    steps = [r["step"] for r in context.log.rows if r["kind"] == "step"]
    patterns = [chain(step).pattern for step in steps if step.startswith("prune_weights")]
    assert patterns == ["3:4", "2:4", "1:4"]
    name = next(name for name in result.sparse)
    weight = result.module.get_parameter(name).detach().movedim(1, -1).reshape(-1, 4)
    assert int((weight != 0).sum(1).max()) == 1
    assert all(int(a[0]) >= int(b[0]) for a, b in pairwise(patterns))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("prune_weights()", "exactly one of sparsity, pattern"),
        ("prune_weights(sparsity=0.5, pattern='2:4')", "exactly one of sparsity, pattern"),
        ("prune_weights(pattern='4:2')", "such as '2:4'"),
        ("prune_weights(pattern='0:4')", "such as '2:4'"),
        ("prune_weights(pattern='2-4')", "such as '2:4'"),
        ("prune_weights(pattern=24)", "such as '2:4'"),
        ("prune_weights(pattern='2:4', scope='layer')", "leave scope and score out"),
        ("prune_weights(sparsity=0.5, score='size')", "one of magnitude, lamp"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, why: str) -> None:
    with pytest.raises(IllegalChain, match=why):
        chain(text)


def test_a_weight_of_which_nothing_is_left_is_named() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        net[2].weight *= 1e-6
    model = Model(net.eval(), (torch.randn(2, 8),))
    notes = {}
    for more in ("", ", score='lamp'", ", scope='layer'"):
        context = make_context(small_digits())
        run(chain(f"prune_weights(sparsity=0.6{more})"), model, context)
        notes[more] = " ".join(context.log.notes)
    assert "nothing is left of 1 of 3 weights, such as '2.weight'" in notes[""]
    assert not notes[", score='lamp'"]
    assert not notes[", scope='layer'"]


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4", "2:8"])
def test_a_pattern_is_recognised(pattern: str) -> None:
    kept, among = map(int, pattern.split(":"))
    weight = torch.randn(16, 24, 3, 3)
    assert pattern_of(weight) is None
    keep_largest(weight, kept, among)
    assert pattern_of(weight) == (kept, among)
    assert follows(weight, kept, among)
    assert not follows(weight[:, 1:], kept, among)
    zero_smallest([random := torch.randn(16, 24, 3, 3)], 0.5)
    assert pattern_of(random) is None


def test_one_group_for_each_output_is_no_pattern() -> None:
    weight = torch.zeros(10, 32)
    weight[:, :2] = 1
    assert pattern_of(weight) is None
