"""Operations on a device's roofline: the chart says what each takes, and many of them can be read."""

from dataclasses import replace

import pytest

from llmsys.hardware.devices import DEVICES
from llmsys.hardware.roofline import Operation, estimate
from llmsys.viz.roofline import chart

H100 = DEVICES["H100 SXM"]
LAPTOP = replace(H100, name="a laptop", flops={"float32": 90e9}, bandwidth=4e9)


def test_the_roofline_says_what_each_operation_takes(assert_legible, words):
    T, D = 4096, 128
    three = [
        Operation("q kᵀ", flops=2 * T * T * D, bytes=2 * (2 * T * D + T * T)),
        Operation("softmax", flops=5 * T * T, bytes=4 * T * T, dtype="float32"),
        Operation("P v", flops=2 * T * T * D, bytes=2 * (2 * T * D + T * T)),
    ]
    picture = chart(three, H100)
    assert_legible(picture.svg)
    total = sum(estimate(op, H100).seconds for op in three)
    assert f"{1e6 * total:.1f} µs together" in words(picture) and "41% of the peak; waits for memory" in words(picture)
    assert "up to 295 FLOP a byte" in picture.alt and "softmax has 1.25 FLOP a byte" in picture.alt
    assert "arithmetic" in words(chart([replace(three[0], bytes=1e6)], H100))
    with pytest.raises(ValueError, match="at least one Operation"):
        chart([], H100)


@pytest.mark.parametrize("count", [1, 5, 9, 14])
def test_many_operations_fit_on_the_roofline(count, assert_legible):
    many = [Operation(f"operation {n}", flops=1e9 * 3**n, bytes=1e8, dtype="float32") for n in range(count)]
    assert_legible(chart(many, LAPTOP).svg)
