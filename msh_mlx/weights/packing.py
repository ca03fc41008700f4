"""Packed weights: numbers of a few bits, with a scale and a bias for each group of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Quantization:
    """How a weight is packed: as `scale · n + bias`, n of `bits` bits, with a scale and a bias per `group_size` along a row."""

    bits: int
    group_size: int


def unpacked(
    packed: npt.NDArray[np.uint32],
    scales: npt.NDArray[np.float32],
    biases: npt.NDArray[np.float32],
    how: Quantization,
) -> npt.NDArray[np.float32]:
    """Unpack rows: `packed` `[rows, columns · bits / 32]`, scales and biases `[rows, columns / group_size]`."""
    rows, bits = len(packed), how.bits
    if 32 % bits:  # numbers may reach over the end of a word
        stream = np.unpackbits(packed.astype("<u4").view(np.uint8), axis=1, bitorder="little")
        numbers = stream.reshape(rows, -1, bits) @ (1 << np.arange(bits, dtype=np.uint8))
    else:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        numbers = packed[:, :, None] >> shifts & np.uint32((1 << bits) - 1)
    groups = numbers.reshape(rows, scales.shape[1], how.group_size).astype(np.float32)
    return (groups * scales[..., None] + biases[..., None]).reshape(rows, -1)


def packed(
    values: npt.NDArray[np.float32], how: Quantization, dtype: str = "BF16"
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[Any], npt.NDArray[Any]]:
    """Pack rows `[rows, columns]`. Return the packed numbers, the scales and the biases, the latter in `dtype`, BF16 as bits.

    Of each group, the number with the largest magnitude and 0 are exact, as far as `dtype` can hold them.
    """
    from msh_native import pack

    words, scales, biases = pack(np.ascontiguousarray(values), how.bits, how.group_size, dtype)
    return words, scales, biases
