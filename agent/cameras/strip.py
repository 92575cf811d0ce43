"""The frame number in the picture: drawn into the main stream so that a test reads it back from any decoded clip.

Touches the luma plane it is given.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from agent.cameras.planes import cv2_module
from agent.model import Plane

COLUMNS = 16
ROWS = 2
_DARK, _BRIGHT, _SPLIT = 40, 210, 125
_MARGIN = 60  # a block's mean may stray so far from dark or bright by compression
_NUMBER_BITS = 24
MAX_NUMBER = (1 << _NUMBER_BITS) - 1


def block_size(width: int) -> int:
    """Pixels of one block's side: a transform block or two, so that coarse quantising keeps it."""
    return 16 if width >= 1024 else 8 if width >= 192 else 4


def draw_frame_number(y: Plane, number: int) -> None:
    """Draw number (modulo 2**24) top left: 32 blocks (24 bits and a CRC-8), and digits for people below them.

    y: writable uint8 (h, w), at least 64x32.
    """
    number &= MAX_NUMBER
    block = block_size(y.shape[1])
    word = (number << 8) | _crc8(number)
    bits = np.array([(word >> (31 - i)) & 1 for i in range(32)], dtype=np.uint8).reshape(ROWS, COLUMNS)
    codes = np.where(bits == 1, np.uint8(_BRIGHT), np.uint8(_DARK)).astype(np.uint8)
    y[: ROWS * block, : COLUMNS * block] = codes.repeat(block, 0).repeat(block, 1)
    glyphs = _digits(block)
    top = ROWS * block
    for index, digit in enumerate(str(number)):
        glyph = glyphs[int(digit)]
        height, width = glyph.shape
        into = y[top : top + height, index * width : (index + 1) * width]
        into[:] = glyph[: into.shape[0], : into.shape[1]]


def read_frame_number(y: Plane) -> int | None:
    """The number in a decoded luma plane (h, w) of the main stream at its own size; None when there is none."""
    block = block_size(y.shape[1])
    if y.shape[0] < ROWS * block or y.shape[1] < COLUMNS * block:
        return None
    strip = y[: ROWS * block, : COLUMNS * block].astype(np.float32)
    cells = strip.reshape(ROWS, block, COLUMNS, block)
    inner = cells[:, block // 4 : block - block // 4, :, block // 4 : block - block // 4]
    means = inner.mean(axis=(1, 3)).ravel()
    off = np.minimum(np.abs(means - _DARK), np.abs(means - _BRIGHT))
    if float(off.max()) > _MARGIN:
        return None
    word = 0
    for mean in means:
        word = (word << 1) | int(mean > _SPLIT)
    number = word >> 8
    return number if _crc8(number) == word & 0xFF else None


def _crc8(number: int) -> int:
    """CRC-8 (polynomial 0x07, start 0xFF) of the 24 bits, so that 0 does not read as all dark."""
    crc = 0xFF
    for byte in number.to_bytes(3, "big"):
        crc ^= byte
        for _ in range(8):
            crc = ((crc << 1) ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc


@cache
def _digits(block: int) -> tuple[Plane, ...]:
    cv2 = cv2_module()
    height, width = block + 4, block
    glyphs = []
    for digit in "0123456789":
        glyph = np.full((height, width), _DARK, dtype=np.uint8)
        cv2.putText(glyph, digit, (1, height - 2), cv2.FONT_HERSHEY_PLAIN, block / 13, _BRIGHT, 1, cv2.LINE_AA)
        glyphs.append(glyph)
    return tuple(glyphs)
