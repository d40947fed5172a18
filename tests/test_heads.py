"""Which output is the logits: by name, by shape, by how it is computed, by accuracy, or refused."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from heads_nets import Fields, ModelOutput, Named, dictionary, list_in_training, pair
from heads_nets import Heads as Net
from torch import Tensor, nn

from compress.ensemble import Ensemble
from compress.errors import UserError
from compress.find_heads import settle_heads
from compress.heads import (
    Heads,
    all_heads,
    heads_in_training,
    heads_of,
    main_output,
    set_heads,
)

MAIN, OTHER, WIDE = torch.zeros(1, 10), torch.ones(1, 10), torch.ones(1, 32)
IMAGES = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


class Gives(nn.Module):
    """Returns the same, whatever it is given."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs: Tensor) -> Any:
        return self.outputs


def logits_of(outputs: Any) -> Tensor:
    return settle_heads(Gives(outputs).eval(), (torch.zeros(2, 1),), (10,))


def settled(give: Callable[..., Any], **options: Any) -> Net:
    torch.manual_seed(0)
    module = Net(give, **options).eval()
    settle_heads(module, IMAGES, (10,))
    return module


# --- by name and shape ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "outputs",
    [
        MAIN,
        {"aux": OTHER, "logits": MAIN},
        {"out": OTHER, "logits": MAIN},
        {"predictions": OTHER, "output": OTHER, "out": MAIN},
        {"predictions": OTHER, "output": MAIN},
        {"aux": OTHER, "predictions": MAIN},
        {"output": WIDE, "scores": MAIN},
        {"aux": {"logits": OTHER}, "logits": MAIN},
        {"aux": OTHER, "main": {"logits": MAIN}},
        Named(aux=OTHER, logits=MAIN),
        torchvision.models.GoogLeNetOutputs(MAIN, OTHER, OTHER),
        torchvision.models.InceptionOutputs(MAIN, OTHER),
        Fields(hidden=OTHER, logits=MAIN),
        ModelOutput(loss=None, hidden_states=(WIDE, OTHER), logits=MAIN),
        SimpleNamespace(aux=OTHER, logits=MAIN),
        (WIDE, MAIN),
        [MAIN],
        ((WIDE, [MAIN]), None, 3, "text"),
        {"numbers": torch.ones(1, 10, dtype=torch.int64), "scores": MAIN},
    ],
    ids=range(19),
)
def test_the_logits_are_found_by_name_then_by_shape(outputs: Any) -> None:
    assert logits_of(outputs) is MAIN


def test_values_that_are_called_logits_are_never_passed_over() -> None:
    """A net for other classes is then refused by its shape, though another output would fit."""
    assert logits_of({"logits": WIDE, "other": MAIN}) is WIDE


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ((MAIN, OTHER), r"'0' of shape \(N, 10\), '1' of shape \(N, 10\): several may be"),
        ({"a": MAIN, "b": OTHER, "c": WIDE}, r"'c' of shape \(N, 32\): several may be"),
        ({"logits": [MAIN, OTHER]}, r"'logits.0' .* 'logits.1' .*: several may be"),
        ([WIDE, WIDE], "none has the shape of the task's outputs"),
    ],
)
def test_what_nothing_decides_is_refused_with_names_and_shapes(outputs: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"{message}.*a dictionary that has them as 'logits'"):
        logits_of(outputs)


@pytest.mark.parametrize("outputs", ["logits", None, [[[[[MAIN]]]]]])
def test_what_holds_no_tensor_is_refused(outputs: Any) -> None:
    with pytest.raises(UserError, match="not a tensor"):
        logits_of(outputs)


def test_a_module_that_nobody_has_looked_at_is_never_guessed() -> None:
    assert main_output(nn.Identity(), {"aux": OTHER, "logits": MAIN}) is MAIN
    with pytest.raises(UserError, match="several may be the logits"):
        main_output(nn.Identity(), (MAIN, WIDE))


def test_one_tensor_needs_no_decision() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 10)).eval()
    settle_heads(module, (torch.zeros(2, 4),), (10,))
    assert heads_of(module) is None
    assert main_output(module, MAIN) is MAIN


# --- in training mode -----------------------------------------------------------------------


def probabilities(main: Tensor, aux: Tensor, hidden: Tensor, training: bool) -> Any:
    return (F.softmax(main, 1), main, aux) if training else main


def nested(main: Tensor, aux: Tensor, hidden: Tensor, training: bool) -> Any:
    return {"heads": [aux, main], "hidden": hidden} if training else [main]


def twice(main: Tensor, aux: Tensor, hidden: Tensor, training: bool) -> Any:
    return (main, main.clone()) if training else main


def detached(main: Tensor, aux: Tensor, hidden: Tensor, training: bool) -> Any:
    return [aux.detach(), main] if training else (hidden, main)


@pytest.mark.parametrize(
    ("give", "expected"),
    [
        (dictionary, Heads(("logits",), ("logits",), (("aux",),))),
        (list_in_training, Heads((), (1,), ((0,),))),
        (lambda m, a, h, training: Named(a, m), Heads(("logits",), ("logits",), (("aux",),))),
        (lambda m, a, h, training: Fields(h, m), Heads(("logits",), ("logits",))),
        (
            lambda m, a, h, training: ModelOutput(logits=m, aux=a if training else None),
            Heads(("logits",), ("logits",), (("aux",),)),
        ),
        (probabilities, Heads((), (1,), ((2,),))),
        (nested, Heads((0,), ("heads", 1), (("heads", 0),))),
        (twice, Heads((), (0,))),
        (detached, Heads((1,), (1,), ((0,),))),
    ],
    ids=["dict", "list", "namedtuple", "dataclass", "hf", "softmax", "nested", "twice", "detached"],
)
@pytest.mark.parametrize("norm", [False, True])
def test_heads_of_training_mode_are_told_apart(
    give: Callable[..., Any], expected: Heads, norm: bool
) -> None:
    """By the parameters that they are computed from, whatever norms and dropout do."""
    module = settled(give, norm=norm)
    assert heads_of(module) == expected
    features = F.relu(module.norm(module.a(IMAGES[0])))
    logits = module.out(F.relu(module.b(features)).mean((2, 3)))
    torch.testing.assert_close(main_output(module, module(*IMAGES)), logits)
    main, *others = heads_in_training(module, IMAGES)
    torch.testing.assert_close(main, logits)
    assert len(others) == len(expected.auxiliary)
    for head in others:
        torch.testing.assert_close(head, module.aux(features.mean((2, 3))))
    assert not any(part.training for part in module.modules())


def test_heads_of_equal_values_are_told_apart() -> None:
    """As all are that start at zero, a vision transformer's for instance."""
    torch.manual_seed(0)
    module = Net(list_in_training).eval()
    for head in (module.out, module.aux):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    settle_heads(module, IMAGES, (10,))
    assert heads_of(module) == Heads((), (1,), ((0,),))


def test_what_is_computed_without_gradients_counts() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aux, self.out = nn.Linear(4, 8), nn.Linear(8, 10), nn.Linear(8, 10)

        def forward(self, inputs: Tensor) -> Any:
            with torch.no_grad():
                hidden = self.body(inputs).relu_()
            return (self.aux(hidden), self.out(hidden)) if self.training else self.out(hidden)

    module = Frozen().eval().requires_grad_(False)
    settle_heads(module, (torch.randn(2, 4),), (10,))
    assert heads_of(module) == Heads((), (1,), ((0,),))


@pytest.mark.parametrize(
    "give",
    [
        lambda m, a, h, training: (m, a) if training else (m + a) / 2,
        lambda m, a, h, training: (a, a * 2) if training else m,
    ],
    ids=["mean", "others"],
)
def test_what_training_mode_does_not_tell_is_refused_when_it_is_trained(
    give: Callable[..., Any],
) -> None:
    module = settled(give)
    heads = heads_of(module)
    assert heads is not None
    assert "in training mode the model returns '0' of shape (N, 10)" in heads.untrainable
    assert main_output(module, MAIN) is MAIN
    module.train()
    with pytest.raises(UserError, match="in training mode"):
        main_output(module, module(*IMAGES))


def test_a_module_that_does_not_run_in_training_mode_is_refused_when_it_is_trained() -> None:
    class Asks(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                raise ValueError("targets should not be None")
            return super().forward(inputs)

    module = Asks(4, 10).eval()
    settle_heads(module, (torch.zeros(2, 4),), (10,))
    heads = heads_of(module)
    assert heads is not None
    assert "inputs (ValueError: targets should not be None): switch off" in heads.untrainable


def test_a_norm_over_parts_of_a_batch_gets_a_larger_one() -> None:
    class Ghost(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                inputs = inputs.view(-1, 8, 4).flatten(0, 1)
            return super().forward(inputs)

    module = Ghost(4, 10).eval()
    settle_heads(module, (torch.zeros(2, 4),), (10,))
    assert heads_of(module) is None


def test_torchvisions_googlenet() -> None:
    torch.manual_seed(0)
    module = torchvision.models.googlenet(num_classes=5, init_weights=False).eval()
    inputs = (torch.randn(2, 3, 32, 32),)
    settle_heads(module, inputs, (5,))
    assert heads_of(module) == Heads((), ("logits",), (("aux_logits2",), ("aux_logits1",)))
    outputs = module.train()(*inputs)
    heads = all_heads(module, outputs)
    expected = [outputs.logits, outputs.aux_logits2, outputs.aux_logits1]
    assert all(head is tensor for head, tensor in zip(heads, expected, strict=True))


@pytest.mark.parametrize("side", [299, 128])
def test_torchvisions_inception(side: int) -> None:
    """Its auxiliary head, and so its training, needs images of 299 pixels; the rest does not."""
    module = torchvision.models.inception_v3(num_classes=5, init_weights=False).eval()
    logits = settle_heads(module, (torch.randn(2, 3, side, side),), (5,))
    assert logits.shape == (1, 5)
    heads = heads_of(module)
    assert heads is not None
    if side == 299:
        assert heads == Heads((), ("logits",), (("aux_logits",),))
    else:
        assert "in training mode on such inputs (RuntimeError: Calculated" in heads.untrainable


# --- by accuracy ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracies", "count", "chosen"),
    [
        # Standard errors of the difference: 0.0212, 0.0224, 0.146.
        ([0.5, 0.6], 1000, (1,)),
        ([0.6, 0.5], 1000, (0,)),
        ([0.5, 0.55], 1000, None),
        ([0.33, 0.66], 21, None),
        ([1.0, 0.0], 0, None),
    ],
)
def test_accuracy_decides_where_it_is_clear(
    accuracies: list[float], count: int, chosen: tuple[int, ...] | None
) -> None:
    module = Net(pair).eval()
    judge = lambda module, paths: (accuracies, count)  # noqa: E731
    if chosen is None:
        with pytest.raises(UserError, match=f"clearly the most accurate on {count} validation"):
            settle_heads(module, IMAGES, (10,), judge)
        return
    settle_heads(module, IMAGES, (10,), judge)
    heads = heads_of(module)
    assert heads is not None
    assert (heads.main, heads.training) == (chosen, chosen)
    assert f"'{chosen[0]}' was taken, the most accurate on 1000" in heads.note
    assert "60.0%" in heads.note
    assert "50.0%" in heads.note


# --- what was decided stays -----------------------------------------------------------------


def test_a_decision_leaves_the_module_and_chance_as_they_were() -> None:
    torch.manual_seed(0)
    module = Net(list_in_training, norm=True).eval()
    before = copy.deepcopy(module.state_dict())
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    settle_heads(module, IMAGES, (10,))
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(part.training for part in module.modules())
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_copy_and_a_member_of_an_ensemble_keep_it() -> None:
    module = settled(list_in_training)
    again = copy.deepcopy(module)
    assert heads_of(again) == heads_of(module)
    both = Ensemble([module, again], average="logits").eval()
    expected = module(*IMAGES)
    torch.testing.assert_close(both(*IMAGES), expected)
    both.train()
    module.give = again.give = lambda main, aux, hidden, training: [aux * 0, aux * 0 + 1]
    assert torch.equal(both(*IMAGES), torch.ones(2, 10))


def test_outputs_that_change_are_told() -> None:
    module = settled(dictionary)
    with pytest.raises(UserError, match="'logits' was a tensor of logits"):
        main_output(module, {"aux": MAIN, "other": MAIN})
    set_heads(module, Heads((1,), (1,)))
    with pytest.raises(UserError, match="'1' was a tensor of logits"):
        main_output(module, [MAIN, None])
