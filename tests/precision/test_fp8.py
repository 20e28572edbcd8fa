"""Block-scaled e4m3: how far a stored number may be from what it stands for, and what special numbers do."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmsys.precision.fp8 import LARGEST, dequantize_blocks, error_bound, quantize_blocks

# Every number of the format, from its definition: sign, 4 bits of exponent (bias 7), 3 of mantissa; all ones is NaN.
E4M3 = sorted(
    sign * ((8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9)
    for sign in (1, -1) for exponent in range(16) for mantissa in range(8) if (exponent, mantissa) != (15, 7)
)  # fmt: skip


@given(
    shape=st.sampled_from([(1, 1), (7, 3), (2, 128, 4), (2, 3, 129, 8), (1, 2, 257, 16)]),
    rows=st.sampled_from([1, 5, 64, 128, 300]), exponent=st.integers(-60, 30), seed=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_stored_numbers_are_within_the_error_bound(shape, rows, exponent, seed, dtype):
    torch.manual_seed(seed)
    x = (torch.randn(shape) * torch.rand(shape) ** 4 * 2.0**exponent).to(dtype)
    codes, scales = quantize_blocks(x, rows)
    assert codes.shape == x.shape and codes.dtype == torch.float8_e4m3fn
    assert scales.shape == (*shape[:-2], math.ceil(shape[-2] / rows)) and scales.dtype == torch.float32
    stored = dequantize_blocks(codes, scales, rows)
    assert ((stored - x.float()).abs() <= error_bound(x, scales, rows)).all()
    assert (codes.float().abs().amax() == LARGEST) and (scales > 0).all()


@given(values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40))
def test_each_number_gets_the_nearest_code(values):
    x = torch.tensor([values])
    codes, scales = quantize_blocks(x)
    for value, code in zip((x / scales)[0].tolist(), codes[0].tolist(), strict=True):
        nearest = min(abs(each - value) for each in E4M3)
        assert abs(code - value) == nearest and code in E4M3


def test_a_block_has_128_rows_and_all_columns():
    x = torch.ones(5, 3)
    x[1, 2] = 448 * 4
    x[4, 0] = -448 * 2
    codes, scales = quantize_blocks(x, rows=2)
    assert scales.tolist() == pytest.approx([4, 1 / 448, 2])  # the last block is a single row
    assert codes[1, 2].item() == 448 and codes[2].tolist() == [448.0] * 3 and codes[4, 0].item() == -448
    torch.testing.assert_close(dequantize_blocks(codes, scales, 2), x)


def test_an_outlier_costs_only_its_own_block():
    torch.manual_seed(0)
    x = torch.randn(1024, 64) * 1e-3
    x[300, 7] = 1e4
    alone, shared = (dequantize_blocks(*quantize_blocks(x, rows), rows) for rows in (128, 1024))
    error = ((alone - x).square().sum(1), (shared - x).square().sum(1))
    others = torch.ones(1024, dtype=torch.bool)
    others[256:384] = False
    assert (shared[others] == 0).all()  # all that is not the outlier is lost
    assert error[0][others].sum() < 2e-3 * error[1][others].sum()


def test_scaling_x_by_a_power_of_two_scales_the_stored_numbers_exactly():
    x = torch.randn(200, 16)
    codes, scales = quantize_blocks(x)
    again, larger = quantize_blocks(x * 1024)
    assert torch.equal(codes.float(), again.float()) and torch.equal(scales * 1024, larger)


def test_zeros_nan_infinity_and_empty_tensors():
    x = torch.zeros(4, 8)
    codes, scales = quantize_blocks(x, 2)
    assert (codes.float() == 0).all() and (scales == 1).all()
    x = torch.randn(4, 8)
    x[1, 1] = x[0, 0] = 0.0
    clean = dequantize_blocks(*quantize_blocks(x, 2), 2)
    x[1, 1], x[0, 0] = math.nan, -math.inf
    codes, scales = quantize_blocks(x, 2)
    stored = dequantize_blocks(codes, scales, 2)
    assert stored.isnan().nonzero().tolist() == [[1, 1]] and stored[0, 0] == -LARGEST * scales[0]
    stored[1, 1] = stored[0, 0] = 0.0
    assert torch.equal(stored, clean)
    for tiny in (1e-45, 1e-40, 5e-36):  # from fp32's least number on: the scale is one that has all its bits
        x = torch.tensor([[tiny, 0.0]])
        codes, scales = quantize_blocks(x)
        assert scales.item() == 2.0**-126
        assert ((dequantize_blocks(codes, scales) - x).abs() <= error_bound(x, scales)).all()
    huge = torch.full((1, 1), 3e38)
    torch.testing.assert_close(dequantize_blocks(*quantize_blocks(huge)), huge)
    codes, scales = quantize_blocks(torch.zeros(2, 0, 8))
    assert codes.shape == (2, 0, 8) and scales.shape == (2, 0)
    codes, scales = quantize_blocks(torch.zeros(2, 3, 0), 2)
    assert codes.shape == (2, 3, 0) and (scales == 1).all() and scales.shape == (2, 2)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="x must have at least two dimensions"):
        quantize_blocks(torch.zeros(3))
    with pytest.raises(ValueError, match="x must be a floating-point tensor, got torch.int64"):
        quantize_blocks(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        quantize_blocks(torch.zeros(3, 3), 0)
    codes, scales = quantize_blocks(torch.zeros(300, 3))
    with pytest.raises(ValueError, match=r"scales must have the shape \(5,\), one for each 64 rows"):
        dequantize_blocks(codes, scales, 64)
