"""Checkpoints as people save them: which tensors are taken, and what is said of the others."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.errors import UserError
from compress.zoo.averaged import is_averaged
from compress.zoo.checkpoints import STANDING_IN, read
from compress.zoo.weights import load_weights, read_state


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, classes)


def state(value: float, **classes: int) -> dict[str, Tensor]:
    return {
        name: torch.full_like(tensor, value if tensor.is_floating_point() else 7)
        for name, tensor in Net(**classes).state_dict().items()
    }


def before(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def loaded(folder: pathlib.Path, value: Any, key: str = "", **options: bool) -> tuple[float, str]:
    """Return the value that the first weights have then, and what is said."""
    torch.save(value, folder / "net.pt")
    net = Net()
    words = load_weights(net, f"{folder / 'net.pt'}{key}", "net", **options).words
    return float(net.body[0].weight.detach().mean()), words


RAW, MEAN = state(1), state(2)


@pytest.mark.parametrize(
    "key",
    [
        *("ema_model", "swa_state_dict", "model_ema_state_dict", "averaged_model", "model_ema"),
        *("ema_state_dict", "avg_model", "netEMA", "ModelEma", "swa", "shadow", "EMACallback"),
    ],
)
def test_averaged_weights_come_first_under_any_name_and_both_are_named(key, tmp_path):
    assert is_averaged(key)
    for raw in ("state_dict", "net"):
        expected = f"net.pt:{key} (the file has net.pt:{raw} too, which can be named instead)"
        assert loaded(tmp_path, {raw: RAW, "epoch": 3, key: MEAN}) == (2, expected)
        parallel = before("module.", MEAN)  # as AveragedModel and DataParallel name them
        assert loaded(tmp_path, {raw: RAW, "epoch": 3, key: parallel}) == (2, expected)
        assert loaded(tmp_path, {raw: RAW, key: MEAN}, f":{raw}") == (1, f"net.pt:{raw}")


def test_names_that_only_look_like_averages_do_not_come_first(tmp_path):
    for key in ("schema", "semantic", "SCHEMA", "swap", "ema_optimizer", "ema_backup"):
        assert not is_averaged(key)
        assert loaded(tmp_path, {"state_dict": RAW, key: MEAN})[0] == 1


def test_sets_further_inside_are_said_and_can_be_named(tmp_path):
    nested = {"model": {"state_dict": RAW, "ema": MEAN}, "optimizer": {"state": {0: {"m": RAW}}}}
    mean, words = loaded(tmp_path, nested)
    assert mean == 2
    assert words.startswith("net.pt:model.ema (the file has net.pt:model.state_dict too")
    assert loaded(tmp_path, nested, ":model")[0] == 2
    expected = (1, "net.pt:model.state_dict")
    assert loaded(tmp_path, nested, ":model.state_dict") == expected
    with pytest.raises(UserError, match=r"'model\.emma'\. Did you mean 'model\.ema'"):
        loaded(tmp_path, nested, ":model.emma")


def test_what_lies_in_no_dictionary_can_be_named_too(tmp_path):
    mean, words = loaded(tmp_path, {**RAW, "ema": MEAN, "epoch": 3})
    assert (mean, words) == (
        2,
        "net.pt:ema (the file has net.pt:. too, which can be named instead)",
    )
    mean, words = loaded(tmp_path, {**RAW, "ema": MEAN, "epoch": 3}, ":.")
    assert (mean, words) == (1, "net.pt:.; without what holds no weights: ema, epoch")


def test_a_set_that_fits_comes_before_one_that_does_not(tmp_path):
    other = {"ema": state(3, classes=9), "model": {"w": torch.ones(3)}}
    mean, words = loaded(tmp_path, {**other, "classifier": RAW})
    assert (mean, words.partition(";")[0]) == (1, "net.pt:classifier")
    with pytest.raises(UserError, match=r"the weights net\.pt:ema are for 9 classes"):
        loaded(tmp_path, other)
    assert read_state(tmp_path / "net.pt")["fc.bias"].shape == (9,)


def test_two_sets_in_one_dictionary_are_told_apart_by_what_their_names_begin_with(tmp_path):
    both = before("model.", RAW) | before("ema_model.", MEAN)
    also = "(the file has net.pt:model too, which can be named instead)"
    expected = (2, f"net.pt:ema_model {also}; its names taken without 'ema_model.'")
    assert loaded(tmp_path, both) == expected
    assert loaded(tmp_path, both, ":ema_model") == (2, "net.pt:ema_model")
    assert loaded(tmp_path, both, ":model") == (1, "net.pt:model")
    assert loaded(tmp_path, {"state_dict": both}, ":state_dict.ema_model")[0] == 2
    mean, words = loaded(tmp_path, before("online.", RAW) | before("ema.", MEAN))
    assert (mean, words.startswith("net.pt:ema (the file has net.pt:online too")) == (2, True)
    save_file(both, tmp_path / "both.safetensors")
    net = Net()
    words = load_weights(net, f"{tmp_path}/both.safetensors:ema_model", "net").words
    assert words.endswith(":ema_model")
    assert float(net.fc.bias.detach()[0]) == 2


@pytest.mark.parametrize("prefix", ["ema_model.module.", "ema.", "model_ema.", "swa_model."])
def test_averages_within_one_dictionary_come_first_and_the_others_can_be_named(prefix, tmp_path):
    both = RAW | before(prefix, MEAN)
    for value, raw in (({"state_dict": both}, "state_dict"), (both, ".")):
        mean, words = loaded(tmp_path, value)
        outer = "state_dict." if raw != "." else ""
        averaged = f"net.pt:{outer}{prefix.rstrip('.')}"
        assert (mean, words) == (
            2,
            f"{averaged} (the file has net.pt:{raw} too, which can be named instead); "
            f"its names taken without {prefix!r}",
        )
        assert loaded(tmp_path, value, f":{raw}")[0] == 1
        assert loaded(tmp_path, value, averaged.removeprefix("net.pt")) == (2, averaged)


def parameters(value: float, **classes: int) -> dict[str, Tensor]:
    """Return what averages that are written by hand hold: no buffers."""
    names = [name for name, _ in Net().named_parameters()]
    return {name: tensor for name, tensor in state(value, **classes).items() if name in names}


@pytest.mark.parametrize(
    ("value", "averaged", "raw"),
    [
        ({"model": RAW, "ema": parameters(2)}, "ema", "model"),
        ({"model": RAW, "ema": before("module.", parameters(2))}, "ema", "model"),
        ({"model": RAW, "ema": {"shadow": parameters(2), "decay": 0.9}}, "ema.shadow", "model"),
        (
            {"model": RAW, "ema": {"backup": parameters(3), "shadow": parameters(2)}},
            *("ema.shadow", "model"),
        ),
        (
            {
                "model": RAW,
                "ema": {
                    "decay": 0.9,
                    "shadow_params": [*parameters(2).values()],
                    "collected_params": [*parameters(3).values()],
                },
            },
            *("ema.shadow_params", "model"),
        ),
        ({"state_dict": RAW | before("ema.", parameters(2))}, "state_dict.ema", "state_dict"),
        (before("net.", RAW) | before("ema.", parameters(2)), "ema", "net"),
    ],
)
def test_averaged_parameters_get_the_buffers_of_the_others(value, averaged, raw, tmp_path):
    mean, words = loaded(tmp_path, value)
    assert mean == 2
    assert words.startswith(
        f"net.pt:{averaged} (the file has net.pt:{raw} too, which can be named instead)"
    )
    buffers = "body.1.running_mean, body.1.running_var, body.1.num_batches_tracked"
    assert words.endswith(
        f"averaged parameters with the buffers of net.pt:{raw}, since they come without: {buffers}"
    )
    net = Net()
    load_weights(net, tmp_path / "net.pt", "net")
    assert {float(p.detach().mean()) for p in net.parameters()} == {2}
    assert net.body[1].running_var.tolist() == [1] * 4
    assert int(net.body[1].num_batches_tracked) == 7
    mean, words = loaded(tmp_path, value, f":{averaged}")
    assert (mean, words.endswith(buffers)) == (2, True)
    mean, words = loaded(tmp_path, value, f":{raw}")
    assert (mean, "averaged" in words) == (1, False)


def test_a_parameter_of_two_names_is_averaged_under_both(tmp_path):
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.again = self.fc

    raw = {name: torch.full_like(t.float(), 1) for name, t in Tied().state_dict().items()}
    torch.save({"model": raw, "ema": parameters(2)}, tmp_path / "net.pt")
    net = Tied()
    words = load_weights(net, tmp_path / "net.pt", "net").words
    assert net.again.weight.detach().unique().tolist() == [2]
    assert "running_mean" in words
    assert "again" not in words


def test_averages_of_another_number_of_classes_go_with_their_buffers(tmp_path):
    nine = {"model": state(1, classes=9), "ema": parameters(2, classes=9)}
    mean, words = loaded(tmp_path, nine, new_head=True)
    assert mean == 2
    assert "head for 9 classes replaced" in words


FEW = {name: tensor for name, tensor in parameters(2).items() if name != "fc.bias"}


@pytest.mark.parametrize(
    ("value", "raw", "said"),
    [
        (
            {"state_dict": RAW, "ema_state": before("m_", MEAN)},
            "state_dict",
            "net.pt:ema_state was not taken, though it looks averaged: it lacks 6 of 6 parameters "
            "(body.0.weight, body.0.bias, body.1.weight, body.1.bias, fc.weight, ...)",
        ),
        (
            {"model": RAW, "ema": before("module.", FEW)},
            "model",
            "net.pt:ema was not taken, though it looks averaged: it lacks 1 of 6 parameters "
            "(fc.bias)",
        ),
        (
            {"model": RAW, "ema": state(2, classes=9)},
            "model",
            "net.pt:ema was not taken, though it looks averaged: 2 of its 6 parameters have other "
            "shapes (fc.weight, fc.bias)",
        ),
        (
            {"model": RAW, "ema": {"shadow_params": [*FEW.values()], "decay": torch.tensor(0.9)}},
            "model",
            "net.pt:ema.shadow_params was not taken, though it looks averaged: it has 5 tensors "
            "without names for 6 parameters",
        ),
        (
            {"model": RAW, "ema": {"shadow_params": [*parameters(2).values()][::-1]}},
            "model",
            "net.pt:ema.shadow_params was not taken, though it looks averaged: 4 of its 6 "
            "parameters have other shapes (body.0.weight, body.0.bias, fc.weight, fc.bias)",
        ),
        (
            before("model.", RAW) | {"model_ema.fcweight": torch.ones(5, 4)},
            "model",
            "net.pt:model_ema was not taken, though it looks averaged: it lacks 6 of 6 parameters "
            "(body.0.weight, body.0.bias, body.1.weight, body.1.bias, fc.weight, ...)",
        ),
    ],
)
def test_averaged_weights_that_do_not_fit_are_said(value, raw, said, tmp_path):
    mean, words = loaded(tmp_path, value)
    assert mean == 1
    assert said in words
    mean, words = loaded(tmp_path, value, f":{raw}")
    assert (mean, "averaged" in words) == (1, False), "who names a set has chosen it"


def test_what_only_stands_beside_averages_is_none(tmp_path):
    moments = {"state": {"exp_avg": parameters(3), "exp_avg_sq": parameters(4)}}
    for beside in ({"optimizer": moments}, {"optimizer": {"exp_avg": [*parameters(3).values()]}}):
        assert loaded(tmp_path, {"model": RAW, **beside}) == (1, "net.pt")
    steps = {"ema": {"decay": torch.tensor(0.9), "num_updates": torch.tensor(5)}}
    assert loaded(tmp_path, {"model": RAW, **steps}) == (1, "net.pt:model")
    online = {"ema": before("online_model.", RAW) | before("ema_model.", MEAN)}
    assert loaded(tmp_path, online)[0] == 2


# --- what else a file holds ------------------------------------------------------------------

HARMLESS = {
    "args": argparse.Namespace(lr=0.1, out=pathlib.Path("out"), parts=slice(1, 2)),
    "best": np.float64(0.9),
    "seen": np.int64(4),
    "curve": np.zeros(3),
    "objects": np.array([None, {}], dtype=object),
    "rng": np.random.get_state(),
    "where": [pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("b")],
    "when": {datetime.datetime.now(datetime.UTC), datetime.date.today()},
    "history": collections.defaultdict(list, {"loss": [1.0]}),
    "counts": collections.Counter("ab"),
    "torch": torch.__version__,
}


@pytest.mark.parametrize("name", [*HARMLESS])
def test_harmless_objects_beside_the_weights_do_no_harm(name, tmp_path):
    assert loaded(tmp_path, {"model": RAW, name: HARMLESS[name]}) == (1, "net.pt")
    # What else is safe, torch's own modules say when they are imported.
    assert not [one for one in torch.serialization.get_safe_globals() if one in STANDING_IN]


def test_nothing_is_ever_called_that_a_file_names():
    assert {made.__module__ for made, _ in STANDING_IN} == {"compress.zoo.checkpoints"}


def test_a_class_of_the_users_own_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"an object of \S*test_checkpoints\.Net, .*state_dict\(\)"):
        loaded(tmp_path, {"model": Net()})

    class Thief(argparse.Namespace):
        def __reduce__(self) -> tuple[Any, ...]:
            return (eval, ("1/0",))

    with pytest.raises(UserError, match="an object of eval, which could run code"):
        loaded(tmp_path, {"args": Thief(), "model": RAW})


def test_what_is_no_tensor_is_left_aside_and_said(tmp_path):
    expected = (1, "net.pt; without what holds no weights: epoch, fc._extra_state")
    assert loaded(tmp_path, {**RAW, "epoch": 3, "fc._extra_state": None}) == expected
    assert loaded(tmp_path, {"state_dict": RAW, "epoch": 3}) == (1, "net.pt")
    with pytest.raises(UserError, match="holds no weights by name"):
        loaded(tmp_path, {"epoch": 3})


def test_dictionaries_that_hold_one_another_are_read(tmp_path):
    loop: dict[str, Any] = {"weights": RAW}
    loop["model"] = loop
    assert loaded(tmp_path, loop)[0] == 1


# --- what stands before the names --------------------------------------------------------------


@pytest.mark.parametrize("key", ["net", "params", "student", "network", "module"])
def test_any_key_may_hold_the_weights(key, tmp_path):
    assert loaded(tmp_path, {key: RAW, "loss": torch.ones(())}) == (1, f"net.pt:{key}")


@pytest.mark.parametrize("prefix", ["net.", "network.", "module.net."])
def test_any_prefix_is_taken_off_and_said(prefix, tmp_path):
    expected = f"net.pt; its names taken without {prefix!r}"
    assert loaded(tmp_path, before(prefix, RAW)) == (1, expected)
    wrapped = before(prefix, RAW) | {"loss.scale": torch.ones(1)}
    expected += "; without loss.scale, which the model has no place for"
    assert loaded(tmp_path, wrapped) == (1, expected)
    mean, words = loaded(tmp_path, before(prefix, state(1, classes=9)), new_head=True)
    assert mean == 1
    assert "head for 9 classes replaced" in words
    with pytest.raises(UserError, match="are for 9 classes"):
        loaded(tmp_path, before(prefix, state(1, classes=9)))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_body_with_a_prefix_and_a_head_without_fit(prefix, tmp_path):
    parts = {n if n.startswith("fc.") else f"backbone.{n}": t for n, t in RAW.items()}
    mean, words = loaded(tmp_path, before(prefix, parts))
    inner = f"{prefix}backbone."
    assert (mean, words) == (
        1,
        f"net.pt; its names taken without {inner!r}, which its outer layers lack",
    )
    two_heads = before(prefix, parts | {"backbone.fc.bias": torch.ones(5)})
    with pytest.raises(UserError, match="do not fit"):
        loaded(tmp_path, two_heads)


def test_a_prefix_is_taken_off_only_if_all_is_there(tmp_path):
    partial = before("net.", RAW)
    del partial["net.fc.bias"]
    with pytest.raises(UserError, match="do not fit"):
        loaded(tmp_path, partial)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_whole_numbers_are_no_weights(tmp_path):
    whole = {n: (t * 100).to(torch.int8) if t.dim() > 1 else t for n, t in RAW.items()}
    text = r"no fractions where net has them: body\.0\.weight \(int8\), fc\.weight \(int8\)"
    with pytest.raises(UserError, match=text):
        loaded(tmp_path, whole)
    quantized = torch.quantize_per_tensor(RAW["fc.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(UserError, match=r"fc\.weight \(qint8\)"):
        loaded(tmp_path, {**RAW, "fc.weight": quantized})
    torch.save(RAW, tmp_path / "net.pt")
    assert read(tmp_path / "net.pt").state["body.1.num_batches_tracked"] == 7
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert loaded(tmp_path, {n: t.to(kind) for n, t in RAW.items()}) == (1, "net.pt")
