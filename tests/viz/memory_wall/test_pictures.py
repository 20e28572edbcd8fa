"""Lesson 01's pictures and charts show the library's numbers, and what was measured."""

import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from llmsys.attention import cost
from llmsys.bench import recorded
from llmsys.hardware.devices import DEVICES
from llmsys.hardware.roofline import Operation, estimate
from llmsys.viz import attention_growth, memory_wall_overview, naive_traffic, ridge_plot, roofline_chart
from llmsys.viz.kit.numbers import size_in_words
from llmsys.viz.roofline.charts import bound, wall

H100 = DEVICES["H100 SXM"]
SHAPE = {"B": 1, "H": 1, "D": 64, "dtype": "float32"}
LAPTOP = replace(H100, name="a laptop", flops={"float32": 90e9}, bandwidth=4e9, l2_bytes=32 << 20, l2_bandwidth=40e9)
TOKENS = (128, 512, 2048, 8192)


def words(picture):
    return "".join(ElementTree.fromstring(picture.html()).itertext())


def rects(picture, colour):
    """Widths of the rectangles of a colour, from the largest."""
    found = ElementTree.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}rect")
    return sorted((float(each.get("width")) for each in found if each.get("class") == colour), reverse=True)


def measured(name, scale=0.5, device=LAPTOP):
    return [SHAPE | {"name": name, "T": T, "tflops": scale * bound(device, T, **SHAPE) / 1e12} for T in TOKENS]


def growth(name, tokens, **more):
    row = {"name": name, "sweep": "growth", "extra_bytes": 1 << 20}
    return [row | {"T": T, "ms": T / 1000} | more for T in tokens]


def test_the_overview_has_the_librarys_sizes_and_times(assert_legible, monkeypatch):
    picture = memory_wall_overview()
    assert_legible(picture.svg)
    assert "S32 MiB" in words(picture) and "P32 MiB" in words(picture) and "41.3 µs · 132 MiB" in words(picture)
    assert "8.68 µs · 8.6 GFLOP" in words(picture) and "1 MiB" in words(picture)
    long, short = rects(picture, "orange")[0], rects(picture, "green")[0]
    assert long / short == pytest.approx(41.3 / 8.68, rel=0.01)  # the bars are the two times
    double = cost.naive_cost(1, 1, 8192, 128)
    monkeypatch.setattr(sys.modules["llmsys.viz.memory_wall.overview"], "naive_cost", lambda *a, **how: double)
    assert memory_wall_overview().svg != picture.svg


@pytest.mark.parametrize("T, D", [(4096, 128), (512, 128), (65536, 64), (128, 128), (1024, 16), (64, 256)])
def test_beams_are_as_wide_as_their_bytes(T, D, assert_legible):
    picture = naive_traffic(T, D)
    assert_legible(picture.svg)
    beams = rects(picture, "orange-soft") + rects(picture, "blue-soft") + rects(picture, "green-soft")
    assert len(beams) == 8  # q, k; S out, S back; P out, P back; v, o
    large, small = 2 * T * T, 2 * T * D
    for width, size in zip(beams, [large] * 4 + [small] * 4, strict=True):
        assert width == pytest.approx(max(beams[0] * size / large, 1.5), abs=0.11)
    total = cost.naive_cost(1, 1, T, D).hbm_bytes
    assert f"{size_in_words(total)}: {100 * 4 * large / total:.0f}% of it S and P" in words(picture)
    assert f"In all {size_in_words(total)}" in picture.alt and size_in_words(4 * small) in picture.alt


def test_traffic_in_single_precision_is_twice_as_much():
    assert "264 MiB" in naive_traffic(4096, 128, itemsize=4).alt


@pytest.mark.parametrize("how", [(0, 64), (64, 0)])
def test_traffic_that_cannot_be_is_refused(how):
    with pytest.raises(ValueError, match="T, D and itemsize must be positive"):
        naive_traffic(*how)


@pytest.mark.parametrize(
    "count, said", [(512, "512 bytes"), (1 << 20, "1 MiB"), (132 << 20, "132 MiB"), (1 << 40, "1 TiB")]
)
def test_sizes_are_readable(count, said):
    assert size_in_words(count) == said


def test_the_roofline_says_what_each_operation_takes(assert_legible):
    T, D = 4096, 128
    three = [
        Operation("q kᵀ", flops=2 * T * T * D, bytes=2 * (2 * T * D + T * T)),
        Operation("softmax", flops=5 * T * T, bytes=4 * T * T, dtype="float32"),
        Operation("P v", flops=2 * T * T * D, bytes=2 * (2 * T * D + T * T)),
    ]
    picture = roofline_chart(three, H100)
    assert_legible(picture.svg)
    total = sum(estimate(op, H100).seconds for op in three)
    assert f"{1e6 * total:.1f} µs together" in words(picture) and "41% of the peak; waits for memory" in words(picture)
    assert "up to 295 FLOP a byte" in picture.alt and "softmax has 1.25 FLOP a byte" in picture.alt
    assert "arithmetic" in words(roofline_chart([replace(three[0], bytes=1e6)], H100))
    with pytest.raises(ValueError, match="at least one Operation"):
        roofline_chart([], H100)


@pytest.mark.parametrize("count", [1, 5, 9, 14])
def test_many_operations_fit_on_the_roofline(count, assert_legible):
    many = [Operation(f"operation {n}", flops=1e9 * 3**n, bytes=1e8, dtype="float32") for n in range(count)]
    assert_legible(roofline_chart(many, LAPTOP).svg)


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


def test_the_ridge_shows_what_was_measured_and_what_is_possible():
    picture = ridge_plot([*measured("kept buffers"), *measured("new tensors", 0.25)], LAPTOP)
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


def test_a_device_without_a_known_cache_has_one_roof():
    picture = ridge_plot(measured("mine", device=replace(LAPTOP, l2_bytes=None)), replace(LAPTOP, l2_bytes=None))
    assert "T*" not in words(picture) and "S and P from memory" in words(picture)


def test_a_ridge_of_nothing_or_of_different_things_is_refused():
    with pytest.raises(ValueError, match="at least one measurement"):
        ridge_plot([], LAPTOP)
    with pytest.raises(ValueError, match="the same B, H, D and dtype"):
        ridge_plot([*measured("a"), measured("b")[0] | {"D": 128}], LAPTOP)


def test_growth_is_as_recorded_and_ends_where_memory_did():
    record = recorded("attention")
    picture = attention_growth(record)
    times, memory = picture.figure.axes
    for axes, key in ((times, "ms"), (memory, "extra_bytes")):
        drawn = {line.get_label(): line for line in axes.get_lines()}
        for name in ("naive", "sdpa"):
            rows = [row for row in record.rows if row["sweep"] == "growth" and row["name"] == name]
            assert list(drawn[name].get_xdata()) == [row["T"] for row in rows]
            assert list(drawn[name].get_ydata()) == [row[key] for row in rows]
    assert (
        "and out of memory at 32,768" in picture.alt and "out of memory" in words(picture) and "GiB" in words(picture)
    )


def test_growth_can_be_of_some_stages_and_have_this_machine_beside_it():
    rows = growth("naive", (1024, 2048, 4096)) + growth("sdpa", (1024, 4096), extra_bytes=0)
    one = attention_growth(rows, names=["sdpa"])
    assert "naive" not in one.alt and "out of memory" not in one.alt and "sdpa: none" in words(one)
    both = attention_growth(rows, here=growth("naive", (256, 512)))
    assert len(both.figure.axes) == 3 and "here: time" in words(both)
    assert list(both.figure.axes[2].get_lines()[0].get_ydata()) == [0.256, 0.512]
    with pytest.raises(ValueError, match="no growth rows of FA9"):
        attention_growth(rows, names=["FA9"])
