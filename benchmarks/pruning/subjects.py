"""The models that are tried, and random weights for them that mean something."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from compress.compressor import seed_everything
from compress.model import Blueprint, Model
from compress.stateless_rng import StatelessRNG
from compress.tasks.base import InputSpec, Tensors
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.zoo.models import build_module, fresh

MOST = 100e6
"""Parameters."""
SIZE, ITEMS, CLASSES = 64, 64, 10
SETTLED_BY = 16
SHIFT = 1.0
"""The bias of batch norms: without one, a deep random net is chaotic (`pretrained/families.py`)."""
DECAY = 4.0
"""The rows of a weight fall by exp(-DECAY): factorization is for weights that are nearly of low
rank, as trained ones are."""
ODD = Path(__file__).with_name("odd_nets.py")
ODD_NETS = (
    *("unet", "shared", "two_inputs", "cat_last", "pixel_shuffle", "spatial_mask", "conv1d"),
    *("frozen", "reparametrized", "group_norm", "recurrent", "encoder"),
)
TIMM = (
    *("mobilenetv4_conv_small", "convnext_atto", "convnextv2_atto", "regnety_002"),
    *("tf_efficientnet_lite0", "deit_tiny_patch16_224", "eva02_tiny_patch14_224"),
    *("xcit_nano_12_p16_224", "mobilevit_xxs", "edgenext_xx_small", "pvt_v2_b0", "rexnet_100"),
    *("ghostnet_100", "levit_128s", "repvgg_a0", "poolformer_s12", "hrnet_w18_small", "dla34"),
    *("nf_resnet26", "mixer_s16_224", "resnetv2_50", "resnet50_gn", "resnetv2_50x1_bit"),
    *("res2net50_26w_4s", "swin_tiny_patch4_window7_224"),
)
WITH_HEADS = (
    *("odd:encoder", "timm:deit_tiny_patch16_224", "timm:eva02_tiny_patch14_224"),
    *("timm:xcit_nano_12_p16_224", "timm:mobilevit_xxs", "timm:edgenext_xx_small"),
    *("timm:pvt_v2_b0", "timm:levit_128s", "timm:swin_tiny_patch4_window7_224"),
    *("torchvision:swin_t", "torchvision:swin_v2_t", "torchvision:vit_b_32"),
    "torchvision:maxvit_t",
)
"""Those with attention."""
FIRST = (
    *("squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v3_small", "mobilenet_v2"),
    *("regnet_y_400mf", "regnet_x_400mf", "efficientnet_b0", "densenet121", "googlenet"),
    *("resnet18", "resnet50", "resnext50_32x4d", "convnext_tiny", "swin_t", "swin_v2_t"),
    *("inception_v3", "vit_b_32", "efficientnet_v2_s", "maxvit_t", "alexnet", "vgg11_bn"),
)
SIZES = {
    "torchvision:inception_v3": 96,
    "torchvision:maxvit_t": 224,
    "timm:eva02_tiny_patch14_224": 112,
    "timm:swin_tiny_patch4_window7_224": 224,
    "timm:levit_128s": 224,
}
"""Where the architecture does not take small images."""


def names() -> list[str]:
    """Return all models: of torchvision one of each family first, then from small to large."""
    known = torchvision.models.list_models(module=torchvision.models)
    sizes = {
        name: next(iter(torchvision.models.get_model_weights(name))).meta["num_params"]
        for name in known
    }
    within = [name for name in sorted(known, key=sizes.__getitem__) if sizes[name] <= MOST]
    rest = [name for name in (*within, "vgg11_bn") if name not in FIRST]
    return [
        *(f"odd:{name}" for name in ODD_NETS),
        *(f"timm:{name}" for name in TIMM),
        *(f"torchvision:{name}" for name in (*FIRST, *rest)),
    ]


def size_of(name: str) -> int:
    return 32 if name.startswith("odd:") else SIZES.get(name, SIZE)


@dataclass(frozen=True)
class Halves(ImageClassification):
    """Each image, and the same one at half its size."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec("image"), InputSpec("half"))

    def probe(self, batch: int = 4) -> Tensors:
        return self._both(super().probe(batch))

    def prepare(
        self, raw: Tensors, device: torch.device, rng: StatelessRNG | None = None
    ) -> Tensors:
        return self._both(super().prepare(raw, device, rng))

    def _both(self, inputs: Tensors) -> Tensors:
        return (*inputs, F.avg_pool2d(inputs[0], 2))


@dataclass(frozen=True)
class Subject:
    """A model, its task, and raw images (uint8, N x 3 x size x size) that are smooth noise."""

    model: Model
    task: ImageClassification
    raw: Tensor

    @property
    def inputs(self) -> Tensors:
        return self.task.prepare((self.raw,), torch.device("cpu"))

    @staticmethod
    def build(blueprint: Blueprint) -> nn.Module:
        return build_module(blueprint, [ODD])


def subject(name: str, decaying: bool, size: int | None = None) -> Subject:
    """Return a model whose every tensor is random and whose norms fit its inputs.

    With `decaying`, the rows of its weights carry less and less.
    """
    size = size or size_of(name)
    shaped = Preprocessing(3, (size, size), (0.5,) * 3, (0.25,) * 3)
    seed_everything(0)
    smooth = F.interpolate(torch.randn(ITEMS, 3, 8, 8), (size, size), mode="bilinear")
    raw = ((smooth * 0.25 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    kind = Halves if name == "odd:two_inputs" else ImageClassification
    task = kind("coverage", tuple(map(str, range(CLASSES))), shaped, samples=raw)
    full = name.replace("odd:", f"{ODD}:")
    found = Subject(fresh(full, task, [ODD]), task, raw)
    with torch.no_grad():
        for parameter in found.model.module.parameters():
            _randomize(parameter, decaying)
        for layer in norms(found.model.module):
            if layer.bias is not None:
                layer.bias.add_(SHIFT)
    settle(found.model.module, tuple(x[:SETTLED_BY] for x in found.inputs))
    return found


def _randomize(parameter: Tensor, decaying: bool) -> None:
    alike = bool((parameter == parameter.flatten()[0]).all())
    if parameter.ndim < 2 or alike or float(parameter.abs().max()) < 1e-3:
        parameter.add_(0.1 * torch.randn_like(parameter))
    if 0 < float(parameter.abs().max()) < 0.5 and parameter.ndim == 1:
        parameter.mul_(2)
    if decaying and parameter.ndim in (2, 4) and len(parameter) > 1:
        rows = torch.exp(-DECAY * torch.randperm(len(parameter)) / len(parameter))
        rows = rows / rows.square().mean().sqrt()
        parameter.mul_(rows.view(-1, *[1] * (parameter.ndim - 1)))


def norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def settle(module: nn.Module, inputs: Tensors) -> None:
    """Give batch norms the statistics of some images, in place."""
    for layer in norms(module):
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    with torch.no_grad():
        module(*inputs)
    module.eval()
