"""Layers and calibration batches that tests of low-rank forms share."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.lowrank.fit import Inputs
from compress.lowrank.forms import Call, Layer


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    # torch itself warns of 'same' with even kernels.
    words = ["valid"] if 2 in kernel else ["same", "valid"]
    padding = draw(
        st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.sampled_from(words))
    )
    stride = (1, 1) if padding == "same" else (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    torch.manual_seed(draw(st.integers(0, 100)))
    return nn.Conv2d(
        draw(st.integers(2, 5)),
        draw(st.integers(2, 6)),
        kernel,
        stride,
        padding,
        (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        bias=draw(st.booleans()),
    )


def calls_of(layer: Layer, x: Tensor) -> list[Call]:
    """Return the call of a layer with one item of a batch."""
    with torch.no_grad():
        return [Call((1, *x.shape[1:]), (1, *layer(x).shape[1:]))]


def correlated(layer: Layer, rows: int = 400, seed: int = 0) -> tuple[np.ndarray, Inputs]:
    """Return rows (n, D) of correlated inputs whose mean is not 0, and their moments."""
    size = layer.weight[0].numel()
    draw = np.random.default_rng(seed)
    mixing = draw.standard_normal((size, size)) * np.linspace(2, 0.05, size)
    values = draw.standard_normal((rows, size)) @ mixing.T + draw.standard_normal(size)
    moments = np.cov(values.T, bias=True).reshape(size, size)
    return values, Inputs(torch.from_numpy(values.mean(0)), torch.from_numpy(moments))
