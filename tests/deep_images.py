"""Colour images of 16 bits a channel, which Pillow reads and does not write."""

from __future__ import annotations

import struct
import zlib

import numpy as np

COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's number for gray and RGB, each without and with alpha, by the count of channels."""
SHORT, LONG = 3, 4
"""TIFF's types of values."""
DEFLATE = 8
"""TIFF's number of this compression."""


def png16(levels: np.ndarray) -> bytes:
    """Return a PNG file of uint16 levels (H, W, C)."""
    height, width, channels = levels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + end

    header = struct.pack(">IIBBBBB", width, height, 16, COLOR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def tiff16(levels: np.ndarray, deflate: bool = False) -> bytes:
    """Return a TIFF file of uint16 levels (H, W, 3 or 4), in one strip."""
    height, width, channels = levels.shape
    pixels = levels.astype("<u2").tobytes()
    pixels = zlib.compress(pixels) if deflate else pixels
    bits = struct.pack(f"<{channels}H", *[16] * channels)
    alpha = [(338, SHORT, 1, 2)] if channels == 4 else []
    count = 9 + len(alpha)
    bits_at = 8 + 2 + 12 * count + 4
    tags = [
        *[(256, SHORT, 1, width), (257, SHORT, 1, height), (258, SHORT, channels, bits_at)],
        *[(259, SHORT, 1, DEFLATE if deflate else 1), (262, SHORT, 1, 2)],
        *[(273, LONG, 1, bits_at + len(bits)), (277, SHORT, 1, channels)],
        *[(278, SHORT, 1, height), (279, LONG, 1, len(pixels)), *alpha],
    ]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    start = struct.pack("<2sHIH", b"II", 42, 8, count)
    return start + directory + struct.pack("<I", 0) + bits + pixels


def ppm16(levels: np.ndarray) -> bytes:
    """Return a PPM file of uint16 levels (H, W, 3)."""
    height, width, _ = levels.shape
    return b"P6 %d %d 65535\n" % (width, height) + levels.astype(">u2").tobytes()
