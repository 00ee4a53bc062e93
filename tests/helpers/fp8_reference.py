"""Define floats of 8 and of 4 bits without torch: the number of each code, and the nearest code of a number.

A code is sign, exponent, mantissa; all finite ones, and the middles between neighbours, are exact in float64.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

MANTISSA = {"fp8_e4m3": 3, "fp8_e5m2": 2, "e2m1": 1}
BIAS = {"fp8_e4m3": 7, "fp8_e5m2": 15, "e2m1": 1}
LARGEST = {"fp8_e4m3": 0x7E, "fp8_e5m2": 0x7B, "e2m1": 0x7}
NAN = 0x7F


def value(kind: str, code: int) -> Fraction:
    """Return the number of a finite code without sign."""
    bits = MANTISSA[kind]
    exponent, mantissa = code >> bits, code & ((1 << bits) - 1)
    if exponent == 0:
        return Fraction(mantissa, 1 << bits) * Fraction(2) ** (1 - BIAS[kind])
    return (1 + Fraction(mantissa, 1 << bits)) * Fraction(2) ** (exponent - BIAS[kind])


def values(kind: str) -> list[Fraction]:
    """Return the numbers of the finite codes without sign, by code, ascending."""
    return [value(kind, code) for code in range(LARGEST[kind] + 1)]


def codes(kind: str, numbers: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the contract's codes: to nearest, ties to even, saturating, one code for NaN."""
    finite = np.array([float(number) for number in values(kind)])
    size = np.abs(numbers.astype(np.float64))
    below = np.clip(np.searchsorted(finite, size, side="right") - 1, 0, LARGEST[kind])
    above = np.minimum(below + 1, LARGEST[kind])
    middle = (finite[below] + finite[above]) / 2
    up = (size > middle) | ((size == middle) & (below % 2 == 1))
    found = np.where(up, above, below) | np.where(np.signbit(numbers), 0x80, 0)
    return np.where(np.isnan(numbers), NAN, found).astype(np.uint8)
