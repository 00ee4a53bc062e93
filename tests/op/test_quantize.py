"""Rows become the contract's bytes: special values by hand, every 16-bit one by an exact oracle."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from kvexp.op.quantize import FORMATS, quantize
from tests.helpers import fp8_reference

KINDS = list(FORMATS)
SIXTEEN = {"half": torch.float16, "bfloat16": torch.bfloat16}
SCALES = [1.0, 0.37, 3.0, 2.0**-6, 0.015625 * 1.1, 1e-30, 1e30]
ABOVE = 1 + 2.0**-23
"""What makes the next float32 of a power of two."""

# value after division by 1, code; docs/semantics.md. The oracle below has all the others, and NaN's.
CODES = {
    "fp8_e4m3": [
        (0.0, 0x00),
        (-0.0, 0x80),
        (1.0, 0x38),
        (448.0, 0x7E),
        (1e30, 0x7E),
        (math.inf, 0x7E),
        (-math.inf, 0xFE),
        (2.0**-9, 0x01),
        (2.0**-10, 0x00),
        (2.0**-10 * ABOVE, 0x01),
        (17.0, 0x58),
    ],
    "fp8_e5m2": [
        (0.0, 0x00),
        (-0.0, 0x80),
        (1.0, 0x3C),
        (57344.0, 0x7B),
        (1e30, 0x7B),
        (math.inf, 0x7B),
        (-math.inf, 0xFB),
        (2.0**-16, 0x01),
        (2.0**-17, 0x00),
        (2.0**-17 * ABOVE, 0x01),
        (1.125, 0x3C),
        (1e-40, 0x00),
    ],
}
ONE = torch.tensor(1.0)


def every(dtype):
    """Each of the 65,536 values of a 16-bit type."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize(("kind", "value", "code"), [(k, v, c) for k in KINDS for v, c in CODES[k]])
def test_codes_are_the_contract_s(kind, value, code):
    rows = torch.tensor([[[value]]], dtype=torch.float32)
    assert quantize(rows, kind, ONE).item() == code


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_keeps_neither_sign_nor_payload(kind, bits):
    rows = torch.tensor([[[bits - (bits >> 31) * 2**32]]], dtype=torch.int32).view(torch.float32)
    assert quantize(rows, kind, ONE).item() == 0x7F


class TestTheOracle:
    """It is right where the definition of the formats says what right is."""

    def test_largest_and_smallest_are_the_formats_own(self):
        found = {kind: (fp8_reference.values(kind)[-1], fp8_reference.values(kind)[1]) for kind in KINDS}
        assert found == {
            "fp8_e4m3": (448, Fraction(1, 512)),
            "fp8_e5m2": (57344, Fraction(1, 65536)),
        }
        assert all(found[kind][0] == FORMATS[kind].largest for kind in KINDS)

    @pytest.mark.parametrize("kind", KINDS)
    def test_codes_ascend_and_are_their_own_nearest(self, kind):
        numbers = fp8_reference.values(kind)
        assert numbers == sorted(set(numbers))
        both = np.array([float(number) for number in numbers], dtype=np.float32)
        assert fp8_reference.codes(kind, both).tolist() == list(range(len(numbers)))
        assert fp8_reference.codes(kind, -both).tolist() == [0x80 + code for code in range(len(numbers))]

    @pytest.mark.parametrize("kind", KINDS)
    def test_middles_go_to_the_even_neighbour_and_what_is_beside_them_to_the_nearer(self, kind):
        numbers = fp8_reference.values(kind)
        for code in range(len(numbers) - 1):
            middle = np.float32(float((numbers[code] + numbers[code + 1]) / 2))
            beside = [np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf)]
            found = fp8_reference.codes(kind, np.array([beside[0], middle, beside[1]], dtype=np.float32))
            assert found.tolist() == [code, code + code % 2, code + 1]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("kind", KINDS)
class TestEveryValueOfSixteenBits:
    def test_becomes_the_exact_code(self, kind, dtype, scale):
        rows = every(SIXTEEN[dtype])
        with np.errstate(all="ignore"):
            quotient = rows.float().numpy() / np.float32(scale)
        found = quantize(rows.view(1, 16, -1), kind, torch.tensor(scale)).flatten().numpy()
        assert np.array_equal(found, fp8_reference.codes(kind, quotient))

    def test_is_divided_by_the_scale_of_its_head(self, kind, dtype, scale):
        rows = every(SIXTEEN[dtype]).view(-1, 4, 64)
        scales = torch.tensor([scale, 1.0, scale * 1.7, 0.3])
        with np.errstate(all="ignore"):
            quotient = rows.float().numpy() / scales.numpy()[:, None]
        assert np.array_equal(quantize(rows, kind, scales).numpy(), fp8_reference.codes(kind, quotient))


@pytest.mark.parametrize("kind", KINDS)
def test_middles_of_float32_go_to_even_and_their_neighbours_do_not(kind):
    numbers = fp8_reference.values(kind)
    middles = np.array([float(a + b) / 2 for a, b in pairwise(numbers)], np.float32)
    around = [np.nextafter(middles, np.float32(-np.inf)), middles, np.nextafter(middles, np.float32(np.inf))]
    rows = np.concatenate([*around, *(-part for part in around)])
    found = quantize(torch.from_numpy(rows).view(1, 1, -1), kind, ONE).flatten().numpy()
    assert np.array_equal(found, fp8_reference.codes(kind, rows))


@pytest.mark.parametrize("kind", KINDS)
def test_division_rounds_once_and_is_no_multiplication_by_the_reciprocal(kind):
    scale, numbers = np.float32(0.37), fp8_reference.values(kind)
    middles = np.array([float(a + b) / 2 for a, b in pairwise(numbers)], np.float32)
    # The float32 whose quotient is nearest to a middle, and eight neighbours on either side.
    nearest = (middles * scale).view(np.int32)
    values = (nearest[:, None] + np.arange(-8, 9, dtype=np.int32)).flatten().view(np.float32)
    asked = fp8_reference.codes(kind, values / scale)
    found = quantize(torch.from_numpy(values).view(1, 1, -1), kind, torch.tensor(scale)).flatten().numpy()
    assert np.array_equal(found, asked)
    assert not np.array_equal(fp8_reference.codes(kind, values * (np.float32(1) / scale)), asked)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_of_one_element_is_every_heads(kind, shape):
    rows = torch.randn(5, 3, 16)
    of_heads = quantize(rows, kind, torch.full((3,), 0.37))
    assert torch.equal(quantize(rows, kind, torch.full(shape, 0.37)), of_heads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [None, torch.tensor(0.0)])
def test_auto_keeps_the_bytes(dtype, scale):
    rows = torch.tensor([[[1.0, -0.0, math.nan, -math.inf]]], dtype=dtype)
    assert quantize(rows, "auto", scale).flatten().tolist() == rows.view(torch.uint8).flatten().tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_format_keep_every_code(kind):
    every_code = torch.arange(256, dtype=torch.uint8)
    rows = every_code.view(FORMATS[kind].dtype).view(4, 4, 16)
    for scale in (None, torch.tensor(3.0)):
        assert torch.equal(quantize(rows, kind, scale).flatten(), every_code)


def test_the_bytes_of_a_view_are_in_its_order_and_contiguous():
    fused = torch.randn(3, 6, 16).bfloat16()
    found = quantize(fused[:, 2:4], "auto", None)
    assert found.is_contiguous()
    assert torch.equal(found, fused.view(torch.uint8)[:, 2:4])


def test_another_format_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"fp8_e5m3.*auto, fp8_e4m3, fp8_e5m2"):
        quantize(torch.ones(1, 1, 1), "fp8_e5m3", ONE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversion_without_a_scale_is_refused(kind):
    with pytest.raises(ValueError, match=f"{kind} needs a scale"):
        quantize(torch.ones(1, 1, 16), kind, None)
