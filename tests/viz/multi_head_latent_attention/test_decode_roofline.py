"""Kernels under a GPU's roofs: points and times are the record's rows."""

import pytest

from llmsys.bench.record import Record
from llmsys.viz.multi_head_latent_attention import decode_roofline
from llmsys.viz.multi_head_latent_attention.decode_roofline import points_of, times_of


def row(name, us, *, B=128, Hq=16, tokens=1, L=4096, page=64):
    size = B * L * 576 * 2
    flops = 2 * Hq * tokens * B * L * 1088
    return {
        "name": name, "shape": "", "page": page, "B": B, "Hq": Hq, "tokens": tokens, "shortest": L, "longest": L,
        "us": us, "bytes": size, "gbps": size / us / 1e3, "tflops": None if name == "copy" else flops / us / 1e6,
    }  # fmt: skip


def record(*more, device="NVIDIA H200", peers=True):
    rows = [row("copy", 140.0), row("gluon", 160.0), row("gluon", 310.0, Hq=128), row("triton", 750.0, Hq=128)]
    rows += [row("gluon", 560.0, Hq=128, tokens=2), row("gluon", 99.0, B=4), row("gluon", 99.0, page=16)]
    rows += [row("expanded", 1356.0), row("naive", 11_580.0)] if peers else []
    return Record("mla_decode", device, {}, "2026-01-01", [*rows, *more])


def drawn(axes):
    return {line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.get_lines()}


def test_points_are_large_shapes_at_their_intensity():
    found = points_of(record())
    assert [(heads, n) for heads, n, *_ in found["gluon"]] == [(16, 1), (128, 1), (128, 2)]
    for heads, n, intensity, _ in found["gluon"]:
        assert intensity == pytest.approx(heads * n * 1088 / 576)
    left = drawn(decode_roofline(record()).figure.axes[0])
    assert left["triton"] == [pytest.approx((128 * 1088 / 576, row("triton", 750.0, Hq=128)["tflops"]))]


def test_times_are_the_forms_of_one_shape():
    assert times_of(record(), 128, 4096) == {
        16: {"gluon": 160.0, "expanded": 1356.0, "naive": 11_580.0},
        128: {"gluon": 310.0, "triton": 750.0},
    }
    right = drawn(decode_roofline(record()).figure.axes[1])
    assert right["naive"] == [(11_580.0, 0)] and right["absorbed, triton"] == [(750.0, 1)]


def test_it_says_in_words_what_it_shows():
    alt = decode_roofline(record()).alt
    assert "on H200" in alt and "gluon with 128 heads and 2 new tokens" in alt and "naive 11.6 ms" in alt


def test_a_record_without_peers_is_drawn():
    assert "naive" not in drawn(decode_roofline(record(peers=False)).figure.axes[1])


@pytest.mark.parametrize("device, context", [("CPU x86_64", 4096), ("NVIDIA H200", 77)])
def test_a_record_of_something_else_is_refused(device, context):
    with pytest.raises(ValueError, match="record must be of mla_decode on a known GPU"):
        decode_roofline(record(device=device), context=context)
