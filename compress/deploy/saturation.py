"""Which int8 weights saturate on x86 processors without VNNI.

They multiply unsigned activations by signed weights in pairs, and add each pair in 16 bits
(vpmaddubsw): 255 * (q0 + q1) is cut off where q0 + q1 > 128 or < -128.
"""

from __future__ import annotations

import numpy as np

PAIR = 128
"""The largest sum of two neighbouring weights whose products fit: 255 * 128 < 2**15."""


def largest_pair(weight: np.ndarray, axis: int) -> np.ndarray:
    """Return per output channel, along `axis`, the largest |w0 + w1| of neighbours of one sign.

    Kernels walk the other axes in one of two orders: as they lie, or with the input channels
    last. Neighbours in either count, whichever of them begins a pair.
    """
    rows = np.moveaxis(weight, axis, 0)
    orders = [rows.reshape(len(rows), -1)]
    if rows.ndim > 2:
        orders.append(np.moveaxis(rows, 1, -1).reshape(len(rows), -1))
    found = np.zeros(len(rows), weight.dtype)
    for order in orders:
        for sign in (1, -1):
            part = np.maximum(sign * order, 0)
            sums = part[:, :-1] + part[:, 1:] if part.shape[1] > 1 else part
            found = np.maximum(found, sums.max(1))
    return found
