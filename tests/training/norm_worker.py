"""One of several processes whose batch norms share a batch: see test_synchronized.py."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from bench_fixtures import fresh_model, make_context, small_digits
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.compressor import run
from compress.ranks import join, leave, ranks
from compress.techniques import chain
from compress.training.synchronized import SynchronizedBatchNorms


class Own(nn.Module):
    """A layer that calls the function itself."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.batch_norm(inputs, self.running_mean, self.running_var, training=True)


def layers() -> dict[str, tuple[nn.Module, tuple[int, ...], torch.dtype, float]]:
    """Return layers, with the shape, type and mean of what goes in."""
    frozen = nn.BatchNorm2d(3).eval()
    held = nn.BatchNorm2d(3).requires_grad_(False)
    full, half = torch.float32, torch.bfloat16
    return {
        "flat": (nn.BatchNorm1d(3), (7, 3), full, 1.0),
        "lines": (nn.BatchNorm1d(3), (7, 3, 5), full, 1.0),
        "images": (nn.BatchNorm2d(3), (7, 3, 4, 5), full, 1.0),
        "volumes": (nn.BatchNorm3d(3), (7, 3, 2, 4, 3), full, 1.0),
        "plain": (nn.BatchNorm2d(3, affine=False), (7, 3, 4, 5), full, 1.0),
        "cumulative": (nn.BatchNorm2d(3, momentum=None), (7, 3, 4, 5), full, 1.0),
        "untracked": (nn.BatchNorm2d(3, track_running_stats=False), (7, 3, 4, 5), full, 1.0),
        "frozen": (frozen, (7, 3, 4, 5), full, 1.0),
        "held": (held, (7, 3, 4, 5), full, 1.0),
        "single": (nn.BatchNorm1d(3), (3, 3), full, 1.0),
        "far": (nn.BatchNorm2d(3), (7, 3, 4, 5), full, 1e3),
        "coarse": (nn.BatchNorm2d(3), (7, 3, 4, 5), half, 1.0),
        "own": (Own(), (7, 3, 4, 5), full, 1.0),
    }


def passes() -> dict[str, Tensor]:
    """Return what batch norms make of this process's part of three batches, and their gradients."""
    found: dict[str, Tensor] = {}
    for name, (layer, shape, kind, mean) in layers().items():
        torch.manual_seed(0)
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        for step in range(3):
            whole, slopes = (torch.randn(shape) + mean).to(kind), torch.randn(shape).to(kind)
            inputs = ranks().part(whole).clone().requires_grad_()
            with SynchronizedBatchNorms() if ranks().count > 1 else nullcontext():
                outputs = layer(inputs)
                (outputs * ranks().part(slopes)).sum().backward()
            assert inputs.grad is not None
            found[f"{name} {step} part outputs"] = outputs.detach()
            found[f"{name} {step} part gradient"] = inputs.grad
        for key, parameter in layer.named_parameters():
            if parameter.grad is not None:
                ranks().add([parameter.grad])
                found[f"{name} gradient of {key}"] = parameter.grad
        found |= {f"{name} {key}": buffer for key, buffer in layer.named_buffers()}
    return {name: tensor.contiguous() for name, tensor in found.items()}


class Fails(nn.Module):
    """A layer that runs out of memory for half a batch of 128, in the second process alone."""

    def __init__(self, backwards: bool) -> None:
        super().__init__()
        self.backwards = backwards

    def forward(self, inputs: Tensor) -> Tensor:
        if ranks().rank == 1 and self.training and len(inputs) > 40:
            if not self.backwards:
                raise torch.OutOfMemoryError("out of memory")
            inputs.register_hook(fail)
        return inputs


def fail(_: Tensor) -> None:
    raise torch.OutOfMemoryError("out of memory")


def short_of_memory(folder: Path, backwards: bool) -> None:
    """Train where the second process runs out of memory between two batch norms."""
    data = small_digits()
    start = fresh_model(data, "resnet8")
    stages = nn.Sequential(
        nn.BatchNorm2d(1), Fails(backwards), nn.BatchNorm2d(1), start.module
    ).eval()
    context = make_context(data)
    result = run(chain("finetune(epochs=1)"), replace(start, module=stages), context)
    name = f"{'backwards' if backwards else 'forwards'}-{ranks().rank}"
    save_file(result.module.state_dict(), folder / f"{name}.safetensors")
    rows = [row for row in context.log.rows if row["kind"] == "memory"]
    (folder / f"{name}.json").write_text(json.dumps(rows))


def main(rank: int, count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    join(rank, count, "cpu", folder / "meeting")
    save_file(passes(), folder / f"{rank}.safetensors")
    for backwards in (False, True):
        short_of_memory(folder, backwards)
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
