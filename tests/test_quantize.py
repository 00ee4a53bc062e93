import math

import pytest
import torch

from kvexp.quantize import quantize

# value after division by 1, code; docs/semantics.md
E4M3 = [
    (0.0, 0x00),
    (-0.0, 0x80),
    (1.0, 0x38),
    (-1.0, 0xB8),
    (448.0, 0x7E),
    (-448.0, 0xFE),
    (464.0, 0x7E),
    (1e30, 0x7E),
    (math.inf, 0x7E),
    (-math.inf, 0xFE),
    (math.nan, 0x7F),
    (-math.nan, 0x7F),
    (2.0**-9, 0x01),
    (2.0**-10, 0x00),
    (2.0**-10 * (1 + 2.0**-23), 0x01),
    (3 * 2.0**-10, 0x02),
    (2.0**-6, 0x08),
    (17.0, 0x58),
    (19.0, 0x5A),
    (-7.875, 0xD0),
]


@pytest.mark.parametrize(("value", "code"), E4M3)
def test_e4m3_codes_are_the_contract_s(value, code):
    rows = torch.tensor([[[value]]], dtype=torch.float32)
    assert quantize(rows, "fp8_e4m3", torch.tensor(1.0)).item() == code


def test_a_negative_nan_keeps_no_sign():
    rows = torch.tensor([[[0xFFC00000 - 2**32]]], dtype=torch.int32).view(torch.float32)
    assert quantize(rows, "fp8_e4m3", torch.tensor(1.0)).item() == 0x7F


def test_division_rounds_once_in_float32():
    values = torch.randn(4096, dtype=torch.float32).view(1, 1, -1)
    exact = torch.tensor([float(v) / 0.375 for v in values.double().flatten()], dtype=torch.float32)
    expected = quantize(exact.view(1, 1, -1), "fp8_e4m3", torch.tensor(1.0))
    assert torch.equal(quantize(values, "fp8_e4m3", torch.tensor(0.375)), expected)


def test_auto_keeps_the_bytes():
    rows = torch.tensor([[[1.0, -2.0]]], dtype=torch.bfloat16)
    assert quantize(rows, "auto", torch.tensor(0.0)).flatten().tolist() == [0x80, 0x3F, 0x00, 0xC0]


def test_another_format_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"fp8_e5m3.*auto, fp8_e4m3"):
        quantize(torch.ones(1, 1, 1), "fp8_e5m3", torch.tensor(1.0))
