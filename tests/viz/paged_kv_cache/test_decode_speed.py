"""Paged decode against a copy: points are rows, whatever kernels, shapes and pages a record has."""

import pytest

from llmsys.bench import all_recorded
from llmsys.bench.record import Record
from llmsys.viz.paged_kv_cache import decode_speed

SHAPES = {"B 64, 32/8 heads of 128, L 1024": 268, "B 256, 9/3 heads of 64, L 64–4096": 426}


def record(kernels=("triton",), pages=(16, 64, 256), device="NVIDIA H100 80GB HBM3"):
    rows = []
    for shape, size in SHAPES.items():
        for page in pages:
            for n, name in enumerate((*kernels, "dense", "copy")):
                if name == "dense" and "–" in shape:
                    continue
                share = 1.0 if name == "copy" else round(0.9 - 0.1 * n, 1)
                rows.append({"name": name, "shape": shape, "page": page, "bytes": size, "gbps": 3000 * share + page,
                             "of_copy": share})  # fmt: skip
    return Record("paged_decode", device, {}, "2026-01-01", rows)


def points(axes):
    return {line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.get_lines()}


def test_points_are_the_shares_of_each_kernel_from_the_fewest_bytes_to_the_most():
    left, right = decode_speed(record(("triton", "gluon"))).figure.axes
    found = points(left)
    assert found["triton"] == [(0.9, 0), (0.9, 1)]
    assert found["gluon"] == [(0.8, 0), (0.8, 1)]
    assert found["dense cache, no pages"] == [(0.7, 0)]
    assert [label.get_text() for label in left.get_yticklabels()] == [
        "64 × 1024, 32/8 heads of 128", "256 × 64–4096, 9/3 heads of 64",
    ]  # fmt: skip


def test_lines_run_along_the_pages():
    right = decode_speed(record()).figure.axes[1]
    lines = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in right.get_lines()]
    assert [(16, 2716.0), (64, 2764.0), (256, 2956.0)] in lines
    assert [label.get_text() for label in right.get_xticklabels()] == ["16", "64", "256"]


def test_a_record_without_many_sizes_has_no_lines_and_is_drawn(words):
    picture = decode_speed(record(pages=(16, 64)))
    assert all(len(line.get_xdata()) == 0 for line in picture.figure.axes[1].get_lines())
    assert "share of the copy's speed" in words(picture)


def test_a_row_of_panels_for_each_record():
    picture = decode_speed(record(), record(("triton", "gluon"), device="NVIDIA H200"))
    assert len(picture.figure.axes) == 4
    assert "On H100 80GB HBM3, pages of 16" in picture.alt and "On H200" in picture.alt
    assert "64 × 1024, 32/8 heads of 128: triton 0.9, gluon 0.8, dense cache, no pages 0.7" in picture.alt


def test_what_is_recorded_can_be_drawn():
    found = all_recorded("paged_decode")
    assert decode_speed(*found, page=64).alt.count("On ") == len(found) >= 1


def test_where_there_is_nothing_to_draw_it_says_so():
    with pytest.raises(ValueError, match="records must be one at least"):
        decode_speed()
    with pytest.raises(ValueError, match="has no rows with pages of 8"):
        decode_speed(record(), page=8)
