"""The nets of the int8 panel, and their hardened twins.

Those without given weights are trained by the toolkit, once, in some minutes.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pruning"))

from vgg_like import vgg

from compress.compressor import run
from compress.context import StepContext
from compress.model import Model
from compress.tasks.base import Data, stacked_inputs
from compress.techniques import chain
from compress.zoo.data import load_data
from compress.zoo.resnet import CifarResNet

TRAINED = {"vgg-like": 10, "mobilenetv3-small": 10}
"""Nets without given weights, and their epochs. The second has squeeze-excite and hard-swish."""
CIFAR = ("resnet20", "resnet56", "mobilenetv2-x05", "vit-tiny", *TRAINED)
TWINS = ("resnet20", "resnet56", "vit-tiny", "vgg-like")
"""The others' activations end at 6 or are no straight lines, so no channel can be rescaled."""
NETS = Path("build/int8-nets")
"""Where the trained ones lie, once they are."""
MOBILE = (
    *([1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2]),
    *([6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]),
)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OWN = ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))


def built(name: str, root: Path, nets: Path = NETS) -> nn.Module:
    """Return a net with its trained weights, of `root`, or of `nets` if the toolkit trains it."""
    module: nn.Module
    if name.startswith("resnet"):
        module = CifarResNet(int(name[6:]), 10, 3, (32, 32))
    elif name == "mobilenetv2-x05":
        net = torchvision.models.mobilenet_v2(
            width_mult=0.5, num_classes=10, inverted_residual_setting=[list(one) for one in MOBILE]
        )
        net.features[0][0].stride = (1, 1)
        module = net
    elif name == "vgg-like":
        module = vgg(10, 3)
    elif name == "mobilenetv3-small":
        small = torchvision.models.mobilenet_v3_small(num_classes=10)
        small.features[0][0].stride = (1, 1)  # type: ignore[index, assignment, method-assign]
        module = small
    else:
        module = torchvision.models.VisionTransformer(32, 4, 6, 4, 128, 384, num_classes=10)
    if name not in TRAINED:
        module.load_state_dict(load_file(root / "weights" / f"{name}-cifar10.safetensors"))
        return module.eval()
    weights = nets / f"{name}-{TRAINED[name]}-epochs.safetensors"
    if not weights.exists():
        module = trained(module, data_of(name), TRAINED[name])
        nets.mkdir(parents=True, exist_ok=True)
        save_file(module.state_dict(), weights)
    module.load_state_dict(load_file(weights))
    return module.eval()


def trained(module: nn.Module, data: Data, epochs: int) -> nn.Module:
    """Return a net as `train(epochs=...)` leaves it."""
    model = Model(module, stacked_inputs(data.task, data.train, 2))
    context = StepContext(data.task, train=data.train, validation=data.validation)
    return run(chain(f"train(epochs={epochs})"), model, context).module


def data_of(name: str) -> Data:
    """Return CIFAR-10 as a net was trained to see it."""
    mean, std = IMAGENET if name.startswith("resnet") else OWN
    return load_data("cifar10", mean=mean, std=std)


def twin(name: str, module: nn.Module, sigma: float, seed: int) -> nn.Module | None:
    """Return the same function with channels rescaled by exp(sigma * N(0, 1)); None for ReLU6.

    In ResNets inside each block, in the VGG-like net behind each batch norm, in transformers behind
    both norms of each block.
    """
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(module)

    def factor(size: int) -> Tensor:
        return torch.exp(sigma * torch.randn(size, generator=generator))

    with torch.no_grad():
        if name.startswith("resnet"):
            for block in other.modules():
                if hasattr(block, "bn1") and hasattr(block, "conv2"):
                    by = factor(block.bn1.num_features)  # type: ignore[union-attr, arg-type]
                    _scale(block.bn1, by)  # type: ignore[arg-type]
                    block.conv2.weight.div_(by[:, None, None])  # type: ignore[union-attr, operator]
            return other
        if name == "vit-tiny":
            for layer in other.encoder.layers:  # type: ignore[union-attr]
                for norm, weight in (
                    (layer.ln_1, layer.self_attention.in_proj_weight),
                    (layer.ln_2, layer.mlp[0].weight),
                ):
                    by = factor(len(norm.weight))
                    _scale(norm, by)
                    weight.div_(by)
            return other
        if name == "vgg-like":
            layers = [one for one in other if len(list(one.parameters(recurse=False)))]  # type: ignore[attr-defined]
            for norm, after in zip(layers[1::2], layers[2::2], strict=True):
                by = factor(norm.num_features)
                _scale(norm, by)
                after.weight.div_(by.reshape(-1, *[1] * (after.weight.dim() - 2)))
            return other
    return None


def _scale(norm: nn.Module, by: Tensor) -> None:
    norm.weight.mul_(by)  # type: ignore[union-attr, operator]
    norm.bias.mul_(by)  # type: ignore[union-attr, operator]
