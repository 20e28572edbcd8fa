"""The roofline: a bound from below that is right about which unit sets it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.hardware.devices import DEVICES
from llmsys.hardware.roofline import Operation, attainable_flops, estimate, roofline_seconds, total_seconds

H100, A100 = DEVICES["H100 SXM"], DEVICES["A100 80GB SXM"]
amounts = st.just(0.0) | st.floats(1e-3, 1e15)  # what is next to nothing has no relative error of 1e-9
rates = st.floats(1e9, 1e16)


def product(m, n, k, itemsize=2):
    return Operation("product", flops=2 * m * n * k, bytes=itemsize * (m * k + k * n + m * n))


def test_a_large_product_is_bound_by_arithmetic_and_a_vector_by_memory():
    assert estimate(product(8192, 8192, 8192), H100).bound == "compute"
    assert estimate(product(8192, 8192, 8192), H100).seconds == pytest.approx(2 * 8192**3 / 989.5e12)
    assert estimate(product(1, 8192, 8192), H100).bound == "HBM"
    assert estimate(product(1, 8192, 8192), H100).seconds == pytest.approx(2 * 8192**2 / 3.35e12, rel=1e-3)


def test_the_bound_changes_at_the_ridge():
    ridge = H100.flops_per_byte("bfloat16")
    for intensity, bound in ((0.99 * ridge, "HBM"), (1.01 * ridge, "compute")):
        op = Operation("at the ridge", flops=intensity * 1e9, bytes=1e9)
        assert op.intensity == pytest.approx(intensity) and estimate(op, H100).bound == bound


@given(st.lists(st.tuples(amounts, amounts), max_size=5), rates, rates)
def test_operations_one_after_another_are_between_full_overlap_and_none(pairs, peak_flops, bandwidth):
    seconds = roofline_seconds(pairs, peak_flops=peak_flops, bandwidth=bandwidth)
    compute, memory = sum(f for f, _ in pairs) / peak_flops, sum(b for _, b in pairs) / bandwidth
    assert max(compute, memory) * (1 - 1e-9) <= seconds <= (compute + memory) * (1 + 1e-9)


@given(amounts, amounts, rates, rates)
def test_the_roof_is_the_rate_at_which_an_operation_of_that_intensity_is_done(flops, size, peak_flops, bandwidth):
    op = Operation("any", flops=flops + 1, bytes=size + 1)
    seconds = roofline_seconds([(op.flops, op.bytes)], peak_flops=peak_flops, bandwidth=bandwidth)
    roof = attainable_flops(op.intensity, peak_flops=peak_flops, bandwidth=bandwidth)
    assert op.flops / seconds == pytest.approx(roof, rel=1e-9)


def test_each_kernel_of_naive_attention_has_a_bound_of_its_own():
    apart = [(2e12, 1e9), (0, 1e10), (2e12, 1e9)]  # products, and a softmax that only moves bytes
    fused = [tuple(map(sum, zip(*apart, strict=True)))]
    rates = {"peak_flops": 1e15, "bandwidth": 2e12}
    assert roofline_seconds(apart, **rates) == pytest.approx(2e-3 + 5e-3 + 2e-3)
    assert roofline_seconds(fused, **rates) == pytest.approx(6e-3)
    assert roofline_seconds(iter(apart), **rates) == roofline_seconds(apart, **rates)
    assert roofline_seconds([], **rates) == 0


def test_other_units_take_part_where_both_sides_are_known():
    op = Operation("softmax", 1e9, 1e6, exponentials=1e12, l2_bytes=1e9, sram_bytes=1e9)
    assert set(estimate(op, A100).parts) == {"compute", "HBM", "L2", "SRAM", "exponentials"}
    assert set(estimate(op, H100).parts) == {"compute", "HBM", "SRAM", "exponentials"}, "its L2 is not published"
    assert estimate(op, H100).bound == "exponentials"
    assert estimate(op, H100).seconds == pytest.approx(1e12 / (132 * 16 * 1.83e9))
    assert set(estimate(Operation("plain", 1, 1), A100).parts) == {"compute", "HBM"}
    bare = dataclasses.replace(H100, exponentials=None, sram_bandwidth=None)
    assert estimate(op, bare).bound == "compute" and set(estimate(op, bare).parts) == {"compute", "HBM"}


def test_total_seconds_counts_every_operation_count_times():
    one, three = product(64, 64, 64), dataclasses.replace(product(1, 4096, 4096), count=3)
    apart = estimate(one, H100).seconds + 3 * estimate(three, H100).seconds
    assert total_seconds([one, three], H100) == pytest.approx(apart)


def test_an_operation_without_traffic_is_never_bound_by_memory():
    op = Operation("in registers", flops=1e9, bytes=0)
    assert op.intensity == float("inf") and estimate(op, H100).bound == "compute"
    assert attainable_flops(op.intensity, peak_flops=1e12, bandwidth=1e9) == 1e12


def test_rates_that_are_not_positive_and_unknown_dtypes_are_refused():
    with pytest.raises(ValueError, match="dtype must be one of float32, float16 on Apple M4, got 'bfloat16'"):
        estimate(product(1, 1, 1), DEVICES["Apple M4"])
    with pytest.raises(ValueError, match="peak_flops and bandwidth must be positive, got 0 and 1"):
        roofline_seconds([(1, 1)], peak_flops=0, bandwidth=1)
