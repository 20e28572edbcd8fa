"""Naive attention against its tokens: what was measured, and the roofline of its three kernels."""

from dataclasses import replace

import pytest

from llmsys.hardware.devices import DEVICES
from llmsys.viz.memory_wall import ridge
from llmsys.viz.memory_wall.ridge import bound, wall

SHAPE = {"B": 1, "H": 1, "D": 64, "dtype": "float32"}
LAPTOP = replace(
    DEVICES["H100 SXM"],
    name="a laptop", flops={"float32": 90e9}, bandwidth=4e9, l2_bytes=32 << 20, l2_bandwidth=40e9,
)  # fmt: skip
TOKENS = (128, 512, 2048, 8192)


def measured(name, scale=0.5, device=LAPTOP):
    return [SHAPE | {"name": name, "T": T, "tflops": scale * bound(device, T, **SHAPE) / 1e12} for T in TOKENS]


def test_the_wall_is_where_both_matrices_leave_the_cache():
    star = wall(LAPTOP, **SHAPE)
    assert 2 * 4 * star**2 == pytest.approx(LAPTOP.l2_bytes)
    assert wall(LAPTOP, **SHAPE | {"H": 16}) == pytest.approx(star / 4)
    assert wall(replace(LAPTOP, l2_bandwidth=None), **SHAPE) == 0


def test_the_bound_is_the_roofline_of_three_kernels():
    near, far = bound(LAPTOP, 2048, **SHAPE), bound(LAPTOP, 2049, **SHAPE)
    assert far < near < LAPTOP.flops["float32"]
    # Far below the ridge, everything waits: four passes over T × T, and q, k, v and o
    T, D, slow = 4096, 64, replace(LAPTOP, bandwidth=1e8)
    seconds = 4 * (4 * T * T + 4 * T * D) / 1e8
    assert bound(slow, T, **SHAPE) == pytest.approx(4 * T * T * D / seconds)
    assert bound(replace(LAPTOP, bandwidth=1e18), T, **SHAPE) == pytest.approx(90e9, rel=1e-3)


def test_the_ridge_shows_what_was_measured_and_what_is_possible(words):
    picture = ridge([*measured("kept buffers"), *measured("new tensors", 0.25)], LAPTOP)
    drawn = {line.get_label(): line for line in picture.figure.axes[0].get_lines()}
    kept = [row["tflops"] * 1e12 for row in measured("kept buffers")]
    assert list(drawn["kept buffers"].get_ydata()) == kept
    assert "T* = 2,048" in words(picture) and "S and P fit into its cache up to 2,048 tokens." in picture.alt
    roofs = [line for line in picture.figure.axes[0].get_lines() if len(line.get_xdata()) > 20]
    assert all(
        y == bound(LAPTOP, T, **SHAPE)
        for roof in roofs
        for T, y in zip(roof.get_xdata(), roof.get_ydata(), strict=True)
    )


def test_a_device_without_a_known_cache_has_one_roof(words):
    picture = ridge(measured("mine", device=replace(LAPTOP, l2_bytes=None)), replace(LAPTOP, l2_bytes=None))
    assert "T*" not in words(picture) and "S and P from memory" in words(picture)


def test_a_ridge_of_nothing_or_of_different_things_is_refused():
    with pytest.raises(ValueError, match="at least one measurement"):
        ridge([], LAPTOP)
    with pytest.raises(ValueError, match="the same B, H, D and dtype"):
        ridge([*measured("a"), measured("b")[0] | {"D": 128}], LAPTOP)
